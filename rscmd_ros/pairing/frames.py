"""What pairing is made of: frames, pairs, the ledger of what became of every frame, and what is known about time.

Plain Python without ROS; all times are integer nanoseconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Stream = Literal["visible", "thermal"]
Counter = Literal["paired", "alone", "too_far", "superseded", "late", "duplicate", "frozen", "invalid", "reset"]

STREAMS: tuple[Stream, Stream] = ("visible", "thermal")

COUNTERS: tuple[Counter, ...] = (
    "paired",
    "alone",
    "too_far",
    "superseded",
    "late",
    "duplicate",
    "frozen",
    "invalid",
    "reset",
)
"""What can become of a frame; every frame received ends in exactly one.

paired      it is in a pair that was emitted (with `reuse`: in one or more)
alone       the other camera was lost, and this one was handed out without a partner
too_far     no frame of the other stream lay within the slop while this one was kept
superseded  a frame of the other stream lay within the slop, but it went to a nearer frame, or output had moved past
late        its stamp is older than the newest of its own stream
duplicate   its stamp was seen before
frozen      its camera repeated one and the same picture, so it was set aside
invalid     it cannot be used: the stamp is zero or negative, or the image was refused
reset       it was waiting when time jumped back or the pairer was reset
"""

JUMP_BACK = 500_000_000
"""A stamp this much older than the newest of its stream means that time jumped back (a bag looped, a clock was set)."""

LATE_RUN = 3
"""So many old frames one after the other, in order among themselves, mean the same even when the jump is smaller."""

_HISTORY = 512


@dataclass(frozen=True)
class Frame:
    """One image.

    Attributes:
        stream: that it came on.
        stamp: of its header, ns.
        payload: whatever the caller wants back.
        offset: how late thermal stamps were taken to be when it was handed out alone, ns. (Of a pair its dt tells.)
    """

    stream: Stream
    stamp: int
    payload: object
    offset: int = 0

    def stamp_by(self, camera: Stream) -> int:
        """Its stamp by the clock of a camera, ns, as far as the offset tells."""
        if camera == self.stream:
            return self.stamp
        return self.stamp - self.offset if camera == "visible" else self.stamp + self.offset


@dataclass(frozen=True)
class Arrival:
    """What the node has as the payload of a frame.

    Attributes:
        msg: the message, sensor_msgs/Image or CompressedImage.
        at: when it came, ns of the steady clock.
    """

    msg: Any
    at: int


@dataclass(frozen=True)
class Pair:
    """Two frames that belong together.

    Attributes:
        visible: the one frame.
        thermal: the other.
        dt: thermal stamp, its offset taken off, minus visible stamp, ns.
    """

    visible: Frame
    thermal: Frame
    dt: int


class Ledger:
    """Counts what became of every frame received.

    Args:
        pending: tells how many frames of a stream wait at the moment. They are not counted here, so that
            `received == sum(counters) + pending` can fail where the pairer is wrong.
    """

    def __init__(self, pending: Callable[[Stream], int]) -> None:
        self._pending = pending
        self._received: dict[Stream, int] = dict.fromkeys(STREAMS, 0)
        self._counts: dict[Stream, dict[Counter, int]] = {stream: dict.fromkeys(COUNTERS, 0) for stream in STREAMS}

    def received(self, stream: Stream) -> None:
        """Count one frame received."""
        self._received[stream] += 1

    def count(self, stream: Stream, counter: Counter, n: int = 1) -> None:
        """Count what became of `n` frames."""
        self._counts[stream][counter] += n

    def as_dict(self) -> dict[str, dict[str, int]]:
        """For each stream every counter of `COUNTERS`, `received` and `pending`."""
        table: dict[str, dict[str, int]] = {}
        for stream in STREAMS:
            table[stream] = {str(counter): n for counter, n in self._counts[stream].items()}
            table[stream]["received"] = self._received[stream]
            table[stream]["pending"] = self._pending(stream)
        return table


class TimeJumps:
    """Tells, for one stream, a frame that is merely late from time having jumped back."""

    def __init__(self) -> None:
        self.newest: int | None = None
        self._last_late: int | None = None
        self._run = 0

    def judge(self, time: int) -> Literal["new", "same", "late", "jump"]:
        """Classify a frame by its time and remember it.

        Args:
            time: ns, the offset taken off.

        Returns:
            Whether it is new, repeats the newest time, is late, or shows that time has jumped back. After "jump" the
            caller resets and calls again.
        """
        if self.newest is None or time > self.newest:
            self.newest = time
            self._last_late, self._run = None, 0
            return "new"
        if time == self.newest:
            return "same"
        in_order = self._last_late is None or time > self._last_late
        self._run = self._run + 1 if in_order else 1
        self._last_late = time
        return "jump" if self.newest - time >= JUMP_BACK or self._run >= LATE_RUN else "late"


class Pairer(ABC):
    """What every pairing policy can do. Calls come from one thread at a time.

    Args:
        thermal_offset: how late thermal stamps are, ns; taken off before anything is compared.
        pending: tells how many frames of a stream are waiting.
    """

    def __init__(self, thermal_offset: int, pending: Callable[[Stream], int]) -> None:
        self.ledger = Ledger(pending)
        self.resets = 0
        """How often time has started anew, by a jump back or by `reset`."""
        self._offset = thermal_offset
        self._forget_time()

    @abstractmethod
    def add(self, stream: Stream, stamp: int, payload: Any, now: int) -> list[Pair]:
        """Take in a frame.

        Args:
            stream: that it came on.
            stamp: of its header, ns.
            payload: whatever is wanted back with its pair.
            now: ns of any clock, the same one as for `poll`.

        Returns:
            The pairs that this decides, oldest first.
        """

    @abstractmethod
    def poll(self, now: int) -> list[Pair]:
        """Return the pairs whose deadline has come."""

    @abstractmethod
    def flush(self) -> list[Pair]:
        """Decide everything: no frame will follow. Afterwards nothing is pending."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all frames waiting (each counted `reset`) and everything known about time."""

    def reset(self) -> None:
        """Begin anew because time did: `clear`, and counted in `resets`."""
        self.resets += 1
        self.clear()

    def alone(self, stream: Stream, stamp: int, payload: Any, now: int) -> Frame | None:
        """Take in a frame for which no partner is to be waited for.

        Frames still waiting stay so: whoever changes from pairs to lone frames calls `flush` first.

        Args:
            stream, stamp, payload, now: as for `add`.

        Returns:
            The frame; None when it is late, a duplicate or invalid.
        """
        self.ledger.received(stream)
        if stamp <= 0:
            self.ledger.count(stream, "invalid")
            return None
        verdict = self._judge(stream, self._time(stream, stamp))
        if verdict != "new":
            self.ledger.count(stream, "duplicate" if verdict == "same" else "late")
            return None
        self.ledger.count(stream, "alone")
        return Frame(stream, stamp, payload, self._offset)

    def invalid(self, stream: Stream, counter: Counter = "invalid") -> None:
        """Count a frame that was received but cannot be used.

        Args:
            stream: that it came on.
            counter: says why.
        """
        self.ledger.received(stream)
        self.ledger.count(stream, counter)

    def _time(self, stream: Stream, stamp: int) -> int:
        """A stamp with the stream's offset taken off."""
        return stamp - self._offset if stream == "thermal" else stamp

    def _judge(self, stream: Stream, time: int) -> Literal["new", "same", "late"]:
        """How a frame lies to those before it of its stream; where time has jumped back, everything is reset first."""
        verdict = self._jumps[stream].judge(time)
        if verdict != "jump":
            return verdict
        self.reset()
        self._jumps[stream].judge(time)
        return "new"

    def _forget_time(self) -> None:
        self._jumps = {stream: TimeJumps() for stream in STREAMS}


