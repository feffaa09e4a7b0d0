"""Messages to numpy and `Detections`, and back: pure functions.

Reading looks at nothing but the attributes that a message has by its definition, so messages read from a bag with
`rosbags` do as well as rclpy's. It is done with numpy's own strides and not with `CvBridge.imgmsg_to_cv2`: as released
with Jazzy that one shears images whose row step is no multiple of the pixel size and, under NumPy 2, fails wherever
`is_bigendian` is set. Writing is `CvBridge.cv2_to_imgmsg`, in the form ("passthrough") that needs no compiled part.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from cv_bridge import CvBridge
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError, shown
from rscmd_model.imaging.thermal import thermal_plane

_NS = 1_000_000_000
_LONGEST_FRAME_ID = 256


class Encoding(NamedTuple):
    """An encoding of sensor_msgs.

    Attributes:
        depth: bytes of a channel.
        channels: of a pixel.
        conversion: OpenCV's code for the way to BGR; None where there is nothing to do.
        colour: whether the pixels have colours.
    """

    depth: int
    channels: int
    conversion: int | None
    colour: bool = True


VISIBLE_ENCODINGS: dict[str, Encoding] = {
    "bgr8": Encoding(1, 3, None),
    "rgb8": Encoding(1, 3, cv2.COLOR_RGB2BGR),
    "bgra8": Encoding(1, 4, cv2.COLOR_BGRA2BGR),
    "rgba8": Encoding(1, 4, cv2.COLOR_RGBA2BGR),
    "mono8": Encoding(1, 1, cv2.COLOR_GRAY2BGR, colour=False),
    "8UC1": Encoding(1, 1, cv2.COLOR_GRAY2BGR, colour=False),
    "8UC3": Encoding(1, 3, None),  # names no colours; BGR is what OpenCV's users put in
    "bgr16": Encoding(2, 3, None),
    "rgb16": Encoding(2, 3, cv2.COLOR_RGB2BGR),
    "bgra16": Encoding(2, 4, cv2.COLOR_BGRA2BGR),
    "rgba16": Encoding(2, 4, cv2.COLOR_RGBA2BGR),
    "mono16": Encoding(2, 1, cv2.COLOR_GRAY2BGR, colour=False),
    **{
        # OpenCV names a mosaic by the second row's second and third pixel, ROS by the first four.
        f"bayer_{pattern}{8 * depth}": Encoding(depth, 1, conversion, colour=False)
        for pattern, conversion in (
            ("rggb", cv2.COLOR_BayerBG2BGR),
            ("bggr", cv2.COLOR_BayerRG2BGR),
            ("gbrg", cv2.COLOR_BayerGR2BGR),
            ("grbg", cv2.COLOR_BayerGB2BGR),
        )
        for depth in (1, 2)
    },
    "yuv422": Encoding(1, 2, cv2.COLOR_YUV2BGR_UYVY),
    "uyvy": Encoding(1, 2, cv2.COLOR_YUV2BGR_UYVY),
    "yuv422_yuy2": Encoding(1, 2, cv2.COLOR_YUV2BGR_YUY2),
    "yuyv": Encoding(1, 2, cv2.COLOR_YUV2BGR_YUY2),
}

THERMAL_ENCODINGS = {"mono8": 1, "8UC1": 1, "mono16": 2, "16UC1": 2}
"""Encoding: bytes per pixel."""


class Limits(NamedTuple):
    """The largest image that is taken.

    Attributes:
        pixels: of any image.
        decoded_bytes: that a compressed one may decode to.
    """

    pixels: float = math.inf
    decoded_bytes: float = math.inf


NO_LIMITS = Limits()


class ConversionError(UserError, ValueError):
    """A message does not hold what is needed; one sentence says what was got and what is accepted."""


def check_visible(msg: Any, limits: Limits = NO_LIMITS) -> None:
    """Make sure that `image_to_visible` can read this sensor_msgs/Image, without reading it.

    Raises:
        ConversionError: the encoding is not one of `VISIBLE_ENCODINGS`, the image is empty or larger than the limits,
            or its data is shorter than height and row step say.
    """
    encoding = VISIBLE_ENCODINGS.get(msg.encoding)
    if encoding is None:
        raise ConversionError(
            f"visible image has encoding '{shown(msg.encoding)}'; accepted are {', '.join(VISIBLE_ENCODINGS)}"
        )
    _check_size(msg, "visible", encoding.depth * encoding.channels, limits)
    if encoding.channels == 2 and msg.width % 2:
        raise ConversionError(
            f"visible image of {msg.width} pixels a row has encoding '{msg.encoding}', where two share their colour: "
            "expected an even number"
        )


def check_thermal(msg: Any, palette_ok: bool = False, limits: Limits = NO_LIMITS) -> str:
    """Make sure that `image_to_thermal` can read this sensor_msgs/Image, without reading it.

    Args:
        msg: the message.
        palette_ok: let the 8-bit colour encodings of `VISIBLE_ENCODINGS` pass for "mono8".
        limits: the largest image that is taken.

    Returns:
        The depth in the words of a thermal contract: "mono8" or "mono16".

    Raises:
        ConversionError: the encoding is not one of `THERMAL_ENCODINGS`, the image is empty or larger than the limits,
            or its data is shorter than height and row step say.
    """
    if msg.encoding not in THERMAL_ENCODINGS:
        palette = VISIBLE_ENCODINGS.get(msg.encoding)
        if not (palette_ok and palette is not None and palette.colour and palette.depth == 1):
            raise refuse_palette(msg.encoding)
        check_visible(msg, limits)
        return "mono8"
    pixel = THERMAL_ENCODINGS[msg.encoding]
    _check_size(msg, "thermal", pixel, limits)
    return "mono8" if pixel == 1 else "mono16"


def refuse_palette(encoding: str, what: str = "") -> ConversionError:
    """The error for a thermal image whose encoding is not one of counts.

    Args:
        encoding: what the message says.
        what: describes the picture where its encoding is not what is wrong.
    """
    palette = VISIBLE_ENCODINGS.get(encoding)
    hint = (
        "; colours of a palette are no temperatures, so set the driver to grey or raw counts (a model trained with "
        "--palette-ok takes them by their luma)"
        if what or (palette is not None and palette.colour)
        else ""
    )
    has = f"is a {what}" if what else f"has encoding '{shown(encoding)}'"
    return ConversionError(f"thermal image {has}; accepted are {', '.join(THERMAL_ENCODINGS)}{hint}")


def image_to_visible(msg: Any) -> np.ndarray:
    """The picture of a visible camera.

    Args:
        msg: sensor_msgs/Image in one of `VISIBLE_ENCODINGS`, any row step, either byte order.

    Returns:
        (H, W, 3) uint8 BGR, 16 bits scaled to 8 by their full range as cv_bridge does. For bgr8 and 8UC3 a view of
        the message's data, so do not write to it; otherwise a copy.

    Raises:
        ConversionError: see `check_visible`.
    """
    check_visible(msg)
    encoding = VISIBLE_ENCODINGS[msg.encoding]
    return pixels_to_visible(_pixels(msg, encoding.depth, encoding.channels), msg.encoding)


def pixels_to_visible(pixels: np.ndarray, encoding: str) -> np.ndarray:
    """BGR of the pixels of an encoding.

    Args:
        pixels: (H, W) or (H, W, C), uint8 or uint16 in the machine's byte order.
        encoding: which of `VISIBLE_ENCODINGS` they are in.

    Returns:
        (H, W, 3) uint8; the array itself where nothing is to be done.
    """
    conversion = VISIBLE_ENCODINGS[encoding].conversion
    image = pixels if conversion is None else cv2.cvtColor(pixels, conversion)
    return image if image.dtype == np.uint8 else cv2.convertScaleAbs(image, alpha=1 / 257)


def image_to_thermal(msg: Any, palette_ok: bool = False) -> np.ndarray:
    """The counts of a thermal camera, as they are.

    Args:
        msg: sensor_msgs/Image in one of `THERMAL_ENCODINGS`, any row step, either byte order.
        palette_ok: take colour encodings too, by their luma, as a thermal contract with `palette_ok` does.

    Returns:
        (H, W) uint8 or uint16 in the machine's byte order; where possible a view of the message's data, so do not
        write to it.

    Raises:
        ConversionError: see `check_thermal`.
    """
    check_thermal(msg, palette_ok)
    if msg.encoding not in THERMAL_ENCODINGS:
        return thermal_plane(image_to_visible(msg), palette_ok=True)
    return _pixels(msg, THERMAL_ENCODINGS[msg.encoding], 1)


def visible_to_image(image: np.ndarray, header: Header) -> Image:
    """A sensor_msgs/Image (bgr8) of an (H, W, 3) uint8 BGR picture."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ConversionError(f"visible picture is {image.dtype} of shape {image.shape}; expected uint8, (H, W, 3)")
    return _to_image(image, header, "bgr8")


