"""Detections as Foxglove's image annotations: where the boxes and labels are, and the node that publishes them."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import Header
from vision_msgs.msg import Detection2D, Detection2DArray

from rscmd_model.detections import Detections
from rscmd_ros.cameras.conversions import detections_to_msg, time_msg

foxglove = pytest.importorskip("foxglove_msgs.msg", reason="foxglove_msgs is not installed")
from rscmd_ros.annotations import to_annotations  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
HEADER = Header(stamp=time_msg(12_000_000_034), frame_id="visible_optical")
BOXES = np.array([[10, 20, 50, 100], [200, 5, 260, 40], [0, 0, 8, 8]], np.float32)


def detected() -> Detection2DArray:
    found = Detections(BOXES, np.array([0.9, 0.5, 0.25], np.float32), np.array([0, 1, 0], np.int64))
    return detections_to_msg(found, {0: "person", 1: "car"}, HEADER)


def test_each_detection_is_outlined_and_labelled() -> None:
    drawn = to_annotations(detected())
    assert [text.text for text in drawn.texts] == ["person 0.90", "car 0.50", "person 0.25"]
    for outline, (x0, y0, x1, y1) in zip(drawn.points, BOXES.tolist()):
        assert outline.type == foxglove.PointsAnnotation.LINE_LOOP
        assert [(point.x, point.y) for point in outline.points] == [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    first, second, third = (text.background_color for text in drawn.texts)
    assert first == third != second
    # A label above the upper edge would not be seen.
    assert all(text.position.y >= text.font_size for text in drawn.texts)


def test_stamps_are_those_of_the_detections() -> None:
    """Foxglove looks for the image of this stamp."""
    drawn = to_annotations(detected())
    assert all(part.timestamp == HEADER.stamp for part in [*drawn.points, *drawn.texts])


def test_a_track_s_id_a_turned_box_and_no_hypothesis() -> None:
    msg = detected()
    msg.detections[0].id = "7"
    msg.detections[1].bbox.center.theta = math.pi / 2
    msg.detections[2] = Detection2D(header=HEADER, bbox=msg.detections[2].bbox)
    drawn = to_annotations(msg)
    assert [text.text for text in drawn.texts] == ["#7 person 0.90", "car 0.50"]
    assert len(drawn.points) == 3
    x, y = zip(*((point.x, point.y) for point in drawn.points[1].points))
    # Width and height have changed places around the same centre.
    assert (min(x), max(x), min(y), max(y)) == pytest.approx((212.5, 247.5, -7.5, 52.5))


@pytest.mark.parametrize("field", ["x", "y", "theta", "size_x", "size_y"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_box_that_is_not_finite_is_left_out(field: str, value: float) -> None:
    msg = detected()
    box = msg.detections[1].bbox
    owner = {"x": box.center.position, "y": box.center.position, "theta": box.center}.get(field, box)
    setattr(owner, field, value)
    drawn = to_annotations(msg)
    assert [text.text for text in drawn.texts] == ["person 0.90", "person 0.25"]
    assert len(drawn.points) == 2


def test_nothing_found_clears_the_picture() -> None:
    drawn = to_annotations(Detection2DArray(header=HEADER))
    assert not drawn.points
    assert not drawn.texts


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "rscmd_ros.annotations", "--ros-args", *getattr(request, "param", ())]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield child
    child.kill()
    child.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_over_the_wire(process: subprocess.Popen[str], number: int) -> None:
    context = rclpy.Context()
    context.init(args=[])
    node = rclpy.create_node("viewer", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    drawn: list[foxglove.ImageAnnotations] = []
    node.create_subscription(foxglove.ImageAnnotations, "detections/annotations", drawn.append, 10)
    publisher = node.create_publisher(Detection2DArray, "detections", 10)
    until = time.monotonic() + 60
    while not drawn and time.monotonic() < until:
        publisher.publish(detected())
        executor.spin_once(timeout_sec=0.1)
    node.destroy_node()
    context.try_shutdown()
    assert drawn[0] == to_annotations(detected())
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert "drawing on /detections/annotations" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_as_soon_as_it_runs_ends_it_in_order(process: subprocess.Popen[str], number: int) -> None:
    assert process.stdout is not None
    assert "drawing on" in process.stdout.readline()
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


def test_wrong_arguments_are_one_line() -> None:
    command = [sys.executable, "-m", "rscmd_ros.annotations", "--ros-args", "--no-such-argument"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert refused.stderr.startswith("error: cannot start: ")


def test_unknown_words_are_refused() -> None:
    command = [sys.executable, "-m", "rscmd_ros.annotations", "/detections", "--ros-args", "-r", "a:=b"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    said = "error: unrecognized arguments: '/detections'; what is for ROS follows --ros-args\n"
    assert (refused.returncode, refused.stderr) == (2, said)


@pytest.mark.parametrize("process", [("-p", "topic:=/mine", "-p", "detector:size:=3")], indirect=True)
def test_unknown_parameters_are_named(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert "parameters are unknown and not used: 'topic'; this node has none" in process.stdout.readline()
    assert "-p detector:size:=3 is for node /detector" in process.stdout.readline()
    assert "drawing on" in process.stdout.readline()
