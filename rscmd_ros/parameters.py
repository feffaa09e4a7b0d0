"""The detector node's parameters: one table with every default, description and range.

`config/detector.yaml` and `docs/parameters.md` show the table and are written from it:

    python -m rscmd_ros.parameters > config/detector.yaml
    python -m rscmd_ros.parameters --markdown > docs/parameters.md
"""

from __future__ import annotations

import difflib
import json
import math
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from rscmd_ros.pairing import POLICIES

if TYPE_CHECKING:
    from rclpy.node import Node
    from rclpy.parameter import Parameter

_RELIABILITIES = ("best_effort", "reliable")


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
    """A row of the table. `live`: takes effect at once, in every state; the others are read at configure."""
    about = {"text": text, "low": low, "high": high, "choices": choices, "live": live, "read_only": read_only}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Settings:
    """The values of all parameters at one moment. Times are in ms, as users set them."""

    model: str = _parameter("", "Path of the model.safetensors that rscmd_model.train wrote.")
    registration: str = _parameter(
        "",
        "Path of the registration.yaml of this pair of cameras, as rscmd_model.register writes it. Empty: the "
        "registration in the model file, if it has one; otherwise both images must show the same view.",
    )
    device: str = _parameter("auto", "Where to run: auto (a CUDA GPU if there is one), cpu, cuda:0, cuda:1, ...")
    half: bool = _parameter(True, "Half precision on a CUDA device. The CPU always runs in full precision.")
    confidence_threshold: float = _parameter(
        0.25, "Detections with a lower score are not published.", low=0.0, high=1.0, live=True
    )
    iou_threshold: float = _parameter(
        0.7, "Of two boxes of a class that overlap more than this (IoU), the weaker goes.", low=0.0, high=1.0, live=True
    )
    max_detections: int = _parameter(300, "At most so many detections per image.", low=1, high=10000, live=True)
    pairing_policy: str = _parameter(
        "nearest",
        "How frames are paired: nearest gives each frame of the slower stream its nearest partner; approximate and "
        "exact are the standard message_filters synchronizers.",
        choices=POLICIES,
    )
    slop_ms: float = _parameter(
        50.0, "Largest time difference within a pair, in ms. Not used by policy exact.", low=0.0, high=10000.0
    )
    deadline_ms: float = _parameter(
        100.0,
        "Longest wait, in ms, for a nearer partner once there is a possible one; 0 takes the first that comes. "
        "Policy nearest only.",
        low=0.0,
        high=10000.0,
    )
    thermal_offset_ms: float = _parameter(
        0.0, "By how many ms thermal stamps are late; taken off before pairing.", low=-10000.0, high=10000.0
    )
    reuse: bool = _parameter(
        False,
        "Pair every frame with its nearest partner, so that a slow frame serves several fast ones. Only nearest.",
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


TABLE: Mapping[str, Field[Any]] = {row.name: row for row in fields(Settings)}


def problem_with(values: Mapping[str, Any]) -> str | None:
    """What is wrong with a complete set of values, in one sentence that names the parameter; None when nothing is."""
    for name, row in TABLE.items():
        value, about = values[name], row.metadata
        if about["choices"] and value not in about["choices"]:
            return f"parameter '{name}' is '{value}'; choose one of {', '.join(about['choices'])}"
        if about["low"] is not None and not (math.isfinite(value) and about["low"] <= value <= about["high"]):
            return f"parameter '{name}' is {value}; it must lie between {about['low']} and {about['high']}"
    if values["reuse"] and values["pairing_policy"] != "nearest":
        return f"parameter 'reuse' works with pairing_policy nearest only, and that is '{values['pairing_policy']}'"
    if values["pairing_policy"] == "approximate" and values["slop_ms"] == 0:
        return "parameter 'slop_ms' is 0, with which pairing_policy approximate never pairs; use exact or a larger slop"
    return None


def problem_with_change(current: Mapping[str, Any], changes: Mapping[str, Any], configured: bool) -> str | None:
    """Why a change, all of it together, has to be refused; None when it can be made."""
    if configured:
        fixed = [name for name in changes if not TABLE[name].metadata["live"] and changes[name] != current[name]]
        if fixed:
            names = ", ".join(f"'{name}'" for name in fixed)
            return f"{names} can be set only while the node is unconfigured: deactivate and clean it up first"
    return problem_with({**current, **changes})


def as_double(name: str, value: Any) -> Any:
    """An integer given for a parameter that is a double becomes one; everything else stays as it is."""
    wants_double = name in TABLE and isinstance(TABLE[name].default, float)
    return float(value) if wants_double and isinstance(value, int) and not isinstance(value, bool) else value


def declare(node: Node) -> None:
    """Declare all parameters with their descriptors, taking what the command line and files say.

    Integers are taken for doubles too, now and later. Names that are no parameter are warned of, with the nearest one.

    Raises rclpy's InvalidParameterTypeException or InvalidParameterValueException for a value that is refused.
    """
    from rcl_interfaces.msg import ParameterDescriptor
    from rclpy.exceptions import InvalidParameterTypeException
    from rclpy.parameter import Parameter

    for name, row in TABLE.items():
        try:
            node.declare_parameter(name, row.default, _descriptor(row))
        except InvalidParameterTypeException:
            if not isinstance(row.default, float):
                raise
            # rclpy insists on `50.0`; so ask for the value as the integer that it may be, and set it as a double.
            value = node.declare_parameter(name, descriptor=ParameterDescriptor(dynamic_typing=True)).value
            node.undeclare_parameter(name)
            number = as_double(name, value)
            if not isinstance(number, float):
                raise
            node.declare_parameter(name, number, _descriptor(row), ignore_override=True)

    def integers_to_doubles(parameters: list[Parameter]) -> list[Parameter]:
        return [Parameter(p.name, value=as_double(p.name, p.value)) for p in parameters]

    node.add_pre_set_parameters_callback(integers_to_doubles)
    # rclpy keeps what it was given under this name and says nothing of values that nobody asked for.
    for name in unknown(getattr(node, "_parameter_overrides", {})):
        near = difflib.get_close_matches(name, TABLE, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(TABLE)}"
        node.get_logger().warning(f"parameter '{name}' is unknown and not used{hint}")


def unknown(names: Iterable[str]) -> list[str]:
    """Those names that are parameters neither of this node nor of every node."""
    of_every_node = ("use_sim_time", "start_type_description_service")
    return [name for name in names if name not in TABLE and name not in of_every_node and "." not in name]


def current(node: Node) -> dict[str, Any]:
    """The values of all parameters."""
    return {name: node.get_parameter(name).value for name in TABLE}


def _descriptor(row: Field[Any]) -> Any:
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


def to_yaml() -> str:
    """A parameter file that sets every parameter to its default and tells its meaning and range."""
    lines = [
        "# Parameters of the detector node, with their defaults. Copy this file and keep the lines you change:",
        "#   python -m rscmd_ros.detector_node --ros-args --params-file detector.yaml",
        "# Those marked (live) can be set on a running node; the others take effect at configure.",
        "/**:",
        "  ros__parameters:",
    ]
    for name, row in TABLE.items():
        about, value = row.metadata, row.default
        extent = f" One of {', '.join(about['choices'])}." if about["choices"] else ""
        if about["low"] is not None:
            extent = f" From {about['low']} to {about['high']}."
        text = f"{about['text']}{extent}{' (live)' if about['live'] else ''}"
        lines += ["", *(f"    # {line}" for line in textwrap.wrap(text, 110))]
        lines.append(f"    {name}: {json.dumps(value)}")  # JSON is YAML
    return "\n".join(lines) + "\n"


def to_markdown() -> str:
    """The page on the parameters, from the descriptors that a running node declares."""
    from rclpy.parameter import Parameter

    lines = [
        "# Parameters of the detector node",
        "",
        "Written from the node's own descriptors by `python -m rscmd_ros.parameters --markdown > docs/parameters.md`.",
        "A running node tells the same: `ros2 param describe /rscmd_detector slop_ms`.",
        "[config/detector.yaml](../config/detector.yaml) is a parameter file with every default.",
        "",
        "| takes effect | |",
        "|---|---|",
        "| live | at once, in every state of the node |",
        "| configure | while the node is unconfigured: deactivate and clean it up first; refused otherwise |",
        "| start | from the command line, launch or a parameter file only |",
        "",
        "Values set together are judged together, and all or none are taken. `50` is taken for `50.0`. A name that is",
        "no parameter is warned of at start, with the nearest one.",
        "",
        "| name | type | default | values | takes effect | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in TABLE.items():
        about, descriptor = row.metadata, _descriptor(row)
        default: Any = list(row.default) if isinstance(row.default, tuple) else row.default
        kind = Parameter.Type.from_parameter_value(default).name.lower()
        values = ", ".join(f"`{choice}`" for choice in about["choices"])
        for extent in [*descriptor.floating_point_range, *descriptor.integer_range]:
            values = f"{extent.from_value:g} to {extent.to_value:g}"
        effect = "start" if descriptor.read_only else "live" if about["live"] else "configure"
        cells = [f"`{name}`", kind, f"`{json.dumps(default)}`", values, effect, descriptor.description]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(to_markdown() if sys.argv[1:] == ["--markdown"] else to_yaml(), end="")
