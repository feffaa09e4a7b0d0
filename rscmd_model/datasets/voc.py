"""VOC XML label files, as FLIR-aligned, LLVIP and M3FD have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from rscmd_model.datasets.pairs import Labels, Problem, tidy


def read_voc(file: Path, names: Mapping[int, str]) -> Labels:
    """Read a VOC XML file; classes by name, corners in px taken as edges (no pixel is added or taken away).

    Faults are problems that name the file and the object. Without a usable <size> the boxes have no scale, and the file
    is a bad label.
    """
    none = tidy([], file, []).boxes
    try:
        root = ElementTree.parse(file).getroot()
        size = (int(float(root.findtext("size/width") or 0)), int(float(root.findtext("size/height") or 0)))
    except (ElementTree.ParseError, OSError, ValueError) as error:
        return Labels(none, (Problem("bad_label", file, f"{file} is no readable VOC XML: {error}"),))
    if min(size) <= 0:
        return Labels(none, (Problem("bad_label", file, f"{file}: <size> names no image size: {size}"),))
    index = {name: number for number, name in names.items()}
    rows, where, problems = [], [], []
    for number, item in enumerate(root.iter("object"), 1):
        place = f"object {number}"
        name = (item.findtext("name") or "").strip()
        if name not in index:
            text = f"{file}, {place}: class {name!r} is unknown; the set has {', '.join(index)}"
            problems.append(Problem("unknown_class", file, text))
            continue
        try:
            left, top, right, bottom = (
                float(item.findtext(f"bndbox/{edge}") or "") for edge in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            problems.append(Problem("bad_label", file, f"{file}, {place}: <bndbox> lacks a number"))
            continue
        width, height = size
        rows.append((float(index[name]), left / width, top / height, right / width, bottom / height))
        where.append(place)
    labels = tidy(rows, file, where)
    return Labels(labels.boxes, (*problems, *labels.problems), size)
