"""What only a GPU can tell, as one command and one table: `make gpu`. Meant to take less than eight minutes.

    python benchmarks/gpu.py                               # on the first CUDA GPU
    python benchmarks/gpu.py --only resume equal           # some of the checks
    python benchmarks/gpu.py --device cpu --only answers   # the checks themselves, where there is no GPU

Each row says what was found and what is wanted; the command fails if a row that wants something does not have it. A
check that breaks is a row as well, and the others go on. The trainings (rscmd, three epochs of drawn pairs) run side by
side; what is timed runs alone. Losses are compared over the last epoch, weights as the largest difference over the
largest weight. Out of memory is tried in the predictor, which is the node's; the node itself is not started.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from rscmd_model.errors import UserError, run_cli
from rscmd_model.inference.predictor import Predictor
from rscmd_model.synthetic.writing import write_world

HERE = Path(__file__).resolve().parent
SAME = 0.01
"""How far the losses of what ought to be one run may be apart, as a share of them."""
LONGEST = 240.0
"""Seconds that the trainings, side by side, may take."""
STEPS = (("n", 320, 32), ("s", 640, 16))
"""Scale, image side in px and batch of the training steps that are timed."""


@dataclass(frozen=True)
class Row:
    """One line of the table. `holds` is None where nothing is wanted."""

    check: str
    found: str
    wanted: str = ""
    holds: bool | None = None


@dataclass(frozen=True)
class Place:
    """Where everything runs.

    Attributes:
        device: as torch names it.
        folder: for trainings and data.
        size: image side in px of the trainings.
        pairs: to train on.
        trainings: names of those that the checks look at: "killed" by SIGKILL, "free" of deterministic kernels.
    """

    device: str
    folder: Path
    size: int
    pairs: int
    trainings: tuple[str, ...]

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.startswith("cuda")

    @cached_property
    def data(self) -> Path:
        """The data.yaml of a drawn world."""
        size = self.size, self.size
        return write_world(self.folder / "world", train=self.pairs, val=self.pairs // 4, size=size, seed=0)

    def training(self, name: str, *options: str) -> list[str]:
        """The command of a training. Options given here hold over the others."""
        of = {"epochs": "3", "batch": "8", "imgsz": str(self.size), "workers": "2", "plots": "False"}
        of |= {"device": self.device.removeprefix("cuda:"), "project": str(self.folder), "name": name}
        of |= dict(option.split("=", 1) for option in options)
        words = [f"{key}={value}" for key, value in of.items()]
        return [sys.executable, "-m", "rscmd_model.train", "--data", str(self.data), "--method", "rscmd", *words]

    @property
    def runs(self) -> dict[str, Path]:
        """The folders of the trainings, done side by side when the first of them is asked for.

        Raises:
            UserError: one of them failed, now or when they were done.
        """
        if isinstance(self._outcome, UserError):
            raise self._outcome
        return self._outcome

    @cached_property
    def _outcome(self) -> dict[str, Path] | UserError:
        try:
            return self._train()
        except UserError as error:  # kept, so that the checks that come after do not train again
            return error

    def _train(self) -> dict[str, Path]:
        free = {name: ["deterministic=False"] for name in ("free", "free-equal")}
        jobs: dict[str, Training] = {}
        try:
            for name in self.trainings:
                jobs[name] = Training(self.training(name, *free.get(name, [])), self.folder / f"{name}.log")
            if killed := jobs.get("killed"):
                last = self.folder / "killed/weights/last.pt"
                while killed.process.poll() is None and not last.exists():
                    time.sleep(0.01)
                if killed.process.poll() is not None:
                    raise UserError(f"the training that was to be killed ended before: {last_line(killed.said)}")
                killed.kill()
                jobs["killed"] = Training([sys.executable, "-m", "rscmd_model.train", f"resume={last}"], killed.log)
            for name, job in jobs.items():
                if code := job.ended(LONGEST):
                    raise UserError(f"training {name} ended with {code}: {last_line(job.said)}")
        finally:
            for job in jobs.values():
                job.kill()
        return {name: self.folder / name for name in jobs}


class Training:
    """A process in a group of its own, which writes to a log."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def said(self) -> str:
        """What it has written."""
        return self.log.read_text(errors="replace")

    def ended(self, seconds: float) -> int:
        """Its exit code. Raises `UserError` where it goes on for longer."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise UserError(f"a training takes more than {seconds:.0f} s: {last_line(self.said)}") from None

    def kill(self) -> None:
        """End it and its children by SIGKILL, where it has not ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def last_line(text: str) -> str:
    """The last line that says something."""
    return ([line for line in text.splitlines() if line.strip()] or ["nothing was said"])[-1].strip()


