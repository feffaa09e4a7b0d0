"""PNG and JPEG bytes: walked to their end before they are decoded, turned by EXIF, and nothing else."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from rscmd_model.errors import UserError
from rscmd_model.imaging.images import glance, read_thermal, read_thermal_with_orientation, read_visible
from rscmd_model.imaging.pictures import decode, picture_header, turn

RNG = np.random.default_rng(0)
PICTURE = cv2.resize(RNG.integers(0, 256, (6, 8, 3), np.uint8), (64, 48), interpolation=cv2.INTER_CUBIC)


def encode(image: np.ndarray, codec: str, *options: int) -> bytes:
    done, data = cv2.imencode("." + codec, image, list(options))
    assert done
    return bytes(data.tobytes())


JPEG, PNG = encode(PICTURE, "jpg"), encode(PICTURE, "png")
PROGRESSIVE = encode(PICTURE, "jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def exif(orientation: int, order: str = "<") -> bytes:
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return start + struct.pack(f"{order}HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def with_orientation(picture: bytes, orientation: int, order: str = "<") -> bytes:
    """A JPEG or PNG with this EXIF orientation."""
    if picture.startswith(b"\x89PNG"):
        return picture[:33] + chunk(b"eXIf", exif(orientation, order)) + picture[33:]
    segment = b"Exif\x00\x00" + exif(orientation, order)
    return picture[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + picture[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_is_obeyed_as_viewers_of_files_do(orientation: int, order: str, tmp_path: Path) -> None:
    """OpenCV's own turning of a JPEG is the judge; a PNG must come out alike, and so must every reader."""
    jpeg, png = (with_orientation(data, orientation, order) for data in (JPEG, PNG))
    expected = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decode(jpeg), expected)
    np.testing.assert_array_equal(decode(png), turn(PICTURE, orientation))
    for name, data in (("a.jpg", jpeg), ("a.png", png)):
        header = picture_header(data)
        assert (header.width, header.height, header.orientation) == (*expected.shape[1::-1], orientation)
        file = tmp_path / name
        file.write_bytes(data)
        np.testing.assert_array_equal(read_visible(file), decode(data))
        np.testing.assert_array_equal(glance(file).small.shape, np.array(expected.shape[:2]) // 8)
        assert glance(file)[1:] == (expected.shape[1::-1], orientation)
    grey = tmp_path / "t.png"
    grey.write_bytes(with_orientation(encode(PICTURE[..., 0], "png"), orientation))
    np.testing.assert_array_equal(read_thermal(grey), turn(PICTURE[..., 0], orientation))
    assert read_thermal_with_orientation(grey)[1] == orientation


@pytest.mark.parametrize("tiff", [b"", b"II", b"MM\0*\xff\xff\xff\xff", exif(0), exif(9), exif(65535), exif(6)[:12]])
def test_exif_that_says_nothing_turns_nothing(tiff: bytes) -> None:
    segment = b"Exif\x00\x00" + tiff
    data = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + JPEG[2:]
    assert picture_header(data).orientation == 1
    assert picture_header(PNG[:33] + chunk(b"eXIf", tiff) + PNG[33:]).orientation == 1


@pytest.mark.parametrize("good", [JPEG, PROGRESSIVE, PNG])
def test_a_picture_cut_short_anywhere_is_refused(good: bytes) -> None:
    for length in range(len(good)):
        with pytest.raises(UserError, match=r"cut short|damaged|no data|neither PNG nor JPEG"):
            picture_header(good[:length])


@pytest.mark.parametrize("good", [JPEG, PROGRESSIVE, PNG, encode(PICTURE, "jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
@pytest.mark.parametrize(
    "tail", [bytes(60), bytes(100_000), JPEG, b"\xff\xd8\xff\xe0" + bytes(5000), b"\xff" * 99, PNG]
)
def test_what_stands_behind_the_end_is_left_aside(good: bytes, tail: bytes, tmp_path: Path) -> None:
    """usb_cam pads to the raw size, phones append a second picture or a film."""
    assert picture_header(good + tail) == picture_header(good) or good[:4] == b"\x89PNG"
    np.testing.assert_array_equal(decode(good + tail), decode(good))
    # Cut short and padded to its full length is still cut short.
    if good != PNG:
        with pytest.raises(UserError, match="without its end"):
            picture_header(good[:-60] + bytes(100_000))


def test_a_thumbnail_in_a_jpeg_is_not_its_end() -> None:
    segment = b"JFXX\0" + encode(PICTURE[::4, ::4], "jpg")
    assert len(segment) < 65000
    data = JPEG[:2] + b"\xff\xe0" + struct.pack(">H", len(segment) + 2) + segment + JPEG[2:]
    assert picture_header(data).width == 64
    with pytest.raises(UserError):
        picture_header(data[: 2 + 4 + len(segment) + 30])


@pytest.mark.parametrize("length", [60, 10**8, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("name", [b"tEXt", b"iCCP", b"IDAT", b"zzZz"])
def test_a_chunk_longer_than_the_data_is_refused(length: int, name: bytes) -> None:
    spoilt = PNG[:33] + struct.pack(">I", length) + name + b"x" * 20 + chunk(b"IEND", b"")
    with pytest.raises(UserError, match="a chunk is longer than the data"):
        picture_header(spoilt)


def test_only_the_chunks_of_the_picture_reach_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a text that unpacks to a gigabyte, a profile, an animation: decoders read these, and have erred there."""
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))
    others = [chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(9999)))]
    data = PNG[:33] + b"".join([bomb, *others, chunk(b"tRNS", bytes(6))]) + PNG[33:]
    seen: list[bytes] = []
    real = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: (seen.append(data.tobytes()), real(data, flags))[1])
    np.testing.assert_array_equal(decode(data), PICTURE)
    assert seen == [PNG]


@pytest.mark.parametrize("size", [(50_000, 50_000), (20_000, 20_000), (3000, 3000)])
def test_more_pixels_than_the_bytes_can_hold_are_refused_before_decoding(size: tuple[int, int]) -> None:
    png = bytearray(PNG)
    png[16:24] = struct.pack(">II", *size)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    jpeg = bytearray(JPEG)
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", *size)
    for data, codec in ((png, "png"), (jpeg, "jpeg")):
        assert picture_header(bytes(data)).width == size[0]
        if size[0] > 3000 or codec == "jpeg":  # so many, but not all of them white
            with pytest.raises(UserError, match=f"a {codec} of {size[0]} x {size[0]} pixels in"):
                decode(bytes(data))


EMPTIEST = {
    "png": [("png", np.uint8, (cv2.IMWRITE_PNG_COMPRESSION, 9)), ("png", np.uint16, (cv2.IMWRITE_PNG_COMPRESSION, 9))],
    "jpeg": [
        ("jpg", np.uint8, (cv2.IMWRITE_JPEG_QUALITY, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1, *progressive))
        for progressive in ((), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1))
    ],
}


@pytest.mark.parametrize("codec", EMPTIEST)
def test_no_real_picture_is_beyond_what_its_bytes_can_hold(codec: str) -> None:
    """The emptiest pictures that there are: one colour all over, compressed as far as it goes."""
    for suffix, depth, options in EMPTIEST[codec]:
        for shape in ((1500, 2000), (1500, 2000, 3), (1, 60_000), (1, 1)):
            assert decode(encode(np.zeros(shape, depth), suffix, *options)).shape == shape
    bits = encode(np.zeros((4000, 4000), np.uint8), "png", cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 9)
    assert decode(bits).shape == (4000, 4000)


@pytest.mark.parametrize(
    "hostile",
    [
        JPEG[:2] + b"\xff" * 10_000_000,
        JPEG[:-2] + b"\xff" * 10_000_000 + b"\0",
        PNG[:33] + chunk(b"tEXt", b"") * 800_000,
        JPEG[:2] + b"\xff\xfe\x00\x02" * 2_000_000,
        JPEG[:-2] + b"\xff\xda\x00\x02" * 2_000_000,
    ],
    ids=["fill bytes", "a long run in a scan", "empty chunks", "empty segments", "empty scans"],
)
@pytest.mark.timeout(60)  # work that grows with the square takes hours
def test_hostile_bytes_take_no_longer_than_others(hostile: bytes) -> None:
    with pytest.raises(UserError, match="it is"):
        picture_header(hostile)


def test_a_picture_of_many_megapixels_is_read_and_a_larger_one_refused(tmp_path: Path) -> None:
    """Pillow, which looked at the size before, gives up at 179 megapixels."""
    bits = encode(np.zeros((14_000, 14_000), np.uint8), "png", cv2.IMWRITE_PNG_BILEVEL, 1)
    (tmp_path / "large.png").write_bytes(bits)
    assert glance(tmp_path / "large.png").size == (14_000, 14_000)
    assert glance(tmp_path / "large.png").small.shape == (1750, 1750)
    too_large = bytearray(PNG[:33] + chunk(b"IDAT", bytes(6_000_000)) + chunk(b"IEND", b""))
    too_large[16:26] = struct.pack(">IIBB", 60_000, 60_000, 1, 0)
    too_large[29:33] = struct.pack(">I", zlib.crc32(too_large[12:29]))
    (tmp_path / "huge.png").write_bytes(too_large)
    with pytest.raises(UserError, match=r"huge\.png: it is damaged: its png does not decode"):
        read_visible(tmp_path / "huge.png")
