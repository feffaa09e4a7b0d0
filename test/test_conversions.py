"""Conversions: what goes into a message comes out again, whatever row step and byte order; bad images are named."""

from __future__ import annotations

import array
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")

from sensor_msgs.msg import Image
from std_msgs.msg import Header

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_ros.cameras.conversions import (
    THERMAL_ENCODINGS,
    VISIBLE_ENCODINGS,
    ConversionError,
    Limits,
    check_thermal,
    check_visible,
    detections_to_msg,
    image_to_thermal,
    image_to_visible,
    msg_to_detections,
    stamp_ns,
    thermal_to_image,
    time_msg,
    visible_to_image,
)

HEADER = Header(stamp=time_msg(1_234_567_890_123_456_789), frame_id="camera")

kinds = st.sampled_from(["array", "rosbags"])
sides = st.integers(1, 9)
bgr = hnp.arrays(np.uint8, st.tuples(sides, sides, st.just(3)))
counts = st.sampled_from([np.uint8, np.uint16]).flatmap(lambda dtype: hnp.arrays(dtype, st.tuples(sides, sides)))


def message(
    pixels: np.ndarray, encoding: str, padding: int = 0, big_endian: bool = False, kind: str = "array"
) -> Image | SimpleNamespace:
    """A camera driver's image: rows of raw bytes, each followed by `padding` bytes of rubbish."""
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(">u2" if big_endian else "<u2")
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.concatenate([rows, np.full((len(rows), padding), 0xA5, np.uint8)], axis=1)
    fields = {
        "header": HEADER, "height": pixels.shape[0], "width": pixels.shape[1], "encoding": encoding,
        "is_bigendian": int(big_endian), "step": rows.shape[1],
    }  # fmt: skip
    if kind == "rosbags":  # what `rosbags` deserializes to: same names, numpy data
        return SimpleNamespace(**fields, data=rows.reshape(-1))
    return Image(**fields, data=array.array("B", rows.tobytes()))


HAND_WRITTEN = [name for name in VISIBLE_ENCODINGS if not name.startswith(("bayer", "yuv", "uyvy", "yuyv"))]


def in_encoding(image: np.ndarray, encoding: str) -> np.ndarray:
    """The pixels of a BGR picture in this encoding; channels written out by hand."""
    blue, green, red = image[..., 0], image[..., 1], image[..., 2]
    alpha = np.full_like(blue, 77)
    channels = {
        "bgr8": (blue, green, red), "8UC3": (blue, green, red), "rgb8": (red, green, blue),
        "bgra8": (blue, green, red, alpha), "rgba8": (red, green, blue, alpha),
    }  # fmt: skip
    return np.stack(channels[encoding], axis=-1) if encoding in channels else blue


