"""A guard against drift: what the first round of labels was surest of must be found by every later model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rscmd_model.datasets.pairs import pixel_boxes
from rscmd_model.datasets.sidecars import Found, Sidecar, numbers
from rscmd_model.detections import Detections
from rscmd_model.inference.late_fusion import OVERLAP, overlaps

SUREST = 0.9
"""Labels of this joint score and more are among the surest."""
_MOST = 500


def surest(sidecars: Mapping[str, Sidecar]) -> dict[str, tuple[Found, ...]]:
    """The labels that a model was surest of.

    Args:
        sidecars: by the stem of their pair.

    Returns:
        by stem those of `SUREST` or more, at most 500 of all pairs together, the highest scores first to be taken.
    """
    sure = [(found, stem) for stem, sidecar in sidecars.items() for found in sidecar.labels if found.score >= SUREST]
    taken = sorted(sure, key=lambda item: -item[0].score)[:_MOST]
    kept: dict[str, tuple[Found, ...]] = {}
    for found, stem in taken:
        kept[stem] = (*kept.get(stem, ()), found)
    return kept


def share_found(
    held: Sequence[Sequence[Found]], answers: Sequence[Detections], sizes: Sequence[tuple[int, int]]
) -> float:
    """The share of held labels that answers have found: a box of their class that overlaps by IoU 0.5, one each.

    Args:
        held: of each pair the labels.
        answers: to each of them.
        sizes: (width, height) of each visible image, px.

    Returns:
        0 to 1; NaN where nothing is held.
    """
    known = found = 0
    for labels, answer, (width, height) in zip(held, answers, sizes, strict=True):
        rows = np.array([numbers(label.line) for label in labels], np.float32).reshape(-1, 5)
        same = rows[:, None, 0] == answer.classes
        overlap = np.where(same, overlaps(pixel_boxes(rows, width, height), answer.boxes), 0)
        known += len(rows)
        while overlap.size and overlap.max() >= OVERLAP:  # the best pair first
            label, box = np.unravel_index(int(overlap.argmax()), overlap.shape)
            overlap[label], overlap[:, box] = 0, 0
            found += 1
    return found / known if known else float("nan")
