"""The detector node as users run it: a process of its own, over DDS, with publishers on the other side."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")

from detector_process import (
    MEMORY,
    MS,
    NAMES,
    PATIENCE,
    ROOT,
    Cameras,
    Detector,
    check_ledger,
    check_silent_leave,
    images,
    random_model,
    shared_memory,
    wait_for_handlers,
)
from rcl_interfaces.srv import DescribeParameters
from sensor_msgs.msg import CompressedImage

from rscmd_ros.cameras.conversions import msg_to_detections, thermal_to_image
from rscmd_ros.pairing.frames import STREAMS

SHARED: list[Detector] = []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes little time for an image."""
    return random_model(tmp_path_factory.mktemp("model") / "model.safetensors", 96)


@pytest.fixture(scope="module")
def running(model: Path, cameras: Cameras, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Detector]:
    """One active detector for all tests that leave it active; publishes its five best boxes, whatever their score."""
    detector = Detector(
        tmp_path_factory.mktemp("running"),
        model=model,
        device="cpu",
        confidence_threshold=0,
        max_detections=5,
        deadline_ms=50,
        slop_ms=20,
    )
    SHARED.append(detector)
    detector.wait_for("active: listening")
    # What is sent before both sides have found each other is lost, and the tests send each pair once.
    for stream in STREAMS:
        cameras.publish_to(stream)
    cameras.play(lambda: int(cameras.status.get("pairs_inferred", 0)) > 0, "a first answer")
    cameras.fresh_counts()
    yield detector
    detector.close()


@pytest.fixture
def alone() -> None:
    """No other detector runs: two of one name would both answer. The tests from here on start their own."""
    for detector in SHARED:
        detector.close()


@pytest.fixture
def active(running: Detector, cameras: Cameras) -> Iterator[Detector]:
    """That detector, with a publisher on both topics and nothing on its way."""
    for stream in STREAMS:
        cameras.publish_to(stream)
    cameras.detections.clear()
    yield running
    for stream in STREAMS:
        cameras.unpublish(stream)
    assert running.process.poll() is None, running.text


def test_detections_are_the_predictors_in_pixels_of_the_visible_image(active, cameras, model):
    from rscmd_model.inference.predictor import Predictor
    from rscmd_ros.cameras.conversions import image_to_thermal, image_to_visible

    predictor = Predictor(model, device="cpu", conf=0.0, max_det=5)
    for _ in range(3):
        visible, thermal = cameras.send_pair()
        cameras.spin_until(lambda: bool(cameras.detections), "detections of a pair")
        answer = cameras.detections.pop()
        assert answer.header == visible.header
        assert all(detection.header == visible.header for detection in answer.detections)
        assert {r.hypothesis.class_id for d in answer.detections for r in d.results} <= set(NAMES.values())
        expected = predictor.predict(image_to_visible(visible), image_to_thermal(thermal))
        got = msg_to_detections(answer, NAMES)
        assert len(got) == len(expected) == 5
        np.testing.assert_allclose(got.boxes, expected.boxes, atol=0.05)
        np.testing.assert_allclose(got.scores, expected.scores, atol=1e-4)
        assert got.boxes[:, 2].max() > 96  # the network's own width


