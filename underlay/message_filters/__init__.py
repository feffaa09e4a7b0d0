"""The Python interface of ROS 2's message_filters (Jazzy): filters that take messages in and pass some of them on.

Names, signatures and behaviour are upstream's, habits worth knowing included: two stamps exactly the slop apart do not
pair, a queue drops its oldest stamp without a word, and the callbacks run while the synchronizer holds its lock. One
thing differs: the lock is given back when a callback raises.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import rclpy.logging
from rclpy.clock import ROSClock
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

__all__ = ["ApproximateTimeSynchronizer", "Cache", "SimpleFilter", "Subscriber", "TimeSynchronizer"]

# The messages a synchronizer has of one input, by stamp in nanoseconds.
Queue = dict[int, Any]


def _time(message: Any, allow_headerless: bool, complainant: str) -> Time | None:
    """The stamp of a message as a Time; now, for one without a header where that is allowed; None where it is not."""
    stamp = getattr(getattr(message, "header", None), "stamp", None)
    if stamp is not None:
        return stamp if hasattr(stamp, "nanoseconds") else Time.from_msg(stamp)
    if allow_headerless:
        return ROSClock().now()
    rclpy.logging.get_logger(complainant).warning(
        f"dropped a {type(message).__name__}: it has no header.stamp, and allow_headerless is not set"
    )
    return None


class SimpleFilter:
    """A filter with one output, to which anyone may listen."""

    def __init__(self) -> None:
        self.callbacks: dict[int, tuple[Callable[..., object], tuple[Any, ...]]] = {}

    def registerCallback(self, cb: Callable[..., object], *args: Any) -> int:
        """Has `cb(*messages, *args)` called for every output; returns the number of the connection."""
        connection = len(self.callbacks)
        self.callbacks[connection] = (cb, args)
        return connection

    def signalMessage(self, *msg: Any) -> None:
        """Calls everyone who registered."""
        for callback, args in self.callbacks.values():
            callback(*msg, *args)


class Subscriber(SimpleFilter):
    """A subscription as the first filter of a chain: `Subscriber(node, Image, "image", qos_profile=...)`.

    The arguments are those of `Node.create_subscription` without the callback; the queue is 10 deep unless
    `qos_profile` says otherwise. What else a subscription offers is reached through this object.
    """

    def __init__(self, node: Node, msg_type: Any, topic: str, **kwargs: Any) -> None:
        super().__init__()
        self.node = node
        self.topic = topic
        kwargs.setdefault("qos_profile", 10)
        self.sub = node.create_subscription(msg_type, topic, self.callback, **kwargs)

    def callback(self, msg: Any) -> None:
        self.signalMessage(msg)

    def getTopic(self) -> str:
        return self.topic

    def __getattr__(self, key: str) -> Any:
        if key == "sub":
            # Asked for before it was made: without this the lookup would go round in circles.
            raise AttributeError(key)
        return getattr(self.sub, key)


class Cache(SimpleFilter):
    """Keeps the latest `cache_size` messages of a filter and passes each on."""

    def __init__(self, f: SimpleFilter, cache_size: int = 1, allow_headerless: bool = False) -> None:
        super().__init__()
        self.cache_size = cache_size
        self.allow_headerless = allow_headerless
        self.cache_msgs: list[Any] = []
        self.cache_times: list[Time] = []
        self.connectInput(f)

    def connectInput(self, f: SimpleFilter) -> None:
        self.incoming_connection = f.registerCallback(self.add)

    def add(self, msg: Any) -> None:
        time = _time(msg, self.allow_headerless, "message_filters_cache")
        if time is None:
            return
        self.cache_times = [*self.cache_times, time][-self.cache_size :]
        self.cache_msgs = [*self.cache_msgs, msg][-self.cache_size :]
        self.signalMessage(msg)

    def getInterval(self, from_stamp: Time, to_stamp: Time) -> list[Any]:
        """The messages from one time to another, both included, in order of arrival."""
        pairs = zip(self.cache_msgs, self.cache_times, strict=True)
        return [msg for msg, time in pairs if from_stamp <= time <= to_stamp]

    def getElemAfterTime(self, stamp: Time) -> Any:
        """The first message at or after a time, or None."""
        return next((msg for msg, time in zip(self.cache_msgs, self.cache_times, strict=True) if time >= stamp), None)

    def getElemBeforeTime(self, stamp: Time) -> Any:
        """The last message at or before a time, or None."""
        pairs = reversed(list(zip(self.cache_msgs, self.cache_times, strict=True)))
        return next((msg for msg, time in pairs if time <= stamp), None)

    def getLastestTime(self) -> Time | None:
        """The time of the newest message; the name is upstream's."""
        return self.cache_times[-1] if self.cache_times else None

    def getOldestTime(self) -> Time | None:
        return self.cache_times[0] if self.cache_times else None

    def getLast(self) -> Any:
        """The newest message, or None."""
        latest = self.getLastestTime()
        return None if latest is None else self.getElemAfterTime(latest)


