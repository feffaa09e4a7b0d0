"""Identities of objects from frame to frame: ByteTrack (arXiv 2110.06864), as ultralytics has it."""

from __future__ import annotations

import shlex
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError

TRACKERS = ("none", "bytetrack")
LOW_SCORE = 0.1
"""Boxes down to this score prolong a track that they fit (the second association of ByteTrack)."""
_JUMP_BACK = 0.5
_LONGEST_GAP = 5.0
MOST_TRACKED = 1000
"""The work of a frame grows with the square of their number."""


def is_jump(step: float) -> bool:
    """Whether a frame that comes so many s after the last one begins every track anew."""
    return not -_JUMP_BACK < step < _LONGEST_GAP


def _byte_tracker() -> Any:
    """Ultralytics' BYTETracker.

    Raises:
        UserError: lap is missing, which ultralytics would have pip install in the middle of a run.
    """
    try:
        import lap  # noqa: F401
    except ImportError:
        raise UserError(
            f"tracker bytetrack needs the package lap: {shlex.join([sys.executable, '-m', 'pip', 'install', 'lap'])}"
        ) from None
    from ultralytics.trackers.byte_tracker import BYTETracker

    return BYTETracker


class Tracker:
    """Gives the same object the same identity in every frame. Starts anew after a jump in time.

    Thresholds follow `confidence`: objects with at least that score are first looked for and may begin a track.
    """

    def __init__(self) -> None:
        self._options = SimpleNamespace(
            track_high_thresh=0.25,
            track_low_thresh=LOW_SCORE,
            new_track_thresh=0.25,
            track_buffer=30,
            match_thresh=0.8,
            fuse_score=True,
        )
        self._make = _byte_tracker()
        self.reset()

    def reset(self) -> None:
        """Forget every track; identities start at 1 again."""
        self._tracker = self._make(self._options)
        self._last: float | None = None

    def update(self, found: Detections, confidence: float, stamp: float) -> list[str]:
        """The identity of each detection, empty where it belongs to no track yet or `MOST_TRACKED` others are stronger.

        Args:
            found: all detections with a score of `LOW_SCORE` or more, in pixels.
            confidence: lowest score of an object to be looked for first, 0 to 1.
            stamp: of the image, in s.
        """
        if self._last is not None and is_jump(stamp - self._last):
            self.reset()
        self._last = stamp
        self._options.track_high_thresh = self._options.new_track_thresh = max(confidence, LOW_SCORE)
        identities = [""] * len(found)
        strongest = np.sort(np.argsort(-found.scores, kind="stable")[:MOST_TRACKED])
        for row in self._tracker.update(_Boxes(found.take(strongest))):
            identities[strongest[int(row[7])]] = str(int(row[4]))
        return identities


class _Boxes:
    """Detections in the form that ultralytics' trackers read."""

    def __init__(self, found: Detections) -> None:
        self.found = found
        self.conf, self.cls = found.scores, found.classes
        corners, sizes = found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]
        self.xywh = np.concatenate([corners + sizes / 2, sizes], axis=1)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, which: np.ndarray) -> _Boxes:
        return _Boxes(self.found.take(which))
