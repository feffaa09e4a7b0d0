"""The topics of the detector: what it asks of the cameras', and those on which it answers and tells its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSPolicyKind, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray, LabelInfo, VisionClass, VisionInfo

if TYPE_CHECKING:
    from rscmd_model.inference import Predictor

_LEAST_QUEUE_OF_MIDDLEWARE = 10

OVERRIDABLE = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)
"""What parameters qos_overrides.TOPIC.subscription.POLICY can change of the image subscriptions."""

LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
"""The last message is kept for whoever subscribes later (if transient_local as well)."""


def image_qos(reliability: str, queue_size: int) -> QoSProfile:
    """What is asked of an image topic: reliability best_effort or reliable, and so many messages kept."""
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=max(_LEAST_QUEUE_OF_MIDDLEWARE, queue_size),
        reliability=QoSReliabilityPolicy.RELIABLE if reliability == "reliable" else QoSReliabilityPolicy.BEST_EFFORT,
    )


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
        method = f"two-stream YOLOv8{config.scale}, rsc {config.rsc}, md {config.md}; {', '.join(config.branches)}"
        vision = VisionInfo(method=method, database_location=self._label_info.topic_name, database_version=1)
        label = LabelInfo(threshold=float(threshold))
        label.class_map = [
            VisionClass(class_id=index, class_name=name)
            for index, name in predictor.names.items()
            if not wanted or name in wanted
        ]
        vision.header.stamp = label.header.stamp = stamp
        self._vision_info.publish(vision)
        self._label_info.publish(label)
