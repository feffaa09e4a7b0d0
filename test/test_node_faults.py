"""What goes wrong with cameras, models and operators, over DDS: what the user sees and what is counted; it lives on."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")

from detector_process import MS, NAMES, Cameras, Detector, check_ledger, check_silent_leave, images, random_model
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool
from vision_msgs.msg import LabelInfo, VisionInfo

from rscmd_ros.cameras.conversions import stamp_ns
from rscmd_ros.pairing.frames import STREAMS

OUT_OF_MEMORY = """
import os, torch, rscmd_model.inference.predictor as inference
ask = inference.Predictor.predict_timed
def predict_timed(self, visibles, thermals, **options):
    if os.path.exists({flag!r}):
        torch.empty(1 << 50)  # the allocator's own refusal
    return ask(self, visibles, thermals, **options)
inference.Predictor.predict_timed = predict_timed
"""
LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture(scope="module")
def node(cameras: Cameras, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """One detector for all tests but the last, its model file, and a file whose existence takes its memory away."""
    folder = tmp_path_factory.mktemp("faults")
    # A method without branches of its own for lone cameras: the node asks for answers and does not care whose they are.
    model, flag = random_model(folder / "model.safetensors", 96, "compensate"), folder / "no_memory"
    detector = Detector(
        folder,
        OUT_OF_MEMORY.format(flag=str(flag)),
        model=model,
        device="cpu",
        confidence_threshold=0,
        max_detections=5,
        stream_timeout=0.5,
        tracker="bytetrack",
    )
    detector.wait_for("active: listening")
    yield SimpleNamespace(detector=detector, model=model, flag=flag)
    detector.close()


@pytest.fixture
def running(node: SimpleNamespace, cameras: Cameras) -> Iterator[SimpleNamespace]:
    """Before: both cameras play. After: it lives, shows no traceback, and its books add up."""
    for stream in STREAMS:
        if stream not in cameras.publishers:
            cameras.publish_to(stream)
    cameras.play(lambda: cameras.mode[-1:] == ["fused"], "fused to begin with")
    cameras.detections.clear()
    yield node
    assert node.detector.process.poll() is None
    assert "Traceback" not in node.detector.text
    check_ledger(cameras.fresh_counts())


def test_a_camera_starts_late(node, cameras):
    cameras.publish_to("visible")
    cameras.play(lambda: cameras.mode[-1:] == ["visible"], "mode visible")
    assert "the visible branch answers: /thermal/image has not sent an image in the" in node.detector.text
    cameras.play(lambda: bool(cameras.detections), "answers of the visible branch")
    cameras.publish_to("thermal")
    cameras.play(lambda: cameras.mode[-1:] == ["fused"], "fused")


@pytest.mark.parametrize(("lost", "left"), [("thermal", "visible"), ("visible", "thermal")])
@pytest.mark.parametrize("how", ["silent", "frozen"])
def test_a_camera_fails_and_returns(running, cameras, lost, left, how):
    before = cameras.fresh_counts()
    cameras.play(lambda: cameras.mode[-1:] == [left], f"mode {left}", **{lost: how})
    assert f"mode {left}: the {left} branch answers: /{lost}/image" in running.detector.text
    cameras.detections.clear()
    cameras.play(lambda: len(cameras.detections) > 3, "answers of one branch", **{lost: how})
    answer = cameras.detections[-1]
    assert answer.header.frame_id == "visible_optical"  # the boxes stay in its pixels
    assert max(d.bbox.center.position.x + d.bbox.size_x / 2 for d in answer.detections) > 96  # the thermal width is 80
    cameras.play(lambda: cameras.mode[-1:] == ["fused"], "fused again")
    after = cameras.fresh_counts()
    check_ledger(after)
    assert after[f"{left}.alone"] > before[f"{left}.alone"]
    assert after["lone_inferred"] > before["lone_inferred"]
    assert (after[f"{lost}.frozen"] > before[f"{lost}.frozen"]) == (how == "frozen")


def test_a_camera_restarts(running, cameras):
    said = "mode visible: the visible branch answers: /thermal/image"
    before = running.detector.text.count(said)
    cameras.unpublish("thermal")
    cameras.play(lambda: cameras.mode[-1:] == ["visible"], "mode visible")
    running.detector.wait_for(said, times=before + 1)
    cameras.play(lambda: "nothing publishes on /thermal/image" in running.detector.text, "the cause")
    cameras.publish_to("thermal")
    cameras.play(lambda: cameras.mode[-1:] == ["fused"], "fused again")


def test_hold_repeats_the_last_answer_of_both(running, cameras):
    assert cameras.set(fallback="hold") == (True, "")
    cameras.play(lambda: bool(cameras.detections), "an answer of both")
    before = cameras.fresh_counts()["lone_inferred"]
    cameras.play(lambda: cameras.mode[-1:] == ["none"], "mode none", thermal="silent")
    cameras.detections.clear()
    cameras.play(lambda: len(cameras.detections) > 3, "repeated answers", thermal="silent")
    stamps = {stamp_ns(answer.header) for answer in cameras.detections}
    assert len(stamps) == 1, "an old answer keeps its stamp"
    assert stamps.pop() < cameras.stamp - 500 * MS
    assert all(answer == cameras.detections[0] for answer in cameras.detections)
    assert cameras.fresh_counts()["lone_inferred"] == before
    assert cameras.set(fallback="both") == (True, "")
    cameras.play(lambda: cameras.mode[-1:] == ["fused"], "fused again")


def test_stamps_that_lie_apart_are_measured(running, cameras):
    cameras.unpublish("visible")
    cameras.unpublish("thermal")
    for stream in STREAMS:
        cameras.publish_to(stream)

    def skewed() -> bool:
        cameras.stamp += 50 * MS
        visible, thermal = images(cameras.stamp, 7000 * MS)
        cameras.publishers["visible"].publish(visible)
        cameras.publishers["thermal"].publish(thermal)
        cameras.executor.spin_once(timeout_sec=0.02)
        return "no two stamps lie within slop_ms 50" in running.detector.text

    cameras.spin_until(skewed, "the cause")
    said = re.search(r"thermal stamps are (\d+) ms ahead of visible ones", running.detector.text)
    assert said is not None, running.detector.text
    assert abs(int(said[1]) - 7000) < 1000  # the two do not arrive at the same moment, least of all on a busy machine
    assert cameras.set(thermal_offset_ms=7000.0) == (True, "")  # pairing is live
    cameras.detections.clear()
    cameras.spin_until(lambda: skewed() and bool(cameras.detections), "pairs with the offset")
    assert cameras.set(thermal_offset_ms=0.0, use_measured_offset=True) == (True, "")
    cameras.detections.clear()
    cameras.spin_until(lambda: skewed() and len(cameras.detections) > 5, "pairs with the measured offset")
    assert cameras.set(use_measured_offset=False) == (True, "")


def test_stamps_jump_back(running, cameras):
    before = cameras.fresh_counts()["time_resets"]
    cameras.stamp -= 5000 * MS
    cameras.detections.clear()
    cameras.play(lambda: len(cameras.detections) > 2, "answers after the jump")
    assert cameras.fresh_counts()["time_resets"] > before


def test_memory_runs_out_and_comes_back(running, cameras):
    before = cameras.fresh_counts()
    running.flag.touch()
    try:
        cameras.play(lambda: "cpu has no memory left" in running.detector.text, "the cause")
        cameras.play(lambda: int(cameras.status["pairs_failed"]) > before["pairs_failed"], "failed pairs")
    finally:
        running.flag.unlink()
    cameras.detections.clear()
    cameras.play(lambda: bool(cameras.detections), "answers again")


def test_enable_lazy_classes_and_labels(running, cameras):
    told: dict[str, list] = {"vision_info": [], "label_info": []}
    for name, kind in (("vision_info", VisionInfo), ("label_info", LabelInfo)):
        cameras.node.create_subscription(kind, name, told[name].append, LATCHED)
    cameras.spin_until(lambda: all(told.values()), "latched descriptions")
    assert "YOLOv8n" in told["vision_info"][0].method
    assert [(c.class_id, c.class_name) for c in told["label_info"][-1].class_map] == list(NAMES.items())

    assert cameras.set(classes=["car"]) == (True, "")
    cameras.spin_until(lambda: len(told["label_info"][-1].class_map) == 1, "the labels that are left")
    cameras.play(lambda: len(cameras.detections) > 2, "answers")
    cameras.detections.clear()
    cameras.play(lambda: len(cameras.detections) > 2, "answers")
    assert {r.hypothesis.class_id for a in cameras.detections for d in a.detections for r in d.results} <= {"car"}
    assert cameras.set(classes=[""]) == (True, "")

    assert cameras.call(SetBool, "enable", SetBool.Request(data=False)).success
    assert cameras.get("enable") is False
    before = cameras.fresh_counts()
    cameras.play(lambda: "parameter 'enable' is false" in running.detector.text, "the cause")
    cameras.play(lambda: int(cameras.status["pairs"]) > before["pairs"] + 2, "pairs counted all the same")
    after = cameras.fresh_counts()
    assert after["pairs_inferred"] == before["pairs_inferred"]
    assert after["pairs_skipped"] > before["pairs_skipped"]
    assert cameras.set(enable=True) == (True, "")


def test_lazy_answers_nobody_who_does_not_listen(running, cameras):
    assert cameras.set(lazy=True) == (True, "")
    cameras.play(lambda: bool(cameras.detections), "answers, for somebody listens")
    cameras.listen(False)
    skipped = cameras.fresh_counts()["pairs_skipped"]
    cameras.play(lambda: int(cameras.status["pairs_skipped"]) > skipped + 2, "pairs that nobody wants")
    before = cameras.fresh_counts()
    cameras.play(lambda: int(cameras.status["pairs"]) > before["pairs"] + 2, "pairs counted all the same")
    assert cameras.fresh_counts()["pairs_inferred"] == before["pairs_inferred"]
    cameras.listen(True)
    cameras.play(lambda: bool(cameras.detections), "answers, for somebody listens again")
    assert cameras.set(lazy=False) == (True, "")


def test_the_overlay_is_drawn_for_those_who_look(running, cameras):
    pictures: list[Image] = []
    subscription = cameras.node.create_subscription(Image, "overlay/image", pictures.append, 5)
    cameras.play(lambda: bool(pictures), "an overlay")
    picture = pictures[-1]
    assert (picture.encoding, picture.width) == ("bgr8", 2 * 160)
    assert picture.height > 96
    assert len(set(np.frombuffer(picture.data, np.uint8).tolist())) > 20
    pictures.clear()
    cameras.play(lambda: len(pictures) > 3, "an overlay of one camera", visible="silent")
    cameras.node.destroy_subscription(subscription)


def test_the_model_file_becomes_garbage_and_transitions_come_in_any_order(running, cameras):
    good = running.model.read_bytes()
    running.model.write_bytes(b"\x80\x04 garbage")
    cameras.detections.clear()
    cameras.play(lambda: bool(cameras.detections), "answers of the model in memory")
    for transition, state in (
        ("activate", "active"),  # refused: it is active
        ("configure", "active"),
        ("deactivate", "inactive"),
        ("deactivate", "inactive"),
        ("activate", "active"),
        ("deactivate", "inactive"),
        ("cleanup", "unconfigured"),
        ("activate", "unconfigured"),
        ("configure", "unconfigured"),  # the file is garbage
    ):
        cameras.change(transition)
        assert cameras.state() == state, transition
    assert "is not a model file" in running.detector.text
    cameras.spin_until(lambda: "no detections: the node is unconfigured" in running.detector.text, "the cause")
    assert cameras.mode[-1:] == ["none"]
    running.model.write_bytes(good)
    assert cameras.change("configure")
    assert cameras.change("activate")
    cameras.detections.clear()
    cameras.play(lambda: bool(cameras.detections), "answers again")
    assert stamp_ns(cameras.detections[-1].header) <= cameras.stamp


def test_a_second_node_of_that_name_and_qos_that_does_not_fit(node, cameras, tmp_path):
    cameras.publish_to("visible", reliable=False)
    qos = {
        "qos_overrides./visible/image.subscription.reliability": "reliable",
        "qos_overrides./thermal/image.subscription.durability": "transient_local",
    }
    second = Detector(tmp_path, model=node.model, device="cpu", **qos)
    try:
        second.wait_for("active: listening")
        second.wait_for("another node is called /rscmd_detector too")
        second.wait_for("/visible/image is published best effort but asked for reliable")
        second.wait_for("a publisher of /thermal/image offers less than this node asks in QoS policy durability")
        assert second.end(signal.SIGTERM) == 0
        assert node.detector.process.poll() is None
        cameras.detections.clear()
        cameras.play(lambda: bool(cameras.detections), "answers of the one that is left")
        assert node.detector.end(signal.SIGINT) == 0
        assert "Traceback" not in second.text
        check_silent_leave(second, cameras)
    finally:
        second.close()
