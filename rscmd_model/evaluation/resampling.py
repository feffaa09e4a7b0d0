"""How far a score would move with other drives: the bootstrap.

Drives are drawn with replacement, as many as there are, and the answers to them are scored anew; the spread of these
scores is the interval. Boxes are matched once: a drive that is drawn twice counts twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rscmd_model.evaluation.scoring import Matches

SEED = 0
RECALLS = np.linspace(0.0, 1.0, 101)
_AT_ONCE = 64  # resamples; more of them take more memory and no less time


def draw(count: int, resamples: int, what: str) -> npt.NDArray[np.int64]:
    """Draw with replacement, always the same for the same arguments.

    Args:
        count: of things.
        resamples: how often to draw `count` of them.
        what: names the things; two kinds of things are drawn independently.

    Returns:
        (resamples, count): how often each was drawn.
    """
    random = np.random.default_rng([SEED, count, *what.encode()])
    return random.multinomial(count, np.full(count, 1 / count), size=resamples)


def scores(classes: Sequence[Matches], times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """mAP50 and mAP50:95 of pictures that count several times, or not at all.

    With every picture once that is what `scoring.score` gives. Means are over the classes that occur.

    Args:
        classes: the matches of each class.
        times: (R, N), how often each of the N pictures counts in each of R resamples.

    Returns:
        (R, 2) in 0 to 1; NaN where no truth box is drawn.
    """
    blocks = [times[start : start + _AT_ONCE] for start in range(0, len(times), _AT_ONCE)]
    return np.concatenate([_scores(classes, block) for block in blocks]) if blocks else np.zeros((0, 2))


def _scores(classes: Sequence[Matches], times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    precision = np.stack([_precision(matches, times) for matches in classes], axis=-1)  # (R, 10, 101, classes)
    occurs = np.stack([times @ matches.truths > 0 for matches in classes], axis=-1)
    figures = np.full((len(times), 2), np.nan)
    for row in np.flatnonzero(occurs.any(axis=1)):
        table = precision[row][:, :, occurs[row]]
        figures[row] = table[0].mean(), table.mean()
    return figures


def _precision(matches: Matches, times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Precision (R, 10 IoU thresholds, 101 recall points) of one class, as COCO interpolates it.

    Precision falls with every wrong detection and is read where recall has grown, so it is computed at right ones
    alone.
    """
    table = np.zeros((len(times), 10, len(RECALLS)))
    truths = times @ matches.truths
    drawn = times[:, matches.pictures]
    answered = np.cumsum(drawn, axis=1)
    for level, right in enumerate(matches.right):
        places = np.flatnonzero(right)
        if not len(places):
            continue
        found = np.cumsum(drawn[:, places], axis=1)
        precision = found / np.maximum(answered[:, places], 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or a higher one
        recall = found / np.maximum(truths, 1)[:, None]
        for row in range(len(times)):
            at = np.searchsorted(recall[row], RECALLS)
            reached = at < len(places)
            table[row, level, reached] = best[row, at[reached]]
    return table


def interval(figures: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of resampled figures.

    Args:
        figures: (R,); those that are NaN are left out.

    Returns:
        2.5 % lie below the first number, 2.5 % above the second.
    """
    low, high = np.nanpercentile(figures, (2.5, 97.5))
    return float(low), float(high)


def over_seeds(figures: Mapping[int, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """The mean over seeds in each resample. Of several seeds some are drawn as well.

    Args:
        figures: by seed (R, ...), of the same drawn drives in each row.

    Returns:
        (R, ...). Two calls with the same seeds draw the same ones, so that their difference is paired.
    """
    table = np.stack([figures[seed] for seed in sorted(figures)], axis=1)
    if table.shape[1] == 1:
        return table[:, 0]
    weights = draw(table.shape[1], len(table), "seeds") / table.shape[1]
    return np.einsum("rs...,rs->r...", table, weights)
