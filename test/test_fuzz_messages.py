"""Messages and calls that nobody should send: each is converted or answered, or refused by one sentence; never more.

Drawn are the fields, within what their types can hold: what is no message at all, the middleware refuses.
"""

from __future__ import annotations

import array
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from resource import RUSAGE_SELF, getrusage
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")

import rclpy
from mutations import examples, mutated
from rclpy.service import Service
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from vision_msgs.msg import Detection2DArray

from rscmd_model.detections import Detections
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_ros.cameras.camera import Camera
from rscmd_ros.cameras.conversions import (
    THERMAL_ENCODINGS,
    VISIBLE_ENCODINGS,
    ConversionError,
    Limits,
    msg_to_detections,
)
from rscmd_ros.node import parameters
from rscmd_ros.node.detection import make_rig
from rscmd_ros.node.detector import DetectorNode
from rscmd_ros.node.diagnostics import Tally
from rscmd_ros.node.guard import GuardedExecutor
from rscmd_ros.node.intake import Intake
from rscmd_ros.node.parameters import Settings
from rscmd_ros.pairing.frames import COUNTERS, STREAMS

LIMITS = Limits(pixels=1e6, decoded_bytes=4e6)
SLACK = 100e6
"""Bytes: more than a decoder takes at its first use or for a picture within the limits, and less than a lie costs."""
NAMES = {0: "person", 1: "car"}
CONTRACTS = (
    None,
    ThermalContract(),
    ThermalContract("mono16", (0, 65535)),
    ThermalContract(palette_ok=True),
)

WHOLE = {f"{sign}int{bits}": (sign, bits) for sign in ("", "u") for bits in (8, 16, 32, 64)}
texts = st.text(max_size=30) | st.sampled_from(["x" * 5000, "a\nb\x1b[31m", "\0", *VISIBLE_ENCODINGS])


