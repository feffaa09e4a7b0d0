"""Finding the registration of a camera pair: a homography from picked points, or from points matched across the spectra.

Grey values of a thermal and a visible image have little to do with each other, but edges often lie at the same places in
the same directions. So both images become channels of oriented gradients, sign ignored, after Ye et al. 2019 ("Fast and
Robust Matching for Multimodal Remote Sensing Image Registration", TGRS, the descriptor CFOG), and patches of them are
correlated. One pair of cameras has one homography, so the correlation of a patch is summed over all its image pairs
before a match is read off: what a single night picture does not show, forty together do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.registration import Registration, corners, map_points

Size = tuple[int, int]
PairOfImages = tuple[np.ndarray, np.ndarray]

# Judged against the diagonal of the visible image.
_MOST_ERROR = 0.01  # of the points that a fit is made of, root mean square
_MOST_DISAGREEMENT = 0.02  # between the corners that each half of the pairs gives on its own
_LEAST_POINTS = 12  # matches that agree
_LEAST_SHARE = 0.5  # of the matches
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
    disagreement: float | None = None
    problem: str | None = field(default=None)


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
    diagonal = float(np.hypot(*visible_size))
    matrix, inliers = _fit(points, diagonal * _MOST_ERROR / 2 if len(points) >= 8 else None)
    if matrix is None:
        raise UserError(
            "the points define no homography: they lie on a line or in one place; pick some near each corner"
        )
    registration = Registration(tuple(map(tuple, matrix)), thermal_size, visible_size)
    return _judged(registration, points, inliers, None)


def from_images(
    pairs: Sequence[Callable[[], PairOfImages]], progress: Callable[[str], None] = lambda line: None
) -> Estimate:
    """The homography that image pairs of one pair of cameras have in common.

    Args:
        pairs: each gives a visible image, (H, W, 3) uint8 BGR, and a thermal plane, (h, w) uint8, when called; all of
            one size per camera. They are called several times.
        progress: told of each step.

    Raises:
        UserError: no pairs, images of differing sizes, or nothing in them that could be matched.
    """
    if not pairs:
        raise UserError("no image pairs to register")
    visible, thermal = pairs[0]()
    sizes = visible.shape[1::-1], thermal.shape[::-1]
    search = _Search(pairs, sizes[0], sizes[1])
    progress(f"start: {search.start()}")
    for longest, cells, reach in ((160, 6, 0.1), (320, 8, 0.05), (640, 10, 0.025), (640, 12, 0.025)):
        points, halves = search.match(longest, cells, reach)
        matrix, inliers = _fit(points, 0.004 * np.hypot(*sizes[0]))
        if matrix is None or inliers.sum() < 6:
            raise UserError("found no points that the pictures have in common; pick some by hand and give --points")
        search.matrix = matrix
        progress(f"at {longest} px: {inliers.sum()} of {len(points)} matched points agree")
    ends = [
        map_points(m, corners(sizes[1])) for h in halves if (m := _fit(h, 0.004 * np.hypot(*sizes[0]))[0]) is not None
    ]
    disagreement = None
    if len(pairs) > 1:
        disagreement = float(np.hypot(*(ends[0] - ends[1]).T).max()) if len(ends) == 2 else np.inf
    registration = Registration(tuple(map(tuple, search.matrix)), sizes[1], sizes[0])
    return _judged(registration, points, inliers, disagreement)


def _fit(points: np.ndarray, threshold: float | None) -> tuple[Any, np.ndarray]:
    """Homography (3, 3) or None, and which points agree with it within `threshold` px (None: all count)."""
    if len(points) < 4:
        return None, np.zeros(len(points), bool)
    if threshold is None:
        return cv2.findHomography(points[:, :2], points[:, 2:])[0], np.ones(len(points), bool)
    cv2.setRNGSeed(0)
    matrix, mask = cv2.findHomography(
        points[:, :2], points[:, 2:], cv2.USAC_MAGSAC, threshold, maxIters=5000, confidence=0.999
    )
    if matrix is None:
        return None, np.zeros(len(points), bool)
    return matrix, mask.ravel() > 0


def _judged(
    registration: Registration, points: np.ndarray, inliers: np.ndarray, disagreement: float | None
) -> Estimate:
    """The estimate with its error, and with what speaks against it."""
    away = np.hypot(*(map_points(registration.homography, points[:, :2]) - points[:, 2:]).T)
    error = float(np.sqrt(np.mean(away[inliers] ** 2))) if inliers.any() else np.inf
    diagonal = float(np.hypot(*registration.visible_size))
    hull = cv2.convexHull(points[inliers][:, 2:].astype(np.float32))
    spread = cv2.contourArea(hull) / float(np.prod(registration.visible_size))
    problem = None
    matched = disagreement is not None or len(points) > 30
    if error > _MOST_ERROR * diagonal:
        problem = f"the points are {error:.1f} px off on average (at most {_MOST_ERROR * diagonal:.1f} px can pass)"
    elif inliers.mean() < _LEAST_SHARE:
        problem = f"only {inliers.sum()} of {len(inliers)} points agree with each other"
    elif matched and inliers.sum() < _LEAST_POINTS:
        problem = f"only {inliers.sum()} matched points agree with each other ({_LEAST_POINTS} are needed)"
    elif spread < _LEAST_SPREAD:
        problem = f"the points span {spread:.0%} of the image; its corners would be guessed"
    elif disagreement is not None and disagreement > _MOST_DISAGREEMENT * diagonal:
        problem = (
            f"the two halves of the pairs put a corner {disagreement:.0f} px apart (at most "
            f"{_MOST_DISAGREEMENT * diagonal:.0f} px can pass)"
        )
    return Estimate(registration, points, inliers, error, disagreement, problem)


class _Search:
    """The coarse-to-fine search. `matrix` is the estimate so far, thermal to visible px at full size."""

    def __init__(self, pairs: Sequence[Callable[[], PairOfImages]], visible_size: Size, thermal_size: Size) -> None:
        self.pairs = pairs
        self.visible_size, self.thermal_size = visible_size, thermal_size
        self.matrix = _resizing(thermal_size, visible_size)

    def _descriptors(self, pair: Callable[[], PairOfImages], longest: int, matrices: list[np.ndarray]) -> Any:
        """Descriptors of the visible image at working size, and of the thermal one warped onto it by each matrix."""
        visible, thermal = pair()
        if (visible.shape[1::-1], thermal.shape[::-1]) != (self.visible_size, self.thermal_size):
            raise UserError(
                f"the image pairs differ in size ({visible.shape[1]}x{visible.shape[0]} and "
                f"{thermal.shape[1]}x{thermal.shape[0]} after {self.visible_size[0]}x{self.visible_size[1]} and "
                f"{self.thermal_size[0]}x{self.thermal_size[1]}): register one pair of cameras at a time"
            )
        size, down = self._working(longest)
        grey = cv2.resize(cv2.cvtColor(visible, cv2.COLOR_BGR2GRAY), size, interpolation=cv2.INTER_AREA)
        # Shrunk by areas before the warp, which would skip pixels.
        shrink = min(1.0, float(np.sqrt(abs(np.linalg.det((down @ self.matrix)[:2, :2])))))
        small = tuple(max(8, round(side * shrink)) for side in self.thermal_size)
        plane = cv2.resize(thermal, small, interpolation=cv2.INTER_AREA)
        up = _resizing(small, self.thermal_size)
        return _oriented(grey), [_warped(plane, down @ matrix @ up, size) for matrix in matrices]

    def _working(self, longest: int) -> tuple[Size, np.ndarray]:
        scale = min(1.0, longest / max(self.visible_size))
        size = (round(self.visible_size[0] * scale), round(self.visible_size[1] * scale))
        return size, _resizing(self.visible_size, size)

    def start(self) -> str:
        """Find scale, rotation and shift roughly: the middle of the thermal image, looked for all over the visible one."""
        size, down = self._working(96)
        candidates = [(s, a) for s in 1.1 ** np.arange(-6.0, 7.0) for a in (-6.0, -3.0, 0.0, 3.0, 6.0)]
        middle = (size[0] / 2 - 0.5, size[1] / 2 - 0.5)
        turns = [np.vstack((cv2.getRotationMatrix2D(middle, angle, scale), [0, 0, 1])) for scale, angle in candidates]
        up = np.linalg.inv(down)
        matrices = [up @ turn @ down @ self.matrix for turn in turns]
        pad = (round(size[0] * 0.15), round(size[1] * 0.15))
        surfaces: list[Any] = [0.0] * len(candidates)
        for pair in _spread(self.pairs, 16):
            visible, thermals = self._descriptors(pair, 96, matrices)
            for i, (thermal, _) in enumerate(thermals):
                template = thermal[pad[1] : size[1] - pad[1], pad[0] : size[0] - pad[0]]
                surfaces[i] = surfaces[i] + cv2.matchTemplate(visible, template, cv2.TM_CCOEFF_NORMED)
        best = int(np.argmax([surface.max() for surface in surfaces]))
        y, x = np.unravel_index(int(np.argmax(surfaces[best])), surfaces[best].shape)
        shift = np.array([[1, 0, x - pad[0]], [0, 1, y - pad[1]], [0, 0, 1]], np.float64)
        self.matrix = up @ shift @ down @ matrices[best]
        scale, angle = candidates[best]
        to_full = self.visible_size[0] / size[0]
        return (
            f"scale {scale:.2f}, turned by {angle:+.0f} degrees, shifted by "
            f"{(x - pad[0]) * to_full:+.0f}, {(y - pad[1]) * to_full:+.0f} px"
        )

    def match(self, longest: int, cells: int, reach: float) -> tuple[np.ndarray, list[np.ndarray]]:
        """Match a grid of patches, each within `reach` (a share of the longer side) of where the estimate puts it.

        Returns:
            (N, 4) matched points at full size, thermal x, y, visible x, y; and the same of each half of the pairs.
        """
        size, down = self._working(longest)
        radius = max(3, round(reach * max(size)))
        half = round(max(size) / cells * 0.75)
        xs = np.linspace(half + radius, size[0] - 1 - half - radius, cells).round().astype(int)
        ys = np.linspace(half + radius, size[1] - 1 - half - radius, max(4, round(cells * size[1] / size[0])))
        centres = [(int(x), int(y)) for y in ys.round() for x in xs]
        sums = np.zeros((2, len(centres), 2 * radius + 1, 2 * radius + 1), np.float32)
        for number, pair in enumerate(self.pairs):
            visible, ((thermal, seen),) = self._descriptors(pair, longest, [self.matrix])
            for i, (x, y) in enumerate(centres):
                inside = (slice(y - half, y + half + 1), slice(x - half, x + half + 1))
                if not seen[inside].all():
                    continue
                around = visible[y - half - radius : y + half + radius + 1, x - half - radius : x + half + radius + 1]
                surface = cv2.matchTemplate(around, thermal[inside], cv2.TM_CCOEFF_NORMED)
                sums[number % 2, i] += np.where(np.isfinite(surface), surface, 0)
        back = np.linalg.inv(down)
        to_thermal = np.linalg.inv(down @ self.matrix)

        def peaks(surfaces: np.ndarray) -> np.ndarray:
            found = [
                (*centre, *moved) for centre, s in zip(centres, surfaces) if (moved := _peak(s, centre)) is not None
            ]
            points = np.array(found, np.float64).reshape(-1, 4)
            return np.hstack((map_points(to_thermal, points[:, :2]), map_points(back, points[:, 2:])))

        return peaks(sums[0] + sums[1]), [peaks(sums[0]), peaks(sums[1])] if len(self.pairs) > 1 else []


def _peak(surface: np.ndarray, centre: tuple[int, int]) -> tuple[float, float] | None:
    """Where the patch at `centre` was found, in working px to a fraction; None when nothing stands out."""
    radius = surface.shape[0] // 2
    y, x = np.unravel_index(int(np.argmax(surface)), surface.shape)
    if not (0 < y < 2 * radius and 0 < x < 2 * radius):
        return None  # at the rim: the true one lies outside
    if surface[y, x] - np.median(surface) < 3 * np.median(np.abs(surface - np.median(surface))):
        return None
    parts = []
    for before, at, after in (
        (surface[y, x - 1], surface[y, x], surface[y, x + 1]),
        (surface[y - 1, x], surface[y, x], surface[y + 1, x]),
    ):
        bend = before - 2 * at + after
        parts.append(0.0 if bend >= 0 else float(0.5 * (before - after) / bend))
    return centre[0] + x - radius + parts[0], centre[1] + y - radius + parts[1]


def _oriented(grey: np.ndarray) -> np.ndarray:
    """(H, W, 4) float32: strength of the gradient along four directions, sign ignored, in parts of the local strength."""
    picture = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 1.0)
    across, down = cv2.Sobel(picture, cv2.CV_32F, 1, 0), cv2.Sobel(picture, cv2.CV_32F, 0, 1)
    angles = np.arange(4) * np.pi / 4
    ways = ((float(np.cos(a)), float(np.sin(a))) for a in angles)  # plain numbers keep float32
    channels = [cv2.GaussianBlur(np.abs(across * c + down * s), (0, 0), 1.5) for c, s in ways]
    stack = np.dstack(channels)
    strength = np.sqrt((stack**2).sum(axis=2, keepdims=True))
    return stack / (strength + np.median(strength) + 2.0)


def _warped(plane: np.ndarray, matrix: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of a plane warped to `size`, and where it has pixels (the rim left out, where the fill makes edges)."""
    warped = cv2.warpPerspective(plane, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    ones = np.ones(plane.shape, np.uint8)
    return _oriented(warped), cv2.warpPerspective(ones, matrix, size, flags=cv2.INTER_NEAREST) > 0


def _resizing(before: Size, after: Size) -> np.ndarray:
    """What cv2.resize does to pixel coordinates."""
    x, y = after[0] / before[0], after[1] / before[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
