"""Pairing: what must hold for any sequence of frames, and the situations that cameras really get into."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from frame_streams import MS, SECOND, camera, check_ledger, counts, feed, times
from hypothesis import given, settings
from hypothesis import strategies as st

from rscmd_ros.pairing.frames import STREAMS, Pair
from rscmd_ros.pairing.nearest import DEFAULT_CAPACITY, NearestPairer, make_pairer


def by_the_rule(visible: Sequence[int], thermal: Sequence[int], slop: int) -> list[tuple[int, int]]:
    """The rule of `pairing.nearest` word for word: nearest first, nobody twice, no crossing; earlier of equals."""
    possible = [(v, t) for v in visible for t in thermal if abs(t - v) <= slop]
    candidates = sorted((abs(t - v), min(v, t), max(v, t), v, t) for v, t in possible)
    taken: list[tuple[int, int]] = []
    for *_, v, t in candidates:
        if all((v < v0 and t < t0) or (v > v0 and t > t0) for v0, t0 in taken):
            taken.append((v, t))
    return sorted(taken)


# Few distinct values, so that equal times, ties and chains are common.
sorted_stamps = st.lists(st.integers(1, 60), unique=True, max_size=14).map(sorted)


@given(sorted_stamps, sorted_stamps, st.integers(0, 20), st.randoms(use_true_random=False))
@settings(max_examples=600, deadline=None)
def test_online_result_is_the_rule_applied_to_the_whole_recording(visible, thermal, slop, rng):
    """However the two streams interleave on arrival, as long as each is in order and no deadline presses."""
    waiting = {"visible": list(visible), "thermal": list(thermal)}
    pairer = NearestPairer(slop, anticipate=False)
    pairs = []
    while any(waiting.values()):
        stream = rng.choice([stream for stream in STREAMS if waiting[stream]])
        pairs += pairer.add(stream, waiting[stream].pop(0), None, 0)
        check_ledger(pairer)
    pairs += pairer.flush()
    check_ledger(pairer)
    assert times(pairs) == by_the_rule(visible, thermal, slop)
    for stream, mine, others in (("visible", visible, thermal), ("thermal", thermal, visible)):
        lonely = sum(all(abs(a - b) > slop for b in others) for a in mine)
        ledger = pairer.ledger.as_dict()[stream]
        assert ledger["too_far"] == lonely
        assert ledger["pending"] == 0


@given(
    rates=st.sampled_from([(30, 9), (9, 30), (30, 15), (60, 9), (25, 8.7), (30, 14.9), (120, 5), (5, 120), (60, 30)]),
    phase_ms=st.floats(0, 111),
    latencies=st.tuples(st.floats(0, 120), st.floats(0, 120)),
    jitter=st.floats(0, 0.16),
    offset_ms=st.integers(-200, 200),
    anticipate=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_slower_stream_gets_its_nearest_frames(rates, phase_ms, latencies, jitter, offset_ms, anticipate, seed):
    """Every frame of the slower camera has its nearest partner, whichever of the two is slower or arrives later."""
    cameras = {}
    for stream, hz, latency, phase in zip(STREAMS, rates, latencies, (0.0, phase_ms)):
        cameras[stream] = camera(
            stream, hz, seconds=2, phase_ms=phase, latency_ms=latency, jitter_ms=jitter * 1000 / hz, seed=seed
        )
    late = [(now, stream, stamp + offset_ms * MS) for now, stream, stamp in cameras["thermal"]]
    slop = 50 * MS
    pairer = NearestPairer(slop, thermal_offset=offset_ms * MS, deadline=400 * MS, anticipate=anticipate)
    pairs = feed(pairer, cameras["visible"], late)

    slow, fast = sorted(STREAMS, key=lambda stream: rates[STREAMS.index(stream)])
    fast_stamps = [stamp for _, _, stamp in cameras[fast]]
    partner = {getattr(pair, slow).stamp: abs(pair.dt) for pair in pairs}
    if slow == "thermal":
        partner = {stamp - offset_ms * MS: dt for stamp, dt in partner.items()}
    nearest = {stamp: min(abs(stamp - f) for f in fast_stamps) for _, _, stamp in cameras[slow]}
    # A frame before the fast stream's first or after its last may share its nearest with a nearer frame.
    inside = [stamp for stamp in nearest if fast_stamps[0] <= stamp <= fast_stamps[-1]]
    assert {stamp: partner.get(stamp) for stamp in inside} == {stamp: nearest[stamp] for stamp in inside}


streams = st.sampled_from(STREAMS)
# Most stamps go on from the last; a step of 10 gives a duplicate, less a late frame, -900 a jump back.
steps = st.one_of(st.integers(0, 80), st.sampled_from([-900, 900]))
others = st.sampled_from(["poll", "flush", "reset", "invalid"])
operation = st.one_of(
    st.tuples(st.just("add"), streams, steps, st.integers(0, 12)),
    st.tuples(others, streams, st.just(0), st.integers(-20, 30)),  # the caller's clock may be set back
)


@given(
    operations=st.lists(operation, max_size=60),
    slop_ms=st.integers(0, 25),
    deadline_ms=st.one_of(st.none(), st.integers(0, 40)),
    capacity=st.integers(1, 6),
    reuse=st.booleans(),
    anticipate=st.booleans(),
)
@settings(max_examples=500, deadline=None)
def test_whatever_comes_the_ledger_adds_up_and_output_goes_forward(
    operations, slop_ms, deadline_ms, capacity, reuse, anticipate
):
    deadline = None if deadline_ms is None else deadline_ms * MS
    pairer = NearestPairer(slop_ms * MS, deadline=deadline, capacity=capacity, reuse=reuse, anticipate=anticipate)
    now, resets = 0, 0
    stamp = dict.fromkeys(STREAMS, 2 * SECOND)
    last = dict.fromkeys(STREAMS, 0)
    used: set[object] = set()
    for n, (kind, stream, value, wait) in enumerate(operations):
        now += wait * MS
        pairs: list[Pair] = []
        if kind == "add":
            stamp[stream] = max(0, stamp[stream] + (value - 10) * MS)
            pairs = pairer.add(stream, stamp[stream], n, now)
        elif kind == "poll":
            pairs = pairer.poll(now)
        elif kind == "flush":
            pairs = pairer.flush()
        elif kind == "reset":
            pairer.reset()
        else:
            pairer.invalid(stream)
        check_ledger(pairer)
        assert all(table["pending"] <= capacity for table in pairer.ledger.as_dict().values())
        if pairer.resets != resets:
            resets = pairer.resets
            last = dict.fromkeys(STREAMS, 0)
        for pair in pairs:
            assert abs(pair.dt) <= slop_ms * MS
            assert pair.dt == pair.thermal.stamp - pair.visible.stamp
            pair_stamps = {frame.stream: frame.stamp for frame in (pair.visible, pair.thermal)}
            if reuse:
                assert pair_stamps != last
                assert all(pair_stamps[s] >= last[s] for s in STREAMS)
            else:
                assert all(pair_stamps[s] > last[s] for s in STREAMS)
                assert not used & {pair.visible.payload, pair.thermal.payload}
            used |= {pair.visible.payload, pair.thermal.payload}
            last = dict(pair_stamps)
    for pair in pairer.flush():
        used |= {pair.visible.payload, pair.thermal.payload}
    check_ledger(pairer)
    for table in pairer.ledger.as_dict().values():
        assert table["pending"] == 0
    paired = sum(table["paired"] for table in pairer.ledger.as_dict().values())
    assert paired == len(used)


@given(
    st.lists(st.tuples(st.sampled_from(STREAMS), st.integers(1, 30), st.integers(0, 15)), max_size=40),
    st.integers(0, 30),
    st.integers(1, 40),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_no_pair_waits_past_the_deadline(arrivals, slop, deadline, reuse):
    """After `poll`, closing the pairer yields no pair of which both frames came a deadline or longer ago."""
    pairer = NearestPairer(slop, deadline=deadline, reuse=reuse)
    now, stamp = 0, dict.fromkeys(STREAMS, 1000)
    for stream, step, wait in arrivals:
        now += wait
        stamp[stream] += step
        pairer.add(stream, stamp[stream], now, now)
    pairer.poll(now)
    check_ledger(pairer)
    assert all(max(pair.visible.payload, pair.thermal.payload) > now - deadline for pair in pairer.flush())


@given(sorted_stamps, sorted_stamps, st.integers(0, 20), st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
def test_reuse_gives_every_frame_its_nearest(visible, thermal, slop, rng):
    waiting = {"visible": list(visible), "thermal": list(thermal)}
    pairer = NearestPairer(slop, reuse=True, anticipate=False)
    pairs = []
    while any(waiting.values()):
        stream = rng.choice([stream for stream in STREAMS if waiting[stream]])
        pairs += pairer.add(stream, waiting[stream].pop(0), None, 0)
        check_ledger(pairer)
    pairs += pairer.flush()
    wanted = set()
    for mine, others, swap in ((visible, thermal, False), (thermal, visible, True)):
        for a in mine:
            b = min(others, key=lambda other: (abs(other - a), other), default=None)
            if b is not None and abs(a - b) <= slop:
                wanted.add((b, a) if swap else (a, b))
    # Where a frame lies exactly between two, both halves of the tie are nearest; output may not go back for it.
    got = times(pairs)
    assert got == sorted(got)
    assert all(a[1] <= b[1] for a, b in pairwise(got))
    assert set(got) <= wanted
    for stream, others in ((0, thermal), (1, visible)):
        for a in (visible, thermal)[stream]:
            nearest = min((abs(a - b) for b in others), default=slop + 1)
            mine = [abs(v - t) for v, t in got if (v, t)[stream] == a]
            assert (min(mine) == nearest) if nearest <= slop else not mine


def test_visible_40_ms_late_loses_nothing():
    """The case in which a greedy synchronizer pairs 33 ms apart: 30 and 9 Hz, the faster one 40 ms late."""
    for late in STREAMS:
        latency = {"visible": 0.0, "thermal": 0.0, late: 40.0}
        visible = camera("visible", 30, seconds=10, latency_ms=latency["visible"])
        thermal = camera("thermal", 9, seconds=10, latency_ms=latency["thermal"])
        pairer = NearestPairer(50 * MS, deadline=100 * MS)
        pairs = feed(pairer, visible, thermal)
        assert len(pairs) == len(thermal) == 90
        assert sum(abs(pair.dt) for pair in pairs) / len(pairs) < 7.5 * MS


def test_equal_rates_with_15_ms_phase_pair_every_frame():
    pairer = NearestPairer(50 * MS, deadline=100 * MS)
    pairs = feed(pairer, camera("visible", 30), camera("thermal", 30, phase_ms=15, jitter_ms=0.5))
    assert len(pairs) == 120
    assert all(abs(pair.dt - 15 * MS) <= MS for pair in pairs)


def test_slow_stream_costs_no_waiting_for_its_own_next_frame():
    """Visible 30 Hz right after thermal 9 Hz: once the rates are known, a pair is out when its second frame arrives."""
    pairer = NearestPairer(50 * MS, deadline=500 * MS)
    late = 0
    for now, stream, stamp in sorted(camera("visible", 30, phase_ms=5) + camera("thermal", 9)):
        for pair in pairer.add(stream, stamp, now, now):
            late += now > max(pair.visible.payload, pair.thermal.payload) + 34 * MS
    assert late <= 4  # of 36, before the gaps of the streams are known


def test_equal_rates_do_not_wait_for_a_next_frame_that_comes_too_late_to_matter():
    """Thermal 12 ms after visible at 30 Hz: the next visible frame will be 21 ms away, so the pair leaves at once."""
    pairer = NearestPairer(50 * MS, deadline=100 * MS)
    waited = []
    for now, stream, stamp in sorted(camera("visible", 30) + camera("thermal", 30, phase_ms=12)):
        pairs = pairer.add(stream, stamp, now, now)
        waited += [now - max(pair.visible.payload, pair.thermal.payload) for pair in pairs]
    assert len(waited) >= 119
    assert sum(wait > 0 for wait in waited) <= 5, "before the gaps are known"


def test_deadline_emits_what_there_is():
    pairer = NearestPairer(50 * MS, deadline=100 * MS)
    assert pairer.add("visible", SECOND, None, 0) == []
    assert pairer.add("thermal", SECOND + 20 * MS, None, 10 * MS) == []  # a nearer visible frame may follow
    assert pairer.poll(109 * MS) == []
    assert times(pairer.poll(110 * MS)) == [(SECOND, SECOND + 20 * MS)]
    assert pairer.poll(10 * SECOND) == []
    assert counts(pairer, "visible") == {"paired": 1, "received": 1}


def test_deadline_starts_anew_when_the_possible_partner_went_elsewhere():
    pairer = NearestPairer(20, deadline=100)
    for stream, stamp in (("visible", 110), ("thermal", 112), ("thermal", 125)):
        assert pairer.add(stream, stamp, None, 0) == []
    assert times(pairer.add("visible", 113, None, 90)) == [(113, 112)]
    assert pairer.add("visible", 130, None, 95) == []
    assert pairer.poll(194) == []
    assert times(pairer.poll(195)) == [(130, 125)]


def test_frame_passed_over_at_a_deadline_gets_the_next_partner():
    for reuse, expected in ((False, [(110, 113)]), (True, [(110, 111), (110, 113)])):
        pairer = NearestPairer(5, deadline=10, reuse=reuse)
        pairs = pairer.add("visible", 108, None, 0) + pairer.add("thermal", 111, None, 0) + pairer.poll(10)
        assert times(pairs) == [(108, 111)]
        pairs = pairer.add("visible", 110, None, 10) + pairer.add("thermal", 113, None, 10) + pairer.flush()
        assert times(pairs) == expected
        check_ledger(pairer)


def test_reuse_does_not_go_back_for_a_nearer_partner():
    pairer = NearestPairer(50, deadline=10, reuse=True)
    pairs = pairer.add("thermal", 100, None, 0) + pairer.add("visible", 110, None, 0)
    pairs += pairer.add("visible", 120, None, 0) + pairer.poll(10)
    assert times(pairs) == [(110, 100), (120, 100)]
    assert times(pairer.add("thermal", 112, None, 11) + pairer.flush()) == [(120, 112)]


def test_equal_stamps_are_paired_at_once():
    pairer = NearestPairer(0)
    pairer.add("visible", SECOND, "v", 0)
    (pair,) = pairer.add("thermal", SECOND, "t", 0)
    assert (pair.visible.payload, pair.thermal.payload, pair.dt) == ("v", "t", 0)


def test_difference_equal_to_the_slop_is_a_pair():
    for dt, number in ((50 * MS, 1), (50 * MS + 1, 0)):
        pairer = NearestPairer(50 * MS)
        pairs = feed(pairer, [(0, "visible", SECOND), (1, "thermal", SECOND + dt)])
        assert len(pairs) == number


def test_thermal_offset_is_taken_off():
    pairer = NearestPairer(5 * MS, thermal_offset=20 * MS)
    pairs = feed(pairer, camera("visible", 30), [(n, s, t + 20 * MS) for n, s, t in camera("thermal", 30)])
    assert len(pairs) == 120
    assert {pair.dt for pair in pairs} == {0}
    assert all(pair.thermal.stamp - pair.visible.stamp == 20 * MS for pair in pairs)


def test_zero_stamp_duplicate_and_late_frame_are_told_apart():
    pairer = NearestPairer(5 * MS)
    for stamp in (0, SECOND, SECOND, SECOND + 100 * MS, SECOND + 50 * MS, SECOND, SECOND + 200 * MS):
        pairer.add("visible", stamp, None, 0)
        check_ledger(pairer)
    assert counts(pairer, "visible") == {"invalid": 1, "duplicate": 2, "late": 1, "received": 7, "pending": 3}


@pytest.mark.parametrize("seconds", [0.3, 2.0, 10.0])
def test_a_bag_that_loops_goes_on_pairing(seconds):
    """Short bags too, whose jump is smaller than what is taken for a jump at once."""
    pairer = NearestPairer(50 * MS, deadline=100 * MS)
    loops = 5
    pairs = []
    events = sorted(camera("visible", 30, seconds=seconds) + camera("thermal", 30, seconds=seconds, phase_ms=3))
    for loop in range(loops):
        for now, stream, stamp in events:
            pairs += pairer.add(stream, stamp, None, now + loop * round(seconds * SECOND))
            check_ledger(pairer)
    whole = len(events) // 2 * loops
    assert pairer.resets >= loops - 1
    # At every jump both streams lose a few frames until each has shown that it jumped.
    assert len(pairs) >= whole - 5 * loops


def test_one_stamp_far_in_the_future_costs_one_frame():
    pairer = NearestPairer(50 * MS, deadline=100 * MS)
    visible = camera("visible", 30)
    visible[60] = (visible[60][0], "visible", visible[60][2] + 3600 * SECOND)
    pairs = feed(pairer, visible, camera("thermal", 30, phase_ms=1))
    assert len(pairs) >= 116


def test_a_stream_that_stops_costs_no_memory_and_is_picked_up_again():
    """A flat-field correction freezes thermal for 3 s."""
    pairer = NearestPairer(50 * MS, deadline=100 * MS)
    thermal = [event for event in camera("thermal", 9, seconds=10) if not 3 * SECOND < event[2] < 6 * SECOND]
    pending = 0
    pairs = []
    for now, stream, stamp in sorted(camera("visible", 30, seconds=10) + thermal):
        pairs += pairer.add(stream, stamp, None, now)
        pending = max(pending, pairer.ledger.as_dict()["visible"]["pending"])
    pairs += pairer.flush()
    assert pending == DEFAULT_CAPACITY
    assert len(pairs) == len(thermal)
    check_ledger(pairer)


def test_reuse_serves_every_visible_frame():
    visible, thermal = camera("visible", 30, seconds=5), camera("thermal", 9, seconds=5)
    pairer = NearestPairer(60 * MS, deadline=200 * MS, reuse=True)
    pairs = feed(pairer, visible, thermal)
    inside = [stamp for _, _, stamp in visible if stamp <= thermal[-1][2] + 60 * MS]
    assert [pair.visible.stamp for pair in pairs] == inside
    assert all(abs(pair.dt) == min(abs(pair.visible.stamp - t) for _, _, t in thermal) for pair in pairs)


def test_clock_of_the_caller_set_back_still_meets_the_deadline():
    pairer = NearestPairer(50 * MS, deadline=100 * MS)
    pairer.add("visible", SECOND, None, 50 * SECOND)
    pairer.add("thermal", SECOND + 20 * MS, None, 50 * SECOND)
    assert pairer.poll(SECOND) == []
    assert len(pairer.poll(SECOND + 100 * MS)) == 1


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="unknown pairing policy 'closest'"):
        make_pairer("closest", slop=1)
    with pytest.raises(ValueError, match="reuse works with pairing policy 'nearest' only"):
        make_pairer("exact", slop=1, reuse=True)
    for bad in ({"slop": -1}, {"slop": 1, "deadline": -1}, {"slop": 1, "capacity": 0}):
        with pytest.raises(ValueError, match="must be"):
            make_pairer("nearest", **bad)


@pytest.mark.parametrize("policy", ["nearest", "approximate"])
def test_lone_frames_are_counted_once_and_never_go_back(policy):
    """Pairs, then a lost thermal camera, then pairs again; duplicates, late frames and a jump meanwhile."""
    if policy != "nearest":
        pytest.importorskip("message_filters", reason="message_filters is not installed")
    pairer = make_pairer(policy, slop=10 * MS)
    feed(pairer, camera("visible", 10), camera("thermal", 10, phase_ms=2), flush=False)
    pairer.flush()
    check_ledger(pairer)
    start = 10 * SECOND
    apart = make_pairer(policy, slop=10 * MS, thermal_offset=3 * SECOND)
    stamps = [apart.alone(stream, start, None, start).stamp_by("visible") for stream in STREAMS]
    assert stamps == [start, start - 3 * SECOND]
    handed = [pairer.alone("visible", start + n * 100 * MS, n, start) for n in (0, 1, 1, 3, 2, 4)]
    assert [frame.payload if frame else None for frame in handed] == [0, 1, None, 3, None, 4]
    assert pairer.alone("visible", 0, None, start) is None
    assert pairer.alone("visible", start - 3 * SECOND, "jump", start).payload == "jump"
    pairer.invalid("thermal", "frozen")
    check_ledger(pairer)
    seen = counts(pairer, "visible")
    assert (seen["alone"], seen["duplicate"], seen["late"], seen["invalid"]) == (5, 1, 1, 1)
    assert counts(pairer, "thermal")["frozen"] == 1
    resets, waiting = pairer.resets, pairer.add("visible", start + SECOND, None, start)
    pairer.clear()  # as at a deactivate, when no time has jumped
    assert (pairer.resets, waiting, counts(pairer, "visible")["reset"]) == (resets, [], seen.get("reset", 0) + 1)
    later = start - 2 * SECOND
    pairer.add("visible", later, "v", later)
    pairs = [*pairer.add("thermal", later + MS, "t", later), *pairer.flush()]
    assert [(pair.visible.payload, pair.thermal.payload) for pair in pairs] == [("v", "t")]
    check_ledger(pairer)
