"""Identities of objects from frame to frame: ByteTrack (arXiv 2110.06864), as ultralytics has it.

Ultralytics solves its assignments with the package `lap` and, where that is missing, would have pip install it in the
middle of a run. It also brings an assignment solver of its own; that one serves here, so nothing is ever installed.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from rscmd_model.detections import Detections

TRACKERS = ("none", "bytetrack")
LOW_SCORE = 0.1
"""Boxes down to this score prolong a track that they fit (the second association of ByteTrack)."""
_JUMP_BACK = 0.5
_LONGEST_GAP = 5.0
MOST_TRACKED = 1000
"""The work of a frame grows with the square of their number."""


def lapjv(cost: np.ndarray, extend_cost: bool = True, cost_limit: float = np.inf) -> tuple[float, Any, Any]:
    """What `lap.lapjv` computes for a (N, M) matrix: the assignment of least cost in which no pair costs the limit.

    Leaving a row and a column unmatched costs as much as the limit, so a pair is worth its cost minus the limit or
    nothing.

    Returns:
        the cost, for each row its column or -1, for each column its row or -1.
    """
    from ultralytics.utils.ops import linear_sum_assignment

    rows, columns = np.full(cost.shape[0], -1), np.full(cost.shape[1], -1)
    limit = min(cost_limit, float(cost.max()) + 1 if cost.size else 0.0)
    for row, column in zip(*linear_sum_assignment(np.minimum(cost - limit, 0))):
        if cost[row, column] < limit:
            rows[row], columns[column] = column, row
    matched = rows >= 0
    return float(cost[matched, rows[matched]].sum()), rows, columns


def _byte_tracker() -> Any:
    """Ultralytics' BYTETracker, imported without a download."""
    missing = "lap" not in sys.modules and importlib.util.find_spec("lap") is None
    if missing:
        stand_in = ModuleType("lap")
        stand_in.__dict__.update(lapjv=lapjv, __version__="0.5.12")
        sys.modules["lap"] = stand_in
    try:
        from ultralytics.trackers.byte_tracker import BYTETracker
    finally:
        if missing:  # ultralytics keeps its own reference; nobody else is to find it
            del sys.modules["lap"]
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
        if self._last is not None and not -_JUMP_BACK < stamp - self._last < _LONGEST_GAP:
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
