"""Finding the registration of a camera pair: a homography from points picked by hand, or matched across the spectra.

Grey values of a thermal and a visible image have little to do with each other, but edges often lie at the same places
in the same directions. `patch_matching` finds points by them; here a homography is fitted to points and judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.imaging.patch_matching import GreyPair, Search, Size
from rscmd_model.imaging.registration import Registration, corners, map_points

# Longer side in px that the images are worked at, patches across, and how far each is looked for (share of that side).
_STEPS = ((160, 6, 0.1), (320, 8, 0.05), (640, 10, 0.025), (640, 12, 0.025))

# Judged against the diagonal of the visible image.
_MOST_ERROR = 0.01  # of the points that a fit is made of, root mean square
_MOST_DISAGREEMENT = 0.02  # between the corners that each half of the pairs gives on its own
LEAST_MATCHES = 12  # that agree, where they were found by themselves
LEAST_SHARE = 0.5  # of the points
_LEAST_SPREAD = 0.1  # of the area of the image that the points span


@dataclass(frozen=True)
class Estimate:
    """A registration and how far it can be trusted. Lengths in px of the visible image.

    Attributes:
        registration: the homography found.
        points: (N, 4) all points: thermal x, y, visible x, y.
        inliers: (N,) bool, those that agree with it.
        error: root mean square distance of the agreeing points.
        disagreement: largest distance between corners of the thermal image as each half of the pairs puts them; None
            where there are no halves.
        problem: why it should not be used, or None.
    """

    registration: Registration
    points: np.ndarray
    inliers: np.ndarray
    error: float
    disagreement: float | None
    problem: str | None

    def lines(self) -> list[str]:
        """What a person should know of it."""
        lines = [
            f"{self.inliers.sum()} of {len(self.points)} points agree, {self.error:.2f} px off "
            "(root mean square, px of the visible image)"
        ]
        if len(self.points) == 4:
            lines[0] = "4 points fit exactly, so nothing tells how good they are: pick more"
        if self.disagreement is not None:
            lines.append(f"the two halves of the pairs put the corners up to {self.disagreement:.1f} px apart")
        return lines


def from_points(points: np.ndarray, thermal_size: Size, visible_size: Size) -> Estimate:
    """The homography through points picked by hand.

    Args:
        points: (N, 4) thermal x, y and visible x, y in px, N of 4 or more. With 8 or more, outliers are left out.
        thermal_size, visible_size: (width, height) of the images they were picked in.

    Raises:
        UserError: too few points, points outside the images, or none that define a homography.
    """
    points = np.asarray(points, np.float64).reshape(-1, 4)
    if len(points) < 4:
        raise UserError(f"a homography needs 4 points or more, no three on a line; got {len(points)}")
    for number, row in enumerate(points, 1):
        for name, (x, y), (width, height) in (("thermal", row[:2], thermal_size), ("visible", row[2:], visible_size)):
            if not (-0.5 <= x <= width and -0.5 <= y <= height):
                raise UserError(f"point {number}: ({x:g}, {y:g}) lies outside the {name} image of {width}x{height}")
    matrix, inliers = _fit(points, float(np.hypot(*visible_size)) * _MOST_ERROR / 2 if len(points) >= 8 else None)
    if matrix is None:
        raise UserError("the points define no homography: they lie on a line or in one place; spread them out")
    return _judged(matrix, thermal_size, visible_size, points, inliers)


def from_images(pairs: Sequence[GreyPair], progress: Callable[[str], None] = lambda line: None) -> Estimate:
    """The homography that image pairs of one pair of cameras have in common.

    Args:
        pairs: of each the visible image in grey, (H, W) uint8, and the thermal plane, (h, w) uint8.
        progress: told of each step.

    Raises:
        UserError: no pairs, images of differing sizes, or nothing in them that could be matched.
    """
    if not pairs:
        raise UserError("no image pairs to register")
    search = Search(pairs)
    tolerance = 0.004 * float(np.hypot(*search.visible_size))
    progress(f"start: {search.start()}")
    points, halves = np.zeros((0, 4)), [np.zeros((0, 4))] * 2
    inliers = np.zeros(0, bool)
    for longest, cells, reach in _STEPS:
        points, halves = search.match(longest, cells, reach)
        matrix, inliers = _fit(points, tolerance)
        if matrix is None or inliers.sum() < 6 or not _sane(matrix, search):
            raise UserError(
                f"found nothing that the {len(pairs)} pairs show in both images: do they belong together, and do the "
                "cameras look the same way? Or pick points by hand (rscmd_model.register --points)"
            )
        search.matrix = matrix
        progress(f"at {longest} px: {inliers.sum()} of {len(points)} matched points agree")
    disagreement = None
    if len(pairs) > 1:
        fits = [matrix for half in halves if (matrix := _fit(half, tolerance)[0]) is not None]
        ends = [map_points(matrix, corners(search.thermal_size)) for matrix in fits]
        disagreement = float(np.hypot(*(ends[0] - ends[1]).T).max()) if len(ends) == 2 else np.inf
    return _judged(
        search.matrix, search.thermal_size, search.visible_size, points, inliers, disagreement, LEAST_MATCHES
    )


def _fit(points: np.ndarray, tolerance: float | None) -> tuple[Any, np.ndarray]:
    """Homography (3, 3) or None, and which points agree with it within `tolerance` px (None: all count)."""
    matrix, mask = None, np.ones(len(points), bool)
    if len(points) >= 4 and tolerance is None:
        matrix = cv2.findHomography(points[:, :2], points[:, 2:])[0]
    elif len(points) >= 4 and tolerance is not None:
        cv2.setRNGSeed(0)  # the same points give the same answer
        matrix, found = cv2.findHomography(
            points[:, :2], points[:, 2:], cv2.USAC_MAGSAC, tolerance, maxIters=5000, confidence=0.999
        )
        mask = found.ravel() > 0 if matrix is not None else mask
    return matrix, mask


def _sane(matrix: np.ndarray, search: Search) -> bool:
    """Whether a camera could have this homography, so that the search can go on from it."""
    try:
        Registration(tuple(map(tuple, matrix.tolist())), search.thermal_size, search.visible_size)
    except UserError:
        return False
    return True


def _judged(
    matrix: np.ndarray,
    thermal_size: Size,
    visible_size: Size,
    points: np.ndarray,
    inliers: np.ndarray,
    disagreement: float | None = None,
    least: int = 4,
) -> Estimate:
    """Put together an estimate, its error, and the first reason not to trust it.

    Args:
        matrix: (3, 3) homography, thermal to visible px.
        thermal_size: (width, height) px.
        visible_size: (width, height) px.
        points: (N, 4) thermal x, y and visible x, y.
        inliers: (N,) bool.
        disagreement: between the halves of the pairs, px; None where there are none.
        least: how many points must agree.

    Raises:
        UserError: no camera could have this homography.
    """
    try:
        registration = Registration(tuple(map(tuple, matrix.tolist())), thermal_size, visible_size)
    except UserError as refused:
        raise UserError(f"the points agree on no homography that a camera could have ({refused})") from None
    away = np.hypot(*(map_points(registration.homography, points[:, :2]) - points[:, 2:]).T)
    error = float(np.sqrt(np.mean(away[inliers] ** 2))) if inliers.any() else np.inf
    diagonal = float(np.hypot(*visible_size))
    hull = cv2.convexHull(points[inliers][:, 2:].astype(np.float32))
    spread = cv2.contourArea(hull) / float(np.prod(visible_size))
    problem = None
    if inliers.sum() < max(least, LEAST_SHARE * len(points)):
        problem = f"only {inliers.sum()} of {len(points)} points agree with each other"
    elif error > _MOST_ERROR * diagonal:
        problem = f"the points are {error:.1f} px off (root mean square; {_MOST_ERROR * diagonal:.0f} px can pass)"
    elif spread < _LEAST_SPREAD:
        problem = f"the points span {spread:.0%} of the image, so its corners would be guessed; spread them out"
    elif disagreement is not None and disagreement > _MOST_DISAGREEMENT * diagonal:
        problem = (
            f"the two halves of the pairs put a corner {disagreement:.0f} px apart "
            f"({_MOST_DISAGREEMENT * diagonal:.0f} px can pass)"
        )
    return Estimate(registration, points, inliers, error, disagreement, problem)
