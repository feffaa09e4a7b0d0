"""Compressed images: read as image_transport writes them, and refused by their first bytes where they must be."""

from __future__ import annotations

import array
import struct
import zlib

import cv2
import numpy as np
import pytest
from test_pictures import with_orientation

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")

from sensor_msgs.msg import CompressedImage, Image

from rscmd_ros.cameras.camera import Camera
from rscmd_ros.cameras.compressed import (
    check_compressed_thermal,
    check_compressed_visible,
    compressed_to_thermal,
    compressed_to_visible,
)
from rscmd_ros.cameras.conversions import NO_LIMITS, ConversionError, Limits, image_to_visible

RNG = np.random.default_rng(0)
PICTURE = cv2.resize(RNG.integers(0, 256, (6, 8, 3), np.uint8), (64, 48), interpolation=cv2.INTER_CUBIC)
COUNTS = RNG.integers(0, 65536, (48, 64), np.uint16)


def encode(image: np.ndarray, codec: str, *options: int) -> bytes:
    done, data = cv2.imencode("." + codec, image, list(options))
    assert done
    return bytes(data.tobytes())


def message(image: np.ndarray | bytes, format: str, codec: str = "png") -> CompressedImage:
    data = image if isinstance(image, bytes) else encode(image, codec)
    return CompressedImage(format=format, data=array.array("B", data))


