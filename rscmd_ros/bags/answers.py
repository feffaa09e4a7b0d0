"""The answers to a bag: a thread reads and pairs ahead while the predictor answers in batches.

What comes out does not depend on how the two interleave: batches are always the same pairs in the same order.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

from rscmd_ros.bags.job import BATCH
from rscmd_ros.bags.pairs import Pairing, Pictures, read_pairs
from rscmd_ros.bags.reader import Bag
from rscmd_ros.bags.score import Answer, spread
from rscmd_ros.node.pairing_options import PairingOptions

if TYPE_CHECKING:
    from rscmd_model.inference.predictor import Predictor

T = TypeVar("T")


@dataclass
class Answers:
    """The answers to a bag.

    Attributes:
        pairing: how the bag was paired.
        by_stamp: the answers by header stamp (ns) of the visible frame.
        samples: a few pairs to look at.
        unseen: pairs of whose thermal picture the model's thermal contract shows nothing.
        seconds: spent waiting for pictures ("reading"), and in the predictor ("inference").
    """

    pairing: Pairing = field(default_factory=Pairing)
    by_stamp: dict[int, Answer] = field(default_factory=dict)
    samples: list[Pictures] = field(default_factory=list)
    unseen: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"reading": 0.0, "inference": 0.0})


def answer_pairs(
    bag: Bag,
    topics: dict[str, str],
    options: PairingOptions,
    predictor: Predictor,
    *,
    batch: int = BATCH,
    overlap: bool = True,
    samples: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Answers:
    """Pair a bag and answer every pair.

    Where one visible frame is in several pairs (reuse), the pair nearest in time gives its answer.

    Args:
        bag: it is read to its end.
        topics: {"visible": ..., "thermal": ...}.
        options: of pairing.
        predictor: answers.
        batch: pairs per call of the predictor.
        overlap: read by a thread of its own, at most two batches ahead; the result is the same without.
        samples: how many pairs to keep with their pictures, evenly spread.
        progress: called every few seconds with a line that tells how far it is.

    Raises:
        UserError: the bag or its pictures cannot be used.
    """
    result = Answers()
    kept = _Even[Pictures](samples)

    def pairs() -> Generator[Pictures, None, None]:
        yield from read_pairs(bag, topics, options, result.pairing, predictor.thermal)

    source = ahead(pairs(), 2 * batch) if overlap else pairs()
    started = told = time.monotonic()
    with closing(source):
        while True:
            moment = time.perf_counter()
            group = list(islice(source, batch))
            result.seconds["reading"] += time.perf_counter() - moment
            if not group:
                break
            moment = time.perf_counter()
            found = predictor.predict_batch([v for _, v, _ in group], [t for _, _, t in group])
            result.seconds["inference"] += time.perf_counter() - moment
            for pictures, detections in zip(group, found, strict=True):
                pair = pictures[0]
                known = result.by_stamp.get(pair.visible)
                if known is None or abs(pair.dt) < abs(known.dt):
                    result.by_stamp[pair.visible] = Answer(detections, pair.dt, pair.wait)
                kept.offer(pictures)
                result.unseen += predictor.thermal.misses(pictures[2])
            if progress is not None and time.monotonic() - told > 5:
                told = time.monotonic()
                progress(f"{len(result.by_stamp)} frames answered after {told - started:.0f} s")
    result.samples = kept.chosen()
    return result


def ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The same items, taken by a thread of its own, at most `depth` ahead of the reader.

    What the thread trips over is raised here. When the reader stops early, the thread ends and closes `items`.
    """
    waiting: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, T | BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                waiting.put(entry, timeout=0.1)
                return
            except queue.Full:
                pass

    def read() -> None:
        fault: BaseException | None = None
        try:
            for item in items:
                put((True, item))
                if stopped.is_set():
                    break
        except BaseException as error:
            fault = error
        finally:
            items.close()  # in this thread, for the file's sake
        put((False, fault))

    thread = threading.Thread(target=read, name="bag reader", daemon=True)
    thread.start()
    try:
        while True:
            more, item = waiting.get()
            if more:
                yield item  # type: ignore[misc]
            elif item is None:
                return
            else:
                raise item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


class _Even(Generic[T]):
    """A few items, evenly spread over a sequence whose length is not known beforehand; holds at most twice as many."""

    def __init__(self, count: int) -> None:
        self._count, self._step, self._seen = count, 1, 0
        self._kept: list[T] = []

    def offer(self, item: T) -> None:
        if self._count and self._seen % self._step == 0:
            self._kept.append(item)
            if len(self._kept) > 2 * self._count:
                self._kept, self._step = self._kept[::2], 2 * self._step
        self._seen += 1

    def chosen(self) -> list[T]:
        return spread(self._kept, self._count)
