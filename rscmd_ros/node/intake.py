"""What becomes of each image that arrives: refused, set aside, answered alone, or paired. In the executor's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sensor_msgs.msg import CompressedImage, Image

from rscmd_ros.cameras.conversions import ConversionError, stamp_ns
from rscmd_ros.cameras.rig import Rig
from rscmd_ros.node.diagnostics import Tally
from rscmd_ros.node.pairing_options import PairingOptions
from rscmd_ros.node.parameters import Settings, differ
from rscmd_ros.pairing.clock_offset import ClockOffset
from rscmd_ros.pairing.fallback import Fallback, fingerprint
from rscmd_ros.pairing.frames import Arrival, Frame, Pair, Stream

_SECOND = 1_000_000_000
_OF_FALLBACK = ("fallback", "stream_timeout", "shutter_time")


class Intake:
    """Pairing, fallback and the clocks' offset, from one configure to the next; watches while started.

    Args:
        settings: of the node; a change comes by `take`.
        tally: keeps the counts of pairers that are replaced.
        rig: the cameras, which judge their images.
        submit: called with each pair and each lone frame that is to be answered.
        hold: called for each frame with which the last answer is to be repeated (fallback "hold").
        tell: called after every look at the streams, before the frame that was looked at is submitted.
    """

    def __init__(
        self,
        settings: Settings,
        tally: Tally,
        rig: Rig,
        *,
        submit: Callable[[Pair | Frame], None],
        hold: Callable[[], None],
        tell: Callable[[Fallback], None],
    ) -> None:
        self.fallback: Fallback | None = None
        """None while not started."""
        self.clock_offset = ClockOffset()
        self._settings = settings
        self._tally = tally
        self._rig = rig
        self._submit = submit
        self._hold = hold
        self._tell = tell
        self._options = PairingOptions.of(settings)
        self._new_pairer(self._options.thermal_offset)

    def start(self, branches: Sequence[str], now: int) -> None:
        """Watch the streams.

        Args:
            branches: the modalities that the model can answer for alone.
            now: ns of the clock that `receive` and `poll` are called with.
        """
        self.clock_offset.reset()
        self.fallback = Fallback(**self._fallback_rules(), branches=branches, now=now)

    def stop(self) -> None:
        """Watch no more; frames still waiting are counted `reset`."""
        self.fallback = None
        self.pairer.clear()

    def take(self, settings: Settings) -> None:
        """Go by these settings from now on."""
        before, self._settings = self._settings, settings
        options, self._options = self._options, PairingOptions.of(settings)
        if self._options != options or settings.use_measured_offset != before.use_measured_offset:
            self._make_pairer()
        if self.fallback is not None and differ(before, settings, _OF_FALLBACK):
            self.fallback.configure(**self._fallback_rules())

    def follow_offset(self) -> int | None:
        """Pair by the offset that is wanted by now.

        Returns:
            The new offset in ns; None where it has not changed.
        """
        if self._wanted_offset() == self.offset_in_use:
            return None
        self._make_pairer()
        return self.offset_in_use

    def receive(self, stream: Stream, msg: Image | CompressedImage, now: int) -> None:
        """Count an image and pass on what it makes complete.

        Args:
            stream: the camera that it is from.
            msg: the image.
            now: ns of the clock that `poll` is called with.

        Raises:
            ConversionError: it cannot be used; it is counted all the same.
        """
        fallback, arrival = self.fallback, Arrival(msg, time.monotonic_ns())
        assert fallback is not None
        try:
            self._rig.check(msg, stream)
        except ConversionError:
            self.pairer.invalid(stream)
            fallback.refuse(stream, now)
            raise
        stamp = stamp_ns(msg.header)
        alone_before = fallback.survivor is not None
        self.clock_offset.add(stream, stamp, now)
        fate = fallback.frame(stream, fingerprint(msg.data), now)
        self._follow_mode(fallback, alone_before)
        if fate == "frozen":
            self.pairer.invalid(stream, "frozen")
        elif fate == "alone":
            if (frame := self.pairer.alone(stream, stamp, arrival, now)) is not None:
                self._submit(frame)
        else:
            for pair in self.pairer.add(stream, stamp, arrival, now):
                self._submit(pair)
            if fallback.fallback == "hold" and fallback.survivor == stream:
                self._hold()

    def poll(self, now: int) -> None:
        """Look at the clock: streams may have fallen silent, and deadlines of pairs may have come."""
        if (fallback := self.fallback) is None:
            return
        alone_before = fallback.survivor is not None
        fallback.update(now)
        self._follow_mode(fallback, alone_before)
        for pair in self.pairer.poll(now):
            self._submit(pair)

    def _follow_mode(self, fallback: Fallback, alone_before: bool) -> None:
        """A lost camera's waiting frames find no partner any more."""
        if fallback.survivor is not None and not alone_before:
            self._flush()
        self._tell(fallback)

    def _make_pairer(self) -> None:
        """Make the pairer anew; what the old one has still waiting is decided, and its counts go on."""
        self._flush()
        self._tally.close_pairer(self.pairer)
        self._new_pairer(self._wanted_offset())

    def _new_pairer(self, offset: int) -> None:
        self.offset_in_use = offset
        """Taken off thermal stamps, ns."""
        self.pairer = self._options.make_pairer(offset)

    def _flush(self) -> None:
        for pair in self.pairer.flush():
            self._submit(pair)

    def _wanted_offset(self) -> int:
        """What is to be taken off thermal stamps, ns."""
        manual = self._options.thermal_offset
        if not self._settings.use_measured_offset:
            return manual
        return self.clock_offset.correction(manual, self.offset_in_use, self._options.slop // 2)

    def _fallback_rules(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "fallback": settings.fallback,
            "timeout": round(settings.stream_timeout * _SECOND),
            "shutter": round(settings.shutter_time * _SECOND),
        }
