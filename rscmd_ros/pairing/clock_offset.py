"""By how much thermal stamps are late against visible ones, estimated from stamps and arrival times. Plain Python.

What can be seen: for every frame, arrival minus stamp is the camera's latency less the error of its clock. The smallest
of a second is the latency floor, free of queues and scheduling. The difference of the two floors is

    clock offset of thermal against visible  +  latency floor of visible  -  latency floor of thermal

What cannot: the two summands apart. Stamps that are 30 ms late, and images that come 30 ms sooner, look the same from
here. Latency floors of cameras differ by tens of ms, so an estimate within `LATENCY_DOUBT` may be nothing but that; one
beyond it (a clock never set, a time zone, stamps since boot) is surely an offset, known to within the difference of the
latencies. A camera that stamps on arrival hides its latency and its offset alike. Nor can the phase tell: the |dt| to
the nearest frame, constant between cameras of equal rate, is an error of the stamps only when both are triggered by one
signal; of free-running cameras it is the true time between exposures.
"""

from __future__ import annotations

import statistics
from collections import deque

from rscmd_ros.pairing.frames import STREAMS, Stream

LATENCY_DOUBT = 200_000_000
"""ns; a smaller estimate may come from the cameras' different latencies alone and is no ground to shift stamps."""

_DOUBT_ONCE_IN_USE = LATENCY_DOUBT // 2
"""ns; the estimate moves by some ms all the time, and one that lies at the doubt would come and go."""

_BLOCK = 1_000_000_000
_BLOCKS = 10
_ENOUGH = 3


class ClockOffset:
    """The floors of both streams in each of the last ten seconds, and the median of their differences.

    The lower median: a difference that was seen, and no mean of two. A single wrong stamp (or a loop of a bag) spoils
    only the floor of the second it falls into. After one of the clocks was set, the estimate follows within some six
    seconds.
    """

    def __init__(self) -> None:
        self._differences: deque[int] = deque(maxlen=_BLOCKS)
        self._floors: dict[Stream, int] = {}
        self._last_stamp: dict[Stream, int] = {}
        self._block: int | None = None

    def add(self, stream: Stream, stamp_ns: int, arrival_ns: int) -> None:
        """Take in a frame.

        Args:
            stream: that it came on.
            stamp_ns: of its header, as it is.
            arrival_ns: when it came, on any clock common to both streams.

        A stamp of zero or the one before once more (a frozen camera) says nothing and is left out. An arrival clock
        that goes back starts everything anew.
        """
        block = arrival_ns // _BLOCK
        if self._block is not None and block < self._block:
            self.reset()
        if block != self._block:
            self._close_block()
            self._block = block
        if stamp_ns <= 0 or stamp_ns == self._last_stamp.get(stream):
            return
        self._last_stamp[stream] = stamp_ns
        delay = arrival_ns - stamp_ns
        self._floors[stream] = min(delay, self._floors.get(stream, delay))

    def estimate(self) -> int | None:
        """ns by which thermal stamps are late, as `thermal_offset` of pairing wants it; None in the first seconds.

        See the module for what it is worth: the cameras' latencies are in it.
        """
        return statistics.median_low(self._differences) if len(self._differences) >= _ENOUGH else None

    def correction(self, manual: int, in_use: int, tolerance: int) -> int:
        """What to take off thermal stamps: the estimate where it is surely an offset.

        Args:
            manual: the offset that the user set, ns; taken where the estimate may be latency alone.
            in_use: what is taken off at the moment, ns.
            tolerance: how far `in_use` may be from the estimate, which moves a little all the time, ns.

        Returns:
            The offset, ns.
        """
        estimate = self.estimate()
        doubt = LATENCY_DOUBT if in_use == manual else _DOUBT_ONCE_IN_USE
        if estimate is None or abs(estimate - manual) <= doubt:
            return manual
        return in_use if abs(estimate - in_use) <= tolerance else estimate

    def reset(self) -> None:
        """Forget everything."""
        self._differences.clear()
        self._floors = {}
        self._last_stamp = {}
        self._block = None

    def _close_block(self) -> None:
        """Note the difference of a second in which both streams came."""
        if len(self._floors) == len(STREAMS):
            self._differences.append(self._floors["visible"] - self._floors["thermal"])
        self._floors = {}
