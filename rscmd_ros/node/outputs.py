"""The topics on which the detector answers, and tells its classes and its mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import String
from vision_msgs.msg import Detection2DArray, LabelInfo, VisionClass, VisionInfo

if TYPE_CHECKING:
    from rscmd_model.inference.predictor import Predictor

LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
"""The last message is kept for whoever subscribes later (if transient_local as well)."""


class ModeTopic:
    """Topic `mode`: what answers at the moment. Holds no node.

    Args:
        node: makes the publisher, which lives as long as the node.

    Attributes:
        current: the mode that was published last.
    """

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(String, "mode", LATCHED)
        self.current = ""
        self.tell("none")

    def tell(self, mode: str) -> None:
        """Publish a mode, unless it is the current one."""
        if mode != self.current:
            self.current = mode
            self._publisher.publish(String(data=mode))

    def read(self) -> str:
        """The current mode, for whoever keeps this method."""
        return self.current


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

    def describe(self, stamp: Any, predictor: Predictor, wanted: Sequence[str], threshold: float) -> None:
        """Publish what the model is and which classes come out.

        Args:
            stamp: builtin_interfaces/Time of now.
            predictor: of the model.
            wanted: names of the classes that are published; none means all.
            threshold: lowest score that is published, 0 to 1.
        """
        config = predictor.config
        streams = "two-stream" if len(config.modalities) == 2 else "single-stream"
        joined = " joined" if predictor.answer == "ensemble" else ""
        method = f"{streams} {config.layers}, {config.title}; {', '.join(config.answers)}{joined}"
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
