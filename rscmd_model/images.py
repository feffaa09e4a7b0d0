"""Image files in, arrays out: the one place where a visible and a thermal picture are read and laid over each other."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.registration import Registration
from rscmd_model.thermal import ThermalContract, thermal_plane

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")


def read_visible(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR. Raises `UserError` naming a file that is missing or no readable image."""
    return _read(path, cv2.IMREAD_COLOR)


def read_thermal(path: Path, contract: ThermalContract | None = None) -> np.ndarray:
    """The raw counts of a thermal image file.

    Args:
        path: the file.
        contract: when given, the counts must be of its type; only its `palette_ok` takes a colour palette.

    Returns:
        (H, W) uint8 or uint16, not yet scaled.

    Raises:
        UserError: naming the file: unreadable, a colour palette (`PaletteError`), or not of the contract's type.
    """
    image = _read(path, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    try:
        return thermal_plane(image) if contract is None else contract.counts(image)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from None


def read_small(path: Path) -> np.ndarray:
    """(h, w) uint8 grey at about an eighth of the size, far faster for a JPEG; otherwise as `read_visible`."""
    return _read(path, cv2.IMREAD_REDUCED_GRAYSCALE_8)


def _read(path: Path, flags: int) -> np.ndarray:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    # OpenCV decodes a truncated JPEG to a half-grey picture without a word, so its end is looked for here.
    if data[:2].tobytes() == b"\xff\xd8" and b"\xff\xd9" not in data[-64:].tobytes():
        raise UserError(f"{path} is cut short (a JPEG without its end)")
    image = cv2.imdecode(data, flags) if data.size else None
    if image is None:
        raise UserError(f"{path} is no readable image")
    return image


def lay_over(thermal: np.ndarray, size: tuple[int, int], registration: Registration | None = None) -> np.ndarray:
    """A thermal plane in the pixels of the visible image.

    Args:
        thermal: (h, w) uint8, the plane a `ThermalContract` made.
        size: (width, height) of the visible image.
        registration: where each thermal pixel lies in it; None takes the two to show the same field of view.

    Returns:
        (height, width) uint8.

    Raises:
        UserError: the images are not of the shape the registration was made for.
    """
    if registration is not None:
        return registration.warp(thermal, size)
    if thermal.shape[::-1] == size:
        return thermal
    return cv2.resize(thermal, size, interpolation=cv2.INTER_LINEAR)


def stack_pair(visible: np.ndarray, thermal: np.ndarray, registration: Registration | None = None) -> np.ndarray:
    """One array for one pair, so that every geometric step treats both images alike.

    Training, evaluation, the node and the bags all make their pairs here, so a registration is applied here and
    nowhere else.

    Args:
        visible: (H, W, 3) uint8 BGR.
        thermal: (h, w) uint8, the plane a `ThermalContract` made.
        registration: as for `lay_over`.

    Returns:
        (H, W, 4) uint8 in the order red, green, blue, thermal, the order of the networks' input channels.

    Raises:
        UserError: as `lay_over`.
    """
    height, width = visible.shape[:2]
    return np.dstack((visible[..., ::-1], lay_over(thermal, (width, height), registration)))
