"""Finding the registration of a camera pair: a homography from points picked by hand, or matched across the spectra.

Grey values of a thermal and a visible image have little to do with each other, but edges often lie at the same places
in the same directions. So both images become channels of oriented gradients, sign ignored, after Ye et al. 2019 ("Fast
and Robust Matching for Multimodal Remote Sensing Image Registration", TGRS; their descriptor CFOG), and patches of them
are correlated. One pair of cameras has one homography, so the correlation of a patch is summed over all its image pairs
before a match is read off: what a single night picture does not show, forty together do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import cv2
import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.imaging.registration import Registration, corners, map_points, scaling

Size = tuple[int, int]
GreyPair = tuple[np.ndarray, np.ndarray]

# Longer side in px that the images are worked at, patches across, and how far each is looked for (share of that side).
_STEPS = ((160, 6, 0.1), (320, 8, 0.05), (640, 10, 0.025), (640, 12, 0.025))

# Judged against the diagonal of the visible image.
_MOST_ERROR = 0.01  # of the points that a fit is made of, root mean square
_MOST_DISAGREEMENT = 0.02  # between the corners that each half of the pairs gives on its own
_LEAST_MATCHES = 12  # that agree, where they were found by themselves
_LEAST_SHARE = 0.5  # of the points
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
    search = _Search(pairs)
    tolerance = 0.004 * float(np.hypot(*search.visible_size))
    progress(f"start: {search.start()}")
    points, halves = np.zeros((0, 4)), [np.zeros((0, 4))] * 2
    inliers = np.zeros(0, bool)
    for longest, cells, reach in _STEPS:
        points, halves = search.match(longest, cells, reach)
        matrix, inliers = _fit(points, tolerance)
        if matrix is None or inliers.sum() < 6 or not _sane(matrix, search):
            raise UserError(
                f"found nothing that the {len(pairs)} pairs show in both images: do the files belong together, and the "
                "cameras look the same way? Or pick points by hand and give --points"
            )
        search.matrix = matrix
        progress(f"at {longest} px: {inliers.sum()} of {len(points)} matched points agree")
    disagreement = None
    if len(pairs) > 1:
        fits = [matrix for half in halves if (matrix := _fit(half, tolerance)[0]) is not None]
        ends = [map_points(matrix, corners(search.thermal_size)) for matrix in fits]
        disagreement = float(np.hypot(*(ends[0] - ends[1]).T).max()) if len(ends) == 2 else np.inf
    return _judged(
        search.matrix, search.thermal_size, search.visible_size, points, inliers, disagreement, _LEAST_MATCHES
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


def _sane(matrix: np.ndarray, search: _Search) -> bool:
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
    if inliers.sum() < max(least, _LEAST_SHARE * len(points)):
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


class _Search:
    """The coarse-to-fine search. `matrix` is the estimate so far, thermal to visible px at full size."""

    def __init__(self, pairs: Sequence[GreyPair]) -> None:
        visible, thermal = pairs[0]
        self.pairs = pairs
        self.visible_size: Size = (visible.shape[1], visible.shape[0])
        self.thermal_size: Size = (thermal.shape[1], thermal.shape[0])
        for other in pairs:
            if (other[0].shape, other[1].shape) != (visible.shape, thermal.shape):
                sizes = " and ".join(
                    f"{image.shape[1]}x{image.shape[0]}" for pair in (pairs[0], other) for image in pair
                )
                raise UserError(f"the pairs differ in size ({sizes}): register one pair of cameras at a time")
        self.matrix = scaling(self.thermal_size, self.visible_size)

    def _descriptors(self, pair: GreyPair, longest: int, matrices: list[np.ndarray]) -> Any:
        """Of the visible image at working size: (h, w, 4). Of the thermal one, warped onto it by each matrix: the same,
        and (h, w) bool where it has pixels."""
        visible, thermal = pair
        size, down = self._working(longest)
        # Shrunk by areas before the warp, which would skip pixels.
        shrink = min(1.0, float(np.sqrt(abs(np.linalg.det((down @ self.matrix)[:2, :2])))))
        small = (max(8, round(self.thermal_size[0] * shrink)), max(8, round(self.thermal_size[1] * shrink)))
        plane = cv2.resize(thermal, small, interpolation=cv2.INTER_AREA)
        up = scaling(small, self.thermal_size)
        warped = [_warped(plane, down @ matrix @ up, size) for matrix in matrices]
        return _oriented(cv2.resize(visible, size, interpolation=cv2.INTER_AREA)), warped

    def _working(self, longest: int) -> tuple[Size, np.ndarray]:
        scale = min(1.0, longest / max(self.visible_size))
        size = (round(self.visible_size[0] * scale), round(self.visible_size[1] * scale))
        return size, scaling(self.visible_size, size)

    def _bases(self) -> list[np.ndarray]:
        """The thermal image stretched over the visible one; of another shape, also as wide as it with square pixels."""
        (w, h), (width, height) = self.thermal_size, self.visible_size
        stretched = scaling(self.thermal_size, self.visible_size)
        if abs(w * height / (h * width) - 1) < 0.03:
            return [stretched]
        square = scaling((w, h), (width, round(h * width / w)))
        square[1, 2] += (height - h * width / w) / 2
        return [stretched, square]

    def start(self) -> str:
        """Find scale, rotation and shift roughly: the middle of the thermal image, looked for in all of the visible."""
        size, down = self._working(96)
        up = np.linalg.inv(down)
        middle = (size[0] / 2 - 0.5, size[1] / 2 - 0.5)
        candidates, matrices = [], []
        for base, scale, angle in product(self._bases(), 1.1 ** np.arange(-6.0, 7.0), (-6.0, -3.0, 0.0, 3.0, 6.0)):
            turn = np.vstack((cv2.getRotationMatrix2D(middle, angle, scale), [0, 0, 1]))
            candidates.append((scale, angle))
            matrices.append(up @ turn @ down @ base)
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
        """Match a grid of patches, each near the place where the estimate so far puts it.

        Args:
            longest: longer side of the working size, px.
            cells: patches across.
            reach: how far a patch is looked for, as a share of the longer side.

        Returns:
            (N, 4) matched points at full size, thermal x, y and visible x, y; and the same for each half of the pairs,
            or an empty list for a single pair.
        """
        size, down = self._working(longest)
        radius = max(3, round(reach * max(size)))
        half = max(3, min(round(max(size) / cells * 0.75), min(size) // 2 - radius - 2))
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
            """The points at full size, (N, 4), where the patches were found."""
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
    """(H, W, 4) float32: strength of the gradient along four directions, sign ignored, relative to its surroundings."""
    picture = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 1.0)
    across, down = cv2.Sobel(picture, cv2.CV_32F, 1, 0), cv2.Sobel(picture, cv2.CV_32F, 0, 1)
    angles = np.arange(4) * np.pi / 4
    ways = ((float(np.cos(a)), float(np.sin(a))) for a in angles)  # plain numbers keep float32
    channels = [cv2.GaussianBlur(np.abs(across * c + down * s), (0, 0), 1.5) for c, s in ways]
    stack = np.dstack(channels)
    strength = np.sqrt((stack**2).sum(axis=2, keepdims=True))
    return stack / (strength + np.median(strength) + 2.0)


def _warped(plane: np.ndarray, matrix: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of a plane warped to `size`, and where it has pixels. The rim is repeated, so that it is no edge."""
    warped = cv2.warpPerspective(plane, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    ones = np.ones(plane.shape, np.uint8)
    return _oriented(warped), cv2.warpPerspective(ones, matrix, size, flags=cv2.INTER_NEAREST) > 0


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
