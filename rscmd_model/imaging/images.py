"""Image files in, arrays out: the one place where visible and thermal pictures are read and laid over each other."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.imaging.pictures import PictureHeader, decode, is_picture, picture_header
from rscmd_model.imaging.registration import Registration
from rscmd_model.imaging.thermal import ThermalContract, thermal_plane

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")


def read_visible(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR. Raises `UserError` naming a file that is missing or no readable image."""
    return _decode(path, _bytes(path), cv2.IMREAD_COLOR)[0]


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
    return read_thermal_with_orientation(path, contract)[0]


def read_thermal_with_orientation(path: Path, contract: ThermalContract | None = None) -> tuple[np.ndarray, int]:
    """As `read_thermal`, and the EXIF orientation of the file, as `Glance` has it."""
    image, header = _decode(path, _bytes(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    try:
        counts = thermal_plane(image) if contract is None else contract.counts(image)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from None
    return counts, header.orientation if header is not None else 1


class Glance(NamedTuple):
    """A picture at a glance.

    Attributes:
        small: (h, w) uint8 grey at about an eighth of the size.
        size: (width, height) px of the whole picture.
        orientation: that of its EXIF data, obeyed already; 1 for none, and for other formats than PNG and JPEG.
    """

    small: np.ndarray
    size: tuple[int, int]
    orientation: int


def glance(path: Path) -> Glance:
    """Look at a picture, far faster than `read_visible` for a JPEG; raises as that one."""
    data = _bytes(path)
    small, header = _decode(path, data, cv2.IMREAD_REDUCED_GRAYSCALE_8)
    if header is not None:
        return Glance(small, (header.width, header.height), header.orientation)
    height, width = _decode(path, data, cv2.IMREAD_COLOR)[0].shape[:2]
    return Glance(small, (width, height), 1)


def _bytes(path: Path) -> np.ndarray:
    """The content of a file, (N,) uint8. Raises `UserError` naming one that cannot be read."""
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _decode(path: Path, data: np.ndarray, flags: int) -> tuple[np.ndarray, PictureHeader | None]:
    """The pixels of a file's content by OpenCV's flags, and what a PNG or JPEG says of itself; None for other formats.

    Raises:
        UserError: naming the file: no readable image.
    """
    header = None
    try:
        if is_picture(data):
            header = picture_header(data)
            return decode(data, flags, header), header
        image = cv2.imdecode(data, flags) if data.size else None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except cv2.error:  # more pixels than OpenCV takes, or than there is memory for
        image = None
    if image is None:
        raise UserError(f"{path} is no readable image")
    return image, None


def lay_over(thermal: np.ndarray, size: tuple[int, int], registration: Registration | None = None) -> np.ndarray:
    """A thermal plane in the pixels of the visible image.

    Training, the predictor, the node and the bags all lay thermal images over visible ones here: a registration is
    applied here and nowhere else.

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

    Training makes its pairs here. The predictor puts the same pixels into the network's input in one pass, see
    `preprocess.fill`.

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
    laid = lay_over(thermal, (width, height), registration)
    return cv2.merge((cv2.cvtColor(visible, cv2.COLOR_BGR2RGB), laid))
