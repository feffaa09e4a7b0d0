"""Label Studio's JSON and JSON-MIN exports: rectangles, turned ones too, and polygons and ellipses by the box around.

Its numbers are percent of the image, and a turned rectangle turns about its upper left corner.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from rscmd_model.datasets.entries import Entry, Listed, Shape, around, image_size, turned
from rscmd_model.errors import UserError, first_line, quoted
from rscmd_model.text import read_json

_PICTURE = re.compile(r"\.(bmp|gif|jpe?g|png|tiff?|webp)$", re.IGNORECASE)
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an uploaded file
_KINDS = ("rectanglelabels", "polygonlabels", "ellipselabels")
_OTHERS = ("brushlabels", "keypointlabels", "vectorlabels")


def load(file: Path) -> Listed:
    """Images by name, classes in alphabetic order. What was predicted, skipped or cancelled is not read (`done`).

    A task may have several pictures, as `visible` and `thermal`; then a region's `to_name` is to be the key of its
    picture.

    Raises:
        UserError: the file is missing, no JSON, no export of tasks with pictures, or two people's labels of one.
    """
    data: Any = read_json(file)
    images: dict[str, Entry] = {}
    try:
        if not isinstance(data, list) or not data:
            raise TypeError("a list of tasks is wanted")
        for number, task in enumerate(data, 1):
            for name, entry in _task(task, f"{file}, task {number}"):
                if name in images:
                    raise UserError(f"{file} lists {quoted(name)} twice")
                images[name] = entry
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = f"{type(error).__name__} {quoted(first_line(error))[1:-1]}"
        raise UserError(f"{file} is no JSON export of Label Studio: {said}") from None
    classes = {shape.name for entry in images.values() for shape in entry.shapes}
    return Listed(images, tuple(sorted(classes)))


def _task(task: dict[str, Any], where: str) -> Iterator[tuple[str, Entry]]:
    data = task.get("data", task)  # JSON-MIN has the task's data beside its labels
    pictures = {key: _name(value) for key, value in data.items() if isinstance(value, str)}
    pictures = {key: name for key, name in pictures.items() if _PICTURE.search(name)}
    if not pictures:
        raise UserError(f"{where} has no picture: its data name no file such as NAME.jpg")
    regions: dict[str, list[Shape]] = {key: [] for key in pictures}
    sizes: dict[str, tuple[int, int]] = {}
    for region in _regions(task, where):
        to = str(region.get("to_name", ""))
        key = to if to in pictures else next(iter(pictures))
        if len(pictures) > 1 and to not in pictures:
            raise UserError(f"{where} has the pictures {', '.join(pictures)}, and a region of {quoted(to)}")
        size = image_size(region.get("original_width"), region.get("original_height"))
        if size is None:
            raise UserError(f"{where}: a region lacks original_width and original_height")
        sizes[key] = size
        place = f"region {len(regions[key]) + 1}"
        if not region["value"].get(region["type"]):  # a person has deselected it: neither an object nor deleted
            raise UserError(f"{where}, {place} of {quoted(pictures[key])} has no label: give it one, or delete it")
        regions[key] += _shapes(region, size, place)
    done = bool(_submitted(task)) if "data" in task else "annotation_id" in task or any(regions.values())
    for key, name in pictures.items():
        yield name, Entry(sizes.get(key), tuple(regions[key]), done)


def _regions(task: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The regions that somebody drew, of either form of export."""
    if "data" in task:
        done = _submitted(task)
        if len(done) > 1:
            raise UserError(f"{where} has {len(done)} annotations: leave one of them, or export with one")
        found = done[0]["result"] if done else []
    else:  # a list for each kind of control tag
        lists = [v for v in task.values() if isinstance(v, list) and v and all(isinstance(r, dict) for r in v)]
        found = [{**region, "value": region, "type": _kind(region)} for regions in lists for region in regions]
    return [r for r in found if r.get("type") in (*_KINDS, *_OTHERS)]


def _submitted(task: dict[str, Any]) -> list[dict[str, Any]]:
    """What people have submitted and not skipped."""
    return [a for a in task.get("annotations") or task.get("completions") or [] if not a.get("was_cancelled")]


def _kind(region: dict[str, Any]) -> str:
    return next((kind for kind in (*_KINDS, *_OTHERS) if kind in region), "")


def _shapes(region: dict[str, Any], size: tuple[int, int], place: str) -> list[Shape]:
    kind, value = region["type"], region["value"]
    names = [str(name) for name in value[kind]]
    if kind in _OTHERS:
        return [Shape(name, (0, 0, 0, 0), place, ("no_box", f"{kind} is no box, left out")) for name in names]
    across, down = size[0] / 100, size[1] / 100
    if kind == "polygonlabels":
        box = around([(float(x) * across, float(y) * down) for x, y in value["points"]])
    else:
        x, y = float(value["x"]) * across, float(value["y"]) * down
        degrees = float(value.get("rotation") or 0)
        if kind == "rectanglelabels":
            right, bottom = x + float(value["width"]) * across, y + float(value["height"]) * down
            box = turned((x, y, right, bottom), degrees, (x, y))
        else:
            rx, ry = float(value["radiusX"]) * across, float(value["radiusY"]) * down
            cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            half = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
            box = x - half[0], y - half[1], x + half[0], y + half[1]
    return [Shape(name, box, place) for name in names]


def _name(address: str) -> str:
    """The path within an address of a picture: of an upload without its prefix, of local files what follows ?d=."""
    parts = urlsplit(address)
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    folder, slash, base = path.rpartition("/")
    return folder + slash + (_UPLOADED.sub("", base) if "/upload/" in path else base)
