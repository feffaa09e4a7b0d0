"""Our cv_bridge: every encoding, row step and endianness, there and back."""

import array
import sys
from pathlib import Path

import cv2
import cv_bridge
import numpy as np
import pytest
from cv_bridge import CvBridge, CvBridgeError
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

if not Path(cv_bridge.__file__).is_relative_to(Path(sys.prefix)) or not (Path(sys.prefix) / ".setup").is_dir():
    pytest.skip("this cv_bridge is a distribution's, not ours", allow_module_level=True)

BRIDGE = CvBridge()
RNG = np.random.default_rng(0)


def pixels(dtype: str, channels: int, height: int = 5, width: int = 7) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    if np.dtype(dtype).kind == "f":
        return RNG.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


ENCODINGS = [
    ("mono8", "uint8", 1),
    ("8UC1", "uint8", 1),
    ("8UC3", "uint8", 3),
    ("bgr8", "uint8", 3),
    ("rgb8", "uint8", 3),
    ("bgra8", "uint8", 4),
    ("rgba8", "uint8", 4),
    ("mono16", "uint16", 1),
    ("16UC1", "uint16", 1),
    ("rgb16", "uint16", 3),
    ("16SC2", "int16", 2),
    ("32SC1", "int32", 1),
    ("32FC1", "float32", 1),
    ("64FC4", "float64", 4),
    ("bayer_rggb8", "uint8", 1),
    ("yuv422", "uint8", 2),
]


@pytest.mark.parametrize(("encoding", "dtype", "channels"), ENCODINGS)
def test_images_survive(encoding: str, dtype: str, channels: int) -> None:
    image = pixels(dtype, channels)
    header = Header(frame_id="camera")
    message = BRIDGE.cv2_to_imgmsg(image, encoding, header=header)
    assert (message.height, message.width, message.encoding, message.header) == (5, 7, encoding, header)
    assert message.step == 7 * channels * np.dtype(dtype).itemsize
    # rclpy takes this as it is, and everything else item by item.
    assert isinstance(message.data, array.array)
    back = BRIDGE.imgmsg_to_cv2(message)
    assert back.dtype == image.dtype
    np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("padding", [0, 3, 4])
@pytest.mark.parametrize(
    ("encoding", "dtype", "channels"), [("bgr8", "uint8", 3), ("mono16", "uint16", 1), ("32FC1", "float32", 1)]
)
def test_any_step_and_endianness(encoding: str, dtype: str, channels: int, padding: int, big: bool) -> None:
    image = pixels(dtype, channels)
    rows = image.astype(image.dtype.newbyteorder(">" if big else "<")).view(np.uint8).reshape(5, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    message = Image(height=5, width=7, encoding=encoding, is_bigendian=int(big), step=rows.shape[1])
    message.data = array.array("B", rows.tobytes())
    back = BRIDGE.imgmsg_to_cv2(message)
    assert back.dtype == np.dtype(dtype)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, image)


def test_a_plain_image_is_not_copied() -> None:
    message = BRIDGE.cv2_to_imgmsg(pixels("uint8", 3), "bgr8")
    image = BRIDGE.imgmsg_to_cv2(message)
    image[0, 0, 0] ^= 255
    assert message.data[0] == image[0, 0, 0]


def test_big_endian_arrays_say_so() -> None:
    image = pixels("uint16", 1)
    message = BRIDGE.cv2_to_imgmsg(image.astype(">u2"), "mono16")
    assert message.is_bigendian
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message), image)


def test_part_of_an_image_becomes_a_whole_one() -> None:
    image = pixels("uint8", 3, 20, 20)[3:8, 4:11]
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(image, "bgr8")), image)


def test_colours_are_converted() -> None:
    bgr = pixels("uint8", 3)
    message = BRIDGE.cv2_to_imgmsg(bgr, "bgr8")
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message, "rgb8"), bgr[:, :, ::-1])
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message, "bgra8")[:, :, :3], bgr)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message, "mono8"), cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY))
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message, "8UC3"), bgr)
    mono = BRIDGE.cv2_to_imgmsg(bgr[:, :, 0], "mono8")
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(mono, "bgr8"), np.repeat(bgr[:, :, :1], 3, axis=2))


