"""Patches of a thermal image, found again in the visible one: what the estimate of a registration is made from.

Both images become channels of oriented gradients, sign ignored, after Ye et al. 2019 ("Fast and Robust Matching for
Multimodal Remote Sensing Image Registration", TGRS; their descriptor CFOG), and patches of them are correlated. One
pair of cameras has one homography, so the correlation of a patch is summed over all image pairs before a match is read
off: what a single night picture does not show, forty together do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import cv2
import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.imaging.registration import map_points, scaling
from rscmd_model.imaging.thermal import ThermalContract

Size = tuple[int, int]
GreyPair = tuple[np.ndarray, np.ndarray]
"""A visible image in grey, (H, W) uint8, and the plane of the thermal one, (h, w) uint8."""


def grey_pair(visible: np.ndarray, counts: np.ndarray) -> GreyPair:
    """A pair as it is matched. The thermal image is scaled by percentiles: edges matter here, levels do not.

    Args:
        visible: (H, W, 3) uint8 BGR.
        counts: (h, w) uint8 or uint16, or three channels as `ThermalContract.counts` takes them.

    Raises:
        UserError: the thermal image is of another type or shape.
    """
    source = "mono16" if counts.dtype == np.uint16 else "mono8"
    return cv2.cvtColor(visible, cv2.COLOR_BGR2GRAY), ThermalContract(source, (1, 99), percentile=True).apply(counts)


class Search:
    """The coarse-to-fine search. `matrix` is the estimate so far, thermal to visible px at full size."""

    def __init__(self, pairs: Sequence[GreyPair]) -> None:
        visible, thermal = pairs[0]
        self.pairs = pairs
        self.visible_size: Size = (visible.shape[1], visible.shape[0])
        self.thermal_size: Size = (thermal.shape[1], thermal.shape[0])
        for other in pairs:
            if (other[0].shape, other[1].shape) != (visible.shape, thermal.shape):
                sizes = ", then ".join(map(_sizes, (pairs[0], other)))
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

    def nudge(self, longest: int, reach: float) -> None:
        """Shift the estimate so far by what the pictures as a whole say: what the patches need as their start.

        Args:
            longest: longer side of the working size, px.
            reach: the largest shift, as a share of the width and of the height.
        """
        size, down = self._working(longest)
        pad = (round(size[0] * reach), round(size[1] * reach))
        middle = (slice(pad[1], size[1] - pad[1]), slice(pad[0], size[0] - pad[0]))
        total: Any = 0.0
        for pair in self.pairs:
            visible, ((thermal, _),) = self._descriptors(pair, longest, [self.matrix])
            total = total + cv2.matchTemplate(visible, thermal[middle], cv2.TM_CCOEFF_NORMED)
        y, x = np.unravel_index(int(np.argmax(total)), total.shape)
        shift = np.array([[1, 0, x - pad[0]], [0, 1, y - pad[1]], [0, 0, 1]], np.float64)
        self.matrix = np.linalg.inv(down) @ shift @ down @ self.matrix

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


def _sizes(pair: GreyPair) -> str:
    """WIDTHxHEIGHT of a pair's images, once where both have the same."""
    return " and ".join(dict.fromkeys(f"{image.shape[1]}x{image.shape[0]}" for image in pair))


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