@given(bgr, st.sampled_from(HAND_WRITTEN), st.integers(0, 7), st.booleans(), kinds)
@settings(deadline=None)
def test_visible_is_read_in_every_encoding_and_row_step(image, encoding, padding, big_endian, kind):
    pixels = in_encoding(image, encoding.replace("16", "8"))
    if encoding.endswith("16"):
        pixels = pixels.astype(np.uint16) * 257
    got = image_to_visible(message(pixels, encoding, padding, big_endian, kind))
    expected = image if VISIBLE_ENCODINGS[encoding].channels > 1 else np.repeat(image[..., :1], 3, axis=2)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_mosaic_gives_the_colours_it_was_made_of(pattern, depth):
    """Each pixel keeps one channel, as the name of the pattern says; a picture without detail comes back whole."""
    colours = {"b": 30, "g": 120, "r": 220}
    mosaic = np.zeros((8, 10), f"uint{depth}")
    for place, letter in enumerate(pattern):
        mosaic[place // 2 :: 2, place % 2 :: 2] = colours[letter] * (1 if depth == 8 else 257)
    got = image_to_visible(message(mosaic, f"bayer_{pattern}{depth}", padding=2, big_endian=depth == 16))
    np.testing.assert_array_equal(got, np.full((8, 10, 3), list(colours.values()), np.uint8))


@given(hnp.arrays(np.uint16, (6, 8)), st.sampled_from(["rggb", "bggr", "gbrg", "grbg"]), st.integers(0, 5))
@settings(deadline=None, max_examples=20)
def test_mosaics_of_16_bits_are_read_as_cv_bridge_reads_them(mosaic, pattern, padding):
    bridge = pytest.importorskip("cv_bridge").CvBridge()
    msg = message(mosaic, f"bayer_{pattern}16", padding)
    np.testing.assert_array_equal(image_to_visible(msg), bridge.imgmsg_to_cv2(msg, "bgr8"))


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_yuv422_is_read_in_both_orders(encoding):
    """Written out by ITU-R BT.601, two pixels to a pair of colour differences."""
    red, luma, u, v = (0, 0, 255), 81, 90, 240
    pair = (u, luma, v, luma) if encoding in ("yuv422", "uyvy") else (luma, u, luma, v)
    pixels = np.tile(np.array(pair, np.uint8).reshape(1, 2, 2), (4, 3, 1))
    got = image_to_visible(message(pixels, encoding, padding=3))
    assert got.shape == (4, 6, 3)
    assert np.abs(got.astype(int) - red).max() <= 2
    with pytest.raises(ConversionError, match=r"of 5 pixels a row .* expected an even number"):
        image_to_visible(message(pixels[:, :5], encoding))


def test_images_beyond_the_limit_are_refused():
    for check in (check_visible, lambda msg, limits: check_thermal(msg, limits=limits)):
        check(message(PICTURE[..., 0], "mono8"), Limits(pixels=24))
        with pytest.raises(
            ConversionError, match=r"6 x 4 pixels, and parameter 'max_image_megapixels' allows 2\.3e-05"
        ):
            check(message(PICTURE[..., 0], "mono8"), Limits(pixels=23))


@given(counts, st.booleans(), st.integers(0, 7), st.booleans(), kinds)
@settings(deadline=None)
def test_thermal_is_read_in_every_encoding_row_step_and_byte_order(image, named, padding, big_endian, kind):
    encoding = {1: ("8UC1", "mono8"), 2: ("16UC1", "mono16")}[image.itemsize][named]
    got = image_to_thermal(message(image, encoding, padding, big_endian, kind))
    assert got.dtype == image.dtype
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, image)


@given(bgr)
@settings(deadline=None)
def test_visible_round_trip(image):
    msg = visible_to_image(image, HEADER)
    assert (msg.header, msg.encoding, msg.step, type(msg.data)) == (HEADER, "bgr8", image.shape[1] * 3, array.array)
    np.testing.assert_array_equal(image_to_visible(msg), image)
    np.testing.assert_array_equal(image_to_visible(visible_to_image(image[:, ::-1], HEADER)), image[:, ::-1])


@given(counts)
@settings(deadline=None)
def test_thermal_round_trip(image):
    for source in (image, image.T, image.astype(image.dtype.newbyteorder(">"))):
        msg = thermal_to_image(source, HEADER)
        assert (msg.header, msg.encoding) == (HEADER, "mono8" if image.itemsize == 1 else "mono16")
        np.testing.assert_array_equal(image_to_thermal(msg), source)


def test_plain_images_are_not_copied():
    for msg, read in (
        (visible_to_image(np.zeros((4, 5, 3), np.uint8), HEADER), image_to_visible),
        (thermal_to_image(np.zeros((4, 5), np.uint8), HEADER), image_to_thermal),
        (thermal_to_image(np.zeros((4, 5), np.uint16), HEADER), image_to_thermal),
    ):
        view = read(msg)
        msg.data[0] = 200
        msg.data[1] = 200
        assert view.flat[0] >= 200


