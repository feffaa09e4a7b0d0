"""Late fusion: one answer from the boxes of several answers to the same image. No torch.

Scores are joined as ProbEn does without a prior (Chen et al., Multimodal Object Detection via Probabilistic Ensembling,
ECCV 2022, arXiv 2104.02904): answers that err independently miss an object together with the product of their misses.
Boxes are averaged by score, as weighted boxes fusion does (Solovyev et al., arXiv 1910.13302).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rscmd_model.inference.suppression import kept, suppress

OVERLAP = 0.5
"""Boxes of a class whose IoU is more than this are one object."""
_FAINTEST = 0.01
"""Boxes that score less are joined only where the threshold asks for them: more of them cost time in every image, and
none of them raises a joint score by more than this."""
_FEWEST = 300
"""Boxes of an answer that may take part, however few are wanted: the partner of a strong box may be a weak one."""
_BLOCK = 1024
"""Boxes whose overlaps are computed at once."""


def join(found: Sequence[np.ndarray], max_det: int) -> np.ndarray:
    """Join the boxes of several answers to one image.

    The best box that is left begins an object. Its class's boxes that overlap it by more than `OVERLAP` are the same
    object and go with it; of each other answer the best of them is joined to it. The joint score is 1 - prod(1 - p), so
    that an object which one answer alone has keeps its score. The joint box is the mean, weighted by the scores.

    Args:
        found: for each answer (M, 6) as `suppress` gives them: corners x0, y0, x1, y1, score in (0, 1], class. A single
            answer is given back as it is.
        max_det: most boxes that are given back.

    Returns:
        (N, 6) float32 by falling score, as `suppress` gives them. The order of the answers does not matter.
    """
    if len(found) == 1:
        return found[0][:max_det]
    rows = np.concatenate(found)
    if not len(rows):
        return rows
    order = _falling(rows)
    rows, answer = rows[order], np.repeat(np.arange(len(found)), [len(one) for one in found])[order]
    firsts = kept(rows, OVERLAP)
    owner, owned = _owners(rows, firsts)
    # Of each object and answer the first row, which is the best.
    _, first = np.unique(owner[owned] * len(found) + answer[owned], return_index=True)
    members, of = rows[owned][first].astype(np.float64), owner[owned][first]
    scores = members[:, 4]
    missed = np.ones(len(firsts))
    np.multiply.at(missed, of, 1 - scores)
    weight = np.bincount(of, scores)
    corners = [np.bincount(of, scores * members[:, i]) / weight for i in range(4)]
    joint = np.stack([*corners, 1 - missed, rows[firsts, 5]], 1).astype(np.float32)
    return joint[_falling(joint)][:max_det]


def suppress_and_join(answers: Sequence[np.ndarray], conf: float, iou: float, max_det: int) -> list[np.ndarray]:
    """Suppress each of several answers by itself and join what is left; a single one is suppressed, and that is all.

    A joint score may pass `conf` where none of its parts does, so each answer is suppressed at a lower score. That is
    `_FAINTEST` for all but the lowest `conf`: what a higher one gives is what a lower one gives, cut there.

    Args:
        answers: for each answer (B, 4 + classes, N), as `suppress` takes them.
        conf: joint scores above this count.
        iou: within one answer, boxes of a class that overlap more than this are one. Boxes that overlap by more than
            `OVERLAP` are joined in any case.
        max_det: most boxes per image.

    Returns:
        for each image (M, 6) as `suppress` gives them.
    """
    if len(answers) == 1:
        return suppress(answers[0], conf, iou, max_det)
    least = 1 - (1 - conf) ** (1 / len(answers))  # where all score less, the joint score is below conf
    parts = [suppress(answer, min(least, _FAINTEST), iou, max(max_det, _FEWEST)) for answer in answers]
    joint = [join(found, max_det) for found in zip(*parts)]
    return [rows[rows[:, 4] > conf] for rows in joint]


def _owners(rows: np.ndarray, firsts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which object each box belongs to, and whether it does.

    Args:
        rows: (M, 6), the best first.
        firsts: (K,) indices of the boxes that begin an object.

    Returns:
        (M,) the object, 0 to K - 1: the best of its class that it overlaps by more than `OVERLAP`; and (M,) bool. NMS
        rounds, and drops boxes without an area: what it drops and nothing here overlaps belongs to none.
    """
    owner, owned = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        same = (overlaps(rows[firsts], part) > OVERLAP) & (rows[firsts, None, 5] == part[:, 5])
        owner[start : start + _BLOCK], owned[start : start + _BLOCK] = same.argmax(0), same.any(0)
    owner[firsts], owned[firsts] = np.arange(len(firsts)), True
    return owner, owned


def _falling(rows: np.ndarray) -> np.ndarray:
    """The order of falling scores; equal ones by class and place, so that it depends on nothing but the rows."""
    return np.lexsort((*rows[:, :4].T, rows[:, 5], -rows[:, 4]))


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (A, B) of boxes whose corners are the first four columns."""
    left, top, right, bottom = a[:, :4].T[:, :, None].astype(np.float64)
    lefts, tops, rights, bottoms = b[:, :4].T[:, None].astype(np.float64)
    shared = (np.minimum(right, rights) - np.maximum(left, lefts)).clip(0)
    shared *= (np.minimum(bottom, bottoms) - np.maximum(top, tops)).clip(0)
    both = (right - left) * (bottom - top) + (rights - lefts) * (bottoms - tops) - shared
    return np.divide(shared, both, out=np.zeros_like(both), where=both > 0)
