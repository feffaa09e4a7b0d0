"""The detector node's parameters: one table with every default, description and range.

`config/detector.yaml` and `docs/parameters.md` show the table; `parameter_pages` writes them.
"""

from __future__ import annotations

import array
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from rscmd_model.errors import several, shown
from rscmd_model.inference.opening import BACKENDS
from rscmd_ros.node.tracking import MOST_TRACKED, TRACKERS
from rscmd_ros.pairing.fallback import FALLBACKS
from rscmd_ros.pairing.frames import STREAMS
from rscmd_ros.pairing.nearest import POLICIES

if TYPE_CHECKING:
    from rclpy.node import Node
    from rclpy.parameter import Parameter

_RELIABILITIES = ("best_effort", "reliable")
_TRANSPORTS = ("raw", "compressed")
_LONGEST_TEXT = 4096  # PATH_MAX: no text here needs more


def _parameter(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
    read_only: bool = False,
) -> Any:
    """A row of the table.

    Args:
        default: its type is that of the parameter.
        text: what it means.
        low, high: the range of a number; None: there is none.
        choices: the words that are taken; none: every text.
        live: takes effect at once, in every state; the others are read at configure.
        read_only: set at start only.
    """
    about = {"text": text, "low": low, "high": high, "choices": choices, "live": live, "read_only": read_only}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Settings:
    """The values of all parameters at one moment. Times are in ms, as users set them."""

    model: str = _parameter(
        "", "Path of the model.safetensors that rscmd_model.train wrote, or of what rscmd_model.export made of it."
    )
    registration: str = _parameter(
        "",
        "Path of the registration.yaml of this pair of cameras, as rscmd_model.register writes it. Empty: the "
        "registration in the model file, if it has one; otherwise both images must show the same view.",
    )
    device: str = _parameter(
        "auto",
        "Where to run: auto (a CUDA GPU if there is one; for a model.onnx or model.openvino the CPU), cpu, cuda:0, "
        "cuda:1, ... On a GPU a model.onnx needs onnxruntime-gpu.",
    )
    backend: str = _parameter(
        "auto",
        "What runs a model.safetensors on a CPU: torch, or onnxruntime or openvino, for which it is converted at "
        "configure. auto: the fastest of them in a short trial, which the log shows. A file of rscmd_model.export has "
        "its own, and leaves auto.",
        choices=("auto", *BACKENDS),
    )
    half: bool = _parameter(True, "Half precision on a CUDA device. On the CPU the model file says: export --half.")
    answer: str = _parameter(
        "auto",
        "What answers a whole pair. fused: the branch of both cameras. ensemble: all answers of the model joined, at "
        "the price of the other branches' time. auto: what the model file says. A lone camera's own branch answers it "
        "in any case.",
        choices=("auto", "fused", "ensemble"),
    )
    confidence_threshold: float = _parameter(
        0.25, "Detections with a lower score are not published.", low=0.0, high=1.0, live=True
    )
    iou_threshold: float = _parameter(
        0.7, "Of two boxes of a class that overlap more than this (IoU), the weaker goes.", low=0.0, high=1.0, live=True
    )
    max_detections: int = _parameter(300, "At most so many detections per image.", low=1, high=10000, live=True)
    classes: tuple[str, ...] = _parameter(
        ("",),
        'Names of the classes to publish; [""] or [] means all of the model\'s.',
        live=True,
    )
    enable: bool = _parameter(
        True,
        "False: cameras are watched and frames counted, but nothing is decoded, found or published. Service ~/enable "
        "(std_srvs/SetBool) sets the same.",
        live=True,
    )
    lazy: bool = _parameter(
        False,
        "Decode and run the model only while somebody subscribes to detections or overlay/image. The overlay is drawn "
        "only then in any case.",
        live=True,
    )
    tracker: str = _parameter(
        "none",
        "bytetrack gives each object an identity in Detection2D.id that it keeps over frames; of more than "
        f"{MOST_TRACKED} detections the strongest.",
        choices=TRACKERS,
    )
    fallback: str = _parameter(
        "both",
        "What answers while one camera is lost. both: the branch of the camera that is left. visible, thermal: the "
        "same, but only for that camera; without it nothing. hold: no branch; the last answer to a pair is published "
        "again, under its old stamp, with each frame of the camera that is left. off: cameras are not judged; only "
        "pairs are answered, those with a frozen picture too.",
        choices=FALLBACKS,
        live=True,
    )
    stream_timeout: float = _parameter(
        1.0,
        "A camera that has shown nothing new for so many s (silent, or repeating its picture), while the other went "
        "on, is lost. At least three periods of that camera are waited for, once its first five images have told them.",
        low=0.05,
        high=60.0,
        live=True,
    )
    shutter_time: float = _parameter(
        3.0,
        "A loss of the thermal camera is taken for its shutter (flat-field correction) for so many s, and only then "
        "warned of.",
        low=0.0,
        high=60.0,
        live=True,
    )
    pairing_policy: str = _parameter(
        "nearest",
        "How frames are paired: nearest gives each frame of the slower stream its nearest partner; approximate and "
        "exact are the standard message_filters synchronizers.",
        choices=POLICIES,
        live=True,
    )
    slop_ms: float = _parameter(
        50.0,
        "Largest time difference within a pair, in ms. Not used by policy exact.",
        low=0.0,
        high=10000.0,
        live=True,
    )
    deadline_ms: float = _parameter(
        100.0,
        "Longest wait, in ms, for a nearer partner once there is a possible one; 0 takes the first that comes. "
        "Policy nearest only.",
        low=0.0,
        high=10000.0,
        live=True,
    )
    thermal_offset_ms: float = _parameter(
        0.0, "By how many ms thermal stamps are late; taken off before pairing.", low=-10000.0, high=10000.0, live=True
    )
    use_measured_offset: bool = _parameter(
        False,
        "Take off thermal stamps what the node measures (thermal_ahead_ms in its diagnostics) where that lies more "
        "than 200 ms from thermal_offset_ms, and from then on until it lies within 100 ms: for a camera whose clock "
        "was never set. What is less may be the cameras' latency and is left alone.",
        live=True,
    )
    reuse: bool = _parameter(
        False,
        "Pair every frame with its nearest partner, so that a slow frame serves several fast ones. Only nearest.",
        live=True,
    )
    queue_size: int = _parameter(
        30,
        "Frames of each stream kept waiting for a partner, and messages by the middleware (10 at least). More are "
        "needed when one stream comes much later.",
        low=1,
        high=1000,
    )
    autostart: bool = _parameter(
        True, "Configure and activate at start. Set false when a lifecycle manager does that.", read_only=True
    )
    visible_reliability: str = _parameter(
        "best_effort",
        "Reliability asked of the visible topic: best effort matches every publisher, reliable only reliable ones.",
        choices=_RELIABILITIES,
    )
    thermal_reliability: str = _parameter("best_effort", "The same for the thermal topic.", choices=_RELIABILITIES)
    visible_transport: str = _parameter(
        "raw",
        "Topic of the visible images: raw for visible/image (sensor_msgs/Image), compressed for "
        "visible/image/compressed (sensor_msgs/CompressedImage, JPEG or PNG).",
        choices=_TRANSPORTS,
    )
    thermal_transport: str = _parameter(
        "raw", "The same for thermal images. A model of 16-bit counts (mono16) needs PNG.", choices=_TRANSPORTS
    )
    visible_rectify: bool = _parameter(
        False,
        "Take the lens distortion out of visible images, by visible/camera_info. Off, because a model wants what it "
        "was trained on. Boxes stay in pixels of the image as published.",
    )
    thermal_rectify: bool = _parameter(False, "The same for thermal images, by thermal/camera_info.")
    registration_depth_m: float = _parameter(
        0.0,
        "Lay thermal over visible for what is at this distance, in m, by parameter 'extrinsics' and both camera_infos; "
        "0 leaves it to parameter 'registration' or the model. Images must be rectified, here or by their topic.",
        low=0.0,
        high=10000.0,
    )
    extrinsics: tuple[float, ...] = _parameter(
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
        "Where the thermal camera stands: x, y, z (m), qx, qy, qz, qw of its optical frame in the visible one's. Used "
        "with registration_depth_m only.",
    )
    output_frame: str = _parameter(
        "visible",
        "The camera in whose pixels boxes are given, and whose stamp and frame_id they carry.",
        choices=STREAMS,
    )
    max_image_megapixels: float = _parameter(
        25.0, "Images of more million pixels than this are refused.", low=0.01, high=1000.0
    )
    max_decoded_megabytes: float = _parameter(
        100.0,
        "Compressed images that would decode to more MB than this are refused; their header tells, before decoding.",
        low=0.01,
        high=10000.0,
    )