class TimeSynchronizer(SimpleFilter):
    """Passes on messages of several filters as one set when their stamps are equal.

    Args:
        fs: the filters to listen to; callbacks get one message of each, in this order.
        queue_size: how many messages of each filter are kept while their partners are awaited.
    """

    def __init__(self, fs: Sequence[SimpleFilter], queue_size: int) -> None:
        super().__init__()
        self.queue_size = queue_size
        self.lock = threading.Lock()
        self.connectInput(fs)

    def connectInput(self, fs: Sequence[SimpleFilter]) -> None:
        """Listens to these filters, with empty queues."""
        self.queues: list[Queue] = [{} for _ in fs]
        connections = []
        for index, (source, queue) in enumerate(zip(fs, self.queues, strict=True)):
            connections.append(source.registerCallback(self.add, queue, index))
        self.input_connections = connections

    def add(self, msg: Any, my_queue: Queue, my_queue_index: int | None = None) -> None:
        """Takes a message into one of `self.queues`, and passes on every set that is complete."""
        with self.lock:
            self._store(my_queue, Time.from_msg(msg.header.stamp).nanoseconds, msg)
            for stamp in sorted(set.intersection(*(set(queue) for queue in self.queues))):
                self._emit([stamp] * len(self.queues))

    def _store(self, queue: Queue, stamp: int, message: Any) -> None:
        queue[stamp] = message
        while len(queue) > self.queue_size:
            del queue[min(queue)]

    def _emit(self, stamps: Sequence[int]) -> None:
        pairs = list(zip(self.queues, stamps, strict=True))
        self.signalMessage(*(queue[stamp] for queue, stamp in pairs))
        for queue, stamp in pairs:
            del queue[stamp]


class ApproximateTimeSynchronizer(TimeSynchronizer):
    """Passes on messages of several filters as one set when their stamps are less than `slop` apart.

    Args:
        fs: the filters to listen to; callbacks get one message of each, in this order.
        queue_size: how many messages of each filter are kept while their partners are awaited.
        slop: seconds; all stamps of a set lie within less than this.
        allow_headerless: take messages without a header as if stamped on arrival.
    """

    def __init__(
        self, fs: Sequence[SimpleFilter], queue_size: int, slop: float, allow_headerless: bool = False
    ) -> None:
        super().__init__(fs, queue_size)
        self.slop = Duration(seconds=slop)
        self.allow_headerless = allow_headerless

    def add(self, msg: Any, my_queue: Queue, my_queue_index: int | None = None) -> None:
        """Takes a message into one of `self.queues`, and passes on the nearest set that is complete with it.

        Whatever is there when a message comes is taken: a nearer partner still to come is not waited for.
        """
        time = _time(msg, self.allow_headerless, "message_filters_approx")
        if time is None:
            return
        stamp, slop = time.nanoseconds, self.slop.nanoseconds
        with self.lock:
            self._store(my_queue, stamp, msg)
            candidates = []
            for index, queue in enumerate(self.queues):
                if index == my_queue_index:
                    candidates.append([stamp])
                    continue
                near = [other for other in queue if abs(other - stamp) <= slop]
                if not near:
                    return
                candidates.append(sorted(near, key=lambda other: abs(other - stamp)))
            for stamps in itertools.product(*candidates):
                there = all(other in queue for queue, other in zip(self.queues, stamps, strict=True))
                if there and max(stamps) - min(stamps) < slop:
                    self._emit(stamps)
                    return
