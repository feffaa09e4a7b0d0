"""The topics of the detector: what it asks of the cameras', and those on which it answers and tells its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSPolicyKind, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray, LabelInfo, VisionClass, VisionInfo

from rscmd_model.config import FAMILIES
from rscmd_ros.camera import image_topic, info_topic

if TYPE_CHECKING:
    from rscmd_model.inference import Predictor

_LEAST_QUEUE_OF_MIDDLEWARE = 10

OVERRIDABLE = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)
"""What parameters qos_overrides.TOPIC.subscription.POLICY can change of the image subscriptions."""

_OVERRIDE = "qos_overrides.{}.subscription.{}"

LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
"""The last message is kept for whoever subscribes later (if transient_local as well)."""


def image_qos(reliability: str, queue_size: int) -> QoSProfile:
    """What is asked of an image topic: reliability best_effort or reliable, and so many messages kept."""
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=max(_LEAST_QUEUE_OF_MIDDLEWARE, queue_size),
        reliability=QoSReliabilityPolicy.RELIABLE if reliability == "reliable" else QoSReliabilityPolicy.BEST_EFFORT,
    )


def overrides_of(topics: Sequence[str]) -> list[str]:
    """The names of the parameters that override the QoS of these image topics."""
    return [_OVERRIDE.format(topic, policy.name.lower()) for topic in topics for policy in OVERRIDABLE]


def image_names(node: Node, stream: str, transport: str) -> list[str]:
    """The full names of a stream's image topic: that in force, and those that users know it by.

    These are the name without its transport's suffix, and both as they are without remapping, as in the README.
    """
    base, plain = (node.resolve_topic_name(f"{stream}/image", only_expand=only) for only in (False, True))
    in_force = node.resolve_topic_name(image_topic(base, transport))
    return list(dict.fromkeys((in_force, image_topic(plain, transport), base, plain)))


def info_name(node: Node, stream: str) -> str:
    """The full name of a stream's camera_info: the sibling of its image topic, unless it is remapped by itself."""
    own, plain = (node.resolve_topic_name(f"{stream}/camera_info", only_expand=only) for only in (False, True))
    return own if own != plain else node.resolve_topic_name(info_topic(node.resolve_topic_name(f"{stream}/image")))


def follow_overrides(node: Node, names: Sequence[str]) -> None:
    """Let QoS overrides by any of these names count for the first, which is the only one that rclpy looks at."""
    given = node._parameter_overrides
    for in_force, *others in zip(*(overrides_of([name]) for name in names)):
        if in_force not in given and (other := next((name for name in others if name in given), None)):
            given[in_force] = Parameter(in_force, value=given[other].value)


class Outputs:
    """The publishers of a configured node: `detections` and `overlay` while active, the rest latched.

    Holds no node; `close` gives the publishers back to the one that made them.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self.detections: Any = node.create_lifecycle_publisher(Detection2DArray, "detections", 10)
        self.overlay: Any = node.create_lifecycle_publisher(Image, "overlay/image", 2)
        self._vision_info = node.create_publisher(VisionInfo, "vision_info", LATCHED)
        self._label_info = node.create_publisher(LabelInfo, "label_info", LATCHED)

    def close(self, node: LifecycleNode) -> None:
        """Destroy the publishers."""
        for publisher in (self.detections, self.overlay):
            node.destroy_lifecycle_publisher(publisher)
        for publisher in (self._vision_info, self._label_info):
            node.destroy_publisher(publisher)

    @property
    def watched(self) -> bool:
        """Whether somebody subscribes to anything that needs the model to run."""
        return bool(self.detections.get_subscription_count() or self.overlay.get_subscription_count())

    def describe(self, stamp: Any, predictor: Predictor, wanted: Sequence[str], threshold: float) -> None:
        """Publish what the model is and which classes come out, as of now.

        stamp      builtin_interfaces/Time
        wanted     names of the classes that are published; none means all
        threshold  lowest score that is published
        """
        config = predictor.config
        layers = f"{FAMILIES[config.family]}{config.scale}"
        method = f"two-stream {layers}, rsc {config.rsc}, md {config.md}; {', '.join(config.branches)}"
        vision = VisionInfo(method=method, database_location=self._label_info.topic_name, database_version=1)
        label, chosen = LabelInfo(threshold=float(threshold)), set(wanted)
        label.class_map = [
            VisionClass(class_id=index, class_name=name)
            for index, name in predictor.names.items()
            if not chosen or name in chosen
        ]
        vision.header.stamp = label.header.stamp = stamp
        self._vision_info.publish(vision)
        self._label_info.publish(label)
