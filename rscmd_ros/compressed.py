"""sensor_msgs/CompressedImage as image_transport's `compressed` plugin sends it: what it holds, and its pixels.

What a picture is made of stands in its first bytes, so that size, depth and channels are known and judged before a
decoder touches it. Only PNG and JPEG are decoded: the fewer decoders a stranger's bytes can reach, the better.

The `format` field reads "ENCODING; CODEC compressed TARGET", as "rgb8; jpeg compressed bgr8"; in a PNG TARGET is empty
for what is not colour, "mono16; png compressed ". Publishers of other origin write only "jpeg" or "png".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from rscmd_model.errors import shown
from rscmd_ros.conversions import (
    THERMAL_ENCODINGS,
    VISIBLE_ENCODINGS,
    ConversionError,
    Limits,
    as_bytes,
    check_limits,
    pixels_to_visible,
    refuse_palette,
)

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; 3 is a table of colours
_TAIL = 64
_MOST_SCANS = 100
_AS_IT_IS = cv2.IMREAD_UNCHANGED  # neither turned by an EXIF tag nor cut down to 8 bits


@dataclass(frozen=True)
class PictureHeader:
    """What the first bytes of a compressed picture say. depth: bits of a channel; alpha counts as a channel."""

    codec: str
    width: int
    height: int
    depth: int
    channels: int

    @property
    def nbytes(self) -> int:
        """The bytes it takes once decoded."""
        return self.width * self.height * self.channels * ((self.depth + 7) // 8)


def read_header(data: Any) -> PictureHeader:
    """Read the header of a PNG or JPEG, without decoding it.

    Args:
        data: bytes, array.array("B") or a numpy array of uint8.

    Raises:
        ConversionError: neither PNG nor JPEG, or cut short before its size is told or at its end.
    """
    view = as_bytes(data)
    start = view[:29].tobytes()
    if start.startswith(_PNG):
        return _png(view, start)
    if start.startswith(_JPEG):
        return _jpeg(view)
    if not start:
        raise ConversionError("it has no data")
    raise ConversionError(f"its data starts with {start[:4].hex(' ')}, which is neither PNG nor JPEG")


def _png(view: np.ndarray, start: bytes) -> PictureHeader:
    if len(start) < 29 or start[12:16] != b"IHDR":
        raise ConversionError("it is a PNG that is cut short or damaged")
    width, height, depth, kind = struct.unpack(">IIBB", start[16:26])
    if kind not in _PNG_CHANNELS or depth not in (1, 2, 4, 8, 16):
        raise ConversionError(f"it is a damaged PNG (colour type {kind}, {depth} bits)")
    if b"IEND" not in view[-_TAIL:].tobytes():
        raise ConversionError("it is cut short (a PNG without its end)")
    return PictureHeader("png", width, height, depth, _PNG_CHANNELS[kind])


def _jpeg(view: np.ndarray) -> PictureHeader:
    """Walk the segments up to the frame header (ITU T.81, B.2): 0xFF, marker, two bytes of length, content."""
    at = 2
    while at + 10 <= len(view):  # what a frame header takes up to its number of channels
        if view[at] != 0xFF:
            break
        marker = int(view[at + 1])
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            depth, height, width, channels = struct.unpack(">BHHB", view[at + 4 : at + 10].tobytes())
            # OpenCV decodes one that is cut short to a half-grey picture without a word.
            if b"\xff\xd9" not in view[-_TAIL:].tobytes():
                raise ConversionError("it is cut short (a JPEG without its end)")
            return PictureHeader("jpeg", width, height, depth, channels)
        elif marker in (0xD9, 0xDA):
            break
        else:
            at += 2 + int(view[at + 2]) * 256 + int(view[at + 3])
    raise ConversionError("it is a JPEG that is cut short or damaged")


def check_compressed_visible(msg: Any, limits: Limits) -> PictureHeader:
    """Make sure that this sensor_msgs/CompressedImage can be read as a visible image, without decoding it.

    Raises:
        ConversionError: `compressedDepth` or another codec, an encoding that `image_to_visible` does not take, data
            that are cut short, or an image beyond the limits.
    """
    encoding, header = _check(msg, "visible", limits)
    if encoding and encoding not in VISIBLE_ENCODINGS:
        accepted = ", ".join(VISIBLE_ENCODINGS)
        raise ConversionError(
            f"visible image was compressed from encoding '{shown(encoding)}'; accepted are {accepted}"
        )
    return header


def check_compressed_thermal(msg: Any, limits: Limits, palette_ok: bool = False) -> tuple[str, PictureHeader]:
    """Make sure that this sensor_msgs/CompressedImage can be read as a thermal image, without decoding it.

    Returns the depth in the words of a thermal contract, "mono8" or "mono16", and the header.

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
    colour = header.channels > 1 or (bool(encoding) and encoding not in THERMAL_ENCODINGS)
    if colour and not (palette_ok and header.channels == 3 and header.depth == 8):
        raise refuse_palette(encoding, f"{header.codec} of {header.channels} channels" if header.channels > 1 else "")
    if header.depth not in (8, 16):
        raise ConversionError(f"thermal image is a {header.codec} of {header.depth} bits; expected 8 or 16")
    if encoding in THERMAL_ENCODINGS and header.depth != 8 * THERMAL_ENCODINGS[encoding]:
        raise ConversionError(
            f"thermal image says encoding '{encoding}' in its format, and its {header.codec} has {header.depth} bits"
        )
    return f"mono{header.depth}", header


