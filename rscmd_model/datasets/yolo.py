"""Paired YOLO folders: an image finds its partner and its label file by its path below the split's folder."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rscmd_model.datasets.folders import explained, images_in, others_below, walk
from rscmd_model.datasets.pairs import Labels, Listing, PairFiles, Place, Problem, match, tidy
from rscmd_model.datasets.teaching import Teaching
from rscmd_model.datasets.two_labels import VISIBLE, Boxes
from rscmd_model.errors import UserError, quoted
from rscmd_model.text import read_text

_MOST_OBJECTS = 10_000  # of one image
# What labelling tools leave beside labels, without a suffix.
NO_LABELS = ("classes", "predefined_classes", "labels", "obj", "readme", "license", "notes")


@dataclass(frozen=True)
class YoloFolders:
    """Per split a folder of visible images, one of thermal images and one of labels (`Reader`).

    Attributes:
        folders: split, visible folder, thermal folder, folder of the visible images' labels.
        thermal_labels: split and folder of the thermal images' labels, where there are any.
        boxes: which of the labels are used.
        teaching: what labels teach that no person drew; None where a person drew them all.
    """

    folders: tuple[tuple[str, Path, Path, Path], ...]
    thermal_labels: tuple[tuple[str, Path], ...] = ()
    boxes: Boxes = VISIBLE
    teaching: Teaching | None = None

    def places(self) -> tuple[Place, ...]:
        """Three folders of each split, or four, and that of the sidecars."""
        kinds = ("visible", "thermal", "labels")
        found = [Place(split, kind, f) for split, *rest in self.folders for kind, f in zip(kinds, rest)]
        found += [Place(split, "labels", folder) for split, folder in self.thermal_labels]
        found = [replace(place, suffix=".txt") if place.kind == "labels" else place for place in found]
        if self.teaching:
            found += [Place(split, "labels", self.teaching.folder / split, ".json") for split, *_ in self.folders]
        return tuple(found)

    def unlisted(self) -> tuple[str, bool]:
        """Every image in a split's folder is in the split."""
        return "in the folder of no split", False

    def pairs(self, split: str) -> Listing:
        """The pairs of images of one stem; a pair without a label file has no objects.

        Raises:
            UserError: a folder is missing, or has no images in it.
        """
        _, visible_folder, thermal_folder, labels = next(row for row in self.folders if row[0] == split)
        folders = {place.folder for place in self.places()}
        visible, doubled = images_in(visible_folder, others_below(visible_folder, folders))
        thermal, doubled_too = images_in(thermal_folder, others_below(thermal_folder, folders))
        stems, missing = match(visible, thermal)
        if not visible and not thermal:
            raise UserError(f"{split}: no images in {visible_folder}")
        if not labels.is_dir() and (beside := labels.with_name(visible_folder.name)).is_dir():
            raise UserError(
                f"{split}: no folder {labels} with the labels; if they are those in {beside}, write "
                f"'labels: {{{split}: {beside}}}' into data.yaml"
            )
        first, problem = _labels_of(labels, folders, {*visible, *thermal}, split)
        problems = [*doubled, *doubled_too, *explained(missing, (visible_folder, thermal_folder)), *problem]
        second: dict[str, Path] = {}
        for folder in (folder for name, folder in self.thermal_labels if name == split):
            second, problem = _labels_of(folder, folders, {*visible, *thermal}, split)
            problems += problem
        known: dict[str, Path] = {}
        if self.teaching:
            known, problem = self.teaching.sidecars(split, stems)
            problems += problem
        found = tuple(
            PairFiles(s, visible[s], thermal[s], first.get(s), second.get(s), sidecar=known.get(s)) for s in stems
        )
        return Listing(found, tuple(problems))

    def labels(self, pair: PairFiles, names: Mapping[int, str]) -> Labels:
        """As `Reader.labels`, from YOLO label files and their sidecars."""
        labels = self.boxes.of(read_yolo(pair.label, names), read_yolo(pair.thermal_label, names))
        return self.teaching.of(labels, pair) if self.teaching else labels


