"""What the detector node tells of itself and of its topics: pure functions over plain values and messages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.qos import QoSReliabilityPolicy

IMAGE_TYPE = "sensor_msgs/msg/Image"
IMAGE_TYPES = {"raw": IMAGE_TYPE, "compressed": "sensor_msgs/msg/CompressedImage"}


class Throttle:
    """Lets the same thing be said again only after a while; different things do not silence each other."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._said: dict[str, float] = {}

    def allows(self, subject: str) -> bool:
        """Whether this subject may be spoken of now; if so it counts as said."""
        now = time.monotonic()
        self._said = {said: at for said, at in self._said.items() if now - at < self._seconds}
        if subject in self._said:
            return False
        self._said[subject] = now
        return True


def topic_problem(topic: str, publishers: Iterable[Any], reliability: str, transport: str = "raw") -> str | None:
    """Why no image can come from a topic, given rclpy's endpoint infos of its publishers; None when one can."""
    wanted = IMAGE_TYPES[transport]
    infos = list(publishers)
    if not infos:
        return f"nothing publishes on {topic}: start the camera, or remap the topic to the one it publishes on"
    fitting = [info for info in infos if info.topic_type == wanted]
    if not fitting:
        types = ", ".join(sorted({info.topic_type for info in infos}))
        hint = ""
        if transport == "raw" and "CompressedImage" in types:
            hint = " (for compressed topics set visible_transport or thermal_transport, and remap without /compressed)"
        return f"{topic} has type {types}; this node needs {wanted}{hint}"
    best_effort = all(info.qos_profile.reliability == QoSReliabilityPolicy.BEST_EFFORT for info in fitting)
    if reliability == "reliable" and best_effort:
        return f"{topic} is published best effort but asked for reliable, so nothing arrives: ask for best_effort"
    return None


def pairing_status(
    node_name: str,
    state: str,
    ledger: Mapping[str, Mapping[str, int]],
    numbers: Mapping[str, int | float | None],
    problems: list[str],
) -> DiagnosticStatus:
    """The status "<node>: pairing": the lifecycle state, every counter as <stream>.<counter>, the numbers.

    Its level is WARN while there are problems, which make up its message.
    """
    status = DiagnosticStatus(name=f"{node_name}: pairing", hardware_id="")
    status.level = DiagnosticStatus.WARN if problems else DiagnosticStatus.OK
    status.message = "; ".join(problems) if problems else state
    status.values = [KeyValue(key="lifecycle_state", value=state)]
    for stream, counts in ledger.items():
        status.values += [KeyValue(key=f"{stream}.{name}", value=str(n)) for name, n in counts.items()]
    for name, number in numbers.items():
        shown = "" if number is None else f"{number:.1f}" if isinstance(number, float) else str(number)
        status.values.append(KeyValue(key=name, value=shown))
    return status


def diagnostic_array(status: DiagnosticStatus, stamp: Any) -> DiagnosticArray:
    """One status as the message for /diagnostics."""
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp
    return array
