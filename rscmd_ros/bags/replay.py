"""Play a bag to a running detector node over DDS, collect its detections and take its ledger.

The recorded messages are sent as they are, byte for byte and with their own stamps, at the pace of the recording.
Topics are `visible/image`, `thermal/image` and `detections`, as the node's own; remap them or set a namespace by
--ros-args.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_ros.bags.pairs import pair_up
from rscmd_ros.bags.reader import Bag
from rscmd_ros.bags.replay_account import LiveRun, account
from rscmd_ros.cameras.camera import image_topic
from rscmd_ros.node.pairing_options import PairingOptions
from rscmd_ros.pairing.frames import STREAMS
from rscmd_ros.transport import use_large_messages

SETTLE = 10.0  # s; how long the last answers and counts are waited for
QUIET = 2.5  # s without news after which the node is taken to be done; its diagnostics come every second


@dataclass
class _Heard:
    """What arrived from the node; written by the receiving thread, read under the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    detections: list[tuple[float, Any]] = field(default_factory=list)
    diagnostics: dict[str, tuple[float, dict[str, str]]] = field(default_factory=dict)
    last_news: float = 0.0


def replay(
    bag: Bag,
    topics: Mapping[str, str],
    options: PairingOptions,
    names: Mapping[int, str],
    *,
    contract: ThermalContract | None = None,
    rate: float = 1.0,
    wait: float = 20.0,
    ros_args: Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> LiveRun:
    """Play the bag once.

    Args:
        bag: an open one.
        topics: {"visible": ..., "thermal": ...}, in the bag.
        options: of pairing, used where the node does not tell its own.
        names: classes of the node's model.
        contract: thermal contract of that model.
        rate: speed of play; 1 is as recorded.
        wait: how long to wait for the node to be there, s.
        ros_args: remappings, after --ros-args.
        progress: called every two seconds with a line that tells how far it is.

    Raises:
        UserError: no node answers, something else publishes on its topics, or its detections are of other classes.
    """
    use_large_messages()
    with _ros(ros_args) as (node, stopped):
        link = _Link(node, wait, stopped, {stream: bag.transport(topic) for stream, topic in topics.items()})
        options = link.pairing_options(options)
        told = {name: link.parameter(name) for name in ("confidence_threshold", "registration", "answer")}
        pairing = pair_up(bag, dict(topics), options, contract)
        before = link.counts()
        sent = _play(bag, topics, link, rate, progress)
        after = link.settle(before, {stream: len(stamps) for stream, stamps in sent.items()})
        with link.heard.lock:
            arrived = list(link.heard.detections)
    return account(pairing, options, names, sent, arrived, before, after, told)


@contextmanager
def _ros(ros_args: Sequence[str]) -> Iterator[tuple[Any, Callable[[], bool]]]:
    """A node spun by a thread of its own, and a question whether that thread has ended."""
    from rclpy.context import Context
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.node import Node

    context = (
        Context()
    )  # without signal handlers: Ctrl-C shall raise KeyboardInterrupt here, and the node be taken down
    context.init(["evaluate_bag", *ros_args])
    node = Node("evaluate_bag", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin() -> None:
        with suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield node, lambda: not thread.is_alive()
    finally:
        executor.shutdown()
        thread.join(timeout=5)
        node.destroy_node()
        context.try_shutdown()


class _Link:
    """The connection to one detector node."""

    def __init__(self, node: Any, wait: float, stopped: Callable[[], bool], transports: Mapping[str, str]):
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import CompressedImage, Image
        from vision_msgs.msg import Detection2DArray

        self.heard = _Heard()
        self._node, self._stopped = node, stopped
        self._deadline = time.monotonic() + wait
        self._wait = wait
        reliable = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
        time.sleep(0.5)  # discovery of publishers that were there before
        self.publishers: dict[str, Any] = {}
        for stream in STREAMS:
            topic = image_topic(node.resolve_topic_name(f"{stream}/image"), transports[stream])
            kind = Image if transports[stream] == "raw" else CompressedImage
            if node.count_publishers(topic):
                raise UserError(f"something else publishes on {topic}; stop it, or the score would mix two sources")
            self.publishers[stream] = node.create_publisher(kind, topic, reliable)
        self._subscription = node.create_subscription(Detection2DArray, "detections", self._on_detections, reliable)
        self._diagnostics = node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.full_name = self._find_node()
        self._client: Any = None
        self._await_counts()

    def _on_detections(self, message: Any) -> None:
        now = time.monotonic()
        with self.heard.lock:
            self.heard.detections.append((now, message))
            self.heard.last_news = now

    def _on_diagnostics(self, message: Any) -> None:
        now = time.monotonic()
        with self.heard.lock:
            for status in message.status:
                if status.name.endswith(": pairing"):
                    self.heard.diagnostics[status.name] = (now, {pair.key: pair.value for pair in status.values})

    def _until(self, true: Callable[[], bool], trouble: Callable[[], str]) -> None:
        while not true():
            if self._stopped():
                raise UserError("ROS was shut down while waiting for the detector node")
            if time.monotonic() > self._deadline:
                raise UserError(trouble())
            time.sleep(0.05)

    def _find_node(self) -> str:
        """Wait until a node listens to both image topics and publishes detections to us; its full name."""
        topics = {stream: publisher.topic_name for stream, publisher in self.publishers.items()}

        def matched() -> bool:
            heard_by = all(publisher.get_subscription_count() for publisher in self.publishers.values())
            return bool(heard_by and self._subscription.get_publisher_count())

        def trouble() -> str:
            deaf = [topics[s] for s, publisher in self.publishers.items() if not publisher.get_subscription_count()]
            what = f"nobody listens to {' and '.join(deaf)}" if deaf else "nobody publishes detections"
            return (
                f"no detector node after {self._wait:g} s: {what}. Is it running and active (a model "
                "may take longer to load: --wait S), with the same "
                "ROS_DOMAIN_ID, and on these topics? (remap with --ros-args -r visible/image:=...; topics that end in "
                "/compressed are those of a node with visible_transport or thermal_transport compressed)"
            )

        self._until(matched, trouble)

        known: list[str] = []

        def names() -> bool:
            """Nodes behind all three topics; a node's endpoints may be known a little before its name is."""
            ends = [self._node.get_subscriptions_info_by_topic(topic) for topic in topics.values()]
            ends.append(self._node.get_publishers_info_by_topic(self._subscription.topic_name))
            found = [{f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in infos} for infos in ends]
            known[:] = sorted(name for name in set.intersection(*found) if "_UNKNOWN_" not in name)
            return bool(known)

        self._until(
            names,
            lambda: (
                f"no node both listens to {' and '.join(topics.values())} and publishes {self._subscription.topic_name}"
            ),
        )
        return known[0]

    def _status(self) -> tuple[float, dict[str, str]] | None:
        with self.heard.lock:
            for name, status in self.heard.diagnostics.items():
                if name.rsplit(":", 1)[0] == self.full_name.lstrip("/"):
                    return status
        return None

    def _await_counts(self) -> None:
        """A fresh report of the node's counters, from now on."""
        asked = time.monotonic()

        def fresh() -> bool:
            status = self._status()
            return status is not None and status[0] > asked

        self._until(fresh, lambda: f"{self.full_name} listens, but its counters do not come on /diagnostics")

    def counts(self) -> dict[str, int]:
        """The node's counters by key, as last reported."""
        status = self._status()
        assert status is not None
        return {key: int(value) for key, value in status[1].items() if value.lstrip("-").isdigit()}

    def parameter(self, name: str) -> Any:
        """A parameter of the node, None where it does not tell."""
        from rclpy.parameter_client import AsyncParameterClient

        if self._client is None:
            self._client = AsyncParameterClient(self._node, self.full_name)
            if self._client.wait_for_services(timeout_sec=5.0):
                # The first answer is lost where the node has yet to learn of the client (ros2/rmw_fastrtps#842).
                for _ in range(2):
                    if self._ask(name) is not None:
                        break
        if not self._client.services_are_ready():
            return None
        answer = self._ask(name)
        if answer is None or not answer.values:
            return None
        from rclpy.parameter import parameter_value_to_python

        return parameter_value_to_python(answer.values[0])

    def _ask(self, name: str) -> Any:
        """What the node's parameter service answers, None where it is silent for 5 s."""
        future = self._client.get_parameters([name])
        until = time.monotonic() + 5.0
        while not future.done() and time.monotonic() < until:
            time.sleep(0.01)
        return future.result() if future.done() else None

    def pairing_options(self, given: PairingOptions) -> PairingOptions:
        """The node's own pairing parameters, so that the bag is paired as the node pairs it."""
        asked = {item.name: self.parameter(item.name) for item in fields(PairingOptions)}
        return replace(given, **{name: value for name, value in asked.items() if value is not None})

    def settle(self, before: Mapping[str, int], sent: Mapping[str, int]) -> dict[str, int]:
        """Wait until the node has counted what was sent and has answered its pairs; its counters then."""
        until = time.monotonic() + SETTLE
        last: dict[str, int] = {}
        changed = time.monotonic()
        while time.monotonic() < until and not self._stopped():
            time.sleep(0.1)
            counts = self.counts()
            with self.heard.lock:
                changed = max(changed, self.heard.last_news)
                arrived = len(self.heard.detections)
            if counts != last:
                last, changed = counts, time.monotonic()
            grown = {key: value - before.get(key, 0) for key, value in counts.items()}
            received = all(grown.get(f"{stream}.received", 0) >= number for stream, number in sent.items())
            answered = counts.get("pairs_in_hand", 0) == 0 and arrived >= grown.get("pairs_inferred", 0)
            if time.monotonic() - changed > (1.2 if received and answered else QUIET):
                break
        return self.counts()


def _play(
    bag: Bag, topics: Mapping[str, str], link: _Link, rate: float, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Send every image at its recorded time.

    Returns:
        By stream, the moments of sending in the order of the topic's messages, s of the steady clock.
    """
    stream_of = {topic: stream for stream, topic in topics.items()}
    sent: dict[str, list[float]] = {stream: [] for stream in STREAMS}
    total = sum(bag.count(topic) for topic in topics.values())
    first: int | None = None
    started = said = time.monotonic()
    for topic, recorded, data in bag.raw(stream_of):
        if first is None:
            first, started = recorded, time.monotonic()
        message = bytes(data)
        pause = started + (recorded - first) / 1e9 / rate - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        stream = stream_of[topic]
        sent[stream].append(time.monotonic())
        link.publishers[stream].publish(message)
        done = sum(len(times) for times in sent.values())
        if time.monotonic() - said > 2 or done == total:
            said = time.monotonic()
            with link.heard.lock:
                answers = len(link.heard.detections)
            progress(f"sent {done} of {total} images, {answers} answers so far")
    return sent
