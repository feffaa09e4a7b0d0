"""VOC XML label files, as FLIR-aligned, LLVIP and M3FD have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rscmd_model.datasets.entries import image_size
from rscmd_model.datasets.pairs import Labels, Problem, tidy
from rscmd_model.errors import UserError, quoted
from rscmd_model.text import read_xml

FRACTIONS = "the box lies within one pixel: its numbers are fractions, and pixels are wanted"


def read_voc(file: Path, names: Mapping[int, str]) -> Labels:
    """Read a VOC XML file.

    Corners in px are taken as edges: no pixel is added or taken away. Without a usable <size> the boxes have no scale,
    and the file is a bad label.

    Args:
        file: the XML file.
        names: class names by number; the file has classes by name.

    Returns:
        the objects, and a problem for each fault, which names the file and the object.
    """
    none = tidy([], file, []).boxes
    try:
        root = read_xml(file)
    except UserError as error:
        return Labels(none, (Problem("bad_label", file, str(error)),))
    written = [root.findtext(f"size/{side}") or "0" for side in ("width", "height")]
    size = image_size(*written)
    if size is None:
        text = f"{file}: <size> names no image size: {quoted(' x '.join(written))}"
        return Labels(none, (Problem("bad_label", file, text),))
    index = {name: number for number, name in names.items()}
    width, height = size
    rows, where, hints, problems = [], [], [], []
    for number, item in enumerate(root.iter("object"), 1):
        place = f"object {number}"
        name = (item.findtext("name") or "").strip()
        if name not in index:
            text = f"{file}, {place}: class {quoted(name)} is unknown; the set has {', '.join(index)}"
            problems.append(Problem("unknown_class", file, text))
            continue
        try:
            left, top, right, bottom = (
                float(item.findtext(f"bndbox/{edge}") or "") for edge in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            problems.append(Problem("bad_label", file, f"{file}, {place}: <bndbox> lacks a number"))
            continue
        if max(map(abs, (left, top, right, bottom))) <= 1 < min(size):
            problems.append(Problem("units", file, f"{file}, {place}: {FRACTIONS}"))
            continue
        rows.append((float(index[name]), left / width, top / height, right / width, bottom / height))
        where.append(place)
        # Tools that write sizes into xmax and ymax.
        inside = right > 0 < bottom and left + right <= width and top + bottom <= height
        hints.append("; as x y width height the numbers lie inside, but VOC wants corners" if inside else "")
    labels = tidy(rows, file, where, hints)
    return Labels(labels.boxes, (*problems, *labels.problems), size)
