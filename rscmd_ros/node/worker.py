"""Threads for what takes long: one that runs inference on the newest pair, and one to load a model. No ROS in here."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


ENDINGS = ("done", "failed", "replaced", "discarded", "skipped")
"""What becomes of a job of the worker."""


class StoppedError(Exception):
    """The process was asked to end while something long was under way."""


class DroppedError(Exception):
    """The result of a job is not wanted any more. Its text says in which of `ENDINGS` the job is counted."""


def run_unless(
    stopping: threading.Event, work: Callable[[], Result], meanwhile: Callable[[], None] = lambda: None
) -> Result:
    """Do something long, such as importing torch, in a thread that is left behind once the event is set.

    Args:
        stopping: the event.
        work: what is to be done.
        meanwhile: called in the caller's thread about twenty times a second until then.

    Returns:
        What `work` returns.

    Raises:
        StoppedError: the event came first.
        Exception: whatever `work` raises.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again in the caller's thread
            future.set_exception(error)

    threading.Thread(target=run, name="long work", daemon=True).start()
    while not stopping.is_set():
        if wait([future], timeout=0.05).done:
            return future.result()
        meanwhile()
    raise StoppedError


class Worker(Generic[Job]):
    """Runs `work(job)` in a thread of its own, always on the newest job; an older one still waiting is replaced.

    Every job submitted ends in exactly one counter, or is in hand, for each kind of job by itself:
    submitted == done + failed + replaced + discarded + skipped + in hand.

    Args:
        work: called without any lock held; an exception counts the job as failed and the thread goes on. It calls
            `check` before its result goes out.
        failed: called with such an exception, in the worker's thread.
        kinds: what jobs are counted apart.
        wanted: tells whether results are wanted at all; asked for every job when it is submitted, when it is taken and
            by `check`, from any thread.
    """

    def __init__(
        self,
        work: Callable[[Job], None],
        failed: Callable[[Exception], None],
        kinds: tuple[str, ...] = ("jobs",),
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._work = work
        self._failed = failed
        self._kinds = kinds
        self._wanted = wanted
        self._change = threading.Condition()
        self._waiting: tuple[Job, str] | None = None
        self._busy: str | None = None
        self._busy_since = 0.0
        self._stopping = False
        self._counts = {kind: dict.fromkeys(("submitted", *ENDINGS), 0) for kind in kinds}
        # A daemon, because the process must be able to end while a computation that nothing can interrupt goes on.
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, job: Job, kind: str | None = None) -> None:
        """Make this the next job, in place of one that still waits; one that is not wanted is only counted.

        Args:
            job: for `work`.
            kind: one of the worker's; None for the first.
        """
        kind, wanted = kind or self._kinds[0], self._wanted()
        with self._change:
            self._counts[kind]["submitted"] += 1
            if self._stopping or not wanted:
                self._counts[kind]["discarded" if self._stopping else "skipped"] += 1
                return
            if self._waiting is not None:
                self._counts[self._waiting[1]]["replaced"] += 1
            self._waiting = job, kind
            self._change.notify()

    def check(self) -> None:
        """To be called by a job before its result goes out, in the worker's thread.

        Raises:
            DroppedError: the worker was stopped meanwhile, or results are not wanted any more.
        """
        if self._stopping:
            raise DroppedError("discarded")
        if not self._wanted():
            raise DroppedError("skipped")

    def busy_for(self) -> float:
        """How long the job in hand has been worked on, s; 0 where none is."""
        with self._change:
            return time.monotonic() - self._busy_since if self._busy is not None else 0.0

    def counts(self, kind: str | None = None) -> dict[str, int]:
        """The counters of a kind (None: the first), and `in_hand`: jobs waiting or being worked on."""
        kind = kind or self._kinds[0]
        with self._change:
            waiting = self._waiting is not None and self._waiting[1] == kind
            return {**self._counts[kind], "in_hand": int(self._busy == kind) + int(waiting)}

    def stop(self, timeout: float) -> bool:
        """Discard what waits and let the job in hand end.

        Args:
            timeout: how long to wait for it, s.

        Returns:
            Whether it has ended.
        """
        with self._change:
            self._stopping = True
            if self._waiting is not None:
                self._counts[self._waiting[1]]["discarded"] += 1
                self._waiting = None
            self._change.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._stopping or self._waiting is not None)
                if self._waiting is None:
                    return
                (job, kind), self._waiting = self._waiting, None
                self._busy, self._busy_since = kind, time.monotonic()
            ending = "done"
            try:
                self.check()  # it may have waited for long
                self._work(job)
            except DroppedError as dropped:
                ending = str(dropped)
            except Exception as error:  # whatever one pair does, the next must be served
                ending = "failed"
                self._failed(error)
            del job  # two images that nobody needs any more
            with self._change:
                self._counts[kind][ending] += 1
                self._busy = None


class Latencies:
    """The last durations, for percentiles. Written by one thread, read by any.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int = 300) -> None:
        self._ms: deque[float] = deque(maxlen=size)

    def add(self, since_ns: int) -> None:
        """Note the time from `since_ns` of `time.monotonic_ns` until now."""
        self.note((time.monotonic_ns() - since_ns) / 1e6)

    def note(self, ms: float) -> None:
        """Note a duration."""
        self._ms.append(ms)

    def mean(self) -> float | None:
        """In ms; None before anything was noted."""
        values = self._ms.copy()
        return sum(values) / len(values) if values else None

    def percentile(self, percent: float) -> float | None:
        """In ms, by the nearest rank; None before anything was noted."""
        ordered = sorted(self._ms.copy())
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else None