@pytest.mark.parametrize("reliable", [True, False])
def test_every_frame_is_counted(active, cameras, reliable):
    for stream in STREAMS:
        cameras.publish_to(stream, reliable=reliable)
    before = cameras.fresh_counts()
    for n in range(20):
        cameras.send_pair(dt_ms=30 if n % 5 == 0 else 3)  # every fifth is further apart than the slop
        if reliable:
            cameras.executor.spin_once(timeout_sec=0)
        else:  # best effort may lose frames that come all at once
            answers = n - n // 5
            cameras.spin_until(lambda wanted=answers: len(cameras.detections) >= wanted, "an answer")
    cameras.send_pair()  # decides the last of those
    wanted = before["visible.received"] + 21
    cameras.spin_until(lambda: int(cameras.status["visible.received"]) >= wanted, "receipt of all frames")
    cameras.spin_until(lambda: int(cameras.status["pairs"]) >= before["pairs"] + 17, "all pairs")
    cameras.spin_until(lambda: cameras.status["pairs_in_hand"] == "0", "the last inference")
    after = cameras.fresh_counts()
    check_ledger(after)
    grown = {key: after[key] - before[key] for key in after}
    assert grown["visible.received"] == grown["thermal.received"] == 21
    assert grown["visible.paired"] == grown["thermal.paired"] == grown["pairs"] == 17
    assert grown["visible.too_far"] == grown["thermal.too_far"] == 4
    assert grown["pairs_inferred"] == len(cameras.detections)
    assert cameras.status["lifecycle_state"] == "active"
    assert float(cameras.status["latency_p50_ms"]) <= float(cameras.status["latency_p95_ms"])


def test_images_that_cannot_be_used_are_counted_and_named(active, cameras):
    before = cameras.fresh_counts()
    visible, thermal = images(cameras.stamp + 100 * MS)
    visible.encoding = "nv21"
    cameras.publishers["visible"].publish(visible)
    active.wait_for("/visible/image: visible image has encoding 'nv21'; accepted are bgr8")
    deep = thermal_to_image(np.zeros((4, 4), np.uint16), thermal.header)
    cameras.publishers["thermal"].publish(deep)
    active.wait_for("/thermal/image: thermal image has encoding 'mono16' (mono16), and the model was trained on mono8")
    # Told once in a while, counted every time.
    for _ in range(20):
        cameras.publishers["visible"].publish(visible)
        time.sleep(0.03)  # a fast camera, but no burst: best effort would be right to lose some of that
    short, _ = images(cameras.stamp + 100 * MS)
    short.data = short.data[:-1]
    unstamped, _ = images(0)
    for bad in (short, unstamped):
        cameras.publishers["visible"].publish(bad)
        time.sleep(0.03)
    after = cameras.fresh_counts()
    check_ledger(after)
    assert after["visible.invalid"] - before["visible.invalid"] == 23
    assert after["thermal.invalid"] - before["thermal.invalid"] == 1
    assert active.text.count("encoding 'nv21'") < 21
    assert "bytes of data; expected step x height" in active.text
    assert "visible image has no stamp" in active.text
    good, _ = cameras.send_pair()
    cameras.spin_until(lambda: bool(cameras.detections), "detections after bad images")
    assert cameras.detections[-1].header == good.header


def test_topic_of_another_type_is_named(active, cameras):
    cameras.publish_to("thermal", CompressedImage)
    active.wait_for("/thermal/image has type sensor_msgs/msg/CompressedImage; this node needs sensor_msgs/msg/Image")


def test_live_parameters(active, cameras):
    assert cameras.set(confidence_threshold=1) == (True, "")  # an integer for a double
    assert cameras.get("confidence_threshold") == 1.0
    assert isinstance(cameras.get("confidence_threshold"), float)
    cameras.send_pair()
    cameras.spin_until(lambda: bool(cameras.detections), "an answer")
    assert cameras.detections.pop().detections == []
    assert cameras.set(confidence_threshold=0.0, max_detections=3) == (True, "")
    cameras.send_pair()
    cameras.spin_until(lambda: bool(cameras.detections), "an answer")
    assert len(cameras.detections.pop().detections) == 3
    cameras.set(max_detections=5)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"iou_threshold": 0.5, "queue_size": 31}, "'queue_size' can be set only while the node is unconfigured"),
        ({"iou_threshold": 0.5, "confidence_threshold": 1.5}, "confidence_threshold out of range"),
        ({"iou_threshold": 0.5, "max_detections": 0}, "max_detections out of range"),
        ({"iou_threshold": 0.5, "autostart": False}, "read-only parameter: autostart"),
        ({"iou_threshold": 0.5, "max_detections": "many"}, "Wrong parameter type"),
        ({"iou_threshold": 0.5, "classes": ["car", "cat"]}, "'cat'; the model's classes are person, car"),
        ({"iou_threshold": 0.5, "fallback": "perhaps"}, "choose one of both, visible, thermal, hold, off"),
    ],
)
def test_parameters_are_refused_as_a_set(active, cameras, values, reason):
    done, said = cameras.set(**values)
    assert not done
    assert reason in said
    assert cameras.get("iou_threshold") == 0.7


