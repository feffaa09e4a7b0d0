"""Why nothing comes out: causes in words, from plain facts. Each names what was found and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rclpy.qos import QoSReliabilityPolicy

from rscmd_model.errors import shown

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
        measured = (
            f"; thermal stamps are {abs(offset_ms):.0f} ms {side} visible ones that arrive together: let both cameras "
            f"take their time from one clock, or set thermal_offset_ms to {offset_ms:.0f}, or use_measured_offset"
        )
    return f"no two stamps lie within slop_ms {slop_ms:g} ({counts} frames lately){measured}"


def branch_problem(stream: str) -> str:
    """That a lone camera is to answer, and the model has no branch for it."""
    return f"the model has no {stream} branch of its own; one trained with method rsc or rscmd has both"
