"""One look at a pair: is it whole and usable, and what is on it. Training and the data check share the verdict."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rscmd_model.datasets.pairs import KINDS, DataConfig, PairFiles, Problem, first
from rscmd_model.errors import UserError
from rscmd_model.imaging.images import glance, read_thermal_with_orientation, read_visible
from rscmd_model.imaging.pictures import LYING
from rscmd_model.imaging.thermal import PaletteError

THREADS = min(16, os.cpu_count() or 1)  # decoding releases the interpreter lock


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a pair turned out to be.

    Attributes:
        pair: its files.
        visible_size, thermal_size: (width, height) px; (0, 0) where the image cannot be read.
        labels: (N, 5) float32 as `read_labels` gives them.
        visible: (h, w) uint8 grey at an eighth of the size, or None where the image cannot be read.
        thermal: (H, W) uint8 or uint16 counts, or None.
        problems: all that is wrong with it.
        weights, ignore: as in `Labels`.
    """

    pair: PairFiles
    visible_size: tuple[int, int]
    thermal_size: tuple[int, int]
    labels: np.ndarray
    visible: np.ndarray | None
    thermal: np.ndarray | None
    problems: tuple[Problem, ...]
    weights: np.ndarray | None = None
    ignore: np.ndarray | None = None


def inspect_pair(data: DataConfig, pair: PairFiles) -> Inspection:
    """Decode both images of a pair and read its labels.

    The visible image is decoded at an eighth of its size, which finds damage as well.

    Args:
        data: the data set.
        pair: one of its pairs.
    """
    problems: list[Problem] = []
    visible_size, thermal_size = (0, 0), (0, 0)
    visible, thermal = None, None
    orientation = thermal_orientation = 1
    try:
        visible, visible_size, orientation = glance(pair.visible)
    except UserError as error:
        problems.append(Problem("unreadable", pair.visible, str(error)))
    try:
        thermal, thermal_orientation = read_thermal_with_orientation(pair.thermal, data.thermal_contract)
        thermal_size = (thermal.shape[1], thermal.shape[0])
        if data.thermal_contract.misses(thermal):
            low, high = data.thermal_contract.scale
            counts = f"{thermal.min()} to {thermal.max()}"
            text = (
                f"{pair.thermal}: its counts, {counts}, lie outside the thermal contract's scale, {low:g} to {high:g}"
            )
            problems.append(Problem("out_of_scale", pair.thermal, text))
    except PaletteError as error:
        problems.append(Problem("palette", pair.thermal, str(error)))
    except UserError as error:
        kind = "thermal_type" if _opens(pair.thermal) else "unreadable"
        problems.append(Problem(kind, pair.thermal, str(error)))
    if visible is not None and thermal is not None and data.registration is not None:
        try:
            data.registration.matrix(thermal_size, visible_size)
        except UserError as error:
            problems.append(Problem("registration", pair.thermal, f"{pair.thermal}: {error}"))
    elif visible is not None and thermal is not None and _differ(data, visible_size, thermal_size):
        text = f"{pair.visible} is {_text(visible_size)} px and {pair.thermal} is {_text(thermal_size)} px"
        problems.append(Problem("size_mismatch", pair.thermal, text))
    if visible is not None and thermal is not None:
        problems += _turned(pair, (orientation, thermal_orientation), visible_size, thermal_size)
    labels = data.reader.labels(pair, data.names)
    problems.extend(labels.problems)
    known = {size for size in (visible_size, thermal_size) if size != (0, 0)}
    if labels.size and known and labels.size not in known and pair.label:
        text = f"{pair.label} says {_text(labels.size)} px, {pair.visible} is {_text(visible_size)} px"
        problems.append(Problem("label_size", pair.label, text))
    return Inspection(
        pair, visible_size, thermal_size, labels.boxes, visible, thermal, tuple(problems), labels.weights, labels.ignore
    )


def inspect_all(data: DataConfig, pairs: Sequence[PairFiles]) -> Iterator[Inspection]:
    """Inspect pairs on several threads, with no more than a few images in memory.

    Args:
        data: the data set.
        pairs: of it.

    Yields:
        as `inspect_pair`, in the order of the pairs.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(pairs), 8 * THREADS):
            yield from pool.map(lambda pair: inspect_pair(data, pair), pairs[start : start + 8 * THREADS])


def check_pairs(data: DataConfig, pairs: Sequence[PairFiles]) -> tuple[list[dict[str, Any]], list[str]]:
    """Look at every file of these pairs once and gather what a training needs to know.

    Args:
        data: the data set.
        pairs: of it.

    Returns:
        for each pair {"size": (height, width) of the visible image, "labels": as `read_labels`, "weights" and "ignore":
        as in `Labels`}; and lines to show that count the faults which are tolerated.

    Raises:
        UserError: some pairs cannot be used; their number and the first ones with the reason.
    """
    gathered, faults, noted = [], [], []
    for seen in inspect_all(data, pairs):
        stopping = [problem for problem in seen.problems if data.stops(problem)]
        if stopping:
            faults.append(stopping[0].text)
        noted += [problem for problem in seen.problems if not data.stops(problem)]
        taught = {"labels": seen.labels, "weights": seen.weights, "ignore": seen.ignore}
        gathered.append({"size": seen.visible_size[::-1], **taught})
    missed = [problem for problem in noted if problem.kind == "out_of_scale"]
    if missed and len(missed) == len(pairs):
        raise UserError(f"no thermal image fits the thermal contract: {missed[0].text}")
    if faults:
        raise UserError(f"{len(faults)} of {len(pairs)} pairs cannot be used: {first(faults)}")
    return gathered, summary(noted)


def summary(problems: Sequence[Problem]) -> list[str]:
    """One line for each kind of problem: how many, what it means, the first example."""
    lines = []
    for kind, count in Counter(problem.kind for problem in problems).most_common():
        example = next(problem.text for problem in problems if problem.kind == kind)
        lines.append(f"{count} x {kind} ({KINDS[kind]}), first: {example}")
    return lines


def _turned(
    pair: PairFiles, orientations: tuple[int, int], visible: tuple[int, int], thermal: tuple[int, int]
) -> list[Problem]:
    """The problem that EXIF turns one image of a pair and not the other, where the shapes leave open which is right.

    A picture stored lying, with the tag that puts it upright, fits its upright partner only when it is turned.

    Args:
        pair: its files.
        orientations: EXIF's, 1 to 8, of the visible and the thermal image.
        visible, thermal: (width, height) px of the two, turned.
    """
    orientation, other = orientations
    if orientation == other:
        return []
    stored = visible[::-1] if orientation in LYING else visible
    if _same_shape(visible, thermal) and not _same_shape(stored, thermal[::-1] if other in LYING else thermal):
        return []
    text = (
        f"{pair.visible} has EXIF orientation {orientation} and {pair.thermal} has {other}; each is turned by its own: "
        "look at a pair (--sheet), and strip the tag where the pictures as stored show the same view"
    )
    return [Problem("orientation", pair.visible, text)]


def _opens(path: Path) -> bool:
    try:
        read_visible(path)
    except UserError:
        return False
    return True


def _differ(data: DataConfig, visible: tuple[int, int], thermal: tuple[int, int]) -> bool:
    """Published pairs have one size; in others only another shape is suspicious, for cameras differ in resolution."""
    if data.tolerant:
        return visible != thermal
    return not _same_shape(visible, thermal)


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(one[0] * other[1] - one[1] * other[0]) <= 0.02 * one[0] * other[1]


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