def test_depths_are_scaled_to_each_other() -> None:
    gray = np.array([[0, 1, 128, 255]], np.uint8)
    deep = BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(gray, "mono8"), "mono16")
    np.testing.assert_array_equal(deep, [[0, 257, 128 * 257, 65535]])
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(deep, "mono16"), "mono8"), gray)


@pytest.mark.parametrize(
    ("pattern", "encoding"),
    [("rggb", "bayer_rggb8"), ("bggr", "bayer_bggr8"), ("gbrg", "bayer_gbrg8"), ("grbg", "bayer_grbg8")],
)
def test_mosaics_give_their_colour(pattern: str, encoding: str) -> None:
    """A plain orange, seen through each filter, is that orange again."""
    colour = {"r": 200, "g": 100, "b": 50}
    tile = np.array([[colour[pattern[0]], colour[pattern[1]]], [colour[pattern[2]], colour[pattern[3]]]], np.uint8)
    mosaic = BRIDGE.cv2_to_imgmsg(np.tile(tile, (8, 8)), encoding)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(mosaic, "rgb8")[4:-4, 4:-4], np.full((8, 8, 3), (200, 100, 50)))


def test_compressed_images_survive() -> None:
    image = cv2.GaussianBlur(pixels("uint8", 3, 40, 60), (0, 0), 5)
    exact = BRIDGE.cv2_to_compressed_imgmsg(image, "png")
    assert exact.format == "png"
    np.testing.assert_array_equal(BRIDGE.compressed_imgmsg_to_cv2(exact), image)
    np.testing.assert_array_equal(BRIDGE.compressed_imgmsg_to_cv2(exact, "rgb8"), image[:, :, ::-1])
    close = BRIDGE.compressed_imgmsg_to_cv2(BRIDGE.cv2_to_compressed_imgmsg(image))
    assert np.abs(close.astype(int) - image).mean() < 4
    thermal = pixels("uint16", 1)
    np.testing.assert_array_equal(
        BRIDGE.compressed_imgmsg_to_cv2(BRIDGE.cv2_to_compressed_imgmsg(thermal, "png")), thermal
    )


def test_faults_are_told() -> None:
    good = BRIDGE.cv2_to_imgmsg(pixels("uint8", 3), "bgr8")
    with pytest.raises(CvBridgeError, match=r"\[bgr9\]"):
        BRIDGE.imgmsg_to_cv2(Image(encoding="bgr9"))
    with pytest.raises(CvBridgeError, match=r"mono8.*8UC3"):
        BRIDGE.cv2_to_imgmsg(pixels("uint8", 3), "mono8")
    with pytest.raises(CvBridgeError, match="int64"):
        BRIDGE.cv2_to_imgmsg(np.zeros((2, 2), np.int64))
    with pytest.raises(TypeError, match="list"):
        BRIDGE.cv2_to_imgmsg([[1, 2], [3, 4]])
    with pytest.raises(CvBridgeError, match="not a color format"):
        BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(pixels("float32", 1)), "bgr8")
    with pytest.raises(CvBridgeError, match=r"3 channels .* 1"):
        BRIDGE.imgmsg_to_cv2(good, "8UC1")
    with pytest.raises(CvBridgeError, match=r"104 bytes, .* 105"):
        BRIDGE.imgmsg_to_cv2(Image(height=5, width=7, step=21, encoding="bgr8", data=good.data[:-1]))
    with pytest.raises(CvBridgeError, match=r"20 bytes, .* 21"):
        BRIDGE.imgmsg_to_cv2(Image(height=5, width=7, step=20, encoding="bgr8", data=good.data))
    with pytest.raises(CvBridgeError, match="8 bytes of format 'jpeg'"):
        BRIDGE.compressed_imgmsg_to_cv2(CompressedImage(format="jpeg", data=array.array("B", b"no image")))
    with pytest.raises(CvBridgeError, match="0 bytes"):
        BRIDGE.compressed_imgmsg_to_cv2(CompressedImage(format="jpeg"), "bgr8")
    with pytest.raises(CvBridgeError, match="cannot write"):
        BRIDGE.cv2_to_compressed_imgmsg(pixels("uint8", 3), "nonsense")
