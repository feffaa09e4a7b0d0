"""PNG and JPEG: what their bytes say is judged before a decoder sees them, and only what makes the picture reaches it.

Every picture that comes from a file or from a camera is decoded here. Decoders believe what they read: a PNG of 73
bytes whose second chunk gives a false length makes OpenCV allocate 4 GB, and a JPEG that is cut short becomes a
half-grey picture without a word. So chunks and segments are walked first, up to the end of the picture; what stands
behind its end (padding of usb_cam, films and second pictures of phones) is left aside.

The orientation that a picture's EXIF data ask for is obeyed, always: width, height and pixels are those of the picture
as viewers of files and labelling tools show it.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from rscmd_model.errors import UserError

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; 3 is a table of colours
_PNG_PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
"""The chunks that make the pixels. What is transparent, by tRNS, is no matter here."""
_MOST_PIECES = 100_000
_MOST_SCANS = 100
_DEFLATE_RATIO = 1032
"""No deflate stream grows to more than this many times its length."""
_JPEG_PIXELS_PER_BYTE = 512
"""Each block of 8 x 8 pixels costs a Huffman code at least, and no code is shorter than one bit."""
_FILL, _MARKER = re.compile(rb"\xff*"), re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # 00 is stuffed, D0 to D7 restart
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)
_EXIF = b"Exif\0\0"
# What an EXIF orientation asks for: to be transposed, then mirrored (OpenCV's flip code).
_TURNS: dict[int, tuple[bool, int | None]] = {
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}
LYING = frozenset(number for number, (transposed, _) in _TURNS.items() if transposed)
"""The EXIF orientations that exchange width and height."""


@dataclass(frozen=True)
class PictureHeader:
    """What a PNG or JPEG says of itself.

    Attributes:
        codec: "png" or "jpeg".
        width, height: px, of the picture as its orientation turns it.
        depth: bits of a channel.
        channels: of the decoded picture; alpha counts.
        orientation: EXIF's, 1 to 8; 1 leaves the picture as it is stored.
        parts: (start, stop) of the bytes that make the picture.
        most: px that these bytes can hold.
    """

    codec: str
    width: int
    height: int
    depth: int
    channels: int
    orientation: int
    parts: tuple[tuple[int, int], ...]
    most: float

    @property
    def nbytes(self) -> int:
        """The bytes it takes once decoded."""
        return self.width * self.height * self.channels * ((self.depth + 7) // 8)


def is_picture(data: Any) -> bool:
    """Whether it begins as a PNG or JPEG does. Other formats, which some data sets have, are not this room's."""
    return bytes(memoryview(data)[:8]).startswith((_PNG, _JPEG))


def picture_header(data: Any) -> PictureHeader:
    """Walk a PNG or JPEG from its start to its end, without decoding it.

    Args:
        data: bytes, or anything with a buffer of bytes (array.array("B"), a numpy array of uint8).

    Raises:
        UserError: neither PNG nor JPEG, cut short, or damaged where it can be told without decoding.
    """
    view = memoryview(data).cast("B")
    start = bytes(view[:8])
    if start == _PNG:
        return _png(view)
    if start.startswith(_JPEG):
        return _jpeg(view)
    if not start:
        raise UserError("it has no data")
    raise UserError(f"its data starts with {start[:4].hex(' ')}, which is neither PNG nor JPEG")


