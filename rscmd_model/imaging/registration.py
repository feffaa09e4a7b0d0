"""Where the pixels of a thermal camera lie in the image of the visible camera beside it: one homography, in YAML.

A homography is right for a scene that is flat or far away; `docs/registration.md` says what that means in pixels.
`rscmd_model.register` estimates one, and `images.lay_over` applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rscmd_model.errors import UserError, did_you_mean, quoted
from rscmd_model.files import whole_file
from rscmd_model.text import read_yaml

FILL = 114
"""The grey of nothing to see: of the letterbox, of the augmentation's borders (it is ultralytics'), and of a thermal
plane where the camera does not look. 0 would mean cold there, and would draw a sharp edge."""

LARGEST_SIDE = 16_384
"""Of an image that a registration is for, in px; a number beyond it is damage, and its images would fill the memory."""

_LEAST_OVERLAP = 0.01
_LARGEST_ENTRY = 1e9  # of a homography between images of those sizes; beyond it is damage
_SHAPE_SLACK = 0.02


@dataclass(frozen=True)
class Registration:
    """The way from thermal to visible pixels for one pair of cameras.

    Attributes:
        homography: 3 rows of 3 numbers; (x, y, 1) of a thermal pixel to the visible pixel, up to scale. Pixel (0, 0)
            is the centre of the upper left one, as in OpenCV.
        thermal_size, visible_size: (width, height) in px of the images it is for. Images of other sizes but the same
            shape are taken for scaled copies.

    Raises:
        UserError: numbers that are not finite, a matrix that cannot be inverted or mirrors the image, or one that
            carries the thermal image past the visible one.
    """

    homography: tuple[tuple[float, ...], ...]
    thermal_size: tuple[int, int]
    visible_size: tuple[int, int]

    def __post_init__(self) -> None:
        try:
            matrix = np.array([[float(x) for x in row] for row in self.homography], np.float64)
        except (TypeError, ValueError, OverflowError):
            matrix = np.zeros(0)
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
            raise UserError(f"registration: homography needs 3 rows of 3 finite numbers, got {quoted(self.homography)}")
        for name in ("thermal_size", "visible_size"):
            size = getattr(self, name)
            whole = isinstance(size, tuple | list) and len(size) == 2
            if not whole or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
                raise UserError(f"registration: {name} is [width, height] in pixels, got {quoted(size)}")
            if max(size) > LARGEST_SIDE:
                raise UserError(
                    f"registration: {name} {quoted(size)} is larger than any camera's, {LARGEST_SIDE} px a side"
                )
            object.__setattr__(self, name, tuple(size))
        if abs(matrix[2, 2]) > 1e-12:
            with np.errstate(over="ignore"):
                matrix = matrix / matrix[2, 2]
        object.__setattr__(self, "homography", tuple(tuple(float(x) for x in row) for row in matrix))
        if not np.abs(matrix).max() <= _LARGEST_ENTRY:
            raise UserError(
                f"registration: homography {quoted(self.homography)} sends pixels nowhere near the visible image"
            )
        if problem := _problem(matrix, self.thermal_size, self.visible_size):
            raise UserError(f"registration: {problem}")

    @staticmethod
    def from_dict(data: Any) -> Registration:
        """Read `{homography: [[...], [...], [...]], thermal_size: [w, h], visible_size: [w, h]}`.

        Raises:
            UserError: a key is missing or unknown (the nearest one is named), or a value is refused.
        """
        known = ("homography", "thermal_size", "visible_size")
        if not isinstance(data, Mapping):
            raise UserError(f"registration: expected the keys {', '.join(known)}, got {quoted(data)}")
        for key in data:
            if key not in known:
                hint = did_you_mean(key, known, f"known: {', '.join(known)}")
                raise UserError(f"registration: unknown key {quoted(key)}{hint}")
        if missing := [key for key in known if key not in data]:
            raise UserError(f"registration: {' and '.join(missing)} missing")
        return Registration(*(data[key] for key in known))

    def to_dict(self) -> dict[str, Any]:
        """The form `from_dict` reads, of plain JSON types."""
        return {
            "homography": [list(row) for row in self.homography],
            "thermal_size": list(self.thermal_size),
            "visible_size": list(self.visible_size),
        }

    def matrix(self, thermal_size: tuple[int, int] | None = None, visible_size: tuple[int, int] | None = None) -> Any:
        """The homography between images that are scaled.

        Args:
            thermal_size: (width, height) px; None for the registration's own.
            visible_size: (width, height) px; None for the registration's own.

        Returns:
            (3, 3) float64, thermal to visible px.

        Raises:
            UserError: a size is of another shape (width to height), so that image is no scaled copy.
        """
        to_own = _to_own(thermal_size or self.thermal_size, self.thermal_size, "thermal")
        from_own = np.linalg.inv(_to_own(visible_size or self.visible_size, self.visible_size, "visible"))
        return from_own @ np.array(self.homography) @ to_own

    def warp(self, thermal: np.ndarray, visible_size: tuple[int, int]) -> np.ndarray:
        """Lay a thermal plane over the visible image.

        Args:
            thermal: (h, w) uint8, the plane a `ThermalContract` made.
            visible_size: (width, height) of the visible image.

        Returns:
            (height, width) uint8; `FILL` where the thermal camera does not look.

        Raises:
            UserError: as `matrix`.
        """
        matrix = self.matrix(thermal.shape[::-1], visible_size)
        return cv2.warpPerspective(
            thermal, matrix, visible_size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=FILL
        )


def load_registration(path: str | Path) -> Registration:
    """Read a registration file.

    Raises:
        UserError: the file is missing, no YAML, or refused; the message names it.
    """
    path = Path(path)
    data = read_yaml(path, "registration")
    try:
        return Registration.from_dict(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def save_registration(path: str | Path, registration: Registration, remarks: list[str] | None = None) -> None:
    """Write a registration file.

    Args:
        path: the file.
        registration: what to write.
        remarks: lines that stand as comments on top.

    Raises:
        UserError: the file cannot be written.
    """
    plain = registration.to_dict()
    lines = [f"# {remark}" for remark in remarks or []]
    lines += [
        "homography:  # (x, y, 1) of a thermal pixel to the visible one",
        *(f"  - {r}" for r in plain["homography"]),
    ]
    lines += [f"{name}: {plain[name]}  # width, height in px" for name in ("thermal_size", "visible_size")]
    with whole_file(path) as aside:
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")


def corners(size: tuple[int, int]) -> np.ndarray:
    """The outer corners of an image of `size` = (width, height), clockwise from the upper left, (4, 2) float64 px."""
    width, height = size
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64) - 0.5


def map_points(matrix: Any, points: np.ndarray) -> np.ndarray:
    """Map points by a homography.

    Args:
        matrix: (3, 3).
        points: (N, 2).

    Returns:
        (N, 2).
    """
    mapped = np.hstack((points, np.ones((len(points), 1)))) @ np.asarray(matrix).T
    return np.asarray(mapped[:, :2] / mapped[:, 2:])


def scaling(before: tuple[int, int], after: tuple[int, int]) -> np.ndarray:
    """What resizing an image does to pixel coordinates, as cv2.resize does it.

    Args:
        before: (width, height).
        after: (width, height).

    Returns:
        (3, 3).
    """
    x, y = after[0] / before[0], after[1] / before[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def rescaling(size: tuple[int, int], own: tuple[int, int], what: str, advice: str = "") -> np.ndarray:
    """From pixels of an image to those of another size, of which the image must be a scaled copy.

    Args:
        size: (width, height) of the image, px.
        own: (width, height) to go to, px.
        what: the message begins with it, followed by `own`; as in "the camera_info is for".
        advice: the message ends with it.

    Returns:
        (3, 3) float64.

    Raises:
        UserError: the image has another shape.
    """
    x, y = own[0] / size[0], own[1] / size[1]
    # Sides are whole numbers, so a small copy of a picture may be off by one pixel.
    if abs(x / y - 1) > _SHAPE_SLACK + 1 / min(size):
        raise UserError(
            f"{what} images of {own[0]}x{own[1]}, and this one is {size[0]}x{size[1]}, which is no scaled copy of it"
            f"{advice}"
        )
    return scaling(size, own)


def _to_own(size: tuple[int, int], own: tuple[int, int], which: str) -> np.ndarray:
    advice = ": give the registration of this camera pair, or estimate one with rscmd_model.register"
    return rescaling(size, own, f"the registration is for {which}", advice)


def _problem(matrix: np.ndarray, thermal_size: tuple[int, int], visible_size: tuple[int, int]) -> str | None:
    """What is wrong with a homography between images of these sizes; None when nothing is."""
    ends = corners(thermal_size)
    depth = np.hstack((ends, np.ones((4, 1)))) @ matrix[2]
    scale = float(np.prod(visible_size)) / float(np.prod(thermal_size))
    # The local change of area is det / depth^3: where both are positive it neither mirrors nor tears the image apart.
    if abs(float(np.linalg.det(matrix))) < 1e-9 * scale:
        return "the homography cannot be inverted (its determinant is 0)"
    if depth.min() <= 1e-6:
        return "the homography sends a part of the thermal image to infinity or behind the camera"
    if np.linalg.det(matrix) < 0:
        return "the homography mirrors the image; are x and y, or two corners, swapped?"
    there = map_points(matrix, ends).astype(np.float32)
    area = cv2.intersectConvexConvex(there, corners(visible_size).astype(np.float32))[0]
    share = area / float(np.prod(visible_size))
    if share < _LEAST_OVERLAP:
        return (
            f"the thermal image lands on {share:.1%} of the visible one; is the homography from thermal to visible "
            "pixels, and not the other way round?"
        )
    return None
