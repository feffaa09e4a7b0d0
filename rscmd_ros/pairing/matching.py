"""The matching behind policy `nearest`: one to one, and with reuse. The rule stands in `rscmd_ros.pairing.nearest`.

Both matchers keep the frames not yet decided in order of time and answer, after every frame, one question: which pairs
would no frame still to come change? Frames of one stream come in order, so whatever is still to come of a stream is
newer than its newest. Two frames are a mutual pair when each is the other's nearest; a mutual pair is always in the
matching, and since pairs may not cross, it settles everything older than itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from rscmd_ros.pairing.frames import STREAMS, Frame, History, Ledger, Pair, Stream


@dataclass
class Waiting:
    """A frame in a matcher's window."""

    frame: Frame
    time: int
    """Its stamp with the stream's offset taken off."""
    since: int | None = None
    """The caller's clock when it first had a possible partner; None while it has none."""
    counted: bool = False
    """With reuse: it is in a pair already and stays only as a partner for others."""

    @property
    def stream(self) -> Stream:
        return self.frame.stream


def other(stream: Stream) -> Stream:
    """The stream that is not this one."""
    return "thermal" if stream == "visible" else "visible"


def make_pair(a: Waiting, b: Waiting) -> Pair:
    """The pair of two frames of different streams, given in any order."""
    visible, thermal = (a, b) if a.stream == "visible" else (b, a)
    return Pair(visible.frame, thermal.frame, thermal.time - visible.time)


class Matcher(ABC):
    """What both matchings share: the window of frames, what is known of both streams, and the counting."""

    def __init__(self, *, slop: int, deadline: int | None, capacity: int, anticipate: bool) -> None:
        self.slop = slop
        self.deadline = deadline
        self.capacity = capacity
        self.anticipate = anticipate
        self.ledger = Ledger(self.pending)
        self.window: dict[Stream, list[Waiting]] = {"visible": [], "thermal": []}
        self.history: dict[Stream, History] = {"visible": History(), "thermal": History()}
        self._now: int | None = None

    def clear(self) -> None:
        """Count every frame waiting as `reset` and start anew."""
        for stream in STREAMS:
            self.ledger.count(stream, "reset", self.pending(stream))
        self.window = {"visible": [], "thermal": []}
        self.history = {"visible": History(), "thermal": History()}
        self._now = None

    def pending(self, stream: Stream) -> int:
        """Number of frames that have not yet been counted as anything."""
        return sum(not waiting.counted for waiting in self.window[stream])

    def add(self, frame: Frame, time: int, now: int) -> list[Pair]:
        """Take in a frame newer than all of its stream; return the pairs that are decided."""
        self.history[frame.stream].append(time)
        self.window[frame.stream].append(Waiting(frame, time))
        return self.decide(now)

    @abstractmethod
    def decide(self, now: int) -> list[Pair]:
        """Return the pairs that are certain or due, oldest first."""

    @abstractmethod
    def close(self) -> list[Pair]:
        """Decide everything as if no frame were to follow; the window is empty afterwards."""

    def _clock(self, now: int) -> None:
        """Note the caller's clock; when it was set back, nothing waits longer than from now on."""
        if self._now is not None and now < self._now:
            for waiting in self._frames():
                if waiting.since is not None:
                    waiting.since = min(waiting.since, now)
        self._now = now

    def _frames(self) -> list[Waiting]:
        """The frames of both streams by time, visible first where equal."""
        return sorted(
            [*self.window["visible"], *self.window["thermal"]],
            key=lambda waiting: (waiting.time, waiting.stream == "thermal"),
        )

    def _is_due(self, waiting: Waiting, now: int) -> bool:
        return self.deadline is not None and waiting.since is not None and now - waiting.since >= self.deadline

    def _nothing_before(self, stream: Stream) -> int | None:
        """No frame still to come of this stream is older than this; None when nothing is known."""
        newest = self.history[stream].newest
        if newest is None:
            return None
        return newest + (max(1, self.history[stream].soonest_gap()) if self.anticipate else 1)

    def _count_unpaired(self, waiting: Waiting) -> None:
        within = self.history[other(waiting.stream)].any_within(waiting.time, self.slop)
        self.ledger.count(waiting.stream, "superseded" if within else "too_far")


