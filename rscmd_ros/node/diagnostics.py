"""What the detector node tells of itself on /diagnostics: pure functions over plain values and messages."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from rscmd_model.errors import as_line
from rscmd_ros.node.worker import ENDINGS, Latencies, Worker
from rscmd_ros.pairing.frames import Pair, Pairer

PERCENTS = (50, 95, 99)
JOB_KINDS = ("pairs", "lone")
"""What the worker is given: pairs, and lone frames of the camera that is left."""


class Throttle:
    """Lets the same thing be said again only after a while. Different things do not silence each other.

    Args:
        seconds: that while.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._said: dict[str, float] = {}

    def allows(self, *subjects: str) -> bool:
        """Whether one of these subjects has not been spoken of lately. If so, all of them count as said from now on."""
        now = time.monotonic()
        self._said = {said: at for said, at in self._said.items() if now - at < self._seconds}
        if all(subject in self._said for subject in subjects):
            return False
        self._said |= dict.fromkeys(subjects, now)
        return True


class Tally:
    """What became of every frame and every job since configure, across the pairers and workers that were replaced."""

    def __init__(self) -> None:
        self.dt = Latencies()
        """Of the pairs handed to the worker, |dt|."""
        self._work = {kind: dict.fromkeys(("submitted", *ENDINGS, "in_hand"), 0) for kind in JOB_KINDS}
        self._frames: dict[str, dict[str, int]] = {}
        self._resets = 0

    def paired(self, pair: Pair) -> None:
        """Note a pair that the worker gets."""
        self.dt.note(abs(pair.dt) / 1e6)

    def close_worker(self, worker: Worker[Any]) -> None:
        """Take over the counts of a worker that was stopped. What it still has in hand will not be published."""
        self._work = {
            kind: {**counts, "discarded": counts["discarded"] + counts["in_hand"], "in_hand": 0}
            for kind, counts in self.work(worker).items()
        }

    def close_pairer(self, pairer: Pairer) -> None:
        """Take over the counts of a pairer that has nothing waiting any more."""
        self._frames, self._resets = self.frames(pairer), self.resets(pairer)

    def work(self, worker: Worker[Any] | None) -> dict[str, dict[str, int]]:
        """Counts of jobs by kind, with those of the worker that runs."""
        return {
            kind: {name: n + (worker.counts(kind)[name] if worker else 0) for name, n in counts.items()}
            for kind, counts in self._work.items()
        }

    def frames(self, pairer: Pairer | None) -> dict[str, dict[str, int]]:
        """The ledger by stream, with that of the present pairer; empty before there is one."""
        present = pairer.ledger.as_dict() if pairer is not None else {}
        return {
            stream: {name: n + self._frames.get(stream, {}).get(name, 0) for name, n in counts.items()}
            for stream, counts in present.items()
        }

    def resets(self, pairer: Pairer | None) -> int:
        """How often time started anew."""
        return self._resets + (pairer.resets if pairer is not None else 0)


def work_numbers(work: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """The worker's counters by kind of job, as <kind> (submitted) and <kind>_<what became of it>."""
    numbers = {}
    for kind, counts in work.items():
        numbers[kind] = counts["submitted"]
        for ending in (*ENDINGS, "in_hand"):
            numbers[f"{kind}_{'inferred' if ending == 'done' else ending}"] = counts[ending]
    return numbers


def percentiles(name: str, latencies: Latencies) -> dict[str, float | None]:
    """<name>_p50_ms, <name>_p95_ms and <name>_p99_ms."""
    return {f"{name}_p{percent}_ms": latencies.percentile(percent) for percent in PERCENTS}


def pairing_status(
    node_name: str,
    state: str,
    ledger: Mapping[str, Mapping[str, int]],
    numbers: Mapping[str, int | float | str | None],
    problems: list[str],
    remarks: list[str] | None = None,
) -> DiagnosticStatus:
    """The status "<node>: pairing": the lifecycle state, every counter as <stream>.<counter>, the numbers.

    Its level is WARN while there are problems, which make up its message; remarks stand in the message of level OK.
    """
    status = DiagnosticStatus(name=f"{node_name}: pairing", hardware_id="")
    status.level = DiagnosticStatus.WARN if problems else DiagnosticStatus.OK
    status.message = as_line("; ".join(problems or [state, *(remarks or [])]))
    status.values = [KeyValue(key="lifecycle_state", value=state)]
    for stream, counts in ledger.items():
        status.values += [KeyValue(key=f"{stream}.{name}", value=str(n)) for name, n in counts.items()]
    for name, number in numbers.items():
        value = "" if number is None else f"{number:.1f}" if isinstance(number, float) else as_line(str(number))
        status.values.append(KeyValue(key=name, value=value))
    return status


def diagnostic_array(status: DiagnosticStatus, stamp: Any) -> DiagnosticArray:
    """One status as the message for /diagnostics."""
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp
    return array
