"""Which camera answers while the other one is lost: a state machine without ROS. All times are integer ns of one clock.

A camera is lost once it has shown nothing new for the timeout (silent, or repeating one and the same picture) while the
other went on. Three of its own periods are allowed at least, once four of them are known, so that a slow camera is not
taken for a lost one. Two cameras that repeat their pictures together show a world without movement, and neither is
lost.

A thermal camera closes its shutter now and then to correct its image (flat-field correction): it repeats a picture or
sends nothing, for some 3 s at most. So the first seconds of a loss are called `shutter`, unless its publisher is gone.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

import numpy as np

from rscmd_ros.pairing.frames import STREAMS, Stream

Mode = Literal["fused", "visible", "thermal", "none"]
Health = Literal["never", "live", "shutter", "silent", "frozen", "refused"]
Fate = Literal["pair", "alone", "frozen"]

FALLBACKS = ("both", "visible", "thermal", "hold", "off")

_SECOND = 1_000_000_000
_LONGEST_STEP = 10 * _SECOND
"""A clock that moves on by more between two looks has jumped: the clock of a bag begins so."""
_SAMPLE_STEP = 61
"""Every so manyth byte of a picture is looked at: a prime, so that it is not always the same column or channel."""


def fingerprint(data: Any) -> int:
    """A number that two different pictures hardly share. `data` is any buffer; some 20 microseconds a megabyte."""
    return zlib.crc32(np.frombuffer(data, np.uint8)[::_SAMPLE_STEP].tobytes()) if len(data) else 0


class StreamWatch:
    """When one stream's frames came, and when it last showed something new."""

    def __init__(self) -> None:
        self.fresh: int | None = None
        """When the newest picture that differs from the one before came; None before the first."""
        self.arrival: int | None = None
        """When the newest usable frame came, new picture or not."""
        self.refused: int | None = None
        """When the newest frame that cannot be used came."""
        self.live_since = 0
        """When the present run of fresh pictures began."""
        self.has_publisher = True
        """What the graph says; without a publisher a gap is no shutter."""
        self._print: int | None = None
        self._arrivals: deque[int] = deque(maxlen=256)
        self._gaps: deque[int] = deque(maxlen=16)
        self._period: float = 0

    def arrived(self, now: int, picture: int, timeout: int) -> bool:
        """Note a usable frame.

        Args:
            now: ns.
            picture: its `fingerprint`.
            timeout: how long the stream may show nothing new, ns.

        Returns:
            Whether it ends a loss of the stream.
        """
        lost = self.fresh is not None and now - self.fresh > self.patience(timeout)
        repeated = self.arrival != self.fresh
        self.arrival = now
        self._arrivals.append(now)
        if picture == self._print:
            return False
        if self.fresh is None or lost:
            self.live_since = now
        # A gap that counted as a loss may be the period of a slow camera; the median bears with those that are none.
        # It is none for sure where the picture was repeated meanwhile.
        if self.fresh is not None and not (lost and repeated):
            self._gaps.append(now - self.fresh)
            self._period = median(self._gaps) if len(self._gaps) >= 4 else 0
        self.fresh, self._print = now, picture
        return lost

    def patience(self, timeout: int) -> int:
        """How long the stream may show nothing new: the timeout, or three of its usual periods."""
        return max(timeout, round(3 * self._period))

    def is_live(self, now: int, timeout: int) -> bool:
        """Whether it has shown something new of late."""
        return self.fresh is not None and now - self.fresh <= self.patience(timeout)

    def is_arriving(self, now: int, timeout: int) -> bool:
        """Whether frames come, new pictures or not."""
        return self.arrival is not None and now - self.arrival <= self.patience(timeout)

    def rate(self, now: int) -> float:
        """Usable frames per second, over the last five seconds."""
        recent = [at for at in self._arrivals if now - at <= 5 * _SECOND]
        return (
            (len(recent) - 1) * _SECOND / (recent[-1] - recent[0])
            if len(recent) > 1 and recent[-1] > recent[0]
            else 0.0
        )


