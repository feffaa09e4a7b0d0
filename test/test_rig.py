"""Lenses, extrinsics and boxes in either camera's pixels, held to points in space that both cameras look at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")

from dataclasses import replace

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.imaging.extrinsics import registration_at_depth, rotation
from rscmd_model.imaging.lens import Lens
from rscmd_model.imaging.registration import Registration, map_points
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_ros.cameras import camera as camera_module
from rscmd_ros.cameras.camera import Camera, image_topic, info_topic
from rscmd_ros.cameras.conversions import ConversionError
from rscmd_ros.node.detection import make_rig
from rscmd_ros.node.parameters import Settings

SIZES = {"visible": (640, 480), "thermal": (320, 256)}
LENSES = {
    "visible": Lens(
        (640, 480), "plumb_bob", (-0.28, 0.07, 0.001, -0.0005, 0.0), (500, 0, 322, 0, 505, 238, 0, 0, 1),
        rectified=(470, 0, 320, 0, 475, 240, 0, 0, 1),
    ),
    "thermal": Lens((320, 256), "equidistant", (0.02, -0.01, 0.002, 0.0), (260, 0, 158, 0, 262, 130, 0, 0, 1)),
}  # fmt: skip
HALF = np.deg2rad(3) / 2
POSE = (0.08, -0.02, 0.05, 0.0, np.sin(HALF), 0.0, np.cos(HALF))  # turned by 3 degrees about y
MODELS = [
    ("plumb_bob", (-0.3, 0.1, 0.001, -0.002, 0.0)),
    ("rational_polynomial", (0.4, -0.2, 0.001, 0.0005, 0.05, 0.7, -0.1, 0.08)),
    ("equidistant", (0.05, -0.02, 0.01, -0.003)),
    ("plumb_bob", ()),
]


def in_space(depth: float) -> np.ndarray:
    """Points (N, 3) of a plane parallel to the visible image, in its camera's frame."""
    x, y = np.meshgrid(np.linspace(-1.2, 1.2, 7) * depth / 4, np.linspace(-0.8, 0.8, 5) * depth / 4)
    return np.stack([x, y, np.full_like(x, depth)], -1).reshape(-1, 3)


def to_thermal(points: np.ndarray) -> np.ndarray:
    """From the visible camera's frame to the thermal one's."""
    return (points - POSE[:3]) @ rotation(POSE[3:])


def project(lens: Lens, points: np.ndarray, rectified: bool) -> np.ndarray:
    """Pixels (N, 2) of points in the camera's frame, by OpenCV."""
    if rectified:
        rays = points @ lens.turn().T @ lens.matrix(lens.size).T
        return rays[:, :2] / rays[:, 2:]
    camera, zero = lens.matrix(lens.size, rectified=False), np.zeros(3)
    make = cv2.fisheye.projectPoints if lens.model == "equidistant" else cv2.projectPoints
    return make(points[:, None], zero, zero, camera, np.array(lens.distortion))[0].reshape(-1, 2)