def apart(one: Path, other: Path) -> tuple[float, float]:
    """How far two runs are apart: their losses in the last epoch, and their weights."""
    losses = []
    for run in (one, other):
        with (run / "results.csv").open() as file:
            row = list(csv.DictReader(file))[-1]
        losses.append({key.strip(): float(value) for key, value in row.items() if "loss" in key})
    weights = [load_file(run / "model.safetensors") for run in (one, other)]
    largest = max(float(w.abs().max()) for w in weights[0].values())
    difference = max(float((w - weights[1][name]).abs().max()) for name, w in weights[0].items())
    return max(abs(a - losses[1][key]) / max(a, 1e-6) for key, a in losses[0].items()), difference / largest


def resume(place: Place) -> Iterator[Row]:
    """A run that was killed by SIGKILL and went on, against one that was not."""
    loss, weight = apart(place.runs["killed"], place.runs["whole"])
    yield Row("killed and resumed", told(loss, weight), f"losses within {SAME:.0%}", loss <= SAME)


def equal(place: Place) -> Iterator[Row]:
    """Two equal runs, with and without deterministic kernels."""
    loss, weight = apart(place.runs["equal"], place.runs["whole"])
    yield Row("two equal runs", told(loss, weight), f"losses within {SAME:.0%}", loss <= SAME)
    loss, weight = apart(place.runs["free-equal"], place.runs["free"])
    yield Row("two equal runs, deterministic=False", told(loss, weight))


def told(loss: float, weight: float) -> str:
    """What `apart` found."""
    return f"losses {loss:.2g}, weights {weight:.2g} apart"


def answers(place: Place) -> Iterator[Row]:
    """What a trained model answers on the CPU and on the device, before suppression."""
    file = place.runs["whole"] / "model.safetensors"
    stack = np.random.default_rng(0).integers(0, 256, (1, place.size, place.size, 4), np.uint8)
    wanted = Predictor(file, device="cpu").backend.forward(stack, ["fused"])[0][0]
    for half, score_bound, box_bound in ((False, 1e-3, 0.1), *([(True, 0.02, 2.0)] if place.cuda else [])):
        backend = Predictor(file, device=place.device, half=half).backend
        for _ in range(3):  # launch by launch, as it is recorded, and as it was recorded
            found = backend.forward(stack, ["fused"])[0][0]
        boxes, scores = (float(np.abs(found[of] - wanted[of]).max()) for of in (slice(0, 4), slice(4, None)))
        yield Row(
            f"CPU against {place.device}, {16 if half else 32} bits",
            f"scores {scores:.2g}, boxes {boxes:.2g} px apart",
            f"scores {score_bound:g}, boxes {box_bound:g} px",
            scores <= score_bound and boxes <= box_bound,
        )


def memory(place: Place) -> Iterator[Row]:
    """A batch that finds no memory, and the next one."""
    if not place.cuda:
        yield Row("out of memory", "not tried: no GPU")
        return
    predictor = Predictor(place.runs["whole"] / "model.safetensors", device=place.device)
    pair = np.zeros((1024, 1024, 3), np.uint8), np.zeros((1024, 1024), np.uint8)
    hog = torch.empty(max(torch.cuda.mem_get_info(place.device)[0] - 2**28, 0), dtype=torch.uint8, device=place.device)
    try:
        predictor.predict_batch([pair[0]] * 64, [pair[1]] * 64)
        found, failed = "64 pairs of 1024 px found memory where 256 MB were left", False
    except torch.OutOfMemoryError:
        found, failed = "refused", True
    del hog
    torch.cuda.empty_cache()
    predictor.predict(*pair)
    yield Row("out of memory, then a pair", f"{found}, then answered", "refused, then answered", failed)


def devices(place: Place) -> Iterator[Row]:
    """Several GPUs asked for; on the processor, two processes. NCCL takes no two processes on one GPU."""
    several = subprocess.run(place.training("several", "device=0,1"), capture_output=True, text=True, timeout=120)
    wanted = "trained" if torch.cuda.device_count() > 1 else "one line that refuses"
    refused = several.returncode == 2 and len(several.stderr.strip().splitlines()) == 1
    holds = several.returncode == 0 if torch.cuda.device_count() > 1 else refused
    yield Row("device=0,1", f"{several.returncode}: {last_line(several.stderr or several.stdout)}", wanted, holds)
    if place.cuda:
        return
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    two = subprocess.run([*launcher, *place.training("two")[1:]], capture_output=True, text=True, timeout=180)
    said = re.search(r".*(?:error|Error).*", two.stdout + two.stderr)
    found = "trained" if two.returncode == 0 else f"{two.returncode}: {said[0].strip() if said else 'no error named'}"
    yield Row("two processes", found)


def steps(place: Place) -> Iterator[Row]:
    """The training step, in 32 bits and in mixed precision."""
    sizes, rounds = (STEPS, 10) if place.cuda else ((("n", place.size, 2),), 2)
    for scale, size, batch in sizes:
        at = ("--scale", scale, "--size", size, "--batch", batch, "--rounds", rounds, "--no-memory")
        where, full = f"scale {scale}, {size} px, batch {batch}", 0.0
        for amp in ("", "fp16", "bf16") if place.cuda else ("",):
            of = figures(place, "train_step.py", "rscmd", *at, *(["--amp", amp] if amp else []))["results"]
            ratio, bits = of["rscmd"]["ratio"], amp or "32 bits"
            found = f"{ratio[1]:.2f} ({ratio[0]:.2f}–{ratio[2]:.2f}) of sum's {of['sum']['step']:.0f} ms"
            yield Row(f"a step of rscmd, {where}, {bits}", found, "1.3", ratio[1] <= 1.3)
            full = full or of["rscmd"]["step"]
            if amp:
                share = of["rscmd"]["step"] / full
                yield Row(f"{amp} against 32 bits, {where}", f"{share:.2f}", "below 1", share < 1)