def thermal_to_image(image: np.ndarray, header: Header) -> Image:
    """A sensor_msgs/Image (mono8 or mono16) of (H, W) uint8 or uint16 thermal counts."""
    if image.dtype.kind != "u" or image.itemsize > 2 or image.ndim != 2 or not image.size:
        raise ConversionError(
            f"thermal picture is {image.dtype} of shape {image.shape}; expected uint8 or uint16, (H, W)"
        )
    return _to_image(image, header, "mono8" if image.itemsize == 1 else "mono16")


def detections_to_msg(detections: Detections, names: Mapping[int, str], header: Header) -> Detection2DArray:
    """Detections as a message.

    Args:
        detections: boxes in px.
        names: class names by index, for `class_id`; a class without a name goes in as its number.
        header: of the image in whose pixels the boxes are.

    Returns:
        A vision_msgs/Detection2DArray.
    """
    msg = Detection2DArray(header=header)
    for (x0, y0, x1, y1), score, index in zip(
        detections.boxes.tolist(), detections.scores.tolist(), detections.classes.tolist()
    ):
        hypothesis = ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = names.get(index, str(index))
        hypothesis.hypothesis.score = score
        detection = Detection2D(header=header, results=[hypothesis])
        detection.bbox.center.position.x = (x0 + x1) / 2
        detection.bbox.center.position.y = (y0 + y1) / 2
        detection.bbox.size_x = x1 - x0
        detection.bbox.size_y = y1 - y0
        msg.detections.append(detection)
    return msg