def test_parameters_describe_themselves(active, cameras):
    request = DescribeParameters.Request(names=["confidence_threshold", "max_detections", "pairing_policy"])
    confidence, most, policy = cameras.call(DescribeParameters, "describe_parameters", request).descriptors
    assert (confidence.floating_point_range[0].from_value, confidence.floating_point_range[0].to_value) == (0.0, 1.0)
    assert most.integer_range[0].from_value == 1
    assert "one of nearest, approximate, exact" in policy.additional_constraints
    assert all(descriptor.description for descriptor in (confidence, most, policy))


def test_sigint_when_active(running, cameras):
    """In the middle of traffic and inference. The shared detector ends here."""
    for stream in STREAMS:
        cameras.publish_to(stream)
    for _ in range(30):
        cameras.send_pair()
    assert running.end(signal.SIGINT) == 0
    check_silent_leave(running, cameras)


def test_lifecycle_from_a_bad_model_to_the_end(alone, model, tmp_path, cameras):
    """Started by hand: a model that is none, a corrected parameter, all transitions; SIGTERM when finalized."""
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"\x80\x04 this is no model")
    detector = Detector(tmp_path, model=garbage, autostart="false", device="cpu", confidence_threshold=0)
    try:
        assert cameras.state() == "unconfigured"
        cameras.spin_until(lambda: cameras.status.get("lifecycle_state") == "unconfigured", "the state in /diagnostics")
        assert not cameras.change("configure")
        assert cameras.state() == "unconfigured"
        assert f"cannot configure: {garbage} is not a model file" in detector.text

        assert cameras.set(model="") == (True, "")
        assert not cameras.change("configure")
        assert "cannot configure: parameter 'model' is empty" in detector.text
        assert cameras.set(model=str(model), device="cuda:99") == (True, "")
        assert not cameras.change("configure")
        assert "cannot configure: device 'cuda:99' is not there" in detector.text
        done, reason = cameras.set(reuse=True, pairing_policy="exact")
        assert not done
        assert reason == "parameter 'reuse' works with pairing_policy nearest only, and that is 'exact'"

        assert cameras.set(device="cpu") == (True, "")
        assert cameras.change("configure")
        assert not cameras.set(device="auto")[0]
        for _ in range(2):
            assert cameras.change("activate")
            for stream in STREAMS:
                cameras.publish_to(stream)
            cameras.detections.clear()
            sent, _ = cameras.send_pair()
            cameras.spin_until(lambda: bool(cameras.detections), "detections")
            assert cameras.detections[-1].header == sent.header
            assert cameras.change("deactivate")
        counts = cameras.fresh_counts()
        check_ledger(counts)
        assert counts["pairs_inferred"] == 2  # counted on across activations
        assert cameras.change("cleanup")
        assert cameras.state() == "unconfigured"
        assert cameras.change("shutdown")
        assert cameras.state() == "finalized"
        assert detector.end(signal.SIGTERM) == 0
        assert "Traceback" not in detector.text
    finally:
        detector.close()