TABLE: Mapping[str, Field[Any]] = {row.name: row for row in fields(Settings)}


def problem_with(values: Mapping[str, Any]) -> str | None:
    """What is wrong with a complete set of values.

    Returns:
        One sentence that names the parameter; None when nothing is wrong.
    """
    for name, row in TABLE.items():
        value, about = values[name], row.metadata
        if not _is_like(value, row.default):
            kind = "a list" if isinstance(row.default, tuple) else type(row.default).__name__
            return f"parameter '{name}' is {shown(repr(value))}; it must be {kind}, as {_as_yaml(row.default)}"
        if isinstance(value, str) and len(value) > _LONGEST_TEXT:
            return f"parameter '{name}' has {len(value)} characters; at most {_LONGEST_TEXT} are taken"
        if about["choices"] and value not in about["choices"]:
            return f"parameter '{name}' is '{shown(value)}'; choose one of {', '.join(about['choices'])}"
        if about["low"] is not None and not about["low"] <= value <= about["high"]:  # so for nan
            return f"parameter '{name}' is {shown(value)}; it must lie between {about['low']} and {about['high']}"
    pose = values["extrinsics"]
    if len(pose) != 7 or not all(map(math.isfinite, pose)) or abs(math.hypot(*pose[3:]) - 1) > 0.01:
        return (
            f"parameter 'extrinsics' is {shown(list(pose[:8]))}; it must be x, y, z, qx, qy, qz, qw, the quaternion of "
            "length 1"
        )
    if values["registration"] and values["registration_depth_m"] > 0:
        return "parameters 'registration' and 'registration_depth_m' both say how thermal lies over visible; give one"
    if twice := sorted(name for name, times in Counter(values["classes"]).items() if times > 1):
        return f"parameter 'classes' names {several(twice)} more than once"
    if values["reuse"] and values["pairing_policy"] != "nearest":
        return f"parameter 'reuse' works with pairing_policy nearest only, and that is '{values['pairing_policy']}'"
    if values["pairing_policy"] == "approximate" and values["slop_ms"] == 0:
        return "parameter 'slop_ms' is 0, with which pairing_policy approximate never pairs; use exact or a larger slop"
    return None


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value is of the type of a default; of tuples, whether all its elements are of that of the first."""
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and all(type(x) is type(default[0]) for x in value)
    return type(value) is type(default)


def differ(before: Settings, after: Settings, names: Iterable[str]) -> bool:
    """Whether any of these parameters has another value."""
    return any(getattr(before, name) != getattr(after, name) for name in names)


def unknown_classes(classes: Iterable[str], names: Iterable[str]) -> str | None:
    """What is wrong with parameter `classes` for a model with these class names; None when nothing is."""
    known = dict.fromkeys(names)
    strange = [name for name in wanted_classes(classes) if name not in known]
    return (
        f"parameter 'classes' names {several(strange)}; the model's classes are {', '.join(known)}" if strange else None
    )


def wanted_classes(classes: Iterable[str]) -> list[str]:
    """The names in parameter `classes`; none means all."""
    return [name for name in classes if name]


def changed(settings: Settings) -> str:
    """The parameters that differ from their defaults, with their values, in one line."""
    values = {name: (getattr(settings, name), row.default) for name, row in TABLE.items()}
    differing = [
        f"{name} {shown(_as_yaml(value), 200)}" for name, (value, default) in values.items() if value != default
    ]
    return ", ".join(differing) or "none"


def _as_yaml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def problem_with_change(current: Mapping[str, Any], changes: Mapping[str, Any], configured: bool) -> str | None:
    """Why a change, all of it together, has to be refused.

    Args:
        current: the values of all parameters, by name.
        changes: the new values of some.
        configured: whether the node is configured, so that only live parameters can be changed.

    Returns:
        One sentence; None when the change can be made.
    """
    if configured:
        fixed = [n for n in changes if not TABLE[n].metadata["live"] and as_row(n, changes[n]) != as_row(n, current[n])]
        if fixed:
            names = ", ".join(f"'{name}'" for name in fixed)
            return f"{names} can be set only while the node is unconfigured: deactivate and clean it up first"
    return problem_with({**current, **{name: as_row(name, value) for name, value in changes.items()}})


def as_double(name: str, value: Any) -> Any:
    """An integer given for a parameter that is a double becomes one, and so in a list; all else stays as it is."""
    default = TABLE[name].default if name in TABLE else None
    if isinstance(default, tuple) and isinstance(default[0], float) and isinstance(value, (list, tuple, array.array)):
        return [_to_float(x) for x in value]
    return _to_float(value) if isinstance(default, float) else value


def _to_float(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def as_row(name: str, value: Any) -> Any:
    """A parameter's value as the table holds it: a list or an array becomes a tuple."""
    is_list = isinstance(value, (list, tuple, array.array)) and isinstance(TABLE[name].default, tuple)
    return tuple(value) if is_list else value