def values(kind: str) -> st.SearchStrategy[Any]:
    """What a field of this type (in the words of rosidl) can hold."""
    if found := re.fullmatch(r"sequence<(.+?)(?:, \d+)?>", kind):
        return st.lists(values(found[1]), max_size=4)
    if found := re.fullmatch(r"(.+)\[(\d+)\]", kind):
        size = int(found[2])
        return st.lists(values(found[1]), min_size=size, max_size=size)
    if kind in WHOLE:
        sign, bits = WHOLE[kind]
        low, high = (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return st.integers(low, high) | st.integers(0, 12)
    if kind in ("float", "double"):
        return st.floats(width=32 if kind == "float" else 64)
    if kind == "boolean":
        return st.booleans()
    if kind in ("octet", "byte"):
        return st.binary(min_size=1, max_size=1)
    if kind.startswith("string"):
        return texts | st.sampled_from(sorted(parameters.TABLE))
    package, _, name = kind.partition("/")
    return messages(getattr(import_module(f"{package}.msg"), name))


@cache
def messages(kind: type) -> st.SearchStrategy[Any]:
    """Messages of a type, each field by its type."""
    fields = kind.get_fields_and_field_types()
    return st.builds(kind, **{name: values(field) for name, field in fields.items()})


sides = st.integers(1, 12) | st.sampled_from([0, 2**16, 2**31, 2**32 - 1])
stamps = st.builds(
    lambda sec, nanosec: {"sec": sec, "nanosec": nanosec},
    st.integers(-(2**31), 2**31 - 1) | st.integers(0, 3),
    st.integers(0, 2**32 - 1),
)


@st.composite
def image_messages(draw: Any) -> Image:
    """Images nearly right: the amount of data and the row step fit the size, or miss it by a little, or by far."""
    encoding = draw(st.sampled_from([*VISIBLE_ENCODINGS, *THERMAL_ENCODINGS]) | texts)
    width, height = draw(sides), draw(sides)
    row = width * draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    step = draw(st.sampled_from([row, row, row + 1, row + 5, max(row - 1, 0), 0, 2**32 - 1])) % 2**32
    size = step * height + draw(st.sampled_from([0, 0, 1, -1, 100]))
    msg = Image(width=width, height=height, encoding=encoding, step=step, is_bigendian=draw(st.integers(0, 255)))
    msg.data = array.array("B", draw(st.binary(min_size=1, max_size=64)) * (min(max(size, 0), 4096) // 16 + 1))[
        : max(size, 0)
    ]
    stamp = draw(stamps)
    msg.header.stamp.sec, msg.header.stamp.nanosec = stamp["sec"], stamp["nanosec"]
    return msg


PICTURES = [
    cv2.imencode(suffix, image)[1].tobytes()
    for image in (np.zeros((6, 8, 3), np.uint8), np.arange(48, dtype=np.uint8).reshape(6, 8))
    for suffix in (".png", ".jpg")
] + [cv2.imencode(".png", np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000)[1].tobytes()]


@st.composite
def compressed_messages(draw: Any) -> CompressedImage:
    encoding = draw(st.sampled_from([*VISIBLE_ENCODINGS, *THERMAL_ENCODINGS, ""]) | texts)
    codec = draw(st.sampled_from(["png", "jpeg", "compressedDepth png", ""]))
    form = draw(st.sampled_from(["{0}; {1} compressed bgr8", "{0};{1} compressed ", "{1}", "{0}", ";;{0};{1}"]))
    sound = draw(st.sampled_from(PICTURES))
    data = draw(st.just(sound) | mutated(sound) | st.binary(max_size=64))
    return CompressedImage(format=form.format(encoding, codec), data=array.array("B", data))


def peak() -> int:
    """The most memory that this process has had so far, in bytes."""
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024


def decoded_or_refused(camera: Camera, msg: Any, most: float) -> None:
    """The picture has the size that was told, and takes no more memory than what came allows, also on its way."""
    before = peak()
    try:
        _decoded_or_refused(camera, msg, most)
    finally:
        assert peak() - before < SLACK


def _decoded_or_refused(camera: Camera, msg: Any, most: float) -> None:
    try:
        width, height = camera.check(msg)
        picture = camera.decode(msg)
    except ConversionError:
        return
    channels = (3,) if camera.stream == "visible" else ()
    assert picture.shape == (height, width, *channels)
    assert picture.dtype in ((np.uint8,) if camera.stream == "visible" else (np.uint8, np.uint16))
    assert picture.nbytes <= most


@given(image_messages(), st.sampled_from(STREAMS), st.sampled_from(CONTRACTS))
@examples(300)
def test_an_image_is_converted_or_refused(msg: Image, stream: Any, contract: Any) -> None:
    camera = Camera(stream, limits=LIMITS, contract=contract if stream == "thermal" else None)
    decoded_or_refused(camera, msg, 3 * len(msg.data))


@given(compressed_messages(), st.sampled_from(STREAMS), st.sampled_from(CONTRACTS))
@examples(200)
def test_a_compressed_image_is_decoded_or_refused(msg: CompressedImage, stream: Any, contract: Any) -> None:
    camera = Camera(stream, transport="compressed", limits=LIMITS, contract=contract if stream == "thermal" else None)
    decoded_or_refused(camera, msg, 3 * LIMITS.decoded_bytes)


extreme = st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e300, float("nan"), float("inf")]) | st.floats(-1e4, 1e4)
SOUND = {
    "d": [-0.2, 0.05, 0.001, 0.0, 0.0],
    "k": [60.0, 0.0, 32.0, 0.0, 60.0, 24.0, 0.0, 0.0, 1.0],
    "r": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
    "p": [55.0, 0.0, 32.0, 0.0, 0.0, 55.0, 24.0, 0.0, 0.0, 0.0, 1.0, 0.0],
}


