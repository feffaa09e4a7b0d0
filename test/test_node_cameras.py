"""The detector node on cameras as they are, over DDS: compressed topics, camera_info, other sizes, thermal pixels."""

from __future__ import annotations

import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")

from detector_process import MS, Cameras, Detector, check_ledger
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from test_node import NAMES, random_model

from rscmd_model.inference.predictor import Predictor
from rscmd_ros.cameras.conversions import msg_to_detections, thermal_to_image, time_msg, visible_to_image
from rscmd_ros.node.detection import make_rig
from rscmd_ros.node.parameters import Settings

BEST = {"confidence_threshold": 0, "max_detections": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("model") / "model.safetensors", 96)


@pytest.fixture
def cameras() -> Iterator[Cameras]:
    cameras = Cameras()
    yield cameras
    cameras.close()


def pictures(seed: int, scale: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    picture = np.kron(rng.integers(0, 255, (6, 10, 3)), np.ones((16 * scale, 16 * scale, 1))).astype(np.uint8)
    return picture, np.kron(rng.integers(0, 255, (6, 10)), np.ones((8 * scale, 8 * scale))).astype(np.uint8)


def advertise(cameras: Cameras, stream: str, kind: type, topic: str) -> None:
    publisher = cameras.node.create_publisher(kind, topic, QoSProfile(depth=50))
    cameras.publishers[stream] = publisher
    cameras.spin_until(lambda: publisher.get_subscription_count() > 0, f"subscription of {topic}")


def send(cameras: Cameras, visible: Any, thermal: Any) -> tuple[Header, Header]:
    """Give two messages the next stamps and publish them."""
    cameras.stamp += 100 * MS
    headers = tuple(
        Header(stamp=time_msg(cameras.stamp + dt * MS), frame_id=f"{stream}_optical")
        for dt, stream in enumerate(("visible", "thermal"))
    )
    for stream, header, msg in zip(("visible", "thermal"), headers, (visible, thermal)):
        msg.header = header
        cameras.publishers[stream].publish(msg)
    return headers[0], headers[1]


def answer(cameras: Cameras, visible: Any, thermal: Any) -> tuple[Any, tuple[Header, Header]]:
    cameras.detections.clear()
    headers = send(cameras, visible, thermal)
    cameras.spin_until(lambda: bool(cameras.detections), "detections of a pair")
    return cameras.detections.pop(), headers


def count(cameras: Cameras, key: str, at_least: int) -> Callable[[], bool]:
    return lambda: int(cameras.status.get(key, 0)) >= at_least


def png(image: np.ndarray, format: str) -> CompressedImage:
    return CompressedImage(format=format, data=array.array("B", cv2.imencode(".png", image)[1].tobytes()))


def test_compressed_topics_give_the_same_as_raw_ones(model: Path, tmp_path: Path, cameras: Cameras) -> None:
    transports = {"visible_transport": "compressed", "thermal_transport": "compressed", "max_image_megapixels": 0.1}
    detector = Detector(tmp_path, model=model, device="cpu", deadline_ms=50, **BEST, **transports)
    try:
        detector.wait_for("active: listening to /visible/image/compressed and /thermal/image/compressed")
        for stream in ("visible", "thermal"):
            advertise(cameras, stream, CompressedImage, f"/{stream}/image/compressed")
        predictor = Predictor(model, device="cpu", conf=0.0, max_det=5)
        for seed, scale in enumerate((1, 1, 2, 1)):  # the size changes in mid-stream, and back
            picture, counts = pictures(seed, scale)
            msg, headers = answer(
                cameras, png(picture, "rgb8; png compressed bgr8"), png(counts, "mono8; png compressed ")
            )
            assert msg.header == headers[0]
            got, expected = msg_to_detections(msg, NAMES), predictor.predict(picture, counts)
            np.testing.assert_allclose(got.boxes, expected.boxes, atol=0.05)
            np.testing.assert_allclose(got.scores, expected.scores, atol=1e-4)

        picture, counts = pictures(9)
        good = png(picture, "bgr8; png compressed bgr8"), png(counts, "mono8; png compressed ")
        damaged = png(picture, "bgr8; png compressed bgr8")
        for place in range(60, 90):
            damaged.data[place] ^= 0x55
        send(cameras, damaged, good[1])
        cameras.spin_until(count(cameras, "pairs_failed", 1), "a failed pair")
        assert "is damaged: its png does not decode" in detector.text
        send(cameras, png(np.zeros((400, 400, 3), np.uint8), "png"), good[1])
        cameras.spin_until(count(cameras, "visible.invalid", 1), "a refused image")
        assert "400 x 400 pixels, and parameter 'max_image_megapixels' allows 0.1 million" in detector.text
        send(cameras, good[0], png(picture, "bgr8; png compressed bgr8"))
        cameras.spin_until(count(cameras, "thermal.invalid", 1), "a refused palette")
        assert "no temperatures" in detector.text
        answer(cameras, *good)
        check_ledger(cameras.fresh_counts())
        assert "Traceback" not in detector.text
    finally:
        detector.close()


def camera_info(size: tuple[int, int], focal: float, distortion: tuple[float, ...]) -> CameraInfo:
    x, y = (size[0] - 1) / 2, (size[1] - 1) / 2
    info = CameraInfo(width=size[0], height=size[1], distortion_model="plumb_bob", d=list(distortion))
    info.k = [focal, 0.0, x, 0.0, focal, y, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [focal, 0.0, x, 0.0, 0.0, focal, y, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def test_rectified_registered_and_in_thermal_pixels(model: Path, tmp_path: Path, cameras: Cameras) -> None:
    pose = (0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    geometry = {"visible_rectify": True, "registration_depth_m": 4.0, "output_frame": "thermal"}
    detector = Detector(
        tmp_path, model=model, device="cpu", deadline_ms=50, **BEST,
        **{name: str(value).lower() if isinstance(value, bool) else value for name, value in geometry.items()},
        extrinsics=str(list(pose)),
    )  # fmt: skip
    try:
        detector.wait_for("active: listening")
        for stream in ("visible", "thermal"):
            advertise(cameras, stream, Image, f"/{stream}/image")
        picture, counts = pictures(1)
        pair = visible_to_image(picture, Header()), thermal_to_image(counts, Header())

        def refused() -> bool:  # best effort: sent until they are received
            send(cameras, *pair)
            cameras.executor.spin_once(timeout_sec=0.2)
            return count(cameras, "thermal.invalid", 1)()

        cameras.spin_until(refused, "images refused without camera_info")
        assert "no camera_info of the visible camera has come yet" in detector.text

        infos = {
            "visible": camera_info((160, 96), 150.0, (-0.2, 0.05, 0.0, 0.0, 0.0)),
            "thermal": camera_info((80, 48), 80.0, ()),
        }
        rig = make_rig(replace(Settings(), **geometry, extrinsics=pose), None)
        told = {s: cameras.node.create_publisher(CameraInfo, f"/{s}/camera_info", QoSProfile(depth=1)) for s in infos}
        for stream, publisher in told.items():
            rig.cameras[stream].info(infos[stream])
            cameras.spin_until(lambda p=publisher: p.get_subscription_count() > 0, "subscription of camera_info")

        def answered() -> bool:  # best effort: say it until it was heard
            for stream, publisher in told.items():
                publisher.publish(infos[stream])
            send(cameras, *pair)
            cameras.executor.spin_once(timeout_sec=0.2)
            return bool(cameras.detections)

        cameras.spin_until(answered, "detections")
        registration = rig.registration(None)
        predictor = Predictor(model, device="cpu", conf=0.0, max_det=5, registration=registration)
        for seed, scale in ((2, 1), (3, 2)):
            picture, counts = pictures(seed, scale)
            pair = visible_to_image(picture, Header()), thermal_to_image(counts, Header())
            cameras.spin_until(lambda: int(cameras.status["pairs_in_hand"]) == 0, "quiet")
            msg, headers = answer(cameras, *pair)
            while msg.header != headers[1]:  # of an earlier pair
                cameras.spin_until(lambda: bool(cameras.detections), "its own answer")
                msg = cameras.detections.pop(0)
            seen = rig.cameras["visible"].decode(pair[0])
            assert not np.array_equal(seen, picture)
            expected, _ = rig.in_frame(
                predictor.predict(seen, counts), picture.shape[1::-1], counts.shape[::-1], registration
            )
            got = msg_to_detections(msg, NAMES)
            np.testing.assert_allclose(got.boxes, expected.boxes, atol=0.05)
            assert got.boxes.max() <= 80 * scale
            assert all(detection.header == headers[1] for detection in msg.detections)
        # Another shape is no scaled copy.
        refused = cameras.fresh_counts()["thermal.invalid"]
        send(cameras, pair[0], thermal_to_image(np.zeros((64, 80), np.uint8), Header()))
        cameras.spin_until(count(cameras, "thermal.invalid", refused + 1), "a refused image")
        assert "the camera_info is for images of 80x48, and this one is 80x64" in detector.text
        answer(cameras, *pair)
        # A calibration that computes no pixel is refused when it comes, and so are the images, before any inference.
        spoilt = camera_info((160, 96), 150.0, ())
        spoilt.p[5] = 0.0
        refused = cameras.fresh_counts()["visible.invalid"]

        def refused_now() -> bool:
            told["visible"].publish(spoilt)
            send(cameras, *pair)
            cameras.executor.spin_once(timeout_sec=0.2)
            return int(cameras.status["visible.invalid"]) > refused + 2

        cameras.spin_until(refused_now, "images refused by the calibration")
        assert "camera_info of the visible camera cannot be used: its p projects nothing" in detector.text
        assert "inference failed" not in detector.text
        cameras.detections.clear()
        cameras.spin_until(answered, "detections by a sound calibration")
        assert "Traceback" not in detector.text
    finally:
        detector.close()


def test_a_camera_info_that_was_sent_once_before_the_start_is_received(
    model: Path, tmp_path: Path, cameras: Cameras
) -> None:
    latched = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
    publisher = cameras.node.create_publisher(CameraInfo, "/visible/camera_info", latched)
    publisher.publish(camera_info((160, 96), 150.0, (-0.2, 0.05, 0.0, 0.0, 0.0)))
    detector = Detector(tmp_path, model=model, device="cpu", visible_rectify="true", **BEST)
    try:
        detector.wait_for("active: listening")
        for stream in ("visible", "thermal"):
            advertise(cameras, stream, Image, f"/{stream}/image")
        cameras.play(lambda: bool(cameras.detections), "answers")
        resets = cameras.fresh_counts()["time_resets"]
        for transition in ("deactivate", "activate"):
            assert cameras.change(transition)
        cameras.detections.clear()
        cameras.play(lambda: bool(cameras.detections), "answers after a second activation")
        assert cameras.fresh_counts()["time_resets"] == resets
    finally:
        detector.close()
