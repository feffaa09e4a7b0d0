"""Policies `approximate` and `exact`: the standard message_filters classes as pairers with a ledger.

The classes decide alone, as they do in any other node: `approximate` pairs greedily with whatever lies within the slop
(less than it: a difference equal to the slop is refused, so slop 0 never pairs) when a message arrives, and its output
may go back in time. What they drop silently is found by looking into their queues after every message. One thing is
added: when time jumps back their queues are emptied, because on their own they would pair nothing until the old stamps
are gone.
"""

from __future__ import annotations

from typing import Any

import message_filters
from builtin_interfaces.msg import Time

from rscmd_ros.pairing.frames import STREAMS, Frame, History, Pair, Pairer, Stream

_NS = 1_000_000_000


class _Header:
    def __init__(self, time: int) -> None:
        self.stamp = Time(sec=time // _NS, nanosec=time % _NS)


class _Carrier:
    """What travels through message_filters: a header with the offset-corrected stamp, and the frame."""

    def __init__(self, frame: Frame, time: int) -> None:
        self.header = _Header(time)
        self.frame = frame
        self.time = time


class StandardPairer(Pairer):
    """A message_filters synchronizer as a pairer.

    Args:
        policy: "approximate" (ApproximateTimeSynchronizer) or "exact" (TimeSynchronizer; `slop` is then 0).
        slop: ns, see the module's docstring.
        thermal_offset: how late thermal stamps are, ns; taken off before message_filters sees them.
        capacity: its queue_size.
    """

    def __init__(self, policy: str, *, slop: int, thermal_offset: int, capacity: int) -> None:
        self._slop = slop if policy == "approximate" else 0
        self._inputs = {stream: message_filters.SimpleFilter() for stream in STREAMS}
        filters = list(self._inputs.values())
        self._sync = (
            message_filters.ApproximateTimeSynchronizer(filters, capacity, slop / _NS)
            if policy == "approximate"
            else message_filters.TimeSynchronizer(filters, capacity)
        )
        self._sync.registerCallback(self._paired)
        self._matched: list[tuple[_Carrier, _Carrier]] = []
        self._waiting: dict[Stream, dict[int, _Carrier]] = {stream: {} for stream in STREAMS}
        super().__init__(thermal_offset, lambda stream: len(self._waiting[stream]))

    def add(self, stream: Stream, stamp: int, payload: Any, now: int) -> list[Pair]:
        """Hand a frame over and return the pairs that message_filters made of it; `now` is not used."""
        self.ledger.received(stream)
        time = self._time(stream, stamp)
        # A builtin_interfaces stamp cannot hold a time before 1970 or after 2038.
        if stamp <= 0 or not 0 < time < (1 << 31) * _NS:
            self.ledger.count(stream, "invalid")
            return []
        self._judge(stream, time)
        if time in self._waiting[stream]:
            # message_filters would replace the waiting frame by this one, which comes to the same.
            self.ledger.count(stream, "duplicate")
            return []
        self._history[stream].insert(time)
        carrier = _Carrier(Frame(stream, stamp, payload), time)
        self._waiting[stream][time] = carrier
        self._inputs[stream].signalMessage(carrier)
        return self._take_stock()

    def poll(self, now: int) -> list[Pair]:
        """Nothing: these policies know no deadline."""
        return []

    def flush(self) -> list[Pair]:
        """Count what is still in the queues as unpaired."""
        for queue in self._sync.queues:
            queue.clear()
        return self._take_stock()

    def clear(self) -> None:
        """Empty the queues, each frame counted `reset`."""
        for stream, queue in zip(STREAMS, self._sync.queues):
            self.ledger.count(stream, "reset", len(self._waiting[stream]))
            self._waiting[stream].clear()
            queue.clear()
        self._forget_time()

    def _forget_time(self) -> None:
        super()._forget_time()
        self._history = {stream: History() for stream in STREAMS}

    def _paired(self, visible: _Carrier, thermal: _Carrier) -> None:
        # Called with the synchronizer's lock held: an exception here would leave it locked for good.
        self._matched.append((visible, thermal))

    def _take_stock(self) -> list[Pair]:
        """Compare the synchronizer's queues with the frames handed over and count those that are gone."""
        matched, self._matched = self._matched, []
        for carriers in matched:
            for carrier in carriers:
                del self._waiting[carrier.frame.stream][carrier.time]
                self.ledger.count(carrier.frame.stream, "paired")
        for stream, partner, queue in zip(STREAMS, reversed(STREAMS), self._sync.queues):
            for time in [time for time in self._waiting[stream] if time not in queue]:
                del self._waiting[stream][time]
                within = self._history[partner].any_within(time, self._slop)
                self.ledger.count(stream, "superseded" if within else "too_far")
        return [Pair(visible.frame, thermal.frame, thermal.time - visible.time) for visible, thermal in matched]
