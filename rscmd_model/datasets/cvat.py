"""The XML of "CVAT for images 1.1": rectangles, turned ones too, and polygons, ellipses and masks by the box around."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from rscmd_model.datasets.entries import Entry, Listed, Shape, around, image_size, turned
from rscmd_model.errors import UserError, first_line, quoted
from rscmd_model.text import read_xml

_BOXLESS = ("points", "polyline", "cuboid", "skeleton")


def load(file: Path) -> Listed:
    """Images by name, classes in the order of the task's labels (then as they occur).

    Points, lines, cuboids and skeletons are no boxes: left out, with a problem.

    Raises:
        UserError: the file is missing, no XML, another of CVAT's forms, or lacks a number.
    """
    root = read_xml(file)
    if root.tag != "annotations" or root.find("image") is None:
        hint = "; CVAT for video has tracks: export as 'CVAT for images 1.1'" if root.find("track") is not None else ""
        raise UserError(f"{file} is no file of 'CVAT for images 1.1': it lists no image{hint}")
    classes = dict.fromkeys(name.text or "" for name in root.iterfind("meta//labels/label/name"))
    images: dict[str, Entry] = {}
    for image in root.iterfind("image"):
        name = image.get("name", "")
        size = image_size(image.get("width"), image.get("height"))
        if size is None:
            raise UserError(f"{file}: image {quoted(name)} has no size")
        if name in images:
            raise UserError(f"{file} lists {quoted(name)} twice")
        try:
            shapes = [_shape(item, f"shape {n}") for n, item in enumerate(image, 1) if item.tag != "tag"]
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(
                f"{file}: image {quoted(name)} has a shape that cannot be read: {first_line(error)}"
            ) from None
        classes.update(dict.fromkeys(shape.name for shape in shapes))
        images[name] = Entry(size, tuple(shapes))
    return Listed(images, tuple(classes))


def _shape(item: ElementTree.Element, place: str) -> Shape:
    name = item.get("label", "")
    degrees = float(item.get("rotation", 0))
    place = f"{place} ({item.tag})" if item.tag in _BOXLESS else place
    match item.tag:
        case "box":
            left, top, right, bottom = (float(item.get(edge, "")) for edge in ("xtl", "ytl", "xbr", "ybr"))
            box = turned((left, top, right, bottom), degrees, ((left + right) / 2, (top + bottom) / 2))
        case "ellipse":
            x, y, rx, ry = (float(item.get(key, "")) for key in ("cx", "cy", "rx", "ry"))
            cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            half = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
            box = x - half[0], y - half[1], x + half[0], y + half[1]
        case "mask":
            left, top, width, height = (float(item.get(key, "")) for key in ("left", "top", "width", "height"))
            box = left, top, left + width, top + height
        case "polygon":
            points = [tuple(map(float, point.split(","))) for point in item.get("points", "").split(";")]
            box = around([(x, y) for x, y in points])
        case tag:
            reason = "is no box" if tag in _BOXLESS else "is no shape that is read"
            return Shape(name, (0, 0, 0, 0), place, ("no_box", f"{quoted(tag)} {reason}, left out"))
    return Shape(name, box, place)
