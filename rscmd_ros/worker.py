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


class StoppedError(Exception):
    """The process was asked to end while something long was under way."""


def run_unless(stopping: threading.Event, work: Callable[[], Result]) -> Result:
    """Do something long, such as importing torch, in a thread that is left behind once the event is set.

    Returns or raises what `work` does; raises StoppedError when the event came first.
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
    raise StoppedError


class Worker(Generic[Job]):
    """Runs `work(job)` in a thread of its own, always on the newest job; an older one still waiting is replaced.

    Every job submitted ends in exactly one counter, or is in hand:
    submitted == done + failed + replaced + discarded + in hand.

    work     called without any lock held; an exception counts the job as failed and the thread goes on
    failed   told of such an exception, in the worker's thread
    """

    def __init__(self, work: Callable[[Job], None], failed: Callable[[Exception], None]) -> None:
        self._work = work
        self._failed = failed
        self._change = threading.Condition()
        self._waiting: Job | None = None
        self._busy = False
        self._stopping = False
        self._counts = dict.fromkeys(("submitted", "done", "failed", "replaced", "discarded"), 0)
        # A daemon, because the process must be able to end while a computation that nothing can interrupt goes on.
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Make this the next job, in place of one that still waits."""
        with self._change:
            self._counts["submitted"] += 1
            if self._stopping:
                self._counts["discarded"] += 1
                return
            if self._waiting is not None:
                self._counts["replaced"] += 1
            self._waiting = job
            self._change.notify()

    def counts(self) -> dict[str, int]:
        """The counters, and `in_hand`: jobs waiting or being worked on."""
        with self._change:
            return {**self._counts, "in_hand": int(self._busy) + int(self._waiting is not None)}

    def stop(self, timeout: float) -> bool:
        """Discard what waits and let the job in hand end; False when it has not ended within `timeout` seconds."""
        with self._change:
            self._stopping = True
            if self._waiting is not None:
                self._waiting = None
                self._counts["discarded"] += 1
            self._change.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._stopping or self._waiting is not None)
                job, self._waiting = self._waiting, None
                if job is None:
                    return
                self._busy = True
            ending = "done"
            try:
                self._work(job)
            except Exception as error:  # whatever one pair does, the next must be served
                ending = "failed"
                self._failed(error)
            del job  # two images that nobody needs any more
            with self._change:
                self._counts[ending] += 1
                self._busy = False


class Latencies:
    """The last so many durations, for percentiles. Written by one thread, read by any."""

    def __init__(self, size: int = 300) -> None:
        self._ms: deque[float] = deque(maxlen=size)

    def add(self, since_ns: int) -> None:
        """Note the time from `since_ns` of `time.monotonic_ns` until now."""
        self._ms.append((time.monotonic_ns() - since_ns) / 1e6)

    def percentile(self, percent: float) -> float | None:
        """In ms, by the nearest rank; None before anything was noted."""
        ordered = sorted(self._ms.copy())
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else None