def info(lens: Lens, **changes: Any) -> SimpleNamespace:
    """The camera_info of a lens."""
    p = np.hstack([np.array(lens.rectified).reshape(3, 3), np.zeros((3, 1))]).ravel()
    values = {
        "width": lens.size[0], "height": lens.size[1], "distortion_model": lens.model, "d": lens.distortion,
        "k": lens.camera, "r": lens.rotation, "p": p,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


def image_message(stream: str, size: tuple[int, int]) -> SimpleNamespace:
    channels, encoding = (3, "bgr8") if stream == "visible" else (1, "mono8")
    data = np.zeros(size[0] * size[1] * channels, np.uint8)
    fields = {"width": size[0], "height": size[1], "encoding": encoding, "step": size[0] * channels}
    header = SimpleNamespace(stamp=SimpleNamespace(sec=1, nanosec=0), frame_id=stream)
    return SimpleNamespace(**fields, is_bigendian=0, data=data, header=header)


@pytest.mark.parametrize("depth", [2.0, 10.0])
def test_extrinsics_at_a_depth_lay_the_points_of_that_plane_on_each_other(depth: float) -> None:
    found = registration_at_depth(LENSES["visible"], LENSES["thermal"], POSE, depth)
    points = in_space(depth)
    thermal = project(LENSES["thermal"], to_thermal(points), rectified=True)
    np.testing.assert_allclose(
        map_points(found.matrix(), thermal), project(LENSES["visible"], points, rectified=True), atol=1e-6
    )
    # Off that plane there is parallax.
    nearer = project(LENSES["thermal"], to_thermal(points / 2), rectified=True)
    assert np.abs(map_points(found.matrix(), nearer) - project(LENSES["visible"], points, True)).max() > 2


@pytest.mark.parametrize(("model", "distortion"), MODELS)
@pytest.mark.parametrize("scale", [1, 2])
def test_rectified_pixels_go_back_to_where_the_lens_put_them(model: str, distortion: tuple, scale: int) -> None:
    turned = tuple(cv2.Rodrigues(np.array([0.02, -0.03, 0.01]))[0].ravel())
    lens = Lens(
        (640, 480), model, distortion, (500, 0, 310, 0, 505, 245, 0, 0, 1), turned, (460, 0, 320, 0, 460, 240, 0, 0, 1)
    )
    points = in_space(4.0)
    raw, flat = (project(lens, points, rectified) for rectified in (False, True))
    back = lens.raw_points((flat + 0.5) * scale - 0.5, (640 * scale, 480 * scale))
    np.testing.assert_allclose((back + 0.5) / scale - 0.5, raw, atol=1e-3)


@pytest.mark.parametrize(("model", "distortion"), MODELS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rectify_moves_the_picture_as_the_points_move(model: str, distortion: tuple, dtype: type) -> None:
    lens = Lens(
        (160, 120), model, distortion, (120, 0, 78, 0, 121, 62, 0, 0, 1), rectified=(110, 0, 80, 0, 110, 60, 0, 0, 1)
    )
    ramp = np.tile(np.arange(160) * (1 if dtype is np.uint8 else 400), (120, 1)).astype(dtype)  # tells its own x
    flat = lens.rectify(ramp)
    assert (flat.dtype, flat.shape) == (ramp.dtype, ramp.shape)
    x, y = np.meshgrid(np.arange(50, 110, 5), np.arange(35, 85, 5))
    where = lens.raw_points(np.stack([x, y], -1).reshape(-1, 2).astype(float), (160, 120))
    shown = flat[y.ravel(), x.ravel()] / (1 if dtype is np.uint8 else 400)
    assert np.abs(shown - where[:, 0]).max() < 0.6


def test_a_lens_without_distortion_leaves_the_picture_alone() -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    assert Lens((64, 48), "plumb_bob", (0.0,) * 5, (50, 0, 32, 0, 50, 24, 0, 0, 1)).rectify(image) is image


def rig(**changes: Any) -> Any:
    made = make_rig(replace(Settings(), **changes), ThermalContract())
    for stream, camera in made.cameras.items():
        camera.info(info(LENSES[stream]))
    return made


def box_around(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(0), points.max(0)]) + 0.5


@pytest.mark.parametrize("frame", ["visible", "thermal"])
@pytest.mark.parametrize("rectify", [False, True])
def test_a_box_ends_where_that_camera_sees_the_object(frame: str, rectify: bool) -> None:
    """A flat object at the depth of the registration: its box in the rectified visible image is what is found."""
    settings = {"output_frame": frame, "visible_rectify": rectify, "thermal_rectify": rectify}
    made = rig(registration_depth_m=5.0, extrinsics=POSE, **settings)
    x, y = np.meshgrid(np.linspace(-0.5, 0.6, 40), np.linspace(-0.4, 0.7, 40))
    thing = np.stack([x, y, np.full_like(x, 5.0)], -1).reshape(-1, 3)
    seen = box_around(project(LENSES["visible"], thing, rectified=True))
    elsewhere = np.array([2, 200, 20, 260])  # the thermal camera does not look there
    found = Detections(np.stack([elsewhere, seen]), np.array([0.5, 0.9]), np.array([0, 1]))
    got, kept = made.in_frame(found, SIZES["visible"], SIZES["thermal"], made.registration(None))
    points = thing if frame == "visible" else to_thermal(thing)
    expected = box_around(project(LENSES[frame], points, rectified=not rectify))
    np.testing.assert_allclose(got.boxes[-1], expected, atol=0.6)
    assert (got.scores[-1], got.classes[-1]) == (np.float32(0.9), 1)
    assert kept == ([1] if frame == "thermal" else [0, 1])


def test_boxes_in_thermal_pixels_without_calibration() -> None:
    made = make_rig(replace(Settings(), output_frame="thermal"), ThermalContract())
    found = Detections(np.array([[100, 60, 300, 200]]), np.array([0.5]), np.array([0]))
    same_view, _ = made.in_frame(found, (640, 480), (320, 240), made.registration(None))
    np.testing.assert_allclose(same_view.boxes, found.boxes / 2, atol=1e-3)
    wider = Registration(((1, 0, -20), (0, 1, -14), (0, 0, 1)), (700, 520), (640, 480))
    shifted, _ = made.in_frame(found, (640, 480), (700, 520), made.registration(wider))
    np.testing.assert_allclose(shifted.boxes, found.boxes + np.array([20, 14, 20, 14]), atol=1e-3)
    assert made.in_frame(Detections.empty(), (640, 480), (320, 240), None)[1] == []
    with pytest.raises(UserError, match="no scaled copy"):
        made.in_frame(found, (640, 480), (300, 300), wider)


def test_images_wait_for_their_camera_info_and_must_fit_it() -> None:
    camera = Camera("visible", rectify=True)
    msg = image_message("visible", (64, 48))
    with pytest.raises(ConversionError, match="no camera_info of the visible camera has come yet"):
        camera.check(msg)
    lens = Lens((640, 480), "plumb_bob", (-0.2, 0.0, 0.0, 0.0), (500, 0, 320, 0, 500, 240, 0, 0, 1))
    camera.info(info(lens))
    assert camera.check(msg) == (64, 48)  # a scaled copy
    assert camera.decode(msg).shape == (48, 64, 3)
    with pytest.raises(ConversionError, match="the camera_info is for images of 640x480, and this one is 64x64"):
        camera.check(image_message("visible", (64, 64)))
    for changes, words in (
        ({"k": (0.0,) * 9}, "not calibrated"),
        ({"k": (500, 0, 320, 0, 500, 240, 0, 0, 0)}, "its k projects nothing"),
        ({"k": (500, 9, 320, 0, 500, 240, 0, 0, 1)}, "its k projects nothing"),
        ({"p": (1e308, 0, 320, 0, 0, 1e308, 240, 0, 0, 0, 1, 0)}, "its p projects nothing"),
        ({"p": (500, 0, 320, 0, 0, 0, 240, 0, 0, 0, 1, 0)}, "its p projects nothing"),
        ({"p": (0, 0, 0, 40, *[0] * 8)}, None),  # no rectified image is told, and K stands for it
        ({"p": (np.nan,) * 12}, "not finite"),
        ({"k": (np.inf, 0, 320, 0, 500, 240, 0, 0, 1)}, "not finite"),
        ({"r": (1, 1, 1, 1, 1, 1, 1, 1, 1)}, "its r is no rotation"),
        ({"r": (1, 0, 0, 0, 1, 0, 0, 0, -1)}, "its r is no rotation"),
        ({"d": (1e308, 1e308, 1e308, 1e308, 1e308)}, "put points of the image nowhere"),
        ({"d": [0.0] * 100_000}, "it has 100000 coefficients d"),
        ({"distortion_model": "barrel"}, "'barrel'; known are plumb_bob"),
        ({"d": (0.1, 0.2, 0.3)}, "takes 0 or 4 or 5 coefficients d, and it has 3"),
        ({"roi": SimpleNamespace(x_offset=8, y_offset=0, width=320, height=240)}, "part of the sensor"),
    ):
        if words is None:
            camera.info(info(lens, **changes))
            camera.check(msg)
            continue
        with pytest.raises(ConversionError, match=words):
            camera.info(info(lens, **changes))
        with pytest.raises(ConversionError, match=words):
            camera.check(msg)
        camera.info(info(lens))
        camera.check(msg)


def test_extrinsics_that_make_no_sense_are_named() -> None:
    lens = LENSES["visible"]
    for pose, depth, words in (
        ((0, 0, 3, 0, 0, 0, 1), 2.0, "lies behind the thermal one"),
        ((0, 0, 0, 0, 1, 0, 0), 2.0, "mirrors|behind"),
        ((0, 0, 0, 0, 0, 0, 2), 2.0, "length 1"),
        ((0, 0, 0), 2.0, "seven numbers"),
    ):
        with pytest.raises(UserError, match=words):
            registration_at_depth(lens, lens, pose, depth)


def test_a_camera_info_that_changes_leaves_the_one_before_until_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker reads it at any moment: a zoom or an autofocus sends another with every image."""
    camera, seen = Camera("visible", rectify=True), []
    camera.info(info(LENSES["visible"]))
    make = camera_module._lens
    monkeypatch.setattr(camera_module, "_lens", lambda msg: (seen.append(camera.known_lens()), make(msg))[1])
    zoomed = replace(LENSES["visible"], camera=(700, 0, 320, 0, 700, 240, 0, 0, 1))
    camera.info(info(zoomed))
    assert seen == [LENSES["visible"]]
    assert camera.known_lens() == zoomed


def test_two_camera_infos_that_make_no_registration_are_refused_when_they_come() -> None:
    """Not pair by pair in the worker."""
    made = make_rig(replace(Settings(), registration_depth_m=5.0, extrinsics=(0, 0, 9, 0, 0, 0, 1)), ThermalContract())
    images = {stream: image_message(stream, size) for stream, size in SIZES.items()}
    made.info(info(LENSES["visible"]), "visible")
    made.check(images["visible"], "visible")  # it may well go with the other one
    with pytest.raises(ConversionError, match=r"registration by extrinsics: a plane at 5 m .* behind the thermal one"):
        made.info(info(LENSES["thermal"]), "thermal")
    for stream, msg in images.items():
        with pytest.raises(ConversionError, match="registration by extrinsics"):
            made.check(msg, stream)


def test_an_image_without_a_stamp_is_refused() -> None:
    msg = image_message("visible", SIZES["visible"])
    msg.header.stamp.sec = 0
    with pytest.raises(ConversionError, match="visible image has no stamp"):
        make_rig(Settings(), ThermalContract()).check(msg, "visible")


def test_topics_are_named_as_image_transport_names_them() -> None:
    assert image_topic("/camera/image_raw", "raw") == "/camera/image_raw"
    assert image_topic("/camera/image_raw", "compressed") == "/camera/image_raw/compressed"
    assert info_topic("/camera/image_raw") == "/camera/camera_info"


def test_a_thermal_image_of_the_wrong_depth_is_named() -> None:
    camera = Camera("thermal", contract=ThermalContract("mono16", (0, 65535)))
    with pytest.raises(ConversionError, match=r"encoding 'mono8' \(mono8\), and the model was trained on mono16"):
        camera.check(image_message("thermal", (64, 48)))
    compressed = Camera("thermal", transport="compressed", contract=ThermalContract("mono16", (0, 65535)))
    jpeg = cv2.imencode(".jpg", np.zeros((48, 64), np.uint8))[1]
    with pytest.raises(ConversionError, match="JPEG has 8 bits, so set the publisher's parameter"):
        compressed.check(SimpleNamespace(format="jpeg", data=jpeg))
