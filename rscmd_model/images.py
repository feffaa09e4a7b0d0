"""Image files in, arrays out: the one place where a visible and a thermal picture are read and laid over each other."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.thermal import thermal_plane

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")


def read_visible(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR. Raises `UserError` naming a file that is missing or no readable image."""
    return _read(path, cv2.IMREAD_COLOR)


def read_thermal(path: Path) -> np.ndarray:
    """(H, W) uint8 or uint16, the raw counts. Raises `UserError` for an unreadable file or a colour palette."""
    try:
        return thermal_plane(_read(path, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR))
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


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


def stack_pair(visible: np.ndarray, thermal: np.ndarray) -> np.ndarray:
    """One array for one pair, so that every geometric step treats both images alike.

    Args:
        visible: (H, W, 3) uint8 BGR.
        thermal: (h, w) uint8, the plane a `ThermalContract` made. Resized to (H, W) when it differs: the two images
            are taken to show the same field of view.

    Returns:
        (H, W, 4) uint8 in the order red, green, blue, thermal, the order of the networks' input channels.
    """
    height, width = visible.shape[:2]
    if thermal.shape != (height, width):
        thermal = cv2.resize(thermal, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.dstack((visible[..., ::-1], thermal))
