"""What the worker's thread makes of pairs and lone frames, with a predictor whose answers are known."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")

from detector_process import MS, images

from rscmd_model.detections import Detections
from rscmd_model.errors import out_of_memory
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.predictor import StageTimes
from rscmd_ros.cameras.conversions import stamp_ns, time_msg
from rscmd_ros.node.detection import PairDetector
from rscmd_ros.node.parameters import Settings
from rscmd_ros.node.worker import DroppedError
from rscmd_ros.pairing.frames import Arrival, Frame, Pair


class Known:
    """Three objects, the last of them weak; `asked` keeps what was asked for."""

    names = {0: "person", 1: "car"}  # noqa: RUF012
    thermal = ThermalContract()
    registration = None
    config = SimpleNamespace(branches=("fused", "visible", "thermal"))
    device = "cpu"
    backend = SimpleNamespace(name="torch")

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.ready_for: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def get_ready(self, visible: np.ndarray, thermal: np.ndarray, *, registration: Any) -> None:
        self.ready_for.append((visible.shape, thermal.shape))
        if len(self.ready_for) == 2:
            raise MemoryError

    def predict_timed(self, visibles: list, thermals: list, **options: Any) -> tuple[list[Detections], StageTimes]:
        (visible,), (thermal,) = visibles, thermals
        self.asked.append({"visible": visible is not None, "thermal": thermal is not None, **options})
        boxes = [[0, 0, 20, 30], [40, 10, 70, 60], [90, 20, 120, 50]]
        found = Detections(np.array(boxes), np.array([0.9, 0.6, 0.15]), np.array([0, 1, 0]))
        keep = found.scores >= options["conf"]
        kept = Detections(found.boxes[keep], found.scores[keep], found.classes[keep])
        return [kept], StageTimes(preprocess=1.0, inference=5.0, postprocess=2.0)


class Published(list):
    publish = list.append


def make(**settings: Any) -> tuple[PairDetector, Known, Published]:
    known, published = Known(), Published()
    return PairDetector(known, published, None, Settings(**settings), threading.Event()), known, published


def frames(n: int) -> tuple[Frame, Frame]:
    stamp = 1000 * 1000 * MS + n * 100 * MS
    visible, thermal = images(stamp, 2 * MS)
    return Frame("visible", stamp, Arrival(visible, 0)), Frame("thermal", stamp + 2 * MS, Arrival(thermal, 0))


def labels(message: Any) -> list[str]:
    return [detection.results[0].hypothesis.class_id for detection in message.detections]


def test_classes_and_the_most_detections_are_kept_apart():
    detector, known, published = make(classes=("car",), max_detections=1)
    detector.detect(Pair(*frames(0), 0))
    assert labels(published[-1]) == ["car"]  # the stronger person takes nobody's place
    detector.settings = replace(detector.settings, classes=("",), max_detections=2)
    detector.detect(Pair(*frames(1), 0))
    assert labels(published[-1]) == ["person", "car"]
    assert known.asked[-1]["max_det"] == 2


def test_tracks_are_in_the_message_and_weak_boxes_are_not():
    detector, known, published = make(tracker="bytetrack", confidence_threshold=0.25)
    for n in range(3):
        detector.detect(Pair(*frames(n), 0))
        assert [d.id for d in published[-1].detections] == ["1", "2"]
    assert known.asked[-1]["conf"] == 0.1  # ByteTrack wants to see the weak ones
    detector.reset()
    detector.detect(Pair(*frames(3), 0))
    assert [d.id for d in published[-1].detections] == ["1", "2"]


def test_an_answer_that_nobody_wants_any_more_is_neither_published_nor_tracked():
    detector, _, published = make(tracker="bytetrack", confidence_threshold=0.25)
    detector.detect(Pair(*frames(0), 0))
    with pytest.raises(DroppedError):
        detector.detect(Pair(*frames(-9), 0), drop)
    detector.detect(Pair(*frames(1), 0))
    assert [[d.id for d in answer.detections] for answer in published] == [["1", "2"]] * 2
    assert detector.wanted()
    detector.settings = replace(detector.settings, enable=False)
    assert not detector.wanted()
    detector.settings = replace(detector.settings, enable=True, lazy=True)
    watchers = 0
    detector._publisher = SimpleNamespace(get_subscription_count=lambda: watchers)
    assert not detector.wanted()
    watchers = 1
    assert detector.wanted()


def drop() -> None:
    raise DroppedError("discarded")


def test_a_lone_thermal_frame_is_answered_in_the_visible_frame_once_that_is_known():
    detector, known, published = make()
    visible, thermal = frames(0)
    detector.detect(thermal)
    assert published[-1].header.frame_id == "thermal_optical"
    assert known.asked[-1]["size"] is None
    detector.detect(Pair(visible, thermal, 0))
    assert published[-1].header.frame_id == "visible_optical"
    visible, thermal = frames(1)
    detector.detect(thermal)
    assert (known.asked[-1]["visible"], known.asked[-1]["size"]) == (False, (160, 96))
    assert published[-1].header.frame_id == "visible_optical"
    assert stamp_ns(published[-1].header) == thermal.stamp
    detector.detect(visible)
    assert (known.asked[-1]["thermal"], stamp_ns(published[-1].header)) == (False, visible.stamp)


def test_boxes_in_thermal_pixels_keep_their_frame_when_the_thermal_camera_is_lost():
    detector, known, published = make(output_frame="thermal")
    visible, thermal = frames(0)
    detector.detect(visible)  # nothing is known of the thermal camera yet
    assert published[-1].header.frame_id == "visible_optical"
    detector.detect(Pair(visible, thermal, 0))
    assert published[-1].header == thermal.payload.msg.header
    both = [detection.bbox for detection in published[-1].detections]
    visible, thermal = frames(1)
    detector.detect(visible)
    assert not known.asked[-1]["thermal"]
    assert published[-1].header.frame_id == "thermal_optical"
    assert stamp_ns(published[-1].header) == visible.stamp
    assert [detection.bbox for detection in published[-1].detections] == both


@pytest.mark.parametrize("offset", [-900_000_000 * MS, 800 * MS])
def test_a_lone_frame_goes_by_the_clock_of_the_frame_it_is_answered_in(offset: int):
    """Or its stamps would jump by the offset when a camera is lost, and every track begin anew."""
    for output, lone, sign in (("visible", 1, -1), ("thermal", 0, 1)):
        detector, _, published = make(output_frame=output, tracker="bytetrack", confidence_threshold=0.25)
        visible, thermal = frames(0)
        thermal = replace(thermal, stamp=thermal.stamp + offset)
        thermal.payload.msg.header.stamp = time_msg(thermal.stamp)
        detector.detect(Pair(visible, thermal, 2 * MS))
        frame = replace((visible, thermal)[lone], offset=offset)
        for _ in range(2):
            frame = replace(frame, stamp=frame.stamp + 100 * MS)
            frame.payload.msg.header.stamp = time_msg(frame.stamp)
            detector.detect(frame)
            assert published[-1].header.frame_id == f"{output}_optical"
            assert stamp_ns(published[-1].header) == frame.stamp + sign * offset
        assert [[d.id for d in answer.detections] for answer in published] == [["1", "2"]] * 3


def test_hold_repeats_the_last_fused_answer_under_its_own_stamp():
    detector, _, published = make()
    detector.hold()
    assert not published
    visible, thermal = frames(0)
    detector.detect(Pair(visible, thermal, 0))
    detector.detect(frames(1)[0])
    detector.hold()
    assert stamp_ns(published[-1].header) == visible.stamp
    detector.reset()
    detector.hold()
    assert len(published) == 3


def test_the_model_is_made_ready_for_lone_cameras_once_for_each_size():
    detector, known, published = make()
    detector._logger = SimpleNamespace(error=lambda said: None, debug=lambda said: None)
    for n in range(3):
        visible, thermal = frames(n)
        detector.detect(Pair(visible, thermal, 0))
    assert known.ready_for == [((96, 160, 3), (48, 80))]
    smaller = visible.payload.msg
    smaller.height, smaller.data = 48, smaller.data[: len(smaller.data) // 2]
    detector.detect(Pair(visible, thermal, 0))  # there is no memory for it, and the pair is answered all the same
    assert len(known.ready_for) == 2
    assert len(published) == 4
    assert "no memory left" in detector.failure[1]


@pytest.mark.parametrize("fallback", ["hold", "off"])
def test_it_is_not_where_no_lone_camera_is_ever_answered(fallback: str):
    detector, known, _ = make(fallback=fallback)
    detector.detect(Pair(*frames(0), 0))
    assert not known.ready_for


def test_every_stage_is_timed():
    detector, _, _ = make()
    detector.detect(Pair(*frames(0), 0))
    assert all(latencies.percentile(50) is not None for latencies in detector.stages.values())
    assert detector.stages["inference"].percentile(99) == 5.0


def test_words_for_no_memory_are_known():
    import torch

    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50)
    assert out_of_memory(refused.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shapes do not fit"))
