"""The trainings of an ablation, run side by side: each is a process of its own, which ends with this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

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
        the runs that failed, each with the last line of its output.
    """
    running: dict[Run, subprocess.Popen[bytes]] = {}
    stopping = threading.Event()

    def one(run: Run) -> str | None:
        process = start(ablation.command(run))
        running[run] = process
        if stopping.is_set():
            process.terminate()
        last_line = copy_output(process, ablation.out / f"{run.name}.log")
        return None if process.wait() == 0 else last_line

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
        return {run: last_line for run, future in futures.items() if (last_line := future.result()) is not None}


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
