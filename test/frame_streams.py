"""Sequences of frames as cameras make them, and the ledger checked after each; for the tests of pairing."""

from __future__ import annotations

import random
from collections.abc import Iterable

from rscmd_ros.pairing.frames import COUNTERS, Pair, Pairer, Stream

MS = 1_000_000
SECOND = 1000 * MS

Event = tuple[int, Stream, int]
"""(when it arrives, stream, stamp), all ns."""


def check_ledger(pairer: Pairer) -> None:
    for stream, counts in pairer.ledger.as_dict().items():
        assert counts["received"] == sum(counts[counter] for counter in COUNTERS) + counts["pending"], (stream, counts)
        assert all(n >= 0 for n in counts.values()), (stream, counts)


def counts(pairer: Pairer, stream: Stream) -> dict[str, int]:
    """The counters that are not 0."""
    return {name: n for name, n in pairer.ledger.as_dict()[stream].items() if n}


def times(pairs: Iterable[Pair]) -> list[tuple[int, int]]:
    return [(pair.visible.stamp, pair.thermal.stamp) for pair in pairs]


def camera(
    stream: Stream,
    hz: float,
    *,
    seconds: float = 4.0,
    phase_ms: float = 0,
    latency_ms: float = 0,
    jitter_ms: float = 0,
    seed: int = 0,
) -> list[Event]:
    """A free-running camera; its jitter is of the stamps and leaves their order alone."""
    rng = random.Random(f"{stream}{seed}")
    events = []
    for n in range(int(seconds * hz)):
        stamp = SECOND + round((n / hz * 1000 + phase_ms + rng.uniform(-jitter_ms, jitter_ms)) * MS)
        events.append((stamp + round(latency_ms * MS), stream, stamp))
    return events


def feed(pairer: Pairer, *streams: Iterable[Event], flush: bool = True) -> list[Pair]:
    pairs = []
    for now, stream, stamp in sorted(event for events in streams for event in events):
        pairs += pairer.add(stream, stamp, stamp, now)
        check_ledger(pairer)
    if flush:
        pairs += pairer.flush()
        check_ledger(pairer)
    return pairs
