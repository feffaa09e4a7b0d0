"""What a label file of many images says about one of them, whatever its form: COCO, CVAT or Label Studio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_PIXELS = 1_000_000  # of a side of an image


@dataclass(frozen=True)
class Shape:
    """One object: its class name, the edges of the upright box around it in px, and what is odd about it.

    Attributes:
        name: class.
        box: left, top, right, bottom.
        place: as "annotation 3".
        left_out: a kind of problem and the reason, where the object is not used.
        hint: what to add to a message when the box does not lie in the image.
    """

    name: str
    box: tuple[float, float, float, float]
    place: str
    left_out: tuple[str, str] | None = None
    hint: str = ""


@dataclass(frozen=True)
class Entry:
    """One image.

    Attributes:
        size: (width, height) in px, or None where no object says it.
        shapes: its objects.
        done: False for an image that is listed and that nobody has labelled, whose objects are not known.
    """

    size: tuple[int, int] | None
    shapes: tuple[Shape, ...]
    done: bool = True


@dataclass(frozen=True)
class Listed:
    """What a label file of many images lists.

    Attributes:
        images: by the name that the file has for them.
        classes: their names, in the order of the file.
    """

    images: dict[str, Entry]
    classes: tuple[str, ...]


def around(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the upright box around points."""
    xs, ys = zip(*points)
    return min(xs), min(ys), max(xs), max(ys)


def turned(
    box: tuple[float, float, float, float], degrees: float, about: tuple[float, float]
) -> tuple[float, float, float, float]:
    """The upright box around a turned box.

    Args:
        box: left, top, right, bottom in px.
        degrees: by which it is turned, clockwise on the screen.
        about: the point (x, y) in px about which it is turned.

    Returns:
        left, top, right, bottom in px.
    """
    left, top, right, bottom = box
    if not degrees or not math.isfinite(degrees):
        return box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x0, y0 = about
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    return around([(x0 + (x - x0) * cos - (y - y0) * sin, y0 + (x - x0) * sin + (y - y0) * cos) for x, y in corners])


def image_size(width: object, height: object) -> tuple[int, int] | None:
    """Read the size of an image.

    Args:
        width: px, as the file has it: a number or text.
        height: px, likewise.

    Returns:
        (width, height) in px, or None where that is no size of an image.
    """
    try:
        size = int(float(width)), int(float(height))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return size if 0 < min(size) <= max(size) <= MOST_PIXELS else None
