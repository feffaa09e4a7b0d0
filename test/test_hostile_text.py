"""Text that strangers wrote (encodings, frame_ids, names, requests) in the log, in diagnostics and in answers."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")

import rclpy.logging
from detector_process import MS, Cameras, Detector, images, random_model
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Log
from rclpy.qos import QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from rscmd_model.errors import UserError, as_line, origin, several, shown
from rscmd_ros.cameras.camera import Camera
from rscmd_ros.cameras.conversions import ConversionError, check_header, time_msg
from rscmd_ros.node.causes import topic_problem
from rscmd_ros.node.condition import Condition
from rscmd_ros.node.diagnostics import Throttle, pairing_status
from rscmd_ros.node.log import clean_logger
from rscmd_ros.pairing.frames import STREAMS

FORGED = "x\n[INFO] [1.0] [rscmd_detector]: forged\x1b]0;title\x07\u202e"
MEGABYTE = "y" * 1_000_000


def test_what_is_shown_is_printable_and_short():
    assert shown("mono8") == "mono8"
    assert shown(FORGED) == r"x\n[INFO] [1.0] [rscmd_detector]: forged\x1b]0;title\x07\u202e"
    assert shown(MEGABYTE) == "y" * 80 + "... (1000000 characters)"
    assert several(["a", "b"]) == "'a', 'b'"
    assert several(range(20), 2) == "'0', '1' and 18 more"
    assert as_line("a\nb") == r"a\nb"
    assert as_line(f"start {MEGABYTE} end").startswith("start yyy")
    assert as_line(f"start {MEGABYTE} end").endswith("yyy end")
    assert len(as_line(MEGABYTE)) < 2100


def refusal(stream: str, msg: object, transport: str = "raw") -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        Camera(stream, transport=transport).check(msg)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("text", [FORGED, MEGABYTE, FORGED * 10_000])
@pytest.mark.parametrize("stream", STREAMS)
def test_refusals_quote_what_came(stream, text):
    compressed = CompressedImage(format=text, data=b"GIF8")
    depth = CompressedImage(format=f"{text}; compressedDepth", data=b"GIF8")
    with pytest.raises(ConversionError, match="has a frame_id of"):
        check_header(Header(stamp=time_msg(1), frame_id=text * 10), stream)
    for error in (
        refusal(stream, Image(encoding=text, width=1, height=1, step=1, data=b"0")),
        refusal(stream, compressed, "compressed"),
        refusal(stream, depth, "compressed"),
    ):
        assert str(error).isprintable()
        assert len(str(error)) < 700


@pytest.mark.parametrize("text", [FORGED, MEGABYTE])
def test_a_camera_info_and_the_graph_are_quoted(text):
    info = CameraInfo(width=8, height=8, distortion_model=text, d=[1.0])
    info.k[0] = info.k[4] = 1.0
    with pytest.raises(ConversionError) as caught:
        Camera("visible").info(info)
    qos = SimpleNamespace(reliability=QoSReliabilityPolicy.RELIABLE)
    strange = [SimpleNamespace(topic_type=f"{n}{text}", qos_profile=qos) for n in range(100)]
    for said in (
        str(caught.value),
        topic_problem("/visible/image", [], "reliable", [f"/{n}{text}" for n in range(100)]),
        topic_problem("/visible/image", strange, "reliable"),
    ):
        assert said is not None
        assert said.isprintable()
        assert len(said) < 2000


def test_diagnostics_are_printable_whatever_gets_into_them():
    status = pairing_status("n", "active", {}, {"device": FORGED}, [FORGED, MEGABYTE])
    assert status.message.isprintable()
    assert len(status.message) < 2100
    assert status.values[-1].value.isprintable()


def test_the_log_is_printable_whatever_gets_into_it(capfd):
    logger = clean_logger("hostile")
    logger.set_level(rclpy.logging.LoggingSeverity.DEBUG)
    for text in (FORGED, MEGABYTE):
        logger.info(text)
        logger.warning(text)
        logger.error(text)
        logger.debug(text)
    for _ in range(3):
        logger.info("once alone", once=True)
    out, err = capfd.readouterr()
    lines = (out + err).splitlines()
    assert all(re.match(r"\[(INFO|WARN|ERROR|DEBUG)\] \[\d+\.\d+\] \[hostile\]: ", line) for line in lines)
    assert all(line.isprintable() and len(line) < 2200 for line in lines)
    assert sum("once alone" in line for line in lines) == 1


def test_the_kind_of_a_refusal_is_where_it_comes_from():
    def refused(text: str) -> UserError:
        return refusal("visible", Image(encoding=text))

    assert origin(refused("a")) == origin(refused("b"))
    assert origin(refused("a")) != origin(refusal("visible", Image(encoding="bgr8")))
    condition = Condition()
    for n in range(1000):
        condition.refuse("visible", refused(f"x{n}"))
    assert len(condition._refused) == 1


def test_what_is_said_together_is_said_again_together(monkeypatch):
    now = 100.0
    monkeypatch.setattr("rscmd_ros.node.diagnostics.time.monotonic", lambda: now)
    throttle, said = Throttle(10.0), []
    for now in range(100, 140):
        causes = ("a",) if now < 103 or now % 3 else ("a", "b")
        if throttle.allows(*causes):
            said.append((now, causes))
    assert not throttle.allows()
    assert said == [
        (100, ("a",)),
        (105, ("a", "b")),
        (115, ("a",)),
        (117, ("a", "b")),
        (127, ("a",)),
        (129, ("a", "b")),
        (139, ("a",)),
    ]


# Over DDS


def test_a_hostile_camera_neither_forges_lines_nor_fills_the_log(cameras: Cameras, tmp_path):
    detector = Detector(tmp_path, model=random_model(tmp_path / "model.safetensors", 96), device="cpu")
    messages: list[str] = []
    remembered: list[Log] = []
    cameras.node.create_subscription(
        DiagnosticArray, "/diagnostics", lambda msg: messages.extend(status.message for status in msg.status), 50
    )
    cameras.node.create_subscription(Log, "/rosout", remembered.append, 50)
    try:
        detector.wait_for("active: listening")
        for stream in STREAMS:
            cameras.publish_to(stream)
        before, started = len(detector.text), time.monotonic()

        def send(number: int, text: str) -> None:
            cameras.stamp += 50 * MS
            visible, thermal = images(cameras.stamp)
            visible.encoding = f"{number}{text}"
            thermal.header = Header(stamp=time_msg(cameras.stamp), frame_id=f"{number}{text * 10}"[:1_000_000])
            cameras.publishers["visible"].publish(visible)
            cameras.publishers["thermal"].publish(thermal)
            for _ in range(5):
                cameras.executor.spin_once(timeout_sec=0.01)

        for number in range(24):
            send(number, FORGED if number % 2 else MEGABYTE)
        cameras.spin_until(lambda: "accepted are" in detector.text[before:], "the refusal in the log")
        cameras.spin_until(lambda: any("accepted are" in message for message in messages), "and in the diagnostics")
        ok, reason = cameras.set(**{f"slop{FORGED}": MEGABYTE})
        assert not ok
        assert "did you mean 'slop_ms'?" in reason or "there are" in reason
        lines = detector.text[before:].splitlines()
        assert all(re.match(r"\[(INFO|WARN|ERROR)\] \[\d{10}\.\d+\] \[rscmd_detector\]: ", line) for line in lines)
        assert all(text.isprintable() and len(text) < 2200 for text in [*lines, *messages, reason])
        assert all(record.msg.isprintable() for record in remembered if record.name == "rscmd_detector")
        periods = (time.monotonic() - started) / 10 + 1
        # Once in ten seconds for each camera; the warning names all that is wrong at that moment.
        assert sum("accepted are" in line for line in lines) <= 2 * periods
        assert len("".join(lines)) < 10_000
    finally:
        detector.close()
    assert "Traceback" not in detector.text