def decode(data: Any, flags: int = cv2.IMREAD_UNCHANGED, header: PictureHeader | None = None) -> np.ndarray:
    """The pixels of a PNG or JPEG.

    Args:
        data: as for `picture_header`.
        flags: OpenCV's cv2.IMREAD_*, which choose depth, channels and scale. They do not choose orientation.
        header: what `picture_header` gave, if it was asked already.

    Returns:
        (H, W) or (H, W, C) uint8 or uint16, blue first, turned as its EXIF orientation asks.

    Raises:
        UserError: as `picture_header`; or its pixels do not decode, or are more than its bytes can hold.
    """
    view = memoryview(data).cast("B")
    header = header or picture_header(view)
    if header.width * header.height > header.most:
        size = f"{header.width} x {header.height} pixels in {len(view)} bytes"
        raise UserError(f"it is cut short or damaged (a {header.codec} of {size})")
    picture = np.frombuffer(b"".join(view[start:stop] for start, stop in header.parts), np.uint8)
    try:
        image = cv2.imdecode(picture, flags if flags == cv2.IMREAD_UNCHANGED else flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # more pixels than OpenCV takes, or than there is memory for
        image = None
    if image is None:
        raise UserError(f"it is damaged: its {header.codec} does not decode")
    return turn(image, header.orientation)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a picture as an EXIF orientation asks.

    Args:
        image: (H, W) or (H, W, C), as stored.
        orientation: 1 to 8.
    """
    transposed, flip = _TURNS.get(orientation, (False, None))
    if transposed:
        image = cv2.transpose(image)
    return image if flip is None else cv2.flip(image, flip)


def _png(view: memoryview) -> PictureHeader:
    """Walk the chunks: length of the content, name, content, checksum."""
    at, orientation, held = len(_PNG), 1, 0
    parts = [(0, at)]
    name = b""
    for _ in range(_MOST_PIECES):
        if at + 12 > len(view):
            raise UserError("it is cut short (a PNG without its end)")
        length, name = struct.unpack(">I4s", view[at : at + 8])
        stop = at + 12 + length
        if stop > len(view):
            raise UserError("it is a PNG that is cut short or damaged (a chunk is longer than the data)")
        if (name == b"IHDR") != (at == len(_PNG)) or (name == b"IHDR" and length != 13):
            raise UserError("it is a damaged PNG (its header is not where it must be)")
        if name in _PNG_PICTURE:
            parts.append((at, stop))
        if name == b"IDAT":
            held += length
        elif name == b"eXIf":
            orientation = _orientation(view[at + 8 : stop - 4])
        at = stop
        if name == b"IEND":
            break
    else:
        raise UserError(f"it is a PNG of more than {_MOST_PIECES} chunks")
    width, height, depth, kind = struct.unpack(">IIBB", view[16:26])
    if kind not in _PNG_CHANNELS or depth not in (1, 2, 4, 8, 16):
        raise UserError(f"it is a damaged PNG (colour type {kind}, {depth} bits)")
    channels = _PNG_CHANNELS[kind]
    bits_of_pixel = depth * (1 if kind == 3 else channels)
    most = 8 * _DEFLATE_RATIO * held / bits_of_pixel
    return PictureHeader("png", *_turned(width, height, orientation), depth, channels, orientation, tuple(parts), most)


def _jpeg(view: memoryview) -> PictureHeader:
    """Walk the segments (ITU T.81, B.1): 0xFF, marker, two bytes of length, content; after a scan's, its data."""
    at, scans, orientation = 2, 0, 1
    frame, width, height, depth, channels = 0, 0, 0, 0, 0
    for _ in range(_MOST_PIECES):
        filled = _FILL.match(view, at)
        assert filled is not None
        if filled.end() == at:
            raise UserError("it is a JPEG that is cut short or damaged")
        at = filled.end()
        if at >= len(view):
            break
        marker = view[at]
        at += 1
        if marker == 0xD9 and scans:
            most = _JPEG_PIXELS_PER_BYTE * at if frame in _HUFFMAN_FRAMES else math.inf
            size = _turned(width, height, orientation)
            return PictureHeader("jpeg", *size, depth, channels, orientation, ((0, at),), most)
        length = view[at] * 256 + view[at + 1] if at + 2 <= len(view) else 0
        content = view[at + 2 : at + length]
        at += length
        if length < 2 or at > len(view):
            raise UserError("it is a JPEG that is cut short or damaged")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if frame or len(content) < 6:
                raise UserError("it is a JPEG that is cut short or damaged")
            frame = marker
            depth, height, width, channels = struct.unpack(">BHHB", content[:6])
        elif marker == 0xE1 and content[:6] == _EXIF and orientation == 1:
            orientation = _orientation(content[6:])
        elif marker == 0xDA:
            scans += 1
            found = _MARKER.search(view, at)
            if found is None or not frame:
                break
            # Each scan of a progressive JPEG is a pass over the whole image, and a few bytes make one.
            if scans > _MOST_SCANS:
                raise UserError(f"it is a JPEG of more than {_MOST_SCANS} scans; no more are decoded")
            at = found.start()
    raise UserError("it is cut short (a JPEG without its end)")


def _turned(width: int, height: int, orientation: int) -> tuple[int, int]:
    return (height, width) if orientation in LYING else (width, height)


def _orientation(tiff: memoryview) -> int:
    """Orientation (tag 274) of the first directory of EXIF data; 1 where there is none or they are damaged."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None or len(tiff) < 8:
        return 1
    (at,) = struct.unpack(f"{order}I", tiff[4:8])
    if at + 2 > len(tiff):
        return 1
    (count,) = struct.unpack(f"{order}H", tiff[at : at + 2])
    for entry in range(at + 2, min(at + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, _, value = struct.unpack(f"{order}HHIH", tiff[entry : entry + 10])
        if tag == 0x0112 and kind == 3:
            return value if value in _TURNS else 1
    return 1