def test_pairs_are_answered_by_all_answers_joined(alone, model, tmp_path, cameras):
    from rscmd_model.inference.predictor import Predictor
    from rscmd_ros.cameras.conversions import image_to_thermal, image_to_visible

    predictor = Predictor(model, device="cpu", conf=0.0, max_det=5, answer="ensemble")
    values = {"answer": "ensemble", "confidence_threshold": 0, "max_detections": 5}
    detector = Detector(tmp_path, model=model, device="cpu", **values)
    try:
        detector.wait_for("active: listening")
        assert "pairs answered by ensemble" in detector.text
        for stream in STREAMS:
            cameras.publish_to(stream)
        cameras.detections.clear()
        visible, thermal = cameras.send_pair()
        cameras.spin_until(lambda: bool(cameras.detections), "detections")
        expected = predictor.predict(image_to_visible(visible), image_to_thermal(thermal))
        got = msg_to_detections(cameras.detections.pop(), NAMES)
        np.testing.assert_allclose(got.scores, expected.scores, atol=1e-4)
        cameras.spin_until(lambda: cameras.status.get("answer") == "ensemble", "the answer in /diagnostics")
        cameras.spin_until(lambda: cameras.mode[-1:] == ["ensemble"], "mode ensemble")
        assert "mode ensemble: pairs are answered, by all answers joined" in detector.text
        done, said = cameras.set(answer="fused")
        assert not done
        assert "'answer' can be set only while the node is unconfigured" in said
    finally:
        detector.close()


def test_standard_policy_and_sigterm_in_the_middle_of_inference(alone, tmp_path, cameras):
    slow = random_model(tmp_path / "slow.safetensors", 1280)
    detector = Detector(tmp_path, model=slow, device="cpu", pairing_policy="approximate")
    try:
        for stream in STREAMS:
            cameras.publish_to(stream)
        cameras.detections.clear()
        sent, _ = cameras.send_pair()
        cameras.spin_until(lambda: bool(cameras.detections), "detections")
        assert cameras.detections[-1].header == sent.header

        def is_kept_busy() -> bool:
            cameras.send_pair()
            return cameras.status["pairs_in_hand"] == "2"  # one in inference, one waiting

        cameras.spin_until(is_kept_busy, "work in hand")
        assert detector.end(signal.SIGTERM) == 0
        check_silent_leave(detector, cameras)
    finally:
        detector.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["starting", "unconfigured", "loading", "inactive", "finalized"])
def test_signals_end_it_with_0_and_no_traceback(alone, model, tmp_path, cameras, moment, number):
    by_hand = moment in ("unconfigured", "inactive", "finalized")
    detector = Detector(tmp_path, model=model, device="cpu", autostart=str(not by_hand).lower())
    try:
        if moment == "starting":
            # Handlers are in place before rclpy is; /proc shows it, a log line does not exist yet.
            wait_for_handlers(detector.process, number)
        elif moment == "loading":
            detector.wait_for("loading ")
        else:
            assert cameras.state() == "unconfigured"
            if moment == "inactive":
                assert cameras.change("configure")
            elif moment == "finalized":
                assert cameras.change("shutdown")
            assert cameras.state() == moment
        assert detector.end(number) == 0, detector.text
        check_silent_leave(detector, cameras)
    finally:
        detector.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "slop_ms:=-1"], "slop_ms out of range"),
        (["-p", "half:=perhaps"], "half"),
        (["--params-file", "/no/such/file.yaml"], "/no/such/file.yaml"),
        (["--nonsense"], "unknown arguments after --ros-args: ['--nonsense']"),
    ],
)
def test_a_start_that_cannot_be_made_says_why_in_one_line(arguments, words):
    """And leaves none of its shared memory behind: started again and again, it would fill that of all nodes."""
    command = [sys.executable, "-m", "rscmd_ros.detector_node", "--ros-args", *arguments]
    others = set(MEMORY.glob("fast*"))
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    shared: set[Path] = set()
    until = time.monotonic() + PATIENCE
    try:
        while process.poll() is None:
            assert time.monotonic() < until, "it does not end"
            shared |= shared_memory(process) - others
            time.sleep(0.005)
    finally:
        process.kill()
        _, said = process.communicate()
    assert process.returncode == 2
    (line,) = [line for line in said.splitlines() if line.startswith("error: cannot start: ")]
    assert words in line
    assert "Traceback" not in said
    if "-p" in arguments and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 3 * 64 * 2**20:
        assert shared, "none was seen"
    assert [file for file in shared if file.exists()] == []
