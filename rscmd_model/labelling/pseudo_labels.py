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


@dataclass(frozen=True)
class Limits:
    """The scores that part objects, doubtful ones and background.

    Attributes:
        sure: joint score from which a box is a label, 0 to 1.
        unsure: joint score from which a box that is no label is an ignore region, 0 to `sure`.
        followed: joint score from which a box of a track that has a sure one is a label, `unsure` to `sure`.
        of_class: `sure` of single classes, by name.

    Raises:
        UserError: they are not in this order, or out of range.
    """

    sure: float = 0.5
    unsure: float = 0.15
    followed: float = 0.3
    of_class: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, sure in {"sure": self.sure, **self.of_class}.items():
            if not 0 < self.unsure <= self.followed <= sure <= 1:
                raise UserError(
                    f"score limits: 0 < unsure <= followed <= sure <= 1 is wanted, got {self.unsure:g}, "
                    f"{self.followed:g} and {sure:g}{f' of {name}' if name != 'sure' else ''}"
                )

    def of(self, name: str) -> float:
        """`sure` of a class."""
        return self.of_class.get(name, self.sure)


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
        if min(x1 - x0, y1 - y0) < _SMALLEST or score < limits.unsure:
            continue
        track = tracks[i] if tracks is not None else None
        sure = limits.of(names[int(cls)])
        if tracks is None:
            certain = score >= sure
        else:
            certain = track is not None and score >= limits.followed and track[1] >= sure
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
