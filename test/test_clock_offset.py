"""The offset between two clocks, from stamps and arrival times."""

from __future__ import annotations

import random

import pytest
from frame_streams import MS, SECOND, Event, camera

from rscmd_ros.pairing.clock_offset import LATENCY_DOUBT, ClockOffset


def feed(estimator: ClockOffset, *streams: list[Event], offset: int = 0, scale: float = 1.0) -> None:
    """Events in order of arrival; thermal stamps `offset` late; the arrivals of a replay `scale` times as slow."""
    for arrival, stream, stamp in sorted(event for events in streams for event in events):
        estimator.add(
            stream, stamp + 10 * 3600 * SECOND + (offset if stream == "thermal" else 0), round(arrival * scale)
        )


def delayed(events: list[Event], mean_ms: float, drop: float = 0.0, seed: int = 0) -> list[Event]:
    """Arrivals later by an exponential jitter, in order; some images lost."""
    rng = random.Random(seed)
    last, out = 0, []
    for arrival, stream, stamp in events:
        last = max(last + 1, arrival + round(rng.expovariate(1 / mean_ms) * MS))
        if rng.random() >= drop:
            out.append((last, stream, stamp))
    return out


@pytest.mark.parametrize("offset_ms", [0, 20, -20, 300, -5000, 3_600_000])
@pytest.mark.parametrize("rates", [(30, 30), (30, 9), (5, 120)])
def test_known_offset_is_found_under_jitter_and_drops(offset_ms, rates):
    streams = [
        delayed(camera(stream, hz, seconds=12, phase_ms=7, latency_ms=15), mean_ms=8, drop=0.1, seed=n)
        for n, (stream, hz) in enumerate(zip(("visible", "thermal"), rates))
    ]
    estimator = ClockOffset()
    feed(estimator, *streams, offset=offset_ms * MS)
    assert estimator.estimate() == pytest.approx(offset_ms * MS, abs=4 * MS)


def test_difference_of_latencies_is_in_it_and_below_the_doubt():
    """Visible 40 ms slower looks as if thermal stamps were 40 ms late; the bound warns of it."""
    estimator = ClockOffset()
    feed(estimator, camera("visible", 30, seconds=6, latency_ms=60), camera("thermal", 30, seconds=6, latency_ms=20))
    assert estimator.estimate() == pytest.approx(40 * MS, abs=MS)
    assert abs(estimator.estimate()) < LATENCY_DOUBT


def test_nothing_is_told_before_both_streams_came_for_some_seconds():
    estimator = ClockOffset()
    assert estimator.estimate() is None
    feed(estimator, camera("visible", 30, seconds=10))
    assert estimator.estimate() is None
    estimator.reset()
    feed(estimator, camera("visible", 30, seconds=2), camera("thermal", 30, seconds=2))
    assert estimator.estimate() is None
    feed(
        estimator, *[[(a + 2 * SECOND, s, t + 2 * SECOND) for a, s, t in camera(c, 30)] for c in ("visible", "thermal")]
    )
    assert estimator.estimate() == 0
    estimator.reset()
    assert estimator.estimate() is None


@pytest.mark.parametrize("seconds", [2.0, 3.3, 5.0])
def test_loops_of_a_bag_leave_it_alone(seconds):
    estimator = ClockOffset()
    length = round(seconds * SECOND)
    events = [
        (arrival + loop * length, stream, stamp)
        for loop in range(8)
        for arrival, stream, stamp in camera("visible", 30, seconds=seconds) + camera("thermal", 9, seconds=seconds)
    ]
    feed(estimator, events, offset=700 * MS)
    assert estimator.estimate() == pytest.approx(700 * MS, abs=MS)


@pytest.mark.parametrize("scale", [0.25, 2.0, 10.0])
def test_a_bag_played_slower_or_faster_is_off_by_no_more_than_a_gap(scale):
    estimator = ClockOffset()
    feed(estimator, camera("visible", 30, seconds=20), camera("thermal", 9, seconds=20), offset=900 * MS, scale=scale)
    assert estimator.estimate() == pytest.approx(900 * MS, abs=abs(scale - 1) * 112 * MS)


def test_wrong_stamps_zero_stamps_and_a_frozen_camera_do_not_move_it():
    estimator = ClockOffset()
    visible, thermal = camera("visible", 30, seconds=10), camera("thermal", 30, seconds=10)
    visible[100] = (visible[100][0], "visible", visible[100][2] + 3600 * SECOND)
    thermal[200] = (thermal[200][0], "thermal", 1)
    for n in range(150, 240):  # frozen for three seconds
        thermal[n] = (thermal[n][0], "thermal", thermal[149][2])
    feed(estimator, visible, thermal)
    estimator.add("visible", 0, 11 * SECOND)
    estimator.add("visible", 5, 13 * SECOND)
    assert estimator.estimate() == pytest.approx(0, abs=MS)


def test_it_follows_a_clock_that_was_set_and_forgets_when_arrivals_go_back():
    estimator = ClockOffset()
    early = [camera(stream, 30, seconds=20) for stream in ("visible", "thermal")]
    feed(estimator, early[0], [(a, s, t + (2 * SECOND if a > 10 * SECOND else 0)) for a, s, t in early[1]])
    assert estimator.estimate() == pytest.approx(2 * SECOND, abs=MS)
    estimator.add("visible", SECOND, SECOND)
    assert estimator.estimate() is None


def test_only_what_is_surely_an_offset_is_corrected():
    estimator = ClockOffset()
    assert estimator.correction(manual=5 * MS, in_use=5 * MS, tolerance=25 * MS) == 5 * MS  # nothing measured yet
    streams = [camera(stream, 30, seconds=6, latency_ms=15) for stream in ("visible", "thermal")]
    feed(estimator, *streams, offset=7 * SECOND)
    measured = estimator.estimate()
    assert estimator.correction(0, 0, 25 * MS) == measured
    assert estimator.correction(0, measured - 20 * MS, 25 * MS) == measured - 20 * MS  # near enough: no new pairer
    assert estimator.correction(measured + 100 * MS, 0, 25 * MS) == measured + 100 * MS  # may be latency: as it is set


def test_an_offset_at_the_doubt_does_not_come_and_go():
    estimator, in_use, changes = ClockOffset(), 0, 0
    visible = delayed(camera("visible", 30, seconds=120, latency_ms=30), mean_ms=8)
    thermal = delayed(camera("thermal", 30, seconds=120, phase_ms=10, latency_ms=10), mean_ms=8, seed=1)
    events = sorted([*visible, *((arrival, stream, stamp + 180 * MS) for arrival, stream, stamp in thermal)])
    for n, (arrival, stream, stamp) in enumerate(events):
        estimator.add(stream, stamp, arrival)
        if n % 60 == 0 and (wanted := estimator.correction(0, in_use, 25 * MS)) != in_use:
            in_use, changes = wanted, changes + 1
    assert abs(estimator.estimate() - LATENCY_DOUBT) < 10 * MS
    assert changes <= 1
    feed(estimator, *[[(a + 120 * SECOND, s, t + 120 * SECOND) for a, s, t in events] for events in (visible, thermal)])
    assert estimator.correction(0, in_use or LATENCY_DOUBT, 25 * MS) == 0  # the clock was set