def small_png(width: int, height: int, depth: int = 8, kind: int = 0) -> bytes:
    """A PNG that says this size and holds nothing like it: a bomb, or a lie."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# What CompressedPublisher of image_transport_plugins puts into `format`, and how it converts before it encodes.
@pytest.mark.parametrize(
    ("format", "image", "expected"),
    [
        ("bgr8; png compressed bgr8", PICTURE, PICTURE),
        ("rgb8; png compressed bgr8", PICTURE, PICTURE),
        ("rgba8; png compressed bgr8", PICTURE, PICTURE),
        ("rgb16; png compressed bgr16", PICTURE.astype(np.uint16) * 257, PICTURE),
        ("mono8; png compressed ", PICTURE[..., 1], np.repeat(PICTURE[..., 1:2], 3, axis=2)),
        ("mono16; png compressed ", PICTURE[..., 1].astype(np.uint16) * 257, np.repeat(PICTURE[..., 1:2], 3, axis=2)),
        ("png", PICTURE, PICTURE),
        ("", cv2.cvtColor(PICTURE, cv2.COLOR_BGR2BGRA), PICTURE),
        # Older ones sent the channels as they were; image_transport's subscriber still undoes that.
        ("rgb8; png compressed rgb8", np.ascontiguousarray(PICTURE[..., ::-1]), PICTURE),
    ],
)
def test_visible_png_comes_back_exactly(format: str, image: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(compressed_to_visible(message(image, format), NO_LIMITS), expected)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_mosaic_in_a_png_gets_its_colours(depth: int) -> None:
    mosaic = COUNTS if depth == 16 else COUNTS.astype(np.uint8)
    raw = Image(height=48, width=64, encoding=f"bayer_grbg{depth}", step=64 * depth // 8)
    raw.data = array.array("B", mosaic.tobytes())
    got = compressed_to_visible(message(mosaic, f"bayer_grbg{depth}; png compressed "), NO_LIMITS)
    np.testing.assert_array_equal(got, image_to_visible(raw))
    # In a JPEG image_transport sends the grey picture.
    grey = message(PICTURE[..., 0], f"bayer_grbg{depth}; jpeg compressed mono8", "jpg")
    got = compressed_to_visible(grey, NO_LIMITS)
    assert (got[..., 0] == got[..., 2]).all()


@pytest.mark.parametrize("format", ["bgr8; jpeg compressed bgr8", "rgb8; jpeg compressed bgr8", "jpeg", "jpg"])
@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
def test_visible_jpeg_comes_back_up_to_its_loss(format: str, options: tuple[int, ...]) -> None:
    msg = message(encode(PICTURE, "jpg", cv2.IMWRITE_JPEG_QUALITY, 98, *options), format)
    header = check_compressed_visible(msg, NO_LIMITS)
    assert (header.codec, header.width, header.height, header.depth, header.channels) == ("jpeg", 64, 48, 8, 3)
    assert np.abs(compressed_to_visible(msg, NO_LIMITS).astype(int) - PICTURE).mean() < 3


@pytest.mark.parametrize("label", ["nv21", "nv12", "RGB8", "yuv420", "bayer_of_ours8", "\n"])
def test_a_label_that_names_no_encoding_of_ours_spoils_no_picture(label: str) -> None:
    jpeg = message(PICTURE, f"{label}; jpeg compressed bgr8", "jpg")
    np.testing.assert_array_equal(
        compressed_to_visible(jpeg, NO_LIMITS), compressed_to_visible(message(PICTURE, "jpeg", "jpg"), NO_LIMITS)
    )
    four = message(cv2.cvtColor(PICTURE, cv2.COLOR_BGR2BGRA), "8UC4; png compressed bgra8")
    np.testing.assert_array_equal(compressed_to_visible(four, NO_LIMITS), PICTURE)
    grey = COUNTS.astype(np.uint8)
    for image in (grey, COUNTS):
        msg = message(image, f"{label}; png compressed ")
        assert (compressed_to_visible(msg, NO_LIMITS) == compressed_to_visible(message(image, ""), NO_LIMITS)).all()
        np.testing.assert_array_equal(compressed_to_thermal(msg, NO_LIMITS), image)
    # The mosaic of an 8-bit picture, whatever depth its label says.
    twice = [compressed_to_visible(message(grey, f"bayer_grbg{n}; png compressed "), NO_LIMITS) for n in (8, 16)]
    np.testing.assert_array_equal(*twice)


def test_an_exif_tag_turns_the_picture_as_it_does_in_training() -> None:
    turned = with_orientation(encode(PICTURE, "jpg"), 6)
    msg = message(turned, "jpeg")
    assert (check_compressed_visible(msg, NO_LIMITS).width, check_compressed_visible(msg, NO_LIMITS).height) == (48, 64)
    expected = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(compressed_to_visible(msg, NO_LIMITS), expected)
    with pytest.raises(ConversionError, match="EXIF"):  # camera_info is of the picture as the sensor gave it
        Camera("visible", transport="compressed", rectify=True).check(msg)


@pytest.mark.parametrize(
    "format", ["mono16; png compressed ", "16UC1; png compressed ", "mono16; png compressed mono16", "png"]
)
def test_thermal_counts_come_back_exactly(format: str) -> None:
    msg = message(COUNTS, format)
    assert check_compressed_thermal(msg, NO_LIMITS)[0] == "mono16"
    got = compressed_to_thermal(msg, NO_LIMITS)
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, COUNTS)
    eight = message(COUNTS.astype(np.uint8), format.replace("16", "8", 1).replace("16UC1", "8UC1"))
    assert check_compressed_thermal(eight, NO_LIMITS)[0] == "mono8"
    np.testing.assert_array_equal(compressed_to_thermal(eight, NO_LIMITS), COUNTS.astype(np.uint8))


def test_a_palette_is_taken_by_its_luma_when_that_is_wanted() -> None:
    for msg in (message(PICTURE, "bgr8; png compressed bgr8"), message(PICTURE, "jpeg", "jpg")):
        with pytest.raises(ConversionError, match="no temperatures"):
            check_compressed_thermal(msg, NO_LIMITS)
        assert check_compressed_thermal(msg, NO_LIMITS, palette_ok=True)[0] == "mono8"
        luma = compressed_to_thermal(msg, NO_LIMITS, palette_ok=True)
        assert np.abs(luma.astype(int) - cv2.cvtColor(PICTURE, cv2.COLOR_BGR2GRAY)).mean() < 6


@pytest.mark.parametrize(
    ("msg", "words"),
    [
        (message(COUNTS.astype(np.uint8), "mono16; jpeg compressed mono8", "jpg"), ["8 of its 16 bits", "png"]),
        (message(b"\0" * 12 + encode(COUNTS, "png"), "16UC1; compressedDepth png"), ["depth images", "/compressed"]),
        (message(COUNTS, "32FC1; png compressed "), ["compressed from encoding '32FC1'", "16 bits at"]),
        (message(COUNTS.astype(np.uint8), "mono16; png compressed "), ["says encoding 'mono16'", "has 8 bits"]),
        (message(encode(COUNTS, "tiff"), "mono16; tiff compressed "), ["tiff compressed", "neither PNG nor JPEG"]),
        (message(b"", "png"), ["no data"]),
        (message(encode(COUNTS, "png")[:20], "png"), ["cut short"]),
        (message(encode(COUNTS, "png")[:-30], "png"), ["PNG that is cut short"]),
        (message(encode(COUNTS.astype(np.uint8), "jpg")[:-100], "jpeg"), ["JPEG without its end"]),
        (message(encode(COUNTS.astype(np.uint8), "jpg")[:60], "jpeg"), ["cut short or damaged"]),
        (message(b"\xff\xd8\xff\xe0\x00\x00" + b"\xff" * 40, "jpeg"), ["cut short or damaged"]),
        (message(small_png(0, 5), "png"), ["0 x 5 pixels"]),
        (message(small_png(8, 8, depth=4), "png"), ["of 4 bits"]),
        (message(small_png(8, 8, depth=8, kind=3), "png"), ["png of 3 channels", "palette"]),
        (message(small_png(8, 8, depth=7), "png"), ["damaged PNG"]),
        (message(small_png(50_000, 50_000), "png"), ["50000 x 50000", "'max_image_megapixels' allows 25 mill"]),
        (message(small_png(4000, 5000, depth=16, kind=6), "png"), ["to 160 MB", "'max_decoded_megabytes' allows 100"]),
    ],
)  # fmt: skip
def test_bad_thermal_images_are_named_without_decoding(msg, words, monkeypatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(ConversionError) as raised:
        check_compressed_thermal(msg, Limits(25e6, 100e6))
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_jpeg_says_its_size_before_it_is_decoded() -> None:
    data = bytearray(encode(PICTURE, "jpg"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    msg = message(bytes(data), "jpeg")
    for read in (check_compressed_visible, compressed_to_visible):
        with pytest.raises(ConversionError, match="65500 x 65500 pixels"):
            read(msg, Limits(25e6, 100e6))


def test_what_the_header_cannot_tell_is_told_by_decoding() -> None:
    damaged = bytearray(encode(COUNTS, "png"))
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(ConversionError, match="does not decode"):
        compressed_to_visible(message(bytes(damaged), "x"), NO_LIMITS)
    with pytest.raises(ConversionError, match="of 640 x 480 pixels in"):
        compressed_to_visible(message(small_png(640, 480), "x"), NO_LIMITS)
    scan = encode(PICTURE, "jpg")
    bomb = scan[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 101 + scan[-2:]
    with pytest.raises(ConversionError, match="more than 100 scans"):
        compressed_to_visible(message(bomb, "jpeg"), NO_LIMITS)


def test_visible_encodings_that_cannot_be_read_are_named() -> None:
    with pytest.raises(ConversionError, match="compressed from encoding '32FC1'"):
        check_compressed_visible(message(PICTURE, "32FC1; png compressed "), NO_LIMITS)
