"""Why nothing comes out: causes in words, from plain facts. Each names what was found and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rclpy.qos import QoSReliabilityPolicy

from rscmd_model.errors import shown
from rscmd_ros.node.parameters import TABLE
from rscmd_ros.pairing.clock_offset import LATENCY_DOUBT

IMAGE_TYPES = {"raw": "sensor_msgs/msg/Image", "compressed": "sensor_msgs/msg/CompressedImage"}
"""By transport."""

_MOST_NAMES = 8


@dataclass(frozen=True)
class Cause:
    """Why nothing comes out.

    Attributes:
        kind: stays the same while the cause lasts.
        text: for the user; it may count seconds.
    """

    kind: str
    text: str


def state_cause(state: str, node: str) -> Cause | None:
    """The lifecycle state that keeps the node from answering.

    Args:
        state: its label.
        node: the node's full name.

    Returns:
        None when the node is active.
    """
    if state == "active":
        return None
    if state == "configuring":
        return Cause("loading", "the model is still being loaded")
    steps = {"unconfigured": "configure, then activate", "inactive": "activate"}
    hint = f": ros2 lifecycle set {node} {steps[state]}" if state in steps else ""
    return Cause("not active", f"the node is {state}, not active{hint}")


def topic_problem(
    topic: str, publishers: Iterable[Any], reliability: str, others: Sequence[str] = (), transport: str = "raw"
) -> str | None:
    """Why no image can come from a topic.

    Args:
        topic: its full name.
        publishers: rclpy's endpoint infos of them.
        reliability: what is asked of it: best_effort or reliable.
        others: the topics of the right type that there are.
        transport: of the topic, a key of `IMAGE_TYPES`.

    Returns:
        None when images can come.
    """
    infos, wanted = list(publishers), IMAGE_TYPES[transport]
    if not infos:
        there = ", ".join(map(shown, others[:_MOST_NAMES])) + (", ..." if len(others) > _MOST_NAMES else "")
        seen = f"there are {there}" if others else f"no other topic of type {wanted} is to be seen"
        return (
            f"nothing publishes on {topic}: start the camera, or remap the topic to the one it publishes on ({seen}; "
            "nodes see each other within one ROS_DOMAIN_ID)"
        )
    fitting = [info for info in infos if info.topic_type == wanted]
    if not fitting:
        kinds = sorted({info.topic_type for info in infos})
        types = ", ".join(map(shown, kinds[:_MOST_NAMES])) + (", ..." if len(kinds) > _MOST_NAMES else "")
        hint = ""
        if transport == "raw" and IMAGE_TYPES["compressed"] in kinds:
            hint = " (for compressed topics set visible_transport or thermal_transport, and remap without /compressed)"
        return f"{topic} has type {types}; this node needs {wanted}{hint}"
    best_effort = all(info.qos_profile.reliability == QoSReliabilityPolicy.BEST_EFFORT for info in fitting)
    if reliability == "reliable" and best_effort:
        return (
            f"{topic} is published best effort but asked for reliable, so nothing arrives (QoS policy reliability): "
            "ask for best_effort"
        )
    return None


def mismatch_problem(topic: str, policy: str) -> str:
    """That a publisher offers less than is asked.

    Args:
        topic: its full name.
        policy: rclpy's name of the QoS policy, as RELIABILITY.
    """
    name = policy.lower()
    return (
        f"a publisher of {topic} offers less than this node asks in QoS policy {name}, so its images do not arrive: "
        f"set qos_overrides.{topic}.subscription.{name} to what it offers"
    )


def slop_problem(slop_ms: float, offset_ms: float | None, unpaired: Mapping[str, int]) -> str:
    """That both cameras send, and no two frames lie within the slop.

    Args:
        slop_ms: the slop, ms.
        offset_ms: by how much thermal stamps are late, ms, where that explains it; otherwise None.
        unpaired: how many frames of each stream lately had no partner within the slop.
    """
    counts = " and ".join(f"{number} {stream}" for stream, number in unpaired.items())
    measured = ""
    if offset_ms is not None:
        side = "ahead of" if offset_ms > 0 else "behind"
        can_be_set = abs(offset_ms) <= TABLE["thermal_offset_ms"].metadata["high"]
        ways = [f"thermal_offset_ms to {offset_ms:.0f}"] if can_be_set else []
        ways += ["use_measured_offset"] if abs(offset_ms) * 1e6 > LATENCY_DOUBT else []  # which heeds no less
        measured = (
            f"; thermal stamps are {abs(offset_ms):.0f} ms {side} visible ones that arrive together: let both cameras "
            f"take their time from one clock, or set {', or '.join(ways)}"
        )
    return f"no two stamps lie within slop_ms {slop_ms:g} ({counts} frames lately){measured}"


_FATES = {
    "duplicate": "have a stamp seen before (a driver that repeats its stamps, or two publishers on the topic)",
    "late": "are older than the newest of their camera (a driver that mixes up their order)",
    "reset": "waited when time jumped back (two publishers whose clocks differ, or a clock that is set over and over)",
    "frozen": "repeat an old picture",
    "invalid": "cannot be used",
    "too_far": "have no partner within slop_ms",
    "superseded": "have a partner within slop_ms that went to a nearer frame, or that output had moved past",
}
"""What it means for frames to end in a counter. The last two may be the consequence of any of those before."""


def silence_problem(seconds: float, grown: Mapping[str, Mapping[str, int]], busy: float | None) -> str:
    """That both cameras send and nothing is published, with what most probably keeps it back.

    Args:
        seconds: how long nothing has been published.
        grown: for each stream how its counters have grown meanwhile.
        busy: how long the worker has been at one job, s, where that explains it; otherwise None.
    """
    what = f"both cameras send, and nothing has been published for {seconds:.0f} s"
    if busy is not None:
        return f"{what}: the worker has been at one pair for {busy:.0f} s (a device or driver that hangs, or overload)"
    consequences = ("too_far", "superseded")
    # By share, for the cameras' rates differ. What is no consequence goes first where it takes a half of its stream.
    refused = max(
        (
            (name not in consequences and 2 * n >= counts["received"], n / counts["received"], n, stream, name)
            for stream, counts in grown.items()
            for name, n in counts.items()
            if name in _FATES and n
        ),
        default=None,
    )
    if refused is None:
        return what
    *_, n, stream, name = refused
    return f"{what}: {n} of {grown[stream]['received']} {stream} frames {_FATES[name]}; counter {stream}.{name}"


def clock_problem(seconds: float, published: bool) -> str:
    """That the clock of ROS does not move while images come.

    Args:
        seconds: how long it has stood still.
        published: whether anybody publishes /clock.
    """
    source = "the time on /clock stays the same" if published else "nothing publishes /clock"
    return (
        f"ROS time has stood still for {seconds:.0f} s while images come, so a lost camera is not noticed: parameter "
        f"'use_sim_time' is true and {source}"
    )


def branch_problem(stream: str) -> str:
    """That a lone camera is to answer, and the model has no branch for it."""
    return f"the model has no {stream} branch of its own; one trained with method rsc or rscmd has both"
