"""Many bags: one after another in this process, or side by side through Ray; each result is kept once it is there."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rscmd_model.cluster import as_they_end, ray_started
from rscmd_model.errors import UserError, first_line, one_line
from rscmd_ros.bags.job import Job
from rscmd_ros.bags.results import load_result, result_file, save_result
from rscmd_ros.bags.run import Result, run
from rscmd_ros.bags.score import Figures, figures

Done = tuple[int, "Result | str", float]
"""Which job, its result or why there is none, and how many seconds it took."""


@dataclass(frozen=True)
class Bags:
    """What many bags gave.

    Attributes:
        results: by bag.
        failed: by bag, why it gave nothing.
        merged: the figures of all results together.
        rows: one for each bag, in the order given: {"bag": ..., **summary} or {"bag": ..., "failed": ...}.
    """

    results: dict[Path, Result]
    failed: dict[Path, str]
    merged: Figures
    rows: list[dict[str, Any]]


def evaluate_bags(
    jobs: Sequence[Job],
    names: dict[int, str],
    kept: Path,
    *,
    ray: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Bags:
    """Evaluate bags and put their figures together.

    Args:
        jobs: one for each bag.
        names: the model's classes.
        kept: folder of finished results, which are used again.
        ray: "local", or HOST:PORT of a running cluster; None: in this process.
        workers: bags at once, with `ray`; None: as many as there are processors for.
        threads: of torch for each bag; None: the processors, shared out.
        progress: called with a line for each bag that is finished.

    Raises:
        UserError: a bag is given twice, every bag failed, Ray is missing or cannot be reached, or `kept` is not
            writable.
    """
    times = Counter(job.bag.resolve() for job in jobs)
    twice = {str(job.bag) for job in jobs if times[job.bag.resolve()] > 1}
    twice |= {str(job.bag) for job in jobs if not times.keys().isdisjoint(job.bag.resolve().parents)}
    if twice:
        raise UserError(f"given twice, and its frames would count twice: {', '.join(sorted(twice))}")
    results: dict[int, Result] = {}
    rows: dict[int, Future[dict[str, Any]]] = {}
    failed: dict[int, str] = {}
    files: dict[int, Path] = {}
    digests: dict[Path, str] = {}
    # Figures of single bags are computed at the side, while the next bags are read.
    with ThreadPoolExecutor(1) as side:

        def take(number: int, result: Result, remark: str) -> None:
            results[number] = result
            rows[number] = side.submit(_row, result, names)
            progress(
                f"[{len(results) + len(failed)}/{len(jobs)}] {jobs[number].bag}: {result.outcome.pairs} pairs, {remark}"
            )

        for number, job in enumerate(jobs):
            try:
                files[number] = result_file(kept, job, digests)
            except OSError:
                continue  # a bag or file that is not there: the evaluation itself says so
            known = load_result(files[number])
            if known is not None:
                take(number, known, "kept from an earlier run")
        missing = [number for number in range(len(jobs)) if number not in results]
        todo = [jobs[number] for number in missing]
        done = _here(todo, threads, progress) if ray is None else _with_ray(todo, ray, workers, threads)
        for place, result, seconds in done if todo else ():
            number = missing[place]
            if isinstance(result, str):
                failed[number] = result
                progress(f"[{len(results) + len(failed)}/{len(jobs)}] {jobs[number].bag}: failed: {result}")
                continue
            if number in files:
                save_result(files[number], result)
            take(number, result, f"{seconds:.1f} s")
        if not results:
            raise UserError(f"every bag failed, the first because: {failed[min(failed)]}")
        order = sorted(results)
        merged = figures([results[number].outcome for number in order], names)
        table = [
            {"bag": str(job.bag), **({"failed": failed[n]} if n in failed else rows[n].result())}
            for n, job in enumerate(jobs)
        ]
    return Bags(
        {jobs[n].bag: results[n] for n in order}, {jobs[n].bag: failed[n] for n in sorted(failed)}, merged, table
    )


def _row(result: Result, names: dict[int, str]) -> dict[str, Any]:
    return {**figures([result.outcome], names).summary, "messages": result.messages, "notes": list(result.notes)}


def _attempt(
    job: Job, threads: int | None, progress: Callable[[str], None] | None = None
) -> tuple[Result | str, float]:
    """The result, or in one line why there is none: one bag must not end the evaluation of the others."""
    started = time.monotonic()
    try:
        return run(job, threads=threads, progress=progress), time.monotonic() - started
    except Exception as error:
        return one_line(error), time.monotonic() - started


def _here(jobs: Sequence[Job], threads: int | None, progress: Callable[[str], None]) -> Iterator[Done]:
    for place, job in enumerate(jobs):
        yield (place, *_attempt(job, threads, progress))


def _with_ray(jobs: Sequence[Job], address: str, workers: int | None, threads: int | None) -> Iterator[Done]:
    """Evaluate bags side by side.

    Args:
        jobs: one or more.
        address: "local", or HOST:PORT of a running cluster.
        workers: how many jobs are under way at most; None: as many as there are processors for.
        threads: of torch for each; None: the processors, shared out.

    Yields:
        Each job once it is done, in the order in which they end.

    Raises:
        UserError: Ray is missing, or no cluster answers.
    """
    if address == "local":
        # Ray gets the processors that the workers use, so that it starts no more processes than that.
        workers = workers or min(len(jobs), max(1, (os.cpu_count() or 1) // (threads or 1)))
    with ray_started(address, workers or 1) as ray:
        there = ray.cluster_resources()
        cpus = int(there.get("CPU", 1))
        workers = workers or max(1, cpus // (threads or 1))
        threads = threads or max(1, cpus // workers)
        gpus = 0 if jobs[0].device == "cpu" else min(1.0, there.get("GPU", 0) / workers)
        # A job whose process dies is tried twice: the reason may have been a neighbour's hunger for memory.
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=1)(_attempt)
        for place, ended in as_they_end(ray, jobs, lambda job: task.remote(_from_anywhere(job), threads), workers):
            yield (place, *_of_ray(ray, ended))


def _from_anywhere(job: Job) -> Job:
    """The job with paths from the root: processes of a cluster stand in the folder in which it was started."""
    paths: dict[str, Any] = {key: value.absolute() for key, value in vars(job).items() if isinstance(value, Path)}
    return replace(job, **paths)


def _of_ray(ray: Any, ended: Any) -> tuple[Result | str, float]:
    """What `_attempt` gave in another process, or in one line why there is nothing."""
    try:
        result, seconds = ray.get(ended)
        return result, seconds
    except ray.exceptions.WorkerCrashedError:
        return "its process died twice, perhaps for want of memory: try fewer --workers", 0.0
    except ray.exceptions.RayError as error:
        return f"Ray: {first_line(error)}", 0.0
