"""The first pass of a labelling: asks the model for every planned pair, and takes the pictures of some into the set.

What is taken goes by the plan and the pictures, and the journal says what was taken: so a run that was broken off and
goes on takes the same pairs.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.labelling.label_set import LabelSet, stem_of
from rscmd_model.labelling.pseudo_labels import FAINT
from rscmd_ros.bags.answers import ahead
from rscmd_ros.bags.journal import Entry, Journal, rounded
from rscmd_ros.bags.pairs import BagPair, load_pictures
from rscmd_ros.bags.reader import Bag
from rscmd_ros.bags.sampling import CELLS, Plan, Thinning, small

if TYPE_CHECKING:
    from rscmd_model.inference.predictor import Predictor

MOST_BOXES = 100
"""Of one answer to a pair, in the journal."""
_TOLD = 5.0  # s between two lines of progress


@dataclass(frozen=True)
class Loaded:
    """A pair as it comes from the bag.

    Attributes:
        pair: it.
        visible: (H, W, 3) uint8 BGR, or None where it could not be decoded.
        thermal: (h, w) counts, or None.
        fault: why a picture could not be decoded.
    """

    pair: BagPair
    visible: npt.NDArray[np.uint8] | None = None
    thermal: npt.NDArray[Any] | None = None
    fault: str = ""


def in_order(
    bag: Bag, topics: dict[str, str], pairs: Sequence[BagPair], contract: ThermalContract | None
) -> Generator[Loaded, None, None]:
    """The pictures of pairs, in the order of the pairs.

    Args:
        bag, topics, contract: as for `read_pairs`.
        pairs: by the place of their visible frames.

    Yields:
        Every pair; one whose pictures cannot be decoded without them.

    Raises:
        UserError: the bag cannot be read.
    """
    faults: dict[BagPair, str] = {}
    ready: dict[BagPair, Loaded] = {}
    at = 0
    for pair, visible, thermal in load_pictures(bag, topics, pairs, contract, faults):
        ready[pair] = Loaded(pair, visible, thermal)
        while at < len(pairs) and (pairs[at] in ready or pairs[at] in faults):
            yield ready.pop(pairs[at]) if pairs[at] in ready else Loaded(pairs[at], fault=faults[pairs[at]])
            at += 1
    for pair in pairs[at:]:
        yield ready[pair] if pair in ready else Loaded(pair, fault=faults.get(pair, "it is no longer in the bag"))


def collect(
    bag: Bag,
    topics: dict[str, str],
    plan: Plan,
    predictor: Predictor,
    journal: Journal,
    to: LabelSet,
    kept: Sequence[Entry],
    *,
    done: int,
    batch: int,
    progress: Callable[[str], None],
) -> None:
    """Answer the pairs of a plan that the journal has not, and write the pictures of those that go into the set.

    Args:
        bag: it is read to its end.
        topics: {"visible": ..., "thermal": ...}.
        plan: which pairs, and when each split is.
        predictor: answers.
        journal: grows by a batch at a time; the pictures of a batch are written before it.
        to: gets the pictures.
        kept: the journal's entries of pairs that are in the set already.
        done: pairs that the journal has.
        batch: pairs through the network together.
        progress: called every few seconds with a line that tells how far it is.

    Raises:
        UserError: the bag cannot be read, the model cannot answer, or something cannot be written.
    """
    thinning = Thinning(plan.period)
    for entry in kept:
        assert entry.kept is not None
        cells = np.frombuffer(base64.b64decode(entry.small), np.uint8).reshape(2, *CELLS[::-1])
        thinning.take(entry.kept, entry.time, cells)
    count, total = len(kept), len(plan.pairs)
    started = told = time.monotonic()
    source = ahead(in_order(bag, topics, plan.pairs[done:], predictor.thermal), batch)
    with closing(source):
        for start in range(done, total, batch):
            group = list(islice(source, batch))
            whole = [(one.visible, one.thermal) for one in group if one.visible is not None and one.thermal is not None]
            found = predictor.predict_each(
                [visible for visible, _ in whole],
                [thermal for _, thermal in whole],
                conf=FAINT,
                max_det=MOST_BOXES,
            )
            answers = iter(found)
            entries: list[Entry] = []
            for one, at in zip(group, plan.times[start:]):
                if one.visible is None or one.thermal is None:
                    entries.append(Entry(one.pair.visible, at, fault=one.fault))
                    continue
                rows = {name: rounded(detections) for name, detections in next(answers).items()}
                size = (one.visible.shape[1], one.visible.shape[0])
                entry = _taken(Entry(one.pair.visible, at, size, rows), one, plan, thinning, predictor.thermal)
                if entry.kept is not None:
                    to.write_pictures(entry.kept, stem_of(entry.stamp), one.visible, one.thermal)
                    count += 1
                entries.append(entry)
            journal.append(entries)
            at = start + len(group)
            if time.monotonic() - told > _TOLD and at < total:
                told = time.monotonic()
                left = (told - started) / (at - done) * (total - at)
                progress(f"{at} of {total} pairs answered, {count} in the set, {_duration(left)} to go")


def _taken(entry: Entry, one: Loaded, plan: Plan, thinning: Thinning, contract: ThermalContract) -> Entry:
    """The entry with whether its pair is taken into the set; if so `thinning` knows it."""
    assert one.visible is not None
    assert one.thermal is not None
    split = plan.split(entry.time)
    if split is None or not thinning.due(split, entry.time):
        return entry
    cells = small(one.visible, contract.apply(one.thermal))
    if thinning.is_copy(split, cells):
        return replace(entry, copy=True)
    thinning.take(split, entry.time, cells)
    return replace(entry, kept=split, small=base64.b64encode(cells.tobytes()).decode())


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
