"""Which pairs of a recording are answered, and which of those go into a labelled set.

Everything goes by header stamps and pictures, nothing by the model or the speed of the machine: the same recording
gives the same choice, whoever labels it, however often the work on it was broken off.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from rscmd_model.errors import UserError
from rscmd_ros.bags.pairs import BagPair

_S = 1_000_000_000
_LONGEST_STEP = 60 * _S
"""A longer step from pair to pair is a pause, or a clock that was set; like a step back it counts nothing."""
FEWEST = 10
"""Pairs of a set, at least."""
CELLS = (40, 32)
"""Across and down, of a picture that is compared."""
_CHANGED = 12  # grey levels: a cell that differs by more is a change; the noise of a cell's mean is a tenth of it


@dataclass(frozen=True)
class Sampling:
    """How a recording becomes a set.

    Attributes:
        rate: pairs that are answered, per second at most; tracks need them dense.
        pairs: of the set, at most.
        period: between two pairs of the set at least, s; None: as `pairs` and the length of the recording have it.
        val_share: share of the recording, at its end, that becomes the val split.
        gap: before it, in which nothing is taken, s.

    Raises:
        UserError: one is out of range.
    """

    rate: float = 5.0
    pairs: int = 400
    period: float | None = None
    val_share: float = 0.2
    gap: float = 5.0

    def __post_init__(self) -> None:
        if not 0.1 <= self.rate <= 1000:
            raise UserError(f"--rate must be within 0.1..1000 pairs per second, got {self.rate:g}")
        if not FEWEST <= self.pairs <= 1_000_000:
            raise UserError(f"--pairs must be within {FEWEST}..1000000, got {self.pairs}")
        if self.period is not None and not 0 <= self.period <= 3600:
            raise UserError(f"--period must be within 0..3600 s, got {self.period:g}")
        if not 0.01 <= self.val_share <= 0.9:
            raise UserError(f"--val-share must be within 0.01..0.9, got {self.val_share:g}")
        if not 0 <= self.gap <= 3600:
            raise UserError(f"--gap must be within 0..3600 s, got {self.gap:g}")


@dataclass(frozen=True)
class Plan:
    """What of a recording is answered.

    Attributes:
        pairs: to be answered, in the order in which the visible camera recorded them.
        times: of each, ns since the first pair of the recording.
        length: of the recording, ns.
        period: between two pairs of the set at least, ns.
        val_from: when the val split begins, ns.
        train_to: when the train split ends, ns.
    """

    pairs: Sequence[BagPair]
    times: Sequence[int]
    length: int
    period: int
    val_from: int
    train_to: int

    def split(self, time: int) -> str | None:
        """The split of a pair at this time (ns); None in the gap between them."""
        return "val" if time >= self.val_from else "train" if time < self.train_to else None

    @property
    def digest(self) -> str:
        """Differs for another recording, or another choice of pairs."""
        stamps = np.array([(pair.visible, pair.thermal) for pair in self.pairs], np.int64)
        return hashlib.sha256(stamps.astype("<i8").tobytes()).hexdigest()


def make_plan(found: Sequence[BagPair], sampling: Sampling) -> Plan:
    """Choose the pairs of a recording that are answered, and divide its time.

    Of several pairs with one visible frame (reuse) the one nearest in time is taken.

    Args:
        found: every pair of the recording.
        sampling: how to choose.

    Raises:
        UserError: the recording is too short for two splits and the gap between them.
    """
    nearest: dict[int, BagPair] = {}
    for pair in found:
        known = nearest.get(pair.visible)
        if known is None or abs(pair.dt) < abs(known.dt):
            nearest[pair.visible] = pair
    every = sorted(nearest.values(), key=lambda pair: pair.visible_index)
    times = _times([pair.visible for pair in every])
    length = times[-1]
    slots = [round(time * sampling.rate) // _S for time in times]
    chosen = [i for i in range(len(every)) if i == 0 or slots[i] != slots[i - 1]]
    val_from = length - round(length * sampling.val_share)
    train_to = max(val_from - round(sampling.gap * _S), 0)
    # Each split may have one pair more than its length has periods.
    period = -(-length // (sampling.pairs - 2)) if sampling.period is None else round(sampling.period * _S)
    plan = Plan([every[i] for i in chosen], [times[i] for i in chosen], length, period, val_from, train_to)
    if bisect.bisect_left(plan.times, val_from) == len(plan.times) or not train_to:
        raise UserError(
            f"the pairs of the recording span {length / _S:.1f} s, too short for a train split, a gap of "
            f"{sampling.gap:g} s and a val split of its last {sampling.val_share:.0%}: record longer, or give a "
            "smaller --gap"
        )
    return plan


def _times(stamps: Sequence[int]) -> list[int]:
    """Time since the first of some stamps, ns; it never steps back, and passes over pauses and clocks that were set."""
    times = [0]
    for before, stamp in pairwise(stamps):
        step = stamp - before
        times.append(times[-1] + (step if 0 < step <= _LONGEST_STEP else 0))
    return times


def small(visible: npt.NDArray[np.uint8], plane: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """What is compared of a pair: the mean grey of each cell of both pictures.

    Args:
        visible: (H, W, 3) BGR.
        plane: (h, w), the thermal picture as its contract shows it.

    Returns:
        (2, 32, 40).
    """
    grey = cv2.cvtColor(visible, cv2.COLOR_BGR2GRAY)
    return np.stack([cv2.resize(image, CELLS, interpolation=cv2.INTER_AREA) for image in (grey, plane)])


class Thinning:
    """Takes pairs into the set one after another, so that near-copies do not fill it.

    A pair is a near-copy of the one before it in its split if no cell of either picture has changed, but for a change
    of the whole picture's brightness. So a robot that stands still gives one pair, and one that stands still while
    people walk by goes on giving pairs.

    Args:
        period: between two pairs of a split at least, ns.
    """

    def __init__(self, period: int) -> None:
        self._period = period
        self._last: dict[str, tuple[int, npt.NDArray[np.uint8]]] = {}

    def due(self, split: str, time: int) -> bool:
        """Whether enough time (ns) has passed for another pair of a split."""
        return split not in self._last or time - self._last[split][0] >= self._period

    def is_copy(self, split: str, cells: npt.NDArray[np.uint8]) -> bool:
        """Whether a pair is a near-copy of the last one that was taken into the split, by its `small`."""
        if split not in self._last:
            return False
        change = cells.astype(np.int16) - self._last[split][1]
        change = change - np.median(change, axis=(1, 2), keepdims=True)
        return bool(np.abs(change).max() <= _CHANGED)

    def take(self, split: str, time: int, cells: npt.NDArray[np.uint8]) -> None:
        """Take a pair into a split."""
        self._last[split] = time, cells
