"""The topics that the detector listens to: their names, the QoS asked of them, and the subscriptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSHistoryPolicy, QoSPolicyKind, QoSProfile, QoSReliabilityPolicy, qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from rscmd_ros.cameras.camera import Camera, image_topic, info_topic
from rscmd_ros.cameras.rig import Rig
from rscmd_ros.node.outputs import LATCHED
from rscmd_ros.node.parameters import Settings
from rscmd_ros.pairing.frames import Stream

_LEAST_QUEUE_OF_MIDDLEWARE = 10

OVERRIDABLE = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)
"""What parameters qos_overrides.TOPIC.subscription.POLICY can change of the image subscriptions."""


def image_qos(reliability: str, queue_size: int) -> QoSProfile:
    """What is asked of an image topic: reliability best_effort or reliable, and so many messages kept."""
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=max(_LEAST_QUEUE_OF_MIDDLEWARE, queue_size),
        reliability=QoSReliabilityPolicy.RELIABLE if reliability == "reliable" else QoSReliabilityPolicy.BEST_EFFORT,
    )


def _override(topic: str, policy: QoSPolicyKind) -> str:
    return f"qos_overrides.{topic}.subscription.{policy.name.lower()}"


def overrides_of(topics: Sequence[str]) -> list[str]:
    """The names of the parameters that override the QoS of these image topics."""
    return [_override(topic, policy) for topic in topics for policy in OVERRIDABLE]


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


class Inputs:
    """The subscriptions of an active node. Holds no node; `close` gives them back to the one that made them.

    Args:
        image: called with the stream and each of its images.
        info: called with the stream and each of its camera_infos.
        mismatched: called with the stream and the QoS policy in which a publisher offers too little.
    """

    def __init__(
        self,
        image: Callable[[Stream, Image | CompressedImage], None],
        info: Callable[[Stream, CameraInfo], None],
        mismatched: Callable[[Stream, str], None],
    ) -> None:
        self._image, self._info, self._mismatched = image, info, mismatched
        self._images: dict[Stream, Subscription] = {}
        self._infos: list[Subscription] = []
        self._latched: dict[Stream, str] = {}
        """The camera_infos of which no publisher that keeps its last one has been seen yet."""

    def open(self, node: Node, rig: Rig, settings: Settings) -> None:
        """Subscribe to both cameras.

        Raises:
            Exception: rclpy's own kinds, for a QoS override that means nothing; `close` is still to be called.
        """
        for stream, camera in rig.cameras.items():
            self._subscribe(node, stream, camera, settings)

    def look_for_latched(self, node: Node) -> None:
        """Subscribe to what a publisher of a camera_info published before, where it keeps its last one.

        That takes a subscription of its own, made once such a publisher is there: every other publisher would warn of
        it, and send it nothing.
        """
        for stream, topic in list(self._latched.items()):
            offered = [info.qos_profile for info in node.get_publishers_info_by_topic(topic)]
            kept = [qos for qos in offered if qos.durability == LATCHED.durability]
            if any(qos.reliability == LATCHED.reliability for qos in kept):
                take, quiet = partial(self._info, stream), SubscriptionEventCallbacks(use_default_callbacks=False)
                self._infos.append(node.create_subscription(CameraInfo, topic, take, LATCHED, event_callbacks=quiet))
                del self._latched[stream]

    def close(self, node: Node) -> None:
        """Unsubscribe."""
        for subscription in (*self._images.values(), *self._infos):
            node.destroy_subscription(subscription)
        self._images, self._infos, self._latched = {}, [], {}

    def topic(self, node: Node, stream: Stream) -> str:
        """The name of a stream's image topic: that in force, or before that without its transport's suffix."""
        subscription = self._images.get(stream)
        return str(subscription.topic_name) if subscription else node.resolve_topic_name(f"{stream}/image")

    def reliabilities(self) -> dict[Stream, QoSReliabilityPolicy]:
        """What is asked of each topic that is subscribed to."""
        return {stream: known.qos_profile.reliability for stream, known in self._images.items()}

    def _subscribe(self, node: Node, stream: Stream, camera: Camera, settings: Settings) -> None:
        names = image_names(node, stream, camera.transport)
        follow_overrides(node, names)
        # Those given alone: rclpy keeps what each had at the first subscription, and it would win over the parameters.
        given = [policy for policy in OVERRIDABLE if _override(names[0], policy) in node._parameter_overrides]

        def mismatch(event: Any) -> None:
            self._mismatched(stream, qos_policy_name_from_kind(event.last_policy_kind))

        self._images[stream] = node.create_subscription(
            Image if camera.transport == "raw" else CompressedImage,
            names[0],
            partial(self._image, stream),
            image_qos(getattr(settings, f"{stream}_reliability"), settings.queue_size),
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=mismatch),
            qos_overriding_options=QoSOverridingOptions(given),
        )
        if camera.calibrated:
            latest = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
            camera.info_topic = self._latched[stream] = info_name(node, stream)
            take = partial(self._info, stream)
            self._infos.append(node.create_subscription(CameraInfo, camera.info_topic, take, latest))
