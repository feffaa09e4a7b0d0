"""Our message_filters: what upstream's does, message by message."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import message_filters
import pytest
import rclpy
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image
from std_msgs.msg import Header

if not (Path(sys.prefix) / ".setup").is_dir():
    pytest.skip("this Python is not that of .venv; a distribution has its own packages", allow_module_level=True)


def stamped(ms: float, name: str = "") -> Image:
    ns = round(ms * 1e6)
    return Image(header=Header(frame_id=name, stamp=Time(sec=ns // 10**9, nanosec=ns % 10**9)))


class Sets:
    """Inputs, a synchronizer on them, and the stamps in ms of the sets it passed on."""

    def __init__(self, kind: Any, *args: Any, inputs: int = 2, **options: Any) -> None:
        self.inputs = [message_filters.SimpleFilter() for _ in range(inputs)]
        self.synchronizer = kind(self.inputs, *args, **options)
        self.synchronizer.registerCallback(self.take)
        self.sets: list[tuple[float, ...]] = []

    def take(self, *messages: Image) -> None:
        stamps = [message.header.stamp for message in messages]
        self.sets.append(tuple(stamp.sec * 1e3 + stamp.nanosec / 1e6 for stamp in stamps))

    def feed(self, *arrivals: tuple[int, float]) -> list[tuple[float, ...]]:
        for index, ms in arrivals:
            self.inputs[index].signalMessage(stamped(ms))
        return self.sets


def test_callbacks_get_their_arguments() -> None:
    source, calls = message_filters.SimpleFilter(), []
    source.registerCallback(lambda *args: calls.append(args), "extra", 1)
    source.registerCallback(lambda *args: calls.append(args))
    source.signalMessage("a", "b")
    assert calls == [("a", "b", "extra", 1), ("a", "b")]


def test_equal_stamps_make_a_set() -> None:
    sets = Sets(message_filters.TimeSynchronizer, 10, inputs=3)
    assert sets.feed((0, 1), (1, 1), (0, 2), (2, 2), (1, 2), (2, 1)) == [(2, 2, 2), (1, 1, 1)]


def test_a_full_queue_loses_its_oldest() -> None:
    sets = Sets(message_filters.TimeSynchronizer, 2)
    assert sets.feed((0, 1), (0, 2), (0, 3), (1, 1), (1, 3)) == [(3, 3)]


def test_approximate_takes_the_nearest_that_is_there() -> None:
    sets = Sets(message_filters.ApproximateTimeSynchronizer, 10, 0.05)
    # 40 comes while only 10 and 60 are there; what would be nearer comes too late.
    assert sets.feed((0, 10), (0, 60), (1, 40), (0, 41)) == [(60, 40)]


@pytest.mark.parametrize(("apart", "pairs"), [(49.9, 1), (50.0, 0), (50.1, 0)])
def test_stamps_the_slop_apart_do_not_pair(apart: float, pairs: int) -> None:
    sets = Sets(message_filters.ApproximateTimeSynchronizer, 10, 0.05)
    assert len(sets.feed((0, 100), (1, 100 + apart))) == pairs


def test_all_of_a_set_lie_within_the_slop() -> None:
    """Each of the outer two is near the middle one, but not to each other."""
    sets = Sets(message_filters.ApproximateTimeSynchronizer, 10, 0.05, inputs=3)
    assert sets.feed((0, 0), (2, 60), (1, 30)) == []
    assert sets.feed((0, 25)) == [(25, 30, 60)]


def test_no_message_is_used_twice() -> None:
    sets = Sets(message_filters.ApproximateTimeSynchronizer, 10, 0.05)
    assert sets.feed((0, 10), (1, 11), (1, 12), (0, 13)) == [(10, 11), (13, 12)]


def test_messages_can_be_added_to_a_queue_by_hand() -> None:
    sets = Sets(message_filters.ApproximateTimeSynchronizer, 10, 0.05)
    for index, ms in ((0, 10), (1, 20)):
        sets.synchronizer.add(stamped(ms), sets.synchronizer.queues[index], index)
    assert sets.sets == [(10, 20)]


def test_messages_without_a_header() -> None:
    refusing = message_filters.ApproximateTimeSynchronizer([message_filters.SimpleFilter()], 10, 0.05)
    refusing.add(SimpleNamespace(), refusing.queues[0], 0)
    assert not refusing.queues[0]
    taking = Sets(message_filters.ApproximateTimeSynchronizer, 10, 5.0, allow_headerless=True)
    got: list[tuple[Any, ...]] = []
    taking.synchronizer.callbacks.clear()
    taking.synchronizer.registerCallback(lambda *messages: got.append(messages))
    taking.inputs[0].signalMessage(first := SimpleNamespace())
    taking.inputs[1].signalMessage(second := SimpleNamespace())
    assert got == [(first, second)]


def test_new_inputs_start_with_empty_queues() -> None:
    sets = Sets(message_filters.TimeSynchronizer, 10)
    sets.feed((0, 1))
    sets.inputs = [message_filters.SimpleFilter() for _ in range(2)]
    sets.synchronizer.connectInput(sets.inputs)
    assert sets.feed((1, 1)) == []
    assert sets.feed((0, 1)) == [(1, 1)]


def test_cache_answers_by_time() -> None:
    source = message_filters.SimpleFilter()
    cache = message_filters.Cache(source, cache_size=3)
    for ms in (10, 20, 30, 40):
        source.signalMessage(stamped(ms))
    at = {ms: rclpy.time.Time.from_msg(stamped(ms).header.stamp) for ms in (5, 20, 25, 30, 45)}
    assert [m.header.stamp.nanosec for m in cache.getInterval(at[20], at[30])] == [20_000_000, 30_000_000]
    assert cache.getElemAfterTime(at[25]).header.stamp.nanosec == 30_000_000
    assert cache.getElemBeforeTime(at[25]).header.stamp.nanosec == 20_000_000
    assert (cache.getElemAfterTime(at[45]), cache.getElemBeforeTime(at[5])) == (None, None)
    assert cache.getLast().header.stamp.nanosec == 40_000_000
    assert (cache.getOldestTime().nanoseconds, cache.getLastestTime().nanoseconds) == (20_000_000, 40_000_000)


def test_subscribers_feed_a_synchronizer_over_dds() -> None:
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node("filters", context=context)
        inputs = [message_filters.Subscriber(node, Image, name, qos_profile=5) for name in ("a", "b")]
        assert inputs[0].getTopic() == "a"
        # Everything else is the subscription's.
        assert inputs[1].topic_name == "/b"
        got: list[tuple[Image, ...]] = []
        synchronizer = message_filters.TimeSynchronizer(inputs, 5)
        synchronizer.registerCallback(lambda *messages: got.append(messages))
        publishers = [node.create_publisher(Image, name, 5) for name in ("a", "b")]
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        executor.add_node(node)
        for _ in range(200):
            if got:
                break
            for publisher in publishers:
                publisher.publish(stamped(1))
            executor.spin_once(timeout_sec=0.05)
        assert got
        assert got[0][0].header == got[0][1].header == stamped(1).header
        executor.shutdown()
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
