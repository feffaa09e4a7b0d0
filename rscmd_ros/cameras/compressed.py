"""sensor_msgs/CompressedImage as image_transport's `compressed` plugin sends it: what it holds, and its pixels.

Size, depth and channels stand in the picture's own bytes, and are judged before a decoder touches it. Only PNG and JPEG
are decoded: the fewer decoders a stranger's bytes can reach, the better.

The `format` field reads "ENCODING; CODEC compressed TARGET", as "rgb8; jpeg compressed bgr8"; in a PNG TARGET is empty
for what is not colour, "mono16; png compressed ". Publishers of other origin write only "jpeg" or "png", or an encoding
that names what the camera made (nv21, 8UC4) and nothing of the picture. So the field tells the order of the channels
and the pattern of a mosaic where it is known, how many bits thermal counts had, and no more.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from rscmd_model.errors import UserError, shown
from rscmd_model.imaging.pictures import PictureHeader, decode, picture_header
from rscmd_ros.cameras.conversions import (
    THERMAL_ENCODINGS,
    VISIBLE_ENCODINGS,
    ConversionError,
    Limits,
    as_bytes,
    check_limits,
    pixels_to_visible,
    refuse_palette,
)


def check_compressed_visible(msg: Any, limits: Limits) -> PictureHeader:
    """Make sure that this sensor_msgs/CompressedImage can be read as a visible image, without decoding it.

    Raises:
        ConversionError: `compressedDepth` or another codec, an encoding of more than 16 bits, data that are cut short,
            or an image beyond the limits.
    """
    return _check(msg, "visible", limits)[1]


def check_compressed_thermal(msg: Any, limits: Limits, palette_ok: bool = False) -> tuple[str, PictureHeader]:
    """Make sure that this sensor_msgs/CompressedImage can be read as a thermal image, without decoding it.

    Args:
        msg: the message.
        limits: the largest image that is taken.
        palette_ok: take colours too.

    Returns:
        The depth in the words of a thermal contract, "mono8" or "mono16", and the header.

    Raises:
        ConversionError: as `check_compressed_visible`; colours, unless `palette_ok`; or 16-bit counts in a JPEG.
    """
    encoding, header = _check(msg, "thermal", limits)
    sixteen = THERMAL_ENCODINGS.get(encoding) == 2
    if header.codec == "jpeg" and sixteen:
        raise ConversionError(
            f"thermal image of encoding '{encoding}' is compressed to JPEG, which keeps 8 of its 16 bits: set the "
            "publisher's parameter <image topic>.compressed.format to png, or use the raw topic"
        )
    if header.channels > 1 and not (palette_ok and header.channels == 3 and header.depth == 8):
        raise refuse_palette(encoding, f"{header.codec} of {header.channels} channels")
    if header.depth not in (8, 16):
        raise ConversionError(f"thermal image is a {header.codec} of {header.depth} bits; expected 8 or 16")
    if encoding in THERMAL_ENCODINGS and header.depth != 8 * THERMAL_ENCODINGS[encoding]:
        raise ConversionError(
            f"thermal image says encoding '{encoding}' in its format, and its {header.codec} has {header.depth} bits"
        )
    return f"mono{header.depth}", header


def compressed_to_visible(msg: Any, limits: Limits) -> np.ndarray:
    """The picture of a visible camera. Mosaics in a PNG (bayer_*) are given their colours.

    Args:
        msg: sensor_msgs/CompressedImage.
        limits: the largest image that is taken.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        ConversionError: see `check_compressed_visible`; or the data are damaged.
    """
    header = check_compressed_visible(msg, limits)
    encoding, sent_as = _parts(msg.format)
    image = _pixels(msg, header, "visible")
    if image.ndim == 2:
        pattern = encoding.rstrip("0123456789") if encoding.startswith("bayer_") and header.codec == "png" else ""
        depth = 8 * image.itemsize
        known = f"{pattern}{depth}" in VISIBLE_ENCODINGS
        return pixels_to_visible(image, f"{pattern}{depth}" if known else f"mono{depth}")
    # As image_transport's own subscriber reads it: channels named in the order of RGB lie in the file the wrong way.
    swapped = encoding in VISIBLE_ENCODINGS and VISIBLE_ENCODINGS[encoding].colour and not sent_as.startswith("bgr")
    order = ("rgb" if swapped else "bgr") + ("a" if image.shape[2] == 4 else "")
    return pixels_to_visible(image, f"{order}{8 * image.itemsize}")


def compressed_to_thermal(msg: Any, limits: Limits, palette_ok: bool = False) -> np.ndarray:
    """The counts of a thermal camera as they are.

    Args:
        msg: sensor_msgs/CompressedImage.
        limits: the largest image that is taken.
        palette_ok: take colours too, by their luma.

    Returns:
        (H, W) uint8 or uint16.

    Raises:
        ConversionError: see `check_compressed_thermal`; or the data are damaged.
    """
    _, header = check_compressed_thermal(msg, limits, palette_ok)
    image = _pixels(msg, header, "thermal")
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def _parts(text: str) -> tuple[str, str]:
    """The original encoding ("" where the format does not tell) and what it was compressed as, of a `format`."""
    encoding, separator, rest = text.partition(";")
    return (encoding.strip(), rest.partition("compressed")[2].strip()) if separator else ("", "")


def _check(msg: Any, stream: str, limits: Limits) -> tuple[str, PictureHeader]:
    if "compressedDepth" in msg.format:
        raise ConversionError(
            f"{stream} image has format '{shown(msg.format)}', that of depth images: use the topic that ends in "
            "/compressed"
        )
    try:
        header = picture_header(as_bytes(msg.data))
    except UserError as error:
        raise ConversionError(f"{stream} image of format '{shown(msg.format)}' cannot be decoded: {error}") from None
    check_limits(stream, header.width, header.height, limits)
    if header.nbytes > limits.decoded_bytes:
        raise ConversionError(
            f"{stream} image of {len(msg.data)} bytes decodes to {header.nbytes / 1e6:.0f} MB, and parameter "
            f"'max_decoded_megabytes' allows {limits.decoded_bytes / 1e6:g}"
        )
    encoding = _parts(msg.format)[0]
    if encoding.startswith(("32", "64")):  # nobody knows how its numbers were made to fit
        raise ConversionError(
            f"{stream} image was compressed from encoding '{shown(encoding)}', and a {header.codec} holds 16 bits at "
            "most: publish an encoding of 8 or 16 bits"
        )
    return encoding, header


def _pixels(msg: Any, header: PictureHeader, stream: str) -> np.ndarray:
    try:
        return decode(as_bytes(msg.data), header=header)
    except UserError as error:
        raise ConversionError(f"{stream} image of format '{shown(msg.format)}' cannot be decoded: {error}") from None