def best_hypothesis(detection: Any) -> Any:
    """Of a vision_msgs/Detection2D the hypothesis with the highest score; None where it has none."""
    return max((result.hypothesis for result in detection.results), key=lambda one: one.score, default=None)


def upright_box(box: Any) -> tuple[float, float, float, float]:
    """The corners (x0, y0, x1, y1) of a vision_msgs/BoundingBox2D: of a turned one the upright box around it."""
    center, theta = box.center.position, box.center.theta
    width, height = box.size_x, box.size_y
    if theta:
        cos, sin = abs(math.cos(theta)), abs(math.sin(theta))
        width, height = width * cos + height * sin, width * sin + height * cos
    return center.x - width / 2, center.y - height / 2, center.x + width / 2, center.y + height / 2


def msg_to_detections(msg: Any, names: Mapping[int, str]) -> Detections:
    """The `Detections` of a message.

    Of several hypotheses the one with the highest score counts. A turned box (theta) becomes the upright one around it.

    Args:
        msg: a vision_msgs/Detection2DArray.
        names: class names by index.

    Returns:
        Boxes in the pixels of the image that the message's header names.

    Raises:
        ConversionError: a detection has no hypothesis, a class that is not in `names` (by name or by number), or
            numbers that are no box.
    """
    index_of = {str(index): index for index in names} | {name: index for index, name in names.items()}
    boxes, scores, classes = [], [], []
    for n, detection in enumerate(msg.detections):
        if (best := best_hypothesis(detection)) is None:
            raise ConversionError(f"detection {n} has no result; expected a class_id and a score")
        if best.class_id not in index_of:
            raise ConversionError(
                f"detection {n} has class_id '{shown(best.class_id)}'; known are {', '.join(names.values())}"
            )
        boxes.append(upright_box(detection.bbox))
        scores.append(best.score)
        classes.append(index_of[best.class_id])
    if not boxes:
        return Detections.empty()
    try:
        return Detections(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(classes, np.int64))
    except ValueError as error:
        raise ConversionError(f"detections at {stamp_ns(msg.header)} ns: {error}") from None