class OneToOne(Matcher):
    """Every frame is in one pair at most; pairs never cross."""

    def decide(self, now: int) -> list[Pair]:
        """Return the pairs that are certain, due, or forced out by a full window, oldest first."""
        self._clock(now)
        pairs: list[Pair] = []
        while True:
            frames = self._frames()
            at = self._last_certain(frames)
            if at is None:
                break
            # Nothing older can cross it and nothing older is still to come, so all of that is settled too.
            pairs += self._settle(frames, [*self._match(frames[:at]), at])
        self._note_partners(now)
        pairs += self._settle_due(now)
        pairs += self._make_room()
        self._drop_hopeless()
        self._note_partners(now)
        return pairs

    def close(self) -> list[Pair]:
        """Decide everything as if no frame were to follow."""
        frames = self._frames()
        pairs = self._settle(frames, self._match(frames))
        for waiting in self._frames():
            self._count_unpaired(waiting)
        self.window = {"visible": [], "thermal": []}
        return pairs

    def _match(self, frames: Sequence[Waiting]) -> list[int]:
        """Apply the rule to a complete, sorted run of frames: i for every pair (frames[i], frames[i + 1]), ascending.

        The nearest two of different streams have nothing between them, so they are neighbours; taking them splits the
        run into two that cannot touch each other.
        """
        found: list[int] = []
        runs = [(0, len(frames))]
        while runs:
            start, stop = runs.pop()
            best: tuple[int, int] | None = None
            for i in range(start, stop - 1):
                gap = frames[i + 1].time - frames[i].time
                if frames[i].stream != frames[i + 1].stream and gap <= self.slop and (best is None or gap < best[0]):
                    best = (gap, i)
            if best is not None:
                found.append(best[1])
                runs += [(start, best[1]), (best[1] + 2, stop)]
        return sorted(found)

    def _last_certain(self, frames: Sequence[Waiting]) -> int | None:
        """Index of the newest neighbours that are each other's nearest, whatever is still to come; None if none are."""
        for i in range(len(frames) - 2, -1, -1):
            early, late = frames[i], frames[i + 1]
            gap = late.time - early.time
            if early.stream == late.stream or gap > self.slop:
                continue
            # Of equal gaps the earlier wins, as in _match.
            before = next((f.time for f in reversed(frames[:i]) if f.stream == late.stream), None)
            after = next((f.time for f in frames[i + 2 :] if f.stream == early.stream), None)
            if (before is None or early.time - before > gap) and (after is None or after - late.time >= gap):
                coming = self._nothing_before(early.stream)
                if gap == 0 or after is not None or (coming is not None and coming - late.time >= gap):
                    return i
        return None

    def _settle(self, frames: Sequence[Waiting], matched: Sequence[int]) -> list[Pair]:
        """Emit the pairs at these indexes; what is older than the last of them and unpaired is superseded."""
        if not matched:
            return []
        taken = {index for i in matched for index in (i, i + 1)}
        for index, waiting in enumerate(frames[: matched[-1] + 2]):
            if index in taken:
                self.ledger.count(waiting.stream, "paired")
            else:
                self._count_unpaired(waiting)
        rest = frames[matched[-1] + 2 :]
        self.window = {stream: [f for f in rest if f.stream == stream] for stream in STREAMS}
        return [make_pair(frames[i], frames[i + 1]) for i in matched]

    def _settle_due(self, now: int) -> list[Pair]:
        if self.deadline is None:
            return []
        frames = self._frames()
        matched = self._match(frames)
        due = [n for n, i in enumerate(matched) if self._is_due(frames[i], now) or self._is_due(frames[i + 1], now)]
        return self._settle(frames, matched[: due[-1] + 1]) if due else []

    def _make_room(self) -> list[Pair]:
        """Decide the oldest frame of a stream that has more than `capacity` waiting."""
        pairs: list[Pair] = []
        for stream in STREAMS:
            while len(self.window[stream]) > self.capacity:
                frames = self._frames()
                oldest = self.window[stream][0]
                matched = self._match(frames)
                holding = [n for n, i in enumerate(matched) if frames[i] is oldest or frames[i + 1] is oldest]
                if holding:
                    pairs += self._settle(frames, matched[: holding[0] + 1])
                else:
                    self._count_unpaired(self.window[stream].pop(0))
        return pairs

    def _drop_hopeless(self) -> None:
        """Let go of frames that have no partner within the slop and can get none any more."""
        for stream in STREAMS:
            partners = [f.time for f in self.window[other(stream)]]
            newest = self.history[other(stream)].newest
            keep = []
            for waiting in self.window[stream]:
                at = bisect_left(partners, waiting.time - self.slop)
                has_one = at < len(partners) and partners[at] <= waiting.time + self.slop
                if has_one or newest is None or newest < waiting.time + self.slop:
                    keep.append(waiting)
                else:
                    self._count_unpaired(waiting)
            self.window[stream] = keep

    def _note_partners(self, now: int) -> None:
        """Start the clock of frames that have got a possible partner, stop it where the last one went elsewhere."""
        for stream in STREAMS:
            partners = [f.time for f in self.window[other(stream)]]
            for waiting in self.window[stream]:
                at = bisect_left(partners, waiting.time - self.slop)
                if at < len(partners) and partners[at] <= waiting.time + self.slop:
                    waiting.since = now if waiting.since is None else waiting.since
                else:
                    waiting.since = None


