"""Policies approximate and exact: what message_filters itself would pair, with everything it drops counted."""

from __future__ import annotations

import pytest
from frame_streams import MS, camera, check_ledger, times
from hypothesis import given, settings
from hypothesis import strategies as st

from rscmd_ros.pairing.frames import STREAMS
from rscmd_ros.pairing.nearest import make_pairer

streams = st.sampled_from(STREAMS)


@pytest.fixture(scope="module")
def message_filters():
    return pytest.importorskip("message_filters", reason="message_filters is not installed")


@given(st.lists(st.tuples(streams, st.integers(-3, 12)), max_size=50), st.integers(0, 12), st.booleans())
@settings(max_examples=200, deadline=None)
def test_standard_policies_pair_as_message_filters_does_and_count_the_rest(message_filters, steps, slop_ms, exact):
    from builtin_interfaces.msg import Time
    from std_msgs.msg import Header

    capacity = 5
    inputs = [message_filters.SimpleFilter() for _ in STREAMS]
    if exact:
        plain = message_filters.TimeSynchronizer(inputs, capacity)
    else:
        plain = message_filters.ApproximateTimeSynchronizer(inputs, capacity, slop_ms / 1000)
    expected: list[tuple[int, int]] = []
    plain.registerCallback(lambda *two: expected.append(tuple(m.stamp_ms for m in two)))

    class Message:
        def __init__(self, stamp_ms: int) -> None:
            self.stamp_ms = stamp_ms
            self.header = Header(stamp=Time(sec=stamp_ms // 1000, nanosec=stamp_ms % 1000 * MS))

    pairer = make_pairer("exact" if exact else "approximate", slop=slop_ms * MS, capacity=capacity)
    at = dict.fromkeys(STREAMS, 5000)
    got = []
    for stream, step in steps:
        at[stream] += step
        got += pairer.add(stream, at[stream] * MS, None, 0)
        check_ledger(pairer)
        if pairer.resets:  # several small steps back in a row; from here on the plain class pairs old frames
            return
        inputs[STREAMS.index(stream)].signalMessage(Message(at[stream]))
        assert [(v // MS, t // MS) for v, t in times(got)] == expected
    pairer.flush()
    check_ledger(pairer)
    assert all(pairer.ledger.as_dict()[stream]["pending"] == 0 for stream in STREAMS)


def test_standard_policy_survives_a_loop(message_filters):
    pairer = make_pairer("approximate", slop=50 * MS, capacity=10)
    pairs = []
    for loop in range(3):
        for now, stream, stamp in sorted(camera("visible", 30) + camera("thermal", 9)):
            pairs += pairer.add(stream, stamp, None, now + loop)
            check_ledger(pairer)
    assert len(pairs) >= 3 * 36 - 6