def speed(place: Place) -> Iterator[Row]:
    """A pair from images to boxes."""
    scales, rounds = (("n", "s"), 100) if place.cuda else (("n",), 2)
    size = ("--size", "640", "512") if place.cuda else ("--size", "64", "64")
    results = figures(place, "inference.py", "--scales", *scales, "--rounds", rounds, *size, "--formats")
    for scale, goal in zip(scales, (1.5, 2.0)):
        of = results[scale]
        ours, eight = of["ours, torch"], of["8 at once, torch"]
        tail, gain = ours["p95"] / ours["p50"], ours["p50"] / eight["p50"]
        yield Row(f"a pair, scale {scale}", f"{ours['p50']:.2f} ms", f"{goal:g} ms", ours["p50"] <= goal)
        yield Row(f"p95 over p50, scale {scale}", f"{tail:.2f}", "1.2", tail <= 1.2)
        yield Row(f"eight at once, scale {scale}", f"{gain:.2f} times the pairs", "3", gain >= 3)
        for name in [name for name in of if name.startswith("two ultralytics predict, torch")]:
            share = ours["p50"] / of[name]["p50"]
            yield Row(f"of {name}, scale {scale}", f"{share:.2f}", "0.5", share <= 0.5)


def feeding(place: Place) -> Iterator[Row]:
    """Whether the processor makes pairs as fast as a training step takes them."""
    workers = min(8, os.cpu_count() or 1)
    sizes = (
        ("--pairs", 512, "--imgsz", 320, "--batch", 32) if place.cuda else ("--pairs", 4, "--imgsz", 64, "--batch", 2)
    )
    of = figures(place, "feeding.py", *sizes, "--workers", workers, "--caches", "none", "ram", "--epochs", 2)
    for cache, found in of["results"][str(workers)].items():
        taken, made = of["step"], found["living"]
        step = f", a step of rscmd takes {taken:.0f}" if taken else ""
        yield Row(
            f"feeding, cache {cache}, {workers} workers", f"{made:.0f} pairs/s{step}", "as many", made >= (taken or 0)
        )


def figures(place: Place, script: str, *words: object) -> Any:
    """What another benchmark writes as JSON. Raises `UserError` where it failed."""
    out = place.folder / "figures.json"
    command = [sys.executable, str(HERE / script), *map(str, words), "--device", place.device, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{script}: {last_line(done.stderr)}")
    return json.loads(out.read_text())


TRAININGS = {
    "resume": ("whole", "killed"),
    "equal": ("whole", "equal", "free", "free-equal"),
    "answers": ("whole",),
    "memory": ("whole",),
}
"""What a check looks at."""
GOALS = ("steps", "speed", "feeding")
"""Checks whose wishes are those of a GPU."""
CHECKS: dict[str, Callable[[Place], Iterator[Row]]] = {
    of.__name__: of for of in (resume, equal, answers, memory, devices, steps, speed, feeding)
}


def main() -> None:
    """Parse the command line, check, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the checks (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), help="default: all")
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise UserError("no CUDA GPU is visible to torch")
    started, holds = time.monotonic(), []
    print(f"{torch.cuda.get_device_name(args.device) if cuda else 'CPU'}, torch {torch.__version__}\n")
    print("| check | found | wanted | | s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        trainings = tuple(dict.fromkeys(name for check in args.only for name in TRAININGS.get(check, ())))
        place = Place(args.device, Path(name), *((320, 160) if cuda else (64, 16)), trainings)
        for check in args.only:
            at = time.monotonic()
            for row in guarded(check, place):
                verdict = {None: "", True: "holds", False: "**missed**"}[row.holds]
                seconds, at = time.monotonic() - at, time.monotonic()
                print(f"| {row.check} | {row.found} | {row.wanted} | {verdict} | {seconds:.0f} |", flush=True)
                holds.append(row.holds)
    print(f"\n{holds.count(True)} hold, {holds.count(False)} do not, {time.monotonic() - started:.0f} s in all")
    if False in holds:
        sys.exit(1)


def guarded(check: str, place: Place) -> Iterator[Row]:
    """The rows of a check; one that breaks is a row."""
    try:
        for row in CHECKS[check](place):
            yield row if place.cuda or check not in GOALS else replace(row, wanted="", holds=None)
    except (UserError, OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        yield Row(check, f"broke: {last_line(str(error))}", "an answer", False)


if __name__ == "__main__":
    run_cli(main)
