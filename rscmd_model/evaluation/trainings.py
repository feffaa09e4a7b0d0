"""The trainings of an ablation, run side by side: each is a process of its own, which ends with this one."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rscmd_model.cluster import as_they_end, ray_started
from rscmd_model.errors import UserError, first_line
from rscmd_model.evaluation.ablation_runs import Ablation, Run

# A training must not go on alone, however its parent ends: the next call resumes it, and finds it locked otherwise.
_START = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"  # PR_SET_PDEATHSIG
)


def start(
    command: Sequence[str], environ: dict[str, str] | None = None, folder: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that is killed when the thread that started it ends.

    Args:
        command: its words, the first one a path.
        environ: its environment; None for this process' own.
        folder: to start it in; None for this process' own.

    Returns:
        the process; its whole output comes through its stdout.
    """
    words = [sys.executable, "-c", _START, *command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ, cwd=folder)


def train_here(
    missing: Sequence[Run], ablation: Ablation, jobs: int, progress: Callable[[str], None]
) -> dict[Run, str]:
    """Train and score runs.

    Args:
        missing: the runs.
        ablation: what they share.
        jobs: trainings side by side.
        progress: called every minute with a line that says how far they are.

    Returns:
        the runs that failed, each with why: the last line of its output, or the signal that ended it.
    """
    running: dict[Run, subprocess.Popen[bytes]] = {}
    stopping = threading.Event()

    def one(run: Run) -> str | None:
        process = start(ablation.command(run))
        running[run] = process
        if stopping.is_set():
            process.terminate()
        last_line = copy_output(process, ablation.out / f"{run.name}.log")
        return why_it_failed(process.wait(), last_line)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = {run: pool.submit(one, run) for run in missing}
            while wait(futures.values(), timeout=60).not_done:
                done = sum(future.done() for future in futures.values())
                now = [f"{run.name} epoch {ablation.epochs(run)}" for run, f in futures.items() if f.running()]
                progress(f"{done}/{len(futures)} done; {', '.join(now)}")
        except BaseException:  # trainings must not go on alone: the next call resumes them
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running.values()):
                process.terminate()
            raise
        return {run: why for run, future in futures.items() if (why := future.result()) is not None}


def why_it_failed(code: int, last_line: str) -> str | None:
    """Why a training failed, or None for one that did not.

    Args:
        code: what its process ended with, negative for a signal.
        last_line: of its output. Of a process that a signal ended it says nothing.
    """
    if code >= 0:
        return last_line if code else None
    known = {number.value: f" ({number.name})" for number in signal.Signals}
    memory = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return f"ended by signal {-code}{known.get(-code, '')}{memory}"


def copy_output(process: subprocess.Popen[bytes], log: Path) -> str:
    """Copy the output of a process to a log until the process ends.

    The output comes through a pipe. So the last line is known even when the log is on a full disk and loses it, and the
    process ends when nobody reads its output any more.

    Args:
        process: started with stdout=PIPE.
        log: file that is appended to.

    Returns:
        the last line of the output.
    """
    assert process.stdout is not None
    end = b""
    with log.open("ab", buffering=0) as file, process.stdout:
        while block := os.read(process.stdout.fileno(), 65536):
            end = (end + block)[-4000:]
            with suppress(OSError):
                file.write(block)
    lines = [line.strip() for line in re.split(r"[\r\n]+", end.decode(errors="replace")) if line.strip()]
    return lines[-1].removeprefix("error: ")[:300] if lines else "nothing"


def train_with_ray(
    missing: Sequence[Run],
    ablation: Ablation,
    address: str,
    workers: int | None,
    progress: Callable[[str], None],
) -> dict[Run, str]:
    """As `train_here`, on the machines of a Ray cluster; a run whose machine is lost is tried again.

    Args:
        missing: the runs.
        ablation: what they share; its folder lies on a file system that all machines see at the same path, and so do
            data and weights.
        address: "local", or HOST:PORT of a running cluster.
        workers: trainings side by side; None: one for each GPU, or where there is none for each processor.
        progress: as for `train_here`.

    Returns:
        the runs that failed, each with why.

    Raises:
        UserError: Ray is missing, no cluster answers, or a machine does not see the folder.
    """
    if not missing:
        return {}
    ablation = replace(ablation, out=ablation.out.resolve())
    recipe = (ablation.out / "recipe.json").read_text(encoding="utf-8")
    failed: dict[Run, str] = {}
    done = 0
    with ray_started(address, workers or 1) as ray:
        there = ray.cluster_resources()
        gpus = 0 if ablation.options.get("device") == "cpu" else there.get("GPU", 0)
        workers = workers or int(gpus or there.get("CPU", 1))
        # What is lost is the work since the last epoch's end: a machine may be taken away more than once.
        task = ray.remote(num_cpus=1, num_gpus=min(1.0, gpus / workers), max_retries=3)(train_there)
        around = (recipe, os.environ.get("OMP_NUM_THREADS"), os.getcwd())
        told = [time.monotonic()]

        def tell() -> None:
            told[0] = time.monotonic()
            epochs = {run: ablation.epochs(run) for run in missing if not ablation.is_finished(run)}
            now = [f"{run.name} epoch {epoch}" for run, epoch in epochs.items() if (ablation.out / run.name).is_dir()]
            progress(f"{done}/{len(missing)} done; {', '.join(now)}")

        for place, ended in as_they_end(ray, missing, lambda run: task.remote(ablation, run, *around), workers, tell):
            done += 1
            try:
                blind, why = ray.get(ended)
            except ray.exceptions.WorkerCrashedError:
                blind, why = "", "its process died four times, perhaps for want of memory: try fewer --workers"
            except ray.exceptions.RayError as error:
                blind, why = "", f"Ray: {first_line(error)}"
            if blind:
                raise UserError(blind)
            if why is not None:
                failed[missing[place]] = why
            if time.monotonic() - told[0] >= 60:
                tell()
    return failed


def train_there(ablation: Ablation, run: Run, recipe: str, threads: str | None, folder: str) -> tuple[str, str | None]:
    """Train and score one run in a worker of Ray.

    Args:
        ablation: what the runs share.
        run: this one.
        recipe: the text of the ablation's recipe.json.
        threads: OMP_NUM_THREADS of the process that called Ray, which sets its own: as many threads as without Ray give
            the same results. None where it is not set.
        folder: in which that process is, for relative paths.

    Returns:
        why this machine cannot train any run, or ""; and why the training failed where it did.
    """
    file = ablation.out / "recipe.json"
    try:
        seen = file.read_text(encoding="utf-8")
    except OSError:
        seen = ""
    if seen != recipe:
        return (
            f"{platform.node()} does not see {file}: --out must lie on a file system that all machines have at the "
            "same path",
            None,
        )
    package = str(Path(__file__).resolve().parents[2])
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environ.get("PYTHONPATH")]))
    if threads is not None:
        environ["OMP_NUM_THREADS"] = threads
    process = start(ablation.command(run), environ, folder if os.path.isdir(folder) else None)
    last_line = copy_output(process, ablation.out / f"{run.name}.log")
    return "", why_it_failed(process.wait(), last_line)