def _labels_of(folder: Path, folders: set[Path], stems: set[str], split: str) -> tuple[dict[str, Path], list[Problem]]:
    """Label files by stem. It is a problem when there are some and none belongs to one of the images `stems`.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{split}: no folder {folder} with the labels; the key 'labels' of data.yaml names another")
    found: dict[str, Path] = {}
    foreign: list[str] = []
    for name in walk(folder, others_below(folder, folders)):
        stem, suffix = os.path.splitext(name)
        if suffix == ".txt" and stem in stems:
            found[stem] = folder / name
        elif suffix.lower() == ".txt" and is_label(name):
            foreign.append(name)
    if found or not foreign:
        return found, []
    text = f"none of the {len(foreign)} label files in {folder} belongs to an image of {split}, such as {foreign[0]}"
    return found, [Problem("foreign_labels", folder, text)]


def is_label(name: str) -> bool:
    """Whether a file of this name may be meant as labels: not hidden, and none of the lists that tools leave there."""
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[0].lower() not in NO_LABELS


def read_yolo(file: Path | None, names: Mapping[int, str]) -> Labels:
    """Read a YOLO label file.

    A line is "class cx cy w h", or "class x1 y1 x2 y2 x3 y3 ...", a polygon of three corners or more (segmentation
    labels, oriented boxes), of which the upright box around it is taken. All as fractions of the image.

    Args:
        file: the label file; None for an image without objects.
        names: class names by number.

    Returns:
        the objects, and a problem for each fault, which names the file and the line.
    """
    none = tidy([], file or Path(), [])
    if file is None:
        return none
    try:
        lines = [(number, line) for number, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
    except UserError as error:
        return Labels(none.boxes, (Problem("bad_label", file, str(error)),))
    if len(lines) > _MOST_OBJECTS:
        text = f"{file}: {len(lines)} objects in one image, more than {_MOST_OBJECTS}"
        return Labels(none.boxes, (Problem("bad_label", file, text),))
    rows, where, hints, problems = [], [], [], []
    for number, line in lines:
        place = f"line {number}"
        words = line.split()
        try:
            cls, *values = (float(word) for word in words)
        except ValueError:
            cls, values = math.nan, []
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            hint = ", without a confidence" if len(values) == 5 else ""
            text = f"{file}, {place}: expected 'class cx cy w h' or a polygon{hint}, got {quoted(line.strip())}"
            problems.append(Problem("bad_label", file, text))
        elif not math.isfinite(cls) or cls not in names:
            text = (
                f"{file}, {place}: class {quoted(words[0])[1:-1]} is unknown; names has classes 0 to {len(names) - 1}"
            )
            problems.append(Problem("unknown_class", file, text))
        elif max(values) > 2 and all(map(math.isfinite, values)):
            text = f"{file}, {place}: {quoted(line.strip())} lies outside the image: fractions from 0 to 1 are wanted"
            unit = "percent" if max(values) <= 100 else "pixels"
            problems.append(Problem("units", file, f"{text}, and these look like {unit}"))
        else:
            rows.append((cls, *_edges(values)))
            where.append(place)
            hints.append(_hint(values))
    labels = tidy(rows, file, where, hints)
    return Labels(labels.boxes, (*problems, *labels.problems))


def _edges(values: list[float]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a box or around a polygon; NaN stays NaN."""
    if len(values) == 4:
        cx, cy, w, h = values
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    if any(map(math.isnan, values)):
        return math.nan, math.nan, math.nan, math.nan
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _hint(values: list[float]) -> str:
    """What to add when the box does not lie in the image and its numbers, read as corners, would."""
    if len(values) == 4 and 0 <= values[0] < values[2] <= 1 and 0 <= values[1] < values[3] <= 1:
        return "; as corners x1 y1 x2 y2 the numbers lie inside, but YOLO wants centre and size"
    return ""