def declare(node: Node) -> None:
    """Declare all parameters with their descriptors, taking what the command line and files say.

    Integers are taken for doubles too, now and later, and `[]` for an empty list of whatever kind.

    Raises:
        InvalidParameterTypeException: rclpy's own, for a value of another type.
        InvalidParameterValueException: rclpy's own, for a value that is out of range.
    """
    from rclpy.exceptions import InvalidParameterTypeException
    from rclpy.parameter import Parameter

    given = node._parameter_overrides
    for name, row in TABLE.items():
        default: Any = list(row.default) if isinstance(row.default, tuple) else row.default
        kind = Parameter.Type.from_parameter_value(default)
        if name in given:
            given[name] = _as_declared(given[name])
            nothing = given[name].value in (None, [])  # None is what becomes of [] in rcl, and rclpy would take it
            if nothing and row.default == ("",):
                del given[name]  # rclpy cannot declare an empty list, and this one means the same as the default
            elif nothing:
                raise InvalidParameterTypeException(given[name], kind.name)
        node.declare_parameter(name, default, descriptor_of(row))
    node.add_pre_set_parameters_callback(lambda parameters: [_as_declared(parameter) for parameter in parameters])


def _as_declared(parameter: Parameter) -> Parameter:
    """A parameter as it is declared: doubles where it says integers; of its list's type where it says `[]`."""
    from rclpy.parameter import Parameter

    name, value = parameter.name, parameter.value
    default = TABLE[name].default if name in TABLE else None
    if isinstance(default, tuple) and isinstance(value, (list, tuple, array.array)) and not value:  # of whatever type
        return Parameter(name, Parameter.Type.from_parameter_value(list(default)), [])
    number = as_double(name, value)
    return parameter if number is value else Parameter(name, value=number)


def current(node: Node) -> dict[str, Any]:
    """The values of all parameters."""
    return {name: as_row(name, node.get_parameter(name).value) for name in TABLE}


def descriptor_of(row: Field[Any]) -> Any:
    """The rcl_interfaces/ParameterDescriptor of a row of the table."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    about = row.metadata
    descriptor = ParameterDescriptor(description=about["text"], read_only=about["read_only"])
    notes = [f"one of {', '.join(about['choices'])}"] if about["choices"] else []
    if not about["live"] and not about["read_only"]:
        notes.append("takes effect at the next configure")
    descriptor.additional_constraints = "; ".join(notes)
    if about["low"] is not None and isinstance(row.default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=about["low"], to_value=about["high"])]
    elif about["low"] is not None:
        descriptor.integer_range = [IntegerRange(from_value=about["low"], to_value=about["high"])]
    return descriptor