def compressed_to_visible(msg: Any, limits: Limits) -> np.ndarray:
    """The picture of a visible camera, (H, W, 3) uint8 BGR. Mosaics in a PNG (bayer_*) are given their colours.

    Raises:
        ConversionError: see `check_compressed_visible`; or the data are damaged.
    """
    header = check_compressed_visible(msg, limits)
    encoding, sent_as = _parts(msg.format)
    image = _pixels(msg, header, "visible")
    if image.ndim == 2:
        mosaic = encoding.startswith("bayer_") and header.codec == "png"
        return pixels_to_visible(image, encoding if mosaic else f"mono{8 * image.itemsize}")
    # As image_transport's own subscriber reads it: channels named in the order of RGB lie in the file the wrong way.
    swapped = encoding in VISIBLE_ENCODINGS and VISIBLE_ENCODINGS[encoding].colour and not sent_as.startswith("bgr")
    order = ("rgb" if swapped else "bgr") + ("a" if image.shape[2] == 4 else "")
    return pixels_to_visible(image, f"{order}{8 * image.itemsize}")


def compressed_to_thermal(msg: Any, limits: Limits, palette_ok: bool = False) -> np.ndarray:
    """The counts of a thermal camera as they are, (H, W) uint8 or uint16; a palette by its luma, if `palette_ok`.

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
        header = read_header(msg.data)
    except ConversionError as error:
        raise ConversionError(f"{stream} image of format '{shown(msg.format)}' cannot be decoded: {error}") from None
    check_limits(stream, header.width, header.height, limits)
    if header.nbytes > limits.decoded_bytes:
        raise ConversionError(
            f"{stream} image of {len(msg.data)} bytes decodes to {header.nbytes / 1e6:.0f} MB, and parameter "
            f"'max_decoded_megabytes' allows {limits.decoded_bytes / 1e6:g}"
        )
    return _parts(msg.format)[0], header


def _pixels(msg: Any, header: PictureHeader, stream: str) -> np.ndarray:
    data = as_bytes(msg.data)
    # Each scan of a progressive JPEG is a pass over the whole image, and a few bytes make one.
    if header.codec == "jpeg" and (scans := data.tobytes().count(b"\xff\xda")) > _MOST_SCANS:
        raise ConversionError(f"{stream} image is a JPEG of {scans} scans; at most {_MOST_SCANS} are decoded")
    try:
        image = cv2.imdecode(data, _AS_IT_IS)
    except cv2.error:
        image = None
    if image is None or image.shape[:2] != (header.height, header.width):
        raise ConversionError(
            f"{stream} image of format '{shown(msg.format)}' is damaged: its {header.codec} does not decode"
        )
    return image
