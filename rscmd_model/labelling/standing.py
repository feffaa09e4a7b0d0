"""What the folder of a labelled set says of its pairs now: the labels that stand, and the regions that are doubtful."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rscmd_model.datasets.folders import images_in
from rscmd_model.datasets.sidecars import Found, Sidecar, label_line, numbers, read_sidecar
from rscmd_model.datasets.yolo import read_yolo
from rscmd_model.errors import UserError
from rscmd_model.imaging.images import glance
from rscmd_model.labelling.label_set import LabelSet

Box = tuple[int, tuple[float, float, float, float]]
"""Number of the class; left, top, right, bottom in px of the visible picture."""


@dataclass(frozen=True)
class Standing:
    """A pair of a labelled set.

    Attributes:
        split: "train" or "val".
        stem: of the names of its files.
        visible: the picture that the boxes belong to.
        thermal: the other one.
        size: (width, height) of the visible picture, px.
        label_file, sidecar_file: they need not be there.
        labels: the objects; those of a person, which have no score, with 1.
        unsure: regions where something may be.
        sidecar: None where there is none.
        touched: whether the labels are a person's.
    """

    split: str
    stem: str
    visible: Path
    thermal: Path
    size: tuple[int, int]
    label_file: Path
    sidecar_file: Path
    labels: tuple[Found, ...]
    unsure: tuple[Found, ...]
    sidecar: Sidecar | None
    touched: bool


def pictures(folder: Path, split: str) -> tuple[dict[str, Path], dict[str, Path]]:
    """The visible and the thermal pictures of a split by stem; empty where there is no such folder.

    Args:
        folder: of the set.
        split: one of `SPLITS`.

    Raises:
        UserError: a folder cannot be read, or two pictures in it have one stem.
    """
    both = []
    for camera in ("visible", "thermal"):
        place = folder / camera / split
        found, problems = images_in(place, deep=False) if place.is_dir() else ({}, [])
        if problems:
            raise UserError(problems[0].text)
        both.append(found)
    return both[0], both[1]


def standing(folder: Path, split: str, names: Mapping[int, str]) -> Iterator[Standing]:
    """The pairs of a split, by stem; one is read when it is asked for.

    Args:
        folder: of the set.
        split: one of `SPLITS`.
        names: class names by number.

    Raises:
        UserError: as `read_pair` and `pictures`.
    """
    visible, thermal = pictures(folder, split)
    for stem in sorted(set(visible) & set(thermal)):
        yield read_pair(folder, split, stem, visible[stem], thermal[stem], names)


def read_pair(folder: Path, split: str, stem: str, visible: Path, thermal: Path, names: Mapping[int, str]) -> Standing:
    """Read what stands of one pair.

    Args:
        folder: of the set.
        split: one of `SPLITS`.
        stem: of the names of its files.
        visible, thermal: its pictures.
        names: class names by number.

    Raises:
        UserError: its picture, label file or sidecar cannot be read.
    """
    files = LabelSet(folder).pair(split, stem)
    label_file, sidecar_file = files.labels, files.sidecar
    sidecar = read_sidecar(sidecar_file) if sidecar_file.exists() else None
    text = files.text
    if sidecar is not None and sidecar.goes_with(text):
        labels, unsure = sidecar.labels, sidecar.ignore
        if unknown := [found.line for found in labels if numbers(found.line)[0] not in names]:
            known = ", ".join(names.values())
            raise UserError(f"{label_file}: class {unknown[0].split()[0]} is unknown; names has {known}")
    else:
        labels, unsure = _drawn(label_file, names) if text.strip() else (), ()
    touched = sidecar is None or sidecar.touched(text)
    size = glance(visible).size
    return Standing(split, stem, visible, thermal, size, label_file, sidecar_file, labels, unsure, sidecar, touched)


def pixel_box(found: Found, size: tuple[int, int]) -> Box:
    """Where an object lies.

    Args:
        found: the object.
        size: (width, height) of the visible picture, px.
    """
    label, cx, cy, w, h = numbers(found.line)
    across, down = size
    return int(label), ((cx - w / 2) * across, (cy - h / 2) * down, (cx + w / 2) * across, (cy + h / 2) * down)


def found_at(box: Box, size: tuple[int, int], score: float) -> Found:
    """An object that a person drew; see `pixel_box`."""
    label, (left, top, right, bottom) = box
    across, down = size
    middle = (left + right) / 2 / across, (top + bottom) / 2 / down
    return Found(label_line(label, (*middle, (right - left) / across, (bottom - top) / down)), score)


def _drawn(file: Path, names: Mapping[int, str]) -> tuple[Found, ...]:
    """The lines that a person wrote, polygons as the boxes around them."""
    read = read_yolo(file, names)
    for problem in read.problems:
        if problem.kind != "repeated_box":
            raise UserError(problem.text)
    return tuple(Found(label_line(int(label), box), 1.0) for label, *box in read.boxes.tolist())