class History:
    """The times of the last frames of one stream, in order, whatever became of them."""

    def __init__(self) -> None:
        self._times: list[int] = []
        self._gaps: deque[int] = deque(maxlen=16)

    def append(self, time: int) -> None:
        """Remember a time greater than all before."""
        if self._times:
            self._gaps.append(time - self._times[-1])
        self._times.append(time)
        if len(self._times) > 2 * _HISTORY:
            del self._times[:_HISTORY]

    def insert(self, time: int) -> None:
        """Remember a time that need not be the greatest; it says nothing about gaps."""
        at = bisect_left(self._times, time)
        if at == len(self._times) or self._times[at] != time:
            self._times.insert(at, time)
        if len(self._times) > 2 * _HISTORY:
            del self._times[:_HISTORY]

    @property
    def newest(self) -> int | None:
        """The last time remembered."""
        return self._times[-1] if self._times else None

    def __contains__(self, time: int) -> bool:
        at = bisect_left(self._times, time)
        return at < len(self._times) and self._times[at] == time

    def any_within(self, time: int, slop: int) -> bool:
        """Whether a frame lies within `slop` of `time`."""
        at = bisect_left(self._times, time - slop)
        return at < len(self._times) and self._times[at] <= time + slop

    def soonest_gap(self) -> int:
        """A gap to the next frame that is safe to count on: 3/4 of the smallest recent one; 0 before it is known."""
        return min(self._gaps) * 3 // 4 if len(self._gaps) >= 4 else 0
