"""COCO json files of detections, as COCO's authors, CVAT, Roboflow, Label Studio and others write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rscmd_model.datasets.entries import Entry, Listed, Shape, image_size, turned
from rscmd_model.errors import UserError, first_line, quoted
from rscmd_model.text import read_json


def load(file: Path) -> Listed:
    """Images by `file_name`, classes in order of their ids; a box that CVAT says is turned becomes the one around it.

    Raises:
        UserError: the file is missing, no JSON, or lacks what a COCO detection file has.
    """
    data: Any = read_json(file)
    try:
        categories = {int(c["id"]): str(c["name"]) for c in data["categories"]}
        boxes: dict[int, list[Shape]] = {}
        for note in data["annotations"]:
            shapes = boxes.setdefault(int(note["image_id"]), [])
            shapes.append(_shape(note, categories[int(note["category_id"])], f"annotation {len(shapes) + 1}"))
        images: dict[str, Entry] = {}
        for image in data["images"]:
            name, number = str(image["file_name"]), int(image["id"])
            width, height = image["width"], image["height"]
            size = image_size(width, height)
            if size is None:
                raise UserError(f"{file}: image {quoted(name)} has the size {quoted(f'{width} x {height}')}")
            if name in images:
                raise UserError(f"{file} lists {quoted(name)} twice")
            shapes = boxes.pop(number, [])
            images[name] = Entry(size, tuple(_with_hint(shape, size) for shape in shapes))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = quoted(first_line(error))[1:-1]
        raise UserError(f"{file} is no COCO detection file: {type(error).__name__} {said}") from None
    if boxes:
        raise UserError(f"{file}: annotations of an image id {min(boxes)} that is not among its images")
    return Listed(images, tuple(categories[number] for number in sorted(categories)))


def _shape(note: Any, name: str, place: str) -> Shape:
    x, y, w, h = (float(v) for v in note["bbox"])
    attributes = note.get("attributes")
    degrees = float(attributes.get("rotation") or 0) if isinstance(attributes, dict) else 0.0
    box = turned((x, y, x + w, y + h), degrees, (x + w / 2, y + h / 2))
    left_out = ("crowd", "a crowd region, left out") if note.get("iscrowd") else None
    return Shape(name, box, place, left_out)


def _with_hint(shape: Shape, size: tuple[int, int]) -> Shape:
    """Add what to say when the box leaves the image while its numbers, read as corners, lie inside."""
    x, y, right, bottom = shape.box
    if 0 <= x < right - x <= size[0] and 0 <= y < bottom - y <= size[1]:
        hint = "; as corners x1 y1 x2 y2 the numbers lie inside, but COCO wants x y width height"
        return Shape(shape.name, shape.box, shape.place, shape.left_out, hint)
    return shape
