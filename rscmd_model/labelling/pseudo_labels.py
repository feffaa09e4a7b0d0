"""From a model's answers to a pair to its pseudo-labels: objects that are sure, and regions where something may be.

The joint answer of both cameras teaches each of them: what the visible camera sees by day becomes a label of the
thermal image, and by night the other way. Three bands of the joint score: sure ones are labels, faint ones are
background, and what lies between teaches nothing (an ignore region). A track through the recording moves an object
between the bands: one that is followed is taken at a lower score, and one that flashes up once is not taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rscmd_model.datasets.sidecars import Found, Sidecar, label_line
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.inference.late_fusion import OVERLAP, join, overlaps

FAINT = 0.05
"""Boxes of a single answer that score less are not looked at."""
MOST = 300
"""Boxes of a pair, at most."""
_SMALLEST = 2.0  # px of a side: less is no label


PRECISION = 0.8
"""Share of the labels that should be right, by default."""
LOWEST = 0.25
"""No class's boxes are sure below this joint score."""
_FEWEST = 20  # boxes of a class that its own limit can rest on


@dataclass(frozen=True)
class Limits:
    """The joint scores that part objects, doubtful ones and background.

    Attributes:
        sure: by class name the score from which a box is a label.
        followed: from here on a box is a label whose track has a sure one; at most `sure`.
        unsure: from here on a box that is no label is an ignore region; at most `followed`.

    Raises:
        UserError: one is not above 0 and up to 1.
    """

    sure: Mapping[str, float]
    followed: float = 0.3
    unsure: float = 0.15

    def __post_init__(self) -> None:
        for name, value in {"followed": self.followed, "unsure": self.unsure, **self.sure}.items():
            if not 0 < value <= 1:
                raise UserError(f"score limits: {name} is {value:g}, and a number above 0 and up to 1 is wanted")

    def of(self, name: str) -> tuple[float, float, float]:
        """`sure`, `followed` and `unsure` of a class."""
        sure = self.sure[name]
        followed = min(self.followed, sure)
        return sure, followed, min(self.unsure, followed)


def sure_from(scores: Mapping[str, np.ndarray], precision: float = PRECISION) -> dict[str, float]:
    """From which joint score boxes are sure, class by class, without knowing any truth.

    Joint scores say about how often they are right: docs/your_drive.md has that measured. So the limit of a class is
    the lowest one at which the mean score of all boxes above it is the precision that is wanted. A class with few boxes
    has the limit of all classes together.

    Args:
        scores: by class name the joint scores of all its boxes in the recording, (N,) each.
        precision: share of the labels that should be right, above 0 and below 1.

    Returns:
        by class name the limit, `LOWEST` to 1; 1 where no box is that sure.

    Raises:
        UserError: `precision` is out of range.
    """
    if not 0 < precision < 1:
        raise UserError(f"the precision of labels is a number above 0 and below 1, got {precision:g}")
    together = _limit(np.concatenate(list(scores.values())), precision)
    enough = {name: int((values >= LOWEST).sum()) >= _FEWEST for name, values in scores.items()}
    return {name: _limit(values, precision) if enough[name] else together for name, values in scores.items()}


def _limit(scores: np.ndarray, precision: float) -> float:
    falling = np.sort(scores.astype(np.float64))[::-1]
    reached = np.flatnonzero(np.cumsum(falling) / np.arange(1, len(falling) + 1) >= precision)
    return max(float(falling[reached[-1]]), LOWEST) if len(reached) else 1.0


@dataclass(frozen=True)
class Candidates:
    """What the answers to one pair have found together.

    Attributes:
        found: the joint boxes, by falling joint score.
        seen: by modality, (N,) float32: the score that the camera's own answer gives each of them, 0 for none; a model
            without that answer has no such entry.
    """

    found: Detections
    seen: Mapping[str, np.ndarray] = field(default_factory=dict)


def candidates(answers: Mapping[str, Detections]) -> Candidates:
    """Join the answers to a pair, as the ensemble does, and look up who has seen what.

    Args:
        answers: by name ("fused", "visible", "thermal"), as `Predictor.predict_each` gives them.
    """
    rows = {name: np.column_stack((d.boxes, d.scores, d.classes)).astype(np.float32) for name, d in answers.items()}
    joint = join(list(rows.values()), MOST)
    found = Detections(joint[:, :4], joint[:, 4].clip(0, 1), joint[:, 5].astype(np.int64))
    seen = {name: _given(joint, one) for name, one in rows.items() if name != "fused"}
    return Candidates(found, seen)


def pseudo_labels(
    given: Candidates,
    names: Mapping[int, str],
    size: tuple[int, int],
    limits: Limits,
    tracks: Sequence[tuple[int, float] | None] | None = None,
) -> Sidecar:
    """Sort what was found in a pair into labels and ignore regions.

    Args:
        given: of the pair.
        names: class names by number.
        size: (width, height) of the visible image, px.
        limits: of the scores.
        tracks: for each candidate the number of its track and the highest score in it, None for one that is in no
            track; None as a whole for pairs that are no recording, where the score alone decides.

    Returns:
        labels and ignore regions, both by falling score.
    """
    labels: list[Found] = []
    ignore: list[Found] = []
    wide, high = size
    for i, (box, score, cls) in enumerate(zip(given.found.boxes, given.found.scores.tolist(), given.found.classes)):
        x0, y0, x1, y1 = (float(v) for v in np.clip(box, 0, [wide, high] * 2))
        sure, followed, unsure = limits.of(names[int(cls)])
        if min(x1 - x0, y1 - y0) < _SMALLEST or score < unsure:
            continue
        track = tracks[i] if tracks is not None else None
        certain = score >= sure
        if tracks is not None:
            certain = track is not None and score >= followed and track[1] >= sure
        line = label_line(int(cls), ((x0 + x1) / 2 / wide, (y0 + y1) / 2 / high, (x1 - x0) / wide, (y1 - y0) / high))
        seen = {name: round(float(scores[i]), 4) for name, scores in given.seen.items()}
        found = Found(line, round(score, 4), **seen, track=None if track is None else track[0])
        (labels if certain else ignore).append(found)
    return Sidecar(tuple(labels), tuple(ignore))


def _given(joint: np.ndarray, one: np.ndarray) -> np.ndarray:
    """The best score that the boxes of one answer give each joint box: of its class and over it by `OVERLAP`."""
    if not len(joint) or not len(one):
        return np.zeros(len(joint), np.float32)
    same = (overlaps(joint, one) > OVERLAP) & (joint[:, None, 5] == one[:, 5])
    return np.where(same, one[:, 4], 0).max(axis=1).astype(np.float32)