def stamp_ns(header: Any) -> int:
    """The stamp of a std_msgs/Header in ns."""
    return int(header.stamp.sec) * _NS + int(header.stamp.nanosec)


def time_msg(ns: int) -> Time:
    """A builtin_interfaces/Time of a time in ns."""
    return Time(sec=ns // _NS, nanosec=ns % _NS)


@lru_cache(maxsize=1)
def _bridge() -> CvBridge:
    return CvBridge()


def _to_image(image: np.ndarray, header: Header, encoding: str) -> Image:
    # cv2_to_imgmsg flags no byte order but "foreign", and contiguous native data needs no flag at all.
    native = np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("="))
    msg = _bridge().cv2_to_imgmsg(native, encoding="passthrough", header=header)
    msg.encoding = encoding
    msg.is_bigendian = int(sys.byteorder == "big")
    return msg


def _pixels(msg: Any, depth: int, channels: int) -> np.ndarray:
    """(H, W) or (H, W, C) in the machine's byte order, a view where possible. The message has been checked."""
    dtype = np.dtype(np.uint8) if depth == 1 else np.dtype(">u2" if msg.is_bigendian else "<u2")
    shape, strides = (msg.height, msg.width, channels), (msg.step, depth * channels, depth)
    axes = 2 if channels == 1 else 3
    pixels: np.ndarray = np.ndarray(shape[:axes], dtype, as_bytes(msg.data), strides=strides[:axes])
    return pixels if dtype.isnative and pixels.flags.aligned else pixels.astype(dtype.newbyteorder("="))


def as_bytes(data: Any) -> np.ndarray:
    """The bytes of a message's data, (N,) uint8, not copied when it is an array, bytes, or numpy."""
    return np.asarray(data, np.uint8) if isinstance(data, list) else np.frombuffer(data, np.uint8)


def check_header(header: Any, stream: str) -> None:
    """Make sure that an image can be paired, and that its header can be that of the answer.

    Raises:
        ConversionError: it has no stamp, or too long a frame_id.
    """
    if stamp_ns(header) <= 0:
        raise ConversionError(f"{stream} image has no stamp (0); the driver has to set header.stamp")
    if (length := len(header.frame_id)) > _LONGEST_FRAME_ID:
        raise ConversionError(
            f"{stream} image has a frame_id of {length} characters; at most {_LONGEST_FRAME_ID} are taken, for every "
            "box repeats it"
        )


def check_limits(stream: str, width: int, height: int, limits: Limits) -> None:
    """Make sure that an image is as large as it may be.

    Raises:
        ConversionError: it has no pixels, or more than are taken.
    """
    if width < 1 or height < 1:
        raise ConversionError(f"{stream} image is {width} x {height} pixels; expected at least 1 x 1")
    if width * height > limits.pixels:
        raise ConversionError(
            f"{stream} image is {width} x {height} pixels, and parameter 'max_image_megapixels' allows "
            f"{limits.pixels / 1e6:g} million"
        )


def _check_size(msg: Any, stream: str, pixel: int, limits: Limits) -> None:
    check_limits(stream, msg.width, msg.height, limits)
    row = msg.width * pixel
    if msg.step < row:
        raise ConversionError(
            f"{stream} image of {msg.width} pixels a row in {msg.encoding} has a row step of {msg.step} bytes; "
            f"expected {row} or more"
        )
    if len(msg.data) < msg.step * msg.height:
        raise ConversionError(
            f"{stream} image has {len(msg.data)} bytes of data; expected step x height = {msg.step} x {msg.height} = "
            f"{msg.step * msg.height}"
        )