class Fallback:
    """Decides what becomes of each frame and which mode the detector is in.

    Args:
        fallback: what may answer for a lost camera, one of `FALLBACKS`; parameter `fallback` tells the meanings.
        timeout: how long a stream may show nothing new, ns.
        shutter: how long a thermal shutter takes at most, ns.
        branches: the modalities that the model can answer for alone.
        now: when watching starts, ns.
    """

    def __init__(self, fallback: str, *, timeout: int, shutter: int, branches: Sequence[str], now: int) -> None:
        self.configure(fallback, timeout, shutter)
        self.branches = tuple(branches)
        self.shutters = 0
        """Losses of the thermal stream that ended as a shutter's does."""
        self.losses: dict[Stream, int] = dict.fromkeys(STREAMS, 0)
        """All other losses that ended."""
        self.restart(now, "the node became active")

    def configure(self, fallback: str, timeout: int, shutter: int) -> None:
        """Change the rules; what is known of the streams stays."""
        self.fallback, self.timeout, self.shutter = fallback, timeout, shutter

    def restart(self, now: int, why: str) -> None:
        """Forget the streams and begin to watch.

        Args:
            now: ns.
            why: what happened, as "the node became active".
        """
        self.watch: dict[Stream, StreamWatch] = {stream: StreamWatch() for stream in STREAMS}
        self.mode: Mode = "none"
        self.survivor: Stream | None = None
        self.since = self._now = now
        """When watching began."""
        self._why = why

    def frame(self, stream: Stream, picture: int, now: int) -> Fate:
        """Note a usable frame; `mode` and `survivor` are up to date afterwards.

        Args:
            stream: that it came on.
            picture: its `fingerprint`.
            now: ns.

        Returns:
            What is to become of it. "pair": it goes into pairing. "alone": this camera's own branch answers it.
            "frozen": the picture is an old one of a camera taken for lost, and must not be paired.
        """
        self.update(now)
        watch = self.watch[stream]
        was_fresh = watch.fresh
        if watch.arrived(now, picture, self.timeout) and was_fresh is not None:
            if stream == "thermal" and now - was_fresh <= self.shutter and watch.has_publisher:
                self.shutters += 1
            else:
                self.losses[stream] += 1
        self.update(now)
        if self.survivor is None:
            return "pair"
        if stream != self.survivor:
            return "frozen"
        return "alone" if self.mode == stream else "pair"

    def refuse(self, stream: Stream, now: int) -> None:
        """Note a frame that cannot be used: it does not keep the stream alive."""
        self.watch[stream].refused = now
        self.update(now)

    def update(self, now: int) -> None:
        """Bring `mode` and `survivor` up to date."""
        if not 0 <= (step := now - self._now) < _LONGEST_STEP:
            self.restart(now, f"time jumped by {step / _SECOND:.0f} s (the process was stopped, or its clock was set)")
        self._now = now
        self.survivor = self._find_survivor(now)
        if self.survivor is not None:
            self.mode = self.survivor if self._may_answer(self.survivor) else "none"
        elif all(watch.is_arriving(now, self.timeout) for watch in self.watch.values()):
            self.mode = "fused"
        elif not any(watch.is_arriving(now, self.timeout) for watch in self.watch.values()):
            self.mode = "none"
        elif self.mode != "fused" or self.fallback == "off" or not self._any_live(now):
            self.mode = "none"  # otherwise the other one is about to be counted as lost

    def lacks_branch(self) -> Stream | None:
        """The camera that is left, where it may answer alone and the model has no branch for it; otherwise None."""
        wanted = self.survivor is not None and self.fallback in ("both", self.survivor)
        return self.survivor if wanted and self.survivor not in self.branches else None

    def health(self, stream: Stream, now: int) -> Health:
        """In what state a stream is."""
        watch = self.watch[stream]
        if self.survivor in (None, stream) and watch.is_arriving(now, self.timeout):
            return "live"
        if watch.refused is not None and now - watch.refused <= self.timeout:
            return "refused"
        if watch.fresh is None:
            return "never"
        if watch.is_live(now, self.timeout):
            return "live"
        visible_goes_on = self.watch["visible"].is_live(now, self.timeout)
        if stream == "thermal" and visible_goes_on and now - watch.fresh <= self.shutter and watch.has_publisher:
            return "shutter"
        return "frozen" if watch.is_arriving(now, self.timeout) else "silent"

    def describe(self, stream: Stream, now: int) -> str:
        """The state of a stream in words that go after its topic."""
        health, watch = self.health(stream, now), self.watch[stream]
        seconds = (now - (self.since if watch.fresh is None else watch.fresh)) / _SECOND
        if health == "never":
            return f"has not sent an image in the {seconds:.0f} s since {self._why}"
        if health == "shutter":
            kind = "has repeated its picture" if watch.is_arriving(now, self.timeout) else "has paused"
            return f"{kind}, as for its shutter (flat-field correction), for {seconds:.1f} s"
        if health == "frozen":
            return f"has repeated one and the same picture for {seconds:.1f} s"
        if health == "refused":
            return "sends images that cannot be used"
        return f"has been silent for {seconds:.1f} s" if health == "silent" else "is live"

    def _any_live(self, now: int) -> bool:
        return any(watch.is_live(now, self.timeout) for watch in self.watch.values())

    def _may_answer(self, stream: Stream) -> bool:
        return self.fallback in ("both", stream) and stream in self.branches

    def _find_survivor(self, now: int) -> Stream | None:
        """The stream that goes on while the other is lost."""
        if self.fallback == "off":
            return None
        for stream, other in (STREAMS, STREAMS[::-1]):
            going_on, lost = self.watch[stream], self.watch[other]
            if not going_on.is_live(now, self.timeout) or lost.is_live(now, self.timeout):
                continue
            # Both may have just begun, or have paused together: then the other one has its timeout to come too.
            patience = lost.patience(self.timeout)
            if now - going_on.live_since < patience:
                continue
            # Where nothing moves any more, both cameras show their last new picture at about the same time, and none
            # is lost. So the other one is lost only when its last new picture is clearly older.
            if lost.fresh is None or (going_on.fresh or 0) - lost.fresh > patience // 2:
                return stream
        return None