def test_written_images_read_the_same_with_cv_bridge():
    bridge = pytest.importorskip("cv_bridge").CvBridge()
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (5, 7, 3), np.uint8)
    thermal = rng.integers(0, 65535, (5, 7), np.uint16)
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(visible_to_image(picture, HEADER)), picture)
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(thermal_to_image(thermal, HEADER)), thermal)


PICTURE = np.zeros((4, 6, 3), np.uint8)
COUNTS = np.zeros((4, 6), np.uint16)


@pytest.mark.parametrize(
    ("read", "msg", "words"),
    [
        (image_to_visible, message(PICTURE, "nv21"), ["visible", "'nv21'", "bgr8", "8UC3"]),
        (image_to_visible, message(COUNTS, "16UC1"), ["visible", "'16UC1'", "bgr8"]),
        (image_to_thermal, message(COUNTS, "bayer_rggb16"), ["thermal", "'bayer_rggb16'", "16UC1"]),
        (image_to_visible, message(PICTURE, ""), ["visible", "''"]),
        (image_to_thermal, message(PICTURE, "bgr8"), ["thermal", "'bgr8'", "mono16", "palette"]),
        (image_to_thermal, message(COUNTS, "32FC1"), ["thermal", "'32FC1'", "16UC1"]),
        (image_to_visible, message(PICTURE, "bgra8"), ["row step of 18", "24 or more"]),
        (image_to_thermal, message(COUNTS.astype(np.uint8), "mono16"), ["row step of 6", "12 or more"]),
    ],
)
def test_wrong_encoding_and_step_are_named(read, msg, words):
    with pytest.raises(ConversionError) as raised:
        read(msg)
    assert isinstance(raised.value, UserError)
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_palette_is_read_by_its_luma_when_that_is_wanted():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    luma = picture.astype(float) @ (0.114, 0.587, 0.299)
    for encoding in ("bgr8", "rgb8", "bgra8", "rgba8", "8UC3"):
        msg = message(in_encoding(picture, encoding), encoding, padding=3)
        assert check_thermal(msg, palette_ok=True) == "mono8"
        assert np.abs(image_to_thermal(msg, palette_ok=True) - luma).max() <= 0.51
        with pytest.raises(ConversionError, match="no temperatures"):
            check_thermal(msg)
    short = message(picture, "bgr8")
    short.data = short.data[:-1]
    with pytest.raises(ConversionError, match="bytes of data"):
        check_thermal(short, palette_ok=True)
    for encoding in ("bgr16", "bayer_rggb8"):
        with pytest.raises(ConversionError, match=f"'{encoding}'"):
            check_thermal(message(picture, encoding), palette_ok=True)
    np.testing.assert_array_equal(image_to_thermal(message(COUNTS, "mono16"), palette_ok=True), COUNTS)


@pytest.mark.parametrize("read", [image_to_visible, image_to_thermal])
def test_short_data_and_empty_images_are_named(read):
    short = message(PICTURE[..., 0], "mono8", padding=2)
    short.data = short.data[:-1]
    with pytest.raises(ConversionError, match=r"31 bytes of data; expected step x height = 8 x 4 = 32"):
        read(short)
    for width, height in ((0, 4), (6, 0), (0, 0)):
        with pytest.raises(ConversionError, match=f"{width} x {height} pixels"):
            read(Image(width=width, height=height, encoding="mono8", step=6, data=array.array("B", bytes(24))))
    with pytest.raises(ConversionError, match="0 bytes of data"):
        read(Image(width=6, height=4, encoding="mono8", step=6))


def test_arrays_that_are_no_images_are_refused():
    for write, bad in (
        (visible_to_image, np.zeros((3, 4), np.uint8)),
        (visible_to_image, np.zeros((3, 4, 3), np.float32)),
        (visible_to_image, np.zeros((0, 4, 3), np.uint8)),
        (thermal_to_image, np.zeros((3, 4, 3), np.uint8)),
        (thermal_to_image, np.zeros((3, 4), np.float32)),
    ):
        with pytest.raises(ConversionError, match="expected uint8"):
            write(bad, HEADER)


