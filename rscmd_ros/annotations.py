"""Detections as image annotations of Foxglove: boxes and labels that it draws over the camera's own image.

    python -m rscmd_ros.annotations --ros-args -r detections:=/detections

listens to `detections` (vision_msgs/Detection2DArray) and publishes `detections/annotations`
(foxglove_msgs/ImageAnnotations). A process of its own, so that the detector does not pay for it and a robot without
foxglove_msgs still detects. Nothing is converted while nobody subscribes.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import zlib
from typing import TYPE_CHECKING, Any, NoReturn

from rscmd_model.errors import UserError, run_cli, several
from rscmd_model.imaging.draw import colour
from rscmd_ros.transport import heed_help

if TYPE_CHECKING:
    from foxglove_msgs.msg import ImageAnnotations
    from vision_msgs.msg import Detection2DArray

_THICKNESS = 2.0
_FONT_SIZE = 14.0


def to_annotations(msg: Detection2DArray) -> ImageAnnotations:
    """A foxglove_msgs/ImageAnnotations with an outline and a label for each detection.

    Outlines are in the pixels of the detections, turned boxes (theta) turned. The label is the class and the score of
    the best hypothesis, after the id of a track if there is one. Stamps are those of the detections, by which Foxglove
    finds the image. A class has the same colour in every message and in every run. A detection without a hypothesis
    has an outline and no label. One whose box is not finite is left out: there is no place for it.
    """
    from foxglove_msgs.msg import Color, ImageAnnotations, Point2, PointsAnnotation, TextAnnotation

    stamp = msg.header.stamp
    annotations = ImageAnnotations()
    if hasattr(annotations, "timestamp"):  # newer versions of foxglove_msgs have it
        annotations.timestamp = stamp
    for detection in msg.detections:
        if not _is_finite(detection.bbox):
            continue
        best = max((result.hypothesis for result in detection.results), key=lambda h: h.score, default=None)
        blue, green, red = colour(zlib.crc32(best.class_id.encode()) if best is not None else 0)
        ink = Color(r=red / 255, g=green / 255, b=blue / 255, a=1.0)
        corners = _corners(detection.bbox)
        outline = PointsAnnotation(timestamp=stamp, type=PointsAnnotation.LINE_LOOP, thickness=_THICKNESS)
        outline.points = [Point2(x=x, y=y) for x, y in corners]
        outline.outline_color = ink
        annotations.points.append(outline)
        if best is None:
            continue
        identity = f"#{detection.id} " if detection.id else ""
        label = TextAnnotation(
            timestamp=stamp, font_size=_FONT_SIZE, text=f"{identity}{best.class_id} {best.score:.2f}"
        )
        # Its bottom left corner; kept inside the image where a box reaches above it.
        label.position = Point2(x=max(0.0, min(x for x, _ in corners)), y=max(_FONT_SIZE, min(y for _, y in corners)))
        label.text_color = Color(a=1.0)
        label.background_color = ink
        annotations.texts.append(label)
    return annotations


def _is_finite(box: Any) -> bool:
    center = box.center.position
    return all(map(math.isfinite, (center.x, center.y, box.center.theta, box.size_x, box.size_y)))


def _corners(box: Any) -> list[tuple[float, float]]:
    """The corners of a vision_msgs/BoundingBox2D, one after the other around it."""
    center, cos, sin = box.center.position, math.cos(box.center.theta), math.sin(box.center.theta)
    halves = [(sx * box.size_x / 2, sy * box.size_y / 2) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    return [(center.x + x * cos - y * sin, center.y + x * sin + y * cos) for x, y in halves]


def main() -> None:
    """Run the node until SIGINT or SIGTERM."""
    heed_help("python -m rscmd_ros.annotations", __doc__ or "", sys.argv[1:])
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        import foxglove_msgs.msg as foxglove
        import rclpy
        from rclpy.signals import SignalHandlerOptions
        from rclpy.utilities import remove_ros_args
        from vision_msgs.msg import Detection2DArray

        from rscmd_ros.node.guard import GuardedExecutor
        from rscmd_ros.node.unused_parameters import unreached
    except ImportError as error:
        raise UserError(
            f"{error}; is ROS 2 sourced, and foxglove_msgs installed (apt install ros-$ROS_DISTRO-foxglove-msgs)?"
        ) from None
    try:
        rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
        node = rclpy.create_node("rscmd_annotations")
    except Exception as error:  # rclpy's own kinds: unknown arguments, a parameter file that is not there, a bad name
        rclpy.try_shutdown()
        raise UserError(f"cannot start: {' '.join(str(error).split())}") from None
    if words := remove_ros_args(sys.argv)[1:]:
        node.destroy_node()
        rclpy.try_shutdown()
        raise UserError(f"unrecognized arguments: {several(words)}; what is for ROS follows --ros-args")
    strange = [name for name in node._parameter_overrides if not node.has_parameter(name)]
    if strange:
        node.get_logger().warning(f"parameters are unknown and not used: {several(strange)}; this node has none")
    for line in unreached(sys.argv, node.get_fully_qualified_name()):
        node.get_logger().warning(line)
    publisher = node.create_publisher(foxglove.ImageAnnotations, "detections/annotations", 10)

    def convert(msg: Detection2DArray) -> None:
        if publisher.get_subscription_count():
            publisher.publish(to_annotations(msg))

    node.create_subscription(Detection2DArray, "detections", convert, 10)
    node.get_logger().info(f"drawing on {publisher.topic_name}")
    executor = GuardedExecutor(node.get_logger())  # no message, whatever is in it, ends the others
    executor.add_node(node)
    while not stopping.is_set():
        executor.spin_once(timeout_sec=0.1)
    executor.shutdown()
    # Before the interpreter ends: the middleware's threads would meet what it has already taken down.
    node.destroy_node()
    rclpy.try_shutdown()


def cli() -> NoReturn:
    """The installed command."""
    run_cli(main)


if __name__ == "__main__":
    cli()
