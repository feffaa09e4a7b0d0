"""The second pass of a labelling, over the journal alone: follows the objects and sorts them into labels and doubts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rscmd_model.datasets.sidecars import Found, Sidecar
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError, did_you_mean, quoted
from rscmd_model.inference.late_fusion import OVERLAP
from rscmd_model.inference.suppression import kept
from rscmd_model.labelling.pseudo_labels import (
    PRECISION,
    Candidates,
    Limits,
    candidates,
    pseudo_labels,
    sure_from,
)
from rscmd_ros.bags.journal import Entry
from rscmd_ros.bags.tracks import Filled, fill, follow

_LONGEST_GAP = 2.0  # s in which an object that is followed may be missed


@dataclass(frozen=True)
class Choice:
    """How the limits of the scores are chosen.

    Attributes:
        precision: share of the labels that should be right, above 0 and below 1; `sure_from` goes by it.
        sure: by class name the limit in its place; under "" that of all classes that are not named.
        followed, unsure: as `Limits` has them.

    Raises:
        UserError: one is out of range.
    """

    precision: float = PRECISION
    sure: Mapping[str, float] = field(default_factory=dict)
    followed: float = 0.3
    unsure: float = 0.15

    def __post_init__(self) -> None:
        sure_from({"": np.zeros(0, np.float32)}, self.precision)
        Limits(self.sure, self.followed, self.unsure)

    def limits(self, scores: Mapping[str, npt.NDArray[np.float32]]) -> Limits:
        """The limits for a recording.

        Args:
            scores: by class name the joint scores of all its boxes.

        Raises:
            UserError: a limit is for a class that there is not.
        """
        for name in self.sure:
            if name not in ("", *scores):
                hint = did_you_mean(name, scores, f"it has {', '.join(scores)}")
                raise UserError(f"--sure {name}={self.sure[name]:g}: the model has no class {quoted(name)}{hint}")
        by_precision = sure_from(scores, self.precision)
        chosen = {name: self.sure.get(name, self.sure.get("", limit)) for name, limit in by_precision.items()}
        return Limits(chosen, self.followed, self.unsure)


@dataclass
class Counts:
    """What a labelling found.

    Attributes:
        pairs: answered.
        faults: whose pictures could not be decoded.
        copies: left out of the set as near-copies.
        kept: in the set, by split.
        labels, unsure: in the set, by class.
        seen: labels by who alone sees them: "visible", "thermal", "both" or "neither"; empty for a model that has one
            answer.
        tracks: of objects through the recording.
        followed: labels that are there by their track alone, the score being below `sure`.
        best: the highest score of the recording.
        best_class: of what.
        limits: of the scores, as they were chosen.
    """

    pairs: int = 0
    faults: int = 0
    copies: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    unsure: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    tracks: int = 0
    followed: int = 0
    best: float = 0.0
    best_class: str = ""
    limits: Limits = field(default_factory=lambda: Limits({}))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        plain = {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}
        return {**plain, "limits": asdict(self.limits)}


def tracked_labels(
    entries: Iterable[Entry], names: Mapping[int, str], choice: Choice, counts: Counts
) -> Iterator[tuple[Entry, Sidecar]]:
    """Make the labels of the pairs that are in the set, from the answers to all pairs of the recording.

    Args:
        entries: of the journal, in the order of the recording.
        names: class names by number.
        choice: of the limits of the scores.
        counts: filled in; whole once the last label is there.

    Yields:
        The entry of each pair in the set, and its labels.
    """
    frames: list[tuple[float, Detections]] = []
    taken: list[tuple[int, Entry, Candidates]] = []
    start: int | None = None
    for entry in entries:
        counts.pairs += 1
        counts.copies += entry.copy
        if entry.fault:
            counts.faults += 1
            continue
        given = candidates(entry.detections())
        if len(given.found) and given.found.scores[0] > counts.best:
            counts.best, counts.best_class = float(given.found.scores[0]), names[int(given.found.classes[0])]
        start = entry.stamp if start is None else start
        if entry.kept is not None:
            taken.append((len(frames), entry, given))
        frames.append(((entry.stamp - start) / 1e9, given.found))
    counts.limits = limits = choice.limits(_scores(frames, names))
    tracks = follow(frames, limits.followed)
    counts.tracks = len({number for row in tracks for number in row} - {None})
    filled = fill(frames, tracks, _frames_of_gap(frames))
    for place, entry, given in taken:
        joint, of = _together(given, filled[place])
        sidecar = pseudo_labels(joint, names, entry.size, limits, of)
        _count(counts, entry, sidecar, names, limits)
        yield entry, sidecar


def _scores(frames: list[tuple[float, Detections]], names: Mapping[int, str]) -> dict[str, npt.NDArray[np.float32]]:
    """By class name the scores of all its boxes."""
    scores = np.concatenate([np.zeros(0, np.float32), *(found.scores for _, found in frames)])
    classes = np.concatenate([np.zeros(0, np.int64), *(found.classes for _, found in frames)])
    return {name: scores[classes == number] for number, name in names.items()}


def _frames_of_gap(frames: list[tuple[float, Detections]]) -> int:
    """How many frames an object may be missed in, by the usual step from frame to frame."""
    steps = np.diff([stamp for stamp, _ in frames])
    step = float(np.median(steps)) if len(steps) else 0.0
    return round(_LONGEST_GAP / step) if step > 0 else 0


def _together(given: Candidates, filled: Filled) -> tuple[Candidates, list[tuple[int, float] | None]]:
    """What was found in a pair and what its tracks add, by falling score; and each one's track with its best score."""
    own = filled.rows >= 0
    lone = np.setdiff1d(np.arange(len(given.found)), filled.rows[own])
    boxes = np.concatenate((filled.found.boxes, given.found.boxes[lone]))
    scores = np.concatenate((filled.found.scores, given.found.scores[lone]))
    classes = np.concatenate((filled.found.classes, given.found.classes[lone]))
    order = np.argsort(-scores, kind="stable")
    if len(order):  # a box that has got the class of its track may now be another one's double
        order = order[kept(np.column_stack((boxes, scores, classes)).astype(np.float32)[order], OVERLAP)]
    seen = {}
    for name, values in given.seen.items():
        tracked = np.where(own, values[filled.rows] if len(values) else 0, 0)
        seen[name] = np.concatenate((tracked, values[lone])).astype(np.float32)[order]
    # Where no answer has even a faint box the object may be hidden, or the track wrong: a region to ignore, no label.
    tracks: list[tuple[int, float] | None] = [
        (int(number), float(best)) if found else None
        for number, best, found in zip(filled.tracks, filled.best, own.tolist())
    ]
    tracks += [None] * len(lone)
    return Candidates(Detections(boxes, scores, classes).take(order), seen), [tracks[i] for i in order]


def _count(counts: Counts, entry: Entry, sidecar: Sidecar, names: Mapping[int, str], limits: Limits) -> None:
    counts.kept[str(entry.kept)] += 1
    for found in sidecar.labels:
        name = _class_of(found, names)
        counts.labels[name] += 1
        counts.followed += found.score < limits.of(name)[0]
        if found.visible is not None and found.thermal is not None:
            both = found.seen_by("visible"), found.seen_by("thermal")
            counts.seen[
                {(True, True): "both", (True, False): "visible", (False, True): "thermal"}.get(both, "neither")
            ] += 1
    for found in sidecar.ignore:
        counts.unsure[_class_of(found, names)] += 1


def _class_of(found: Found, names: Mapping[int, str]) -> str:
    return names[int(found.line.split()[0])]