class Reusing(Matcher):
    """Every frame is paired with its nearest partner, however often that one has served; output never goes back.

    A frame that was chosen by others stays in the window, counted, until nothing to come can choose it.
    """

    def __init__(self, *, slop: int, deadline: int | None, capacity: int, anticipate: bool) -> None:
        super().__init__(slop=slop, deadline=deadline, capacity=capacity, anticipate=anticipate)
        self._settled: dict[Stream, int | None] = dict.fromkeys(STREAMS)
        self._last: dict[Stream, int | None] = dict.fromkeys(STREAMS)

    def clear(self) -> None:
        """Count every frame waiting as `reset` and start anew."""
        super().clear()
        self._settled = dict.fromkeys(STREAMS)
        self._last = dict.fromkeys(STREAMS)

    def decide(self, now: int) -> list[Pair]:
        """Return the pairs that are certain, due, or forced out by a full window, oldest first."""
        self._clock(now)
        for stream in STREAMS:
            for waiting in self._unsettled(stream):
                if waiting.since is None and self._nearest(waiting) is not None:
                    waiting.since = now
        pairs = self._settle({stream: self._settled_until(stream, now) for stream in STREAMS})
        self._drop_used()
        return pairs

    def close(self) -> list[Pair]:
        """Decide everything as if no frame were to follow."""
        pairs = self._settle({stream: len(self.window[stream]) for stream in STREAMS})
        self.window = {"visible": [], "thermal": []}
        return pairs

    def _unsettled(self, stream: Stream) -> list[Waiting]:
        settled = self._settled[stream]
        return [f for f in self.window[stream] if settled is None or f.time > settled]

    def _settled_until(self, stream: Stream, now: int) -> int:
        """How many frames of the window, oldest first, have a nearest partner that can or may not change any more."""
        frames = self.window[stream]
        newest = self.history[other(stream)].newest
        coming = self._nothing_before(other(stream))
        until = max(0, len(frames) - self.capacity)
        for n, waiting in enumerate(frames):
            certain = (
                newest is not None
                and coming is not None
                and (newest >= waiting.time or coming - waiting.time >= waiting.time - newest)
            )
            if certain or self._is_due(waiting, now):
                until = max(until, n + 1)
        return until

    def _nearest(self, waiting: Waiting) -> Waiting | None:
        """The nearest frame of the other stream within the slop that does not go back behind the last output."""
        last = self._last[other(waiting.stream)]
        partners = [f for f in self.window[other(waiting.stream)] if last is None or f.time >= last]
        best = min(partners, key=lambda f: (abs(f.time - waiting.time), f.time), default=None)
        return best if best is not None and abs(best.time - waiting.time) <= self.slop else None

    def _settle(self, until: dict[Stream, int]) -> list[Pair]:
        """Decide about the first so many frames of each stream: the pairs, oldest first."""
        pairs = [
            make_pair(visible, thermal) for visible, thermal in self._chosen(until) if self._take(visible, thermal)
        ]
        for stream in STREAMS:
            self._let_go(stream, until[stream])
        return pairs

    def _chosen(self, until: dict[Stream, int]) -> list[tuple[Waiting, Waiting]]:
        """Those frames with their nearest partners, as (visible, thermal), oldest first; frames settled before not."""
        chosen: list[tuple[Waiting, Waiting]] = []
        for stream in STREAMS:
            settled = self._settled[stream]
            for waiting in self.window[stream][: until[stream]]:
                if settled is not None and waiting.time <= settled:
                    continue
                if (partner := self._nearest(waiting)) is not None:
                    chosen.append((waiting, partner) if stream == "visible" else (partner, waiting))
        return sorted(chosen, key=lambda two: (two[0].time, two[1].time))

    def _take(self, visible: Waiting, thermal: Waiting) -> bool:
        """Make these two the last output and count them; False where output would stand still or go back."""
        last_v, last_t = self._last["visible"], self._last["thermal"]
        if last_v is not None and last_t is not None:
            known = (visible.time, thermal.time) == (last_v, last_t)
            if known or visible.time < last_v or thermal.time < last_t:
                return False
        self._last = {"visible": visible.time, "thermal": thermal.time}
        for waiting in (visible, thermal):
            if not waiting.counted:
                waiting.counted = True
                self.ledger.count(waiting.stream, "paired")
        return True

    def _let_go(self, stream: Stream, until: int) -> None:
        """Note that the first so many frames of a stream are settled; those that found no partner leave the window."""
        done, rest = self.window[stream][:until], self.window[stream][until:]
        for waiting in done:
            self._settled[stream] = waiting.time
            if not waiting.counted:
                self._count_unpaired(waiting)
        self.window[stream] = [waiting for waiting in done if waiting.counted] + rest

    def _drop_used(self) -> None:
        """Keep of the settled frames only the newest that may still be the nearest of a frame to come."""
        for stream in STREAMS:
            waiting_there = self._unsettled(other(stream))
            newest_there = self.history[other(stream)].newest
            bound = waiting_there[0].time if waiting_there else newest_there
            frames = self.window[stream]
            settled = self._settled[stream]
            first = 0
            for n, frame in enumerate(frames):
                if bound is not None and frame.time <= bound and settled is not None and frame.time <= settled:
                    first = n
            self.window[stream] = frames[first:]
