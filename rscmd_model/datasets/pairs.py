"""What every layout of a paired data set comes down to: pairs of a split, and labels (class cx cy w h) of a pair.

A layout is a `Reader`. Those who consume data (training, evaluation, bags, the check) see a `DataConfig` alone and
never ask which layout it is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.imaging.registration import Registration
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.text import utf_8

# What a published set is known to have: read over, counted and said. In data of one's own each is a mistake to mend.
# In both the box is clipped or left out, or the pair is used as it is.
TOLERATED = {
    "unknown_class": "label of a class the set does not define, left out",
    "outside": "box beyond the image's edge, clipped",
    "empty_box": "box without area, left out",
}
# Never stops a training.
REPORTED = {
    "repeated_box": "the same box twice, used once",
    "crowd": "COCO crowd region, left out",
    "no_box": "points, lines or other shapes that are no boxes, left out",
    "unlabelled": "pair that is listed and that nobody has labelled, left out",
    "size_mismatch": "the two images differ in size; the thermal one is laid over the visible one",
    "orientation": "EXIF turns one image of the pair and not the other",
    "label_size": "the label file names another image size than the image has; its own is believed",
    "pair_count": "not the number of pairs that was published",
    "old_labels": "as many boxes as before the set's labels were corrected",
    "out_of_scale": "thermal image that is black or white all over on the thermal contract's fixed scale",
    "near_copy": "nearly the same pair in train and in another split",
    "unused_label": "label file that no pair uses",
    "unused_image": "image that no pair uses",
    "class_list": "list of classes beside the labels that differs from names",
}
# Always stops a training: there is nothing to train on.
FATAL = {
    "no_split": "split whose folder or list is missing",
    "missing": "pair that is listed, and neither of its images is there",
    "no_partner": "image without its partner",
    "same_stem": "two images of one stem, so the partner is ambiguous",
    "no_label": "no label file",
    "bad_label": "label file that cannot be read",
    "unreadable": "image missing, cut short or damaged",
    "palette": "thermal image in a colour palette",
    "thermal_type": "thermal image of another type than the thermal contract",
    "foreign_labels": "split whose label files belong to none of its images",
    "units": "boxes in other units than the format has",
    "registration": "images of another shape than the registration is for",
}
KINDS = {**FATAL, **TOLERATED, **REPORTED}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the data.

    Attributes:
        kind: a key of `KINDS`.
        file: that it is about.
        text: a whole sentence that names the file.
        partner: the other image, where both are left out for it.
    """

    kind: str
    file: Path
    text: str
    partner: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of problem {self.kind!r}")


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair.

    Attributes:
        stem: path below the split's folder without suffix, with "/" between folders.
        visible, thermal: the images.
        label: the label file; None where no label file means an image without objects.
        thermal_label: the label file of the thermal image, where each camera has labels of its own.
        entries: what a label file of many images calls the visible and the thermal one.
        sidecar: what is known of labels that no person drew; None where a person drew them.
    """

    stem: str
    visible: Path
    thermal: Path
    label: Path | None
    thermal_label: Path | None = None
    entries: tuple[str | None, str | None] = (None, None)
    sidecar: Path | None = None


@dataclass(frozen=True)
class Place:
    """A folder that data lie in.

    Attributes:
        split: whose data; "" for all.
        kind: "visible", "thermal" or "labels".
        folder: where.
        suffix: of the label files.
    """

    split: str
    kind: str
    folder: Path
    suffix: str = ""


@dataclass(frozen=True)
class Listing:
    """What a split holds.

    Attributes:
        pairs: the complete ones, in order of their stems.
        problems: what is wrong with the rest, or why it is left out.
    """

    pairs: tuple[PairFiles, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, eq=False)
class Labels:
    """The objects of a pair.

    Attributes:
        boxes: (N, 5) float32: class, cx, cy, w, h; centre and size as fractions of the image, inside it.
        problems: what was clipped or left out.
        size: (width, height) px that the label file says the image has, or None.
        weights: (N, 3) float32 within 0 to 1: how much each box teaches the answers fused, visible and thermal; with 0
            that answer learns neither object nor background there. None: every box teaches them all.
        ignore: (M, 5) as `boxes`: regions where no answer learns anything, whatever the class. None: there are none.
    """

    boxes: np.ndarray
    problems: tuple[Problem, ...] = ()
    size: tuple[int, int] | None = None
    weights: np.ndarray | None = None
    ignore: np.ndarray | None = None


class Reader(Protocol):
    """One layout on disk. Frozen and picklable: it goes to the workers that load images."""

    def pairs(self, split: str) -> Listing:
        """The pairs of a split.

        Raises:
            UserError: the split's folder or list is missing as a whole.
        """

    def places(self) -> tuple[Place, ...]:
        """The folders that the data lie in."""

    def unlisted(self) -> tuple[str, bool]:
        """Why an image in such a folder may be in no split, and whether that is worth a problem."""

    def labels(self, pair: PairFiles, names: Mapping[int, str]) -> Labels:
        """The objects of a pair. What is wrong in a label file is a `Problem`, never an exception.

        Args:
            pair: one of `pairs`.
            names: the classes of the data set by number; a label file may have them by name.
        """


@dataclass(frozen=True)
class DataConfig:
    """A data set, resolved: all that training, evaluation, bags and the check need to know.

    Attributes:
        spec: the string that `open_data` makes this of again: path of a data.yaml, or an inline mapping.
        name: what results call it.
        root: the folder it lies in.
        names: class names by index 0, 1, ...
        thermal_contract: what the thermal counts mean.
        splits: names of the splits there are.
        reader: the layout.
        tolerant: a published set, whose known faults (`TOLERATED`) are read over and counted.
        published: pairs per split as published (more than one number where publications disagree), where known.
        old_boxes: boxes per split in an edition with worse labels, where known.
        registration: where thermal pixels lie in the visible images; None where the pairs are aligned.
        resolved: the whole description as a data.yaml would hold it, its folder absolute.
    """

    spec: str
    name: str
    root: Path
    names: dict[int, str]
    thermal_contract: ThermalContract
    splits: tuple[str, ...]
    reader: Reader
    tolerant: bool = False
    published: tuple[tuple[str, tuple[int, ...]], ...] = ()
    old_boxes: tuple[tuple[str, int], ...] = ()
    registration: Registration | None = None
    resolved: dict[str, Any] = field(default_factory=dict)

    def stops(self, problem: Problem) -> bool:
        """Whether a training must not go on over this problem."""
        return problem.kind in FATAL or (problem.kind in TOLERATED and not self.tolerant)


def list_pairs(data: DataConfig, split: str) -> Listing:
    """What a split holds, its problems included.

    Args:
        data: the data set.
        split: name of one of its splits.

    Raises:
        UserError: there is no such split, or no folder or list for it.
    """
    if split not in data.splits:
        raise UserError(f"{data.spec} has no split {split!r}; it has {', '.join(data.splits)}")
    return data.reader.pairs(split)


def find_pairs(data: DataConfig, split: str) -> list[PairFiles]:
    """The pairs of a split, in order of their stems.

    Args:
        data: the data set.
        split: name of one of its splits.

    Raises:
        UserError: as `list_pairs` and `whole_pairs`.
    """
    return whole_pairs(data, split, list_pairs(data, split))


def whole_pairs(data: DataConfig, split: str, listing: Listing) -> list[PairFiles]:
    """The pairs of a listing that nothing stops a training over.

    Args:
        data: the data set.
        split: that was listed.
        listing: of the split, by `list_pairs`.

    Raises:
        UserError: no pairs, or images without a partner (their number and the first names).
    """
    stopping = [problem for problem in listing.problems if data.stops(problem)]
    if stopping or (listing.problems and not listing.pairs):
        told = stopping or listing.problems
        counts = Counter(problem.kind for problem in told)
        what = ", ".join(f"{count} x {KINDS[kind]}" for kind, count in counts.items())
        raise UserError(
            f"{data.name} {split}: {what}; whole pairs: {len(listing.pairs)}; "
            + first([problem.text for problem in told])
        )
    if not listing.pairs:
        raise UserError(f"{data.name} {split}: no pairs in {data.root}")
    return list(listing.pairs)


def pictures(pairs: Iterable[PairFiles]) -> set[Path]:
    """The visible images of pairs, links followed: two pairs of one picture are one, whatever they are called."""
    return {pair.visible.resolve() for pair in pairs}


def count_problem(data: DataConfig, split: str, count: int) -> Problem | None:
    """Compare a number of pairs with the published one.

    Args:
        data: the data set.
        split: name of one of its splits.
        count: how many pairs were found.

    Returns:
        a problem where the numbers differ, else None.
    """
    published = dict(data.published).get(split, (count,))
    if count in published:
        return None
    numbers = " or ".join(map(str, published))
    return Problem("pair_count", data.root, f"{data.name} {split} has {count} pairs here and {numbers} as published")


def read_labels(data: DataConfig, pair: PairFiles) -> np.ndarray:
    """The objects of a pair.

    Args:
        data: the data set.
        pair: one of its pairs.

    Returns:
        (N, 5) float32: class, cx, cy, w, h; centre and size as fractions of the image; duplicates removed.

    Raises:
        UserError: the label file cannot be used; the message names file and place.
    """
    return sound_labels(data, pair).boxes


def sound_labels(data: DataConfig, pair: PairFiles) -> Labels:
    """As `read_labels`, with all that is known of them."""
    labels = data.reader.labels(pair, data.names)
    for problem in labels.problems:
        if data.stops(problem):
            raise UserError(problem.text)
    return labels


def pixel_boxes(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """The boxes of `read_labels` by their corners.

    Args:
        labels: (N, 5) float32: class, cx, cy, w, h as fractions of the image.
        width, height: of the image, in px.

    Returns:
        (N, 4) float32: left, top, right, bottom in px.
    """
    centre, half = labels[:, 1:3], labels[:, 3:] / 2
    return np.hstack((centre - half, centre + half)) * np.array([width, height] * 2, np.float32)


def tidy(
    rows: Sequence[tuple[float, float, float, float, float]],
    file: Path,
    where: Sequence[str],
    hints: Sequence[str] = (),
) -> Labels:
    """Boxes as they were drawn, brought inside the image.

    Args:
        rows: class, left, top, right, bottom as fractions of the image.
        file: the label file, for messages.
        where: the place of each row in it, as "line 3".
        hints: for each row what to add to the message when the box does not lie in the image.

    Returns:
        boxes clipped to the image, those without area left out, repeated ones used once; a `Problem` for each.
    """
    boxes: list[tuple[float, ...]] = []
    problems: list[Problem] = []
    seen: set[tuple[float, ...]] = set()
    slack = 1e-3  # rounding of the writing tool
    for row, place, hint in zip(rows, where, hints or [""] * len(rows), strict=True):
        cls, *corners = row
        said = f"{file}, {place}: the box " + " ".join(f"{x:.4g}" for x in corners)
        clipped = np.clip(corners, 0.0, 1.0).tolist() if np.isfinite(corners).all() else [0.0] * 4
        left, top, right, bottom = clipped
        if not (right > left and bottom > top):
            outside = corners[2] > corners[0] and corners[3] > corners[1]
            problems.append(
                Problem("empty_box", file, f"{said} {'lies outside the image' if outside else 'is empty'}{hint}")
            )
            continue
        if min(corners) < -slack or max(corners) > 1 + slack:
            problems.append(Problem("outside", file, f"{said} lies partly outside the image (0 to 1){hint}"))
        box = (cls, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        if box in seen:
            problems.append(Problem("repeated_box", file, f"{said} stands there twice"))
            continue
        seen.add(box)
        boxes.append(box)
    return Labels(np.unique(np.array(boxes, np.float32).reshape(-1, 5), axis=0), tuple(problems))


def match(visible: Mapping[str, Path], thermal: Mapping[str, Path]) -> tuple[list[str], list[Problem]]:
    """Match images by their stems.

    Args:
        visible: images by stem.
        thermal: images by stem.

    Returns:
        the stems that both have, in order, and a problem for each image whose partner is missing.
    """
    problems = [
        Problem("no_partner", mine[stem], f"{mine[stem]} has no {other} partner")
        for mine, theirs, other in ((visible, thermal, "thermal"), (thermal, visible, "visible"))
        for stem in sorted(set(mine) - set(theirs))
    ]
    return sorted(set(visible) & set(thermal)), problems


def first(items: Iterable[str], most: int = 3) -> str:
    """The first few texts in one, and how many more there are.

    Args:
        items: the texts.
        most: how many to show.
    """
    items = list(items)
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


def split_hash(pairs: Sequence[PairFiles]) -> str:
    """SHA-256 (first 16 hex digits) over the stems of a split, which tells two lists of pairs apart."""
    return hashlib.sha256(utf_8("\n".join(pair.stem for pair in pairs))).hexdigest()[:16]