@st.composite
def camera_infos(draw: Any) -> CameraInfo:
    """A calibration of 64 x 48 pixels with some numbers replaced; now and then any numbers at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(messages(CameraInfo))
    numbers = {name: list(sound) for name, sound in SOUND.items()}
    model = draw(st.sampled_from(["plumb_bob", "plumb_bob", "rational_polynomial", "equidistant", "", "none"]))
    size = {"plumb_bob": 5, "rational_polynomial": 8, "equidistant": 4}.get(model, 0)
    numbers["d"] = draw(st.just(numbers["d"][:size]) | st.lists(extreme, min_size=size, max_size=size))
    for _ in range(draw(st.integers(0, 2))):
        which = numbers[draw(st.sampled_from("krp"))]
        which[draw(st.integers(0, len(which) - 1))] = draw(extreme)
    width, height = draw(st.sampled_from([(64, 48), (64, 48), (128, 96), (0, 0), (2**32 - 1, 1)]))
    return CameraInfo(width=width, height=height, distortion_model=model, **numbers)


def picture(stream: str) -> Image:
    channels, encoding = (3, "bgr8") if stream == "visible" else (1, "mono8")
    data = array.array("B", bytes(64 * 48 * channels))
    msg = Image(width=64, height=48, step=64 * channels, encoding=encoding, data=data)
    msg.header.stamp.sec = 1
    return msg


@given(
    st.lists(st.tuples(st.sampled_from(STREAMS), camera_infos()), min_size=1, max_size=4),
    st.sampled_from(STREAMS),
    st.booleans(),
    st.sampled_from([0.0, 5.0]),
)
@examples(150)
def test_an_image_that_is_taken_can_be_answered(infos: Any, frame: Any, rectify: bool, depth: float) -> None:
    """Whatever calibrations came before: a pair that both cameras pass is rectified and its boxes are placed."""
    settings = Settings(
        output_frame=frame, visible_rectify=rectify, thermal_rectify=rectify, registration_depth_m=depth,
        extrinsics=(0.02, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    )  # fmt: skip
    rig = make_rig(settings, ThermalContract())
    for stream, info in infos:
        with suppress(ConversionError):
            rig.info(info, stream)
    try:
        for stream in STREAMS:
            rig.check(picture(stream), stream)
    except ConversionError:
        return
    for stream in STREAMS:
        assert rig.cameras[stream].decode(picture(stream)).shape[:2] == (48, 64)
    found = Detections(np.array([[1, 2, 30, 40], [0, 0, 64, 48]]), np.array([0.9, 0.5]), np.array([0, 1]))
    shown, kept = rig.in_frame(found, (64, 48), (64, 48), rig.registration(None))
    assert len(shown) == len(kept) <= 2
    assert np.isfinite(shown.boxes).all()


@given(
    st.lists(
        st.tuples(st.sampled_from(STREAMS), image_messages() | st.builds(picture, st.sampled_from(STREAMS))),
        max_size=30,
    )
)
@examples(60)
def test_every_image_is_counted_once(arrivals: Any) -> None:
    """Whatever its stamp: refused, paired, dropped or waiting, and never more waiting than the queue holds."""
    settings, submitted = Settings(max_image_megapixels=1.0), []
    rig = make_rig(settings, ThermalContract())
    intake = Intake(settings, Tally(), rig, submit=submitted.append, hold=lambda: None, tell=lambda _: None)
    intake.start(("fused", "visible", "thermal"), 0)
    for number, (stream, msg) in enumerate(arrivals, 1):
        with suppress(ConversionError):
            intake.receive(stream, msg, number * 50_000_000)
        intake.poll(number * 50_000_000)
        ledger = intake.pairer.ledger.as_dict()
        assert sum(ledger[s]["received"] for s in STREAMS) == number
        for counts in ledger.values():
            assert counts["received"] == sum(counts[counter] for counter in COUNTERS) + counts["pending"]
            assert counts["pending"] <= settings.queue_size
    assert len(submitted) <= len(arrivals)


@given(messages(Detection2DArray))
@examples(60)
def test_answers_from_a_bag_are_read_or_refused(msg: Detection2DArray) -> None:
    try:
        found = msg_to_detections(msg, NAMES)
    except ConversionError:
        return
    assert len(found) == len(msg.detections)
    assert np.isfinite(found.boxes).all()
    assert np.isfinite(found.scores).all()


@pytest.fixture(scope="module")
def services() -> Iterator[dict[str, tuple[Service, Any]]]:
    """Those of an unconfigured detector node by their names, each with its callback before it was guarded."""
    rclpy.init(args=[])
    node = DetectorNode()
    before = {service: service.callback for service in node.services}
    executor = GuardedExecutor(SimpleNamespace(error=lambda _: None, debug=lambda _: None))
    executor.add_node(node)
    yield {service.service_name.rpartition("/")[2]: (service, callback) for service, callback in before.items()}
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()


def answer(callback: Any, request: Any, response: Any) -> Any:
    """What a callback that may be a coroutine returns; none of the node's waits for anything."""
    result = callback(request, response)
    if not hasattr(result, "send"):
        return result
    with pytest.raises(StopIteration) as done:
        result.send(None)
    return done.value.value


@given(st.data())
@examples(250)
def test_every_call_is_answered(services: dict[str, tuple[Service, Any]], data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(services)))
    service, ours = services[name]
    request = data.draw(messages(service.srv_type.Request))
    if name == "change_state" and (request.transition.id in (5, 6, 7, 8) or "shutdown" in request.transition.label):
        return  # its end
    response = answer(service.callback, request, service.srv_type.Response())
    assert isinstance(response, service.srv_type.Response)
    if name == "set_parameters":
        assert len(response.results) == len(request.parameters)
    if name in ("change_state", "enable"):  # ours, and they need no guard
        answer(ours, request, service.srv_type.Response())