NAMES = {0: "person", 1: "car", 2: "bicycle"}
corner = st.floats(0, 2000, width=32)


row = st.tuples(corner, corner, corner, corner, st.floats(0, 1, width=32), st.sampled_from(sorted(NAMES)))


@given(st.lists(row, max_size=12))
@settings(deadline=None)
def test_detections_round_trip(rows):
    boxes = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d, _, _ in rows], np.float32)
    boxes = boxes.reshape(-1, 4)
    detections = Detections(
        boxes, np.array([row[4] for row in rows], np.float32), np.array([row[5] for row in rows], np.int64)
    )
    msg = detections_to_msg(detections, NAMES, HEADER)
    assert msg.header == HEADER
    assert all(detection.header == HEADER for detection in msg.detections)
    back = msg_to_detections(msg, NAMES)
    np.testing.assert_allclose(back.boxes, detections.boxes, atol=2e-4)
    np.testing.assert_array_equal(back.scores, detections.scores)
    np.testing.assert_array_equal(back.classes, detections.classes)


def test_detection_message_is_as_vision_msgs_says():
    detections = Detections(np.array([[10, 20, 50, 40]]), np.array([0.5]), np.array([1]))
    (detection,) = detections_to_msg(detections, NAMES, HEADER).detections
    assert (detection.bbox.center.position.x, detection.bbox.center.position.y) == (30, 30)
    assert (detection.bbox.size_x, detection.bbox.size_y, detection.bbox.center.theta) == (40, 20, 0)
    assert [(r.hypothesis.class_id, r.hypothesis.score) for r in detection.results] == [("car", 0.5)]


def test_other_peoples_detections():
    """Class by number, several hypotheses, a turned box; and what cannot be used is named."""
    msg = detections_to_msg(Detections(np.array([[10, 20, 50, 40]]), np.array([0.5]), np.array([1])), {}, HEADER)
    assert msg.detections[0].results[0].hypothesis.class_id == "1"
    assert msg_to_detections(msg, NAMES).classes.tolist() == [1]

    better = type(msg.detections[0].results[0])()
    better.hypothesis.class_id, better.hypothesis.score = "bicycle", 0.75
    msg.detections[0].results = [*msg.detections[0].results, better]
    assert msg_to_detections(msg, NAMES).classes.tolist() == [2]

    msg.detections[0].bbox.center.theta = np.pi / 2
    np.testing.assert_allclose(msg_to_detections(msg, NAMES).boxes, [[20, 10, 40, 50]], atol=1e-4)

    better.hypothesis.class_id = "unicorn"
    with pytest.raises(ConversionError, match="class_id 'unicorn'; known are person, car, bicycle"):
        msg_to_detections(msg, NAMES)
    better.hypothesis.class_id, better.hypothesis.score = "car", 75.0
    with pytest.raises(ConversionError, match=r"scores: expected values in \[0, 1\]"):
        msg_to_detections(msg, NAMES)
    msg.detections[0].results = []
    with pytest.raises(ConversionError, match="detection 0 has no result"):
        msg_to_detections(msg, NAMES)


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_stamps_round_trip(ns):
    assert stamp_ns(Header(stamp=time_msg(ns))) == ns


def test_accepted_encodings():
    named = {"bgr8", "rgb8", "bgra8", "rgba8", "mono8", "8UC1", "8UC3", "bgr16", "rgb16", "bgra16", "rgba16", "mono16"}
    mosaics = {f"bayer_{pattern}{bits}" for pattern in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)}
    assert set(VISIBLE_ENCODINGS) == named | mosaics | {"yuv422", "uyvy", "yuv422_yuy2", "yuyv"}
    assert set(THERMAL_ENCODINGS) == {"mono8", "8UC1", "mono16", "16UC1"}
