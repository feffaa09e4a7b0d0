"""Whether single pairs of a drive agree with the registration that all of them gave together, and where they do not.

A registration estimated from many pairs at once passes its own checks even if the camera was knocked half way: it is
that of the longer half. So each pair is asked again on its own, starting from the joint estimate. What a knock does to
a picture is nearly a shift with a little turn, so a similarity on top of the joint homography is fitted to each pair;
its four numbers are found from one pair far more surely than the eight of a homography.

The same patches tell what one homography cannot do. It is right for one plane, and what stands nearer or farther is
off: by band of rows, because in a street the lower part of the image is nearer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from rscmd_model.imaging.estimate_registration import LEAST_MATCHES, LEAST_SHARE, Estimate
from rscmd_model.imaging.patch_matching import GreyPair, Search
from rscmd_model.imaging.registration import corners, map_points

BANDS = 5
LEAST_FRAMES = 3
"""So many pairs must show enough on their own."""

# Longer side in px that a pair is worked at, patches across, and how far each is looked for (share of that side).
_STEPS = ((320, 8, 0.05), (640, 10, 0.025))
_LEAST_PATCHES = 10  # for a band to be called the worst
_KNOCK = 0.12  # share of the width and height by which a knocked camera may be off and is still found

# Shares of the diagonal of the visible image.
_TOLERANCE = 0.006  # of a patch to the fit of its pair
_WRONG_MATCH = 0.01  # a patch that is off by more from what its own pair says is no match
_MOST_APART = 0.02  # of nine pairs in ten from the joint estimate
_MOST_MOVED = 0.01  # between the pairs before and after a moment


@dataclass(frozen=True)
class Band:
    """What is off in a band of rows of the visible image.

    Attributes:
        top, bottom: rows, px; `bottom` is the first one below the band.
        patches: how many were matched in it.
        off: median distance of a patch from where the joint estimate puts it, px; NaN without patches.
        across, down: median of that along x (to the right) and y (down), from the place of the estimate to the true
            one, px.
    """

    top: int
    bottom: int
    patches: int
    off: float
    across: float
    down: float


@dataclass(frozen=True)
class Agreement:
    """How the pairs of a drive agree with the registration that they gave together. Lengths in px of the visible image.

    Attributes:
        pairs: how many were asked.
        judged: (M,) int, which of them show enough on their own, in their order.
        apart: (M,) float, mean distance of the four corners of the thermal image as this pair puts them from those of
            the joint estimate.
        split: where the drive falls in two: the first of the later pairs by their place in `judged`; None where there
            are too few pairs to say.
        moved: mean distance of the corners (medians over the pairs) before the split from those after it; 0 without.
        bands: from the top to the bottom of the visible image.
        diagonal: of the visible image.
    """

    pairs: int
    judged: np.ndarray
    apart: np.ndarray
    split: int | None
    moved: float
    bands: list[Band]
    diagonal: float

    def lines(self) -> list[str]:
        """What a person should read: the agreement, and the bands as a small table."""
        if not len(self.judged):
            return [f"none of the {self.pairs} pairs shows enough on its own to be compared with the estimate"]
        middle, most = np.percentile(self.apart, [50, 90])
        lines = [
            f"{len(self.judged)} of {self.pairs} pairs show enough on their own; each puts the corners "
            f"{middle:.1f} px from the estimate (median), nine in ten within {most:.1f} px "
            f"({middle / self.diagonal:.2%} and {most / self.diagonal:.2%} of the diagonal)"
        ]
        if self.split is not None:
            lines.append(
                f"the two parts of the drive that differ most put the corners {self.moved:.1f} px apart "
                f"({self.moved / self.diagonal:.2%} of the diagonal)"
            )
        lines.append("what one homography leaves, by rows of the visible image (medians over the patches, px):")
        lines.append(f"{'rows':>14} {'patches':>8} {'off':>6} {'to the right':>13} {'down':>6}")
        for band in self.bands:
            figures = f"{band.off:6.1f} {band.across:+13.1f} {band.down:+6.1f}" if band.patches else f"{'-':>6}"
            lines.append(f"{band.top:5d} to {band.bottom:5d} {band.patches:8d} {figures}")
        if sure := [band for band in self.bands if band.patches >= _LEAST_PATCHES]:
            worst = max(sure, key=lambda band: band.off)
            lines.append(
                "one homography is right for one distance; what is nearer, usually lower in the image, or farther is "
                f"off: here by {worst.off:.1f} px at most, in rows {worst.top} to {worst.bottom}"
            )
        return lines

    def problem(self, moments: Sequence[float] | None = None) -> str | None:
        """Why the joint estimate should not be used, with the figure; None where the pairs agree with it.

        Args:
            moments: when each of the pairs was taken, s; names the moment at which the camera moved.
        """
        if len(self.judged) < LEAST_FRAMES:
            return (
                f"{len(self.judged)} of {self.pairs} pairs show enough on their own to be compared with what all "
                f"gave together, and {LEAST_FRAMES} are needed: record where there is structure all over the image"
            )
        if self.split is not None and self.moved > _MOST_MOVED * self.diagonal:
            when = f" (before and from {moments[self.judged[self.split]]:.0f} s)" if moments is not None else ""
            return (
                f"the earlier and the later part of the drive{when} put the corners {self.moved:.0f} px apart "
                f"({_MOST_MOVED * self.diagonal:.0f} px can pass): a camera was moved; register each part on its own"
            )
        most = float(np.percentile(self.apart, 90))
        if most > _MOST_APART * self.diagonal:
            return (
                f"the pairs do not agree: one in ten puts the corners {most:.0f} px or more from the estimate "
                f"({_MOST_APART * self.diagonal:.0f} px can pass): is a camera loose, or do the stamps not fit?"
            )
        return None


def agreement(
    pairs: Sequence[GreyPair], estimate: Estimate, progress: Callable[[str], None] = lambda line: None
) -> Agreement:
    """Ask each pair on its own.

    Args:
        pairs: those that the estimate was made from, in the order of time.
        estimate: by `from_images`.
        progress: told of how far it is.
    """
    registration = estimate.registration
    joint = np.array(registration.homography)
    diagonal = float(np.hypot(*registration.visible_size))
    ends = corners(registration.thermal_size)
    judged, offsets, points = [], [], [np.zeros((0, 4))]
    for number, pair in enumerate(pairs):
        if (own := _alone(pair, joint, diagonal)) is not None:
            judged.append(number)
            offsets.append(map_points(own[0], ends) - map_points(joint, ends))
            points.append(own[1])
        if (number + 1) % 10 == 0 or number + 1 == len(pairs):
            progress(f"{number + 1} of {len(pairs)} pairs compared with the estimate")
    moved = np.array(offsets).reshape(-1, 4, 2)
    split, most = _split(moved)
    bands = _bands(np.vstack(points), joint, registration.visible_size[1])
    return Agreement(len(pairs), np.array(judged, int), _length(moved), split, most, bands, diagonal)


def _alone(pair: GreyPair, joint: np.ndarray, diagonal: float) -> tuple[np.ndarray, np.ndarray] | None:
    """What one pair says: its homography (3, 3) and the points (N, 4) that it is from; None where it says little."""
    search = Search([pair])
    search.matrix = joint
    search.nudge(160, _KNOCK)
    points, fits = np.zeros((0, 4)), np.zeros(0, bool)
    for step in _STEPS:
        points, _ = search.match(*step)
        if len(points) < 4:
            return None
        cv2.setRNGSeed(0)  # the same points give the same answer
        found, mask = cv2.estimateAffinePartial2D(
            map_points(search.matrix, points[:, :2]).astype(np.float32),
            points[:, 2:].astype(np.float32),
            ransacReprojThreshold=_TOLERANCE * diagonal,
            maxIters=5000,
            confidence=0.999,
        )
        if found is None:
            return None
        fits = mask.ravel() > 0
        search.matrix = np.vstack((found, [0, 0, 1])) @ search.matrix
    if fits.sum() < max(LEAST_MATCHES, LEAST_SHARE * len(points)):
        return None
    away = np.hypot(*(map_points(search.matrix, points[:, :2]) - points[:, 2:]).T)
    return search.matrix, points[away < _WRONG_MATCH * diagonal]


def _length(offsets: np.ndarray) -> np.ndarray:
    """Mean length over the corners, (...,), of offsets (..., 4, 2)."""
    return np.asarray(np.hypot(offsets[..., 0], offsets[..., 1]).mean(axis=-1))


def _split(offsets: np.ndarray) -> tuple[int | None, float]:
    """Where a drive falls in two by the offsets (M, 4, 2) of its pairs, and how far apart the two parts are, px."""
    shortest = max(LEAST_FRAMES, len(offsets) // 8)
    places = range(shortest, len(offsets) - shortest + 1)
    apart = [float(_length(np.median(offsets[:k], axis=0) - np.median(offsets[k:], axis=0))) for k in places]
    if not apart:
        return None, 0.0
    best = int(np.argmax(apart))
    return places[best], apart[best]


def _bands(points: np.ndarray, joint: np.ndarray, height: int) -> list[Band]:
    """The bands of an image of `height` px, by matched points (N, 4) of single pairs."""
    off = points[:, 2:] - map_points(joint, points[:, :2])
    edges = np.linspace(0, height, BANDS + 1).round().astype(int)
    bands = []
    for top, bottom in pairwise(edges.tolist()):
        here = off[(points[:, 3] >= top - 0.5) & (points[:, 3] < bottom - 0.5)]
        across, down = np.median(here, axis=0) if len(here) else (np.nan, np.nan)
        distance = float(np.median(np.hypot(*here.T))) if len(here) else np.nan
        bands.append(Band(top, bottom, len(here), distance, float(across), float(down)))
    return bands
