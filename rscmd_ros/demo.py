"""The whole path once, small: drawn world, training, bag, the detector node over DDS, score.

    python -m rscmd_ros.demo [--out runs/demo]

Every stage is one of the programs a user would run, in a process of its own. At the end the folder holds data/,
model.safetensors, bag/, summary.json and report.html. Interrupted, it goes on with what was not finished.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import lock_folder, write_json
from rscmd_ros.transport import config_file, free_domain, use_large_messages

WORK = ".work"  # in the demo's folder: logs, the training run, what is finished; gone once all is done
ENDING = 15.0  # s for a process to end after SIGINT
_FIGURES = ("summary.json", "report.html")
# What the demo leaves, each with what is in it where the demo made it.
_LEFT = {"data": "world.json", "bag": "metadata.yaml", "model.safetensors": "", **dict.fromkeys(_FIGURES, "")}
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Recipe:
    """Sizes of the demo, chosen for two cores and a few minutes. The two cameras differ in rate, as real ones do."""

    train: int = 400
    val: int = 120
    size: tuple[int, int] = (192, 160)
    epochs: int = 8
    imgsz: int = 160
    batch: int = 16
    workers: int = 1
    options: tuple[str, ...] = (
        "optimizer=AdamW",
        "lr0=0.002",
        "warmup_epochs=1",
        "nbs=16",
        "mosaic=0",
        "close_mosaic=0",
        "plots=false",
    )
    seed: int = 0
    rate_visible: float = 15.0
    rate_thermal: float = 9.0
    jitter_ms: float = 4.0
    drop: float = 0.02
    confidence: float = 0.01  # the node publishes from here on, so that the curve is nearly whole


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


class Demo:
    """The stages, over one folder."""

    def __init__(self, out: Path, recipe: Recipe):
        self.out, self.recipe = out, recipe
        self.work = out / WORK
        self.model, self.bag = out / "model.safetensors", out / "bag"
        self._book = self.work / "finished.json"
        self._finished: list[list[str]] = []
        self._next = 0

    def run(self) -> None:
        """All stages, or those that an interrupted run left over."""
        started = time.monotonic()
        self._begin()
        r = self.recipe
        data = self.out / "data/data.yaml"
        world = _module("rscmd_model.synthetic", "--out", data.parent, "--train", r.train, "--val", r.val)
        world += ["--size", *map(str, r.size), "--seed", str(r.seed)]
        self._stage("drawing a world of image pairs", world, data)
        shutil.rmtree(self.work / "train", ignore_errors=True)  # of an interrupted training
        train = _module("rscmd_model.train", "--data", data, "--method", "rscmd", "--scale", "n", "--out", self.model)
        train += [
            f"epochs={r.epochs}",
            f"imgsz={r.imgsz}",
            f"batch={r.batch}",
            f"workers={r.workers}",
            f"seed={r.seed}",
        ]
        train += [*r.options, f"project={self.work}", "name=train"]
        title = f"training a small RSC-MD detector, {r.epochs} epoch{'s' if r.epochs > 1 else ''}"
        outdated = [self.model, *(self.out / name for name in _FIGURES)]
        self._stage(title, train, self.model, self._training_progress(), outdated)
        bag = _module("rscmd_ros.make_bag", "--data", data, "--split", "val", "--out", self.bag, "--force")
        bag += ["--rate-visible", str(r.rate_visible), "--rate-thermal", str(r.rate_thermal)]
        bag += ["--jitter-ms", str(r.jitter_ms), "--drop", str(r.drop), "--seed", str(r.seed)]
        self._stage("recording a bag", bag, self.bag)
        self._live()
        shutil.rmtree(self.work)
        self._table(time.monotonic() - started)

    def _begin(self) -> None:
        self._refuse_foreign()
        try:
            self._finished = json.loads(self._book.read_text())
            print(f"going on in {self.out}, where an earlier run stopped", flush=True)
        except (OSError, ValueError):
            self._finished = []
        self._lock = lock_folder(self.work, "demo")

    def _refuse_foreign(self) -> None:
        """What bears the names of the demo's own files is replaced and removed, so it has to be the demo's.

        A run that is not finished is known by its lock. One that is finished has left all of its files.
        """
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out} is not a folder; choose another --out")
        if (self.work / ".lock").is_file():
            return
        there = [name for name in (*_LEFT, WORK) if os.path.lexists(self.out / name)]
        finished = there == [*_LEFT] and all((self.out / name / mark).exists() for name, mark in _LEFT.items())
        if there and not finished:
            raise UserError(
                f"{self.out} holds {there[0]}, but not all that a finished demo leaves ({', '.join(_LEFT)}), so it may "
                "be of something else: choose another --out, or move it away"
            )

    def _stage(
        self,
        title: str,
        command: list[str],
        made: Path,
        progress: Callable[[], None] | None = None,
        outdated: Sequence[Path] = (),
    ) -> None:
        """Run a command that makes `made`, unless it and all before it are known to be finished.

        Its output goes to a log, and its progress to the screen. Files of an earlier run that must not stand beside
        what is made now, as the figures of another model, are removed first.
        """
        at, self._next = self._next, self._next + 1
        if self._finished[at : at + 1] == [command] and made.exists():
            print(f"== {title}: done before", flush=True)
            return
        del self._finished[at:]  # what follows has to be made anew from this
        write_json(self._book, self._finished)
        for file in outdated:
            file.unlink(missing_ok=True)
        print(f"== {title}", flush=True)
        started = time.monotonic()
        log = self.work / f"{command[2].rsplit('.', 1)[-1]}.log"
        with _process(command, log, os.environ.copy()) as process:
            _follow(process, log, None if progress else sys.stdout.write, progress)
        if process.returncode != 0:
            raise UserError(_failure(title, process.returncode, command, log))
        self._finished.append(command)
        write_json(self._book, self._finished)
        print(f"   {time.monotonic() - started:.0f} s", flush=True)

    def _training_progress(self) -> Callable[[], None]:
        """Tells of every epoch as soon as it is in the run's table."""
        table, told = self.work / "train/results.csv", 0

        def look() -> None:
            nonlocal told
            if not table.is_file():
                return
            with table.open(newline="") as file:
                rows = [{key.strip(): value for key, value in row.items() if key} for row in csv.DictReader(file)]
            for row in rows[told:]:
                score = row.get("metrics/mAP50(B)") or "nan"
                print(
                    f"   epoch {row['epoch'].strip()} of {self.recipe.epochs}: mAP50 {100 * float(score):.0f}",
                    flush=True,
                )
            told = len(rows)

        return look

    def _live(self) -> None:
        """The node as a process of its own, and the bag played to it."""
        print("== detecting live: the node over DDS, fed from the bag", flush=True)
        environment = os.environ.copy()
        environment["ROS_DOMAIN_ID"] = str(free_domain())
        environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        environment.pop("ROS_LOCALHOST_ONLY", None)  # would override the line above
        node_log, log = self.work / "node.log", self.work / "evaluate_bag.log"
        node_command = _module("rscmd_ros.detector_node", "--ros-args", "--params-file", config_file("detector.yaml"))
        # In quotes, for ROS reads the value as YAML: a path may hold what means something there, as " #" does.
        node_command += ["-p", f"model:={json.dumps(str(self.model.resolve()), ensure_ascii=False)}"]
        node_command += ["-p", f"confidence_threshold:={self.recipe.confidence}"]
        command = _module("rscmd_ros.evaluate_bag", self.bag, "--model", self.model, "--live", "--wait", 90)
        command += ["--json", str(self.out / "summary.json"), "--report", str(self.out / "report.html")]
        with _process(node_command, node_log, environment) as node:
            with _process(command, log, environment) as player:

                def watch() -> None:
                    if node.poll() is not None:
                        raise UserError(_failure("the detector node", node.returncode, node_command, node_log))

                _follow(player, log, sys.stdout.write, watch)
            if player.returncode != 0:
                raise UserError(_failure("the live evaluation", player.returncode, command, log))
        if node.returncode != 0:
            raise UserError(_failure("ending the detector node", node.returncode, node_command, node_log))

    def _table(self, seconds: float) -> None:
        summary = json.loads((self.out / "summary.json").read_text())
        frames, latency = summary["frames"], summary["latency_ms"]
        rows = [
            ("mAP50", f"{100 * summary['mAP50']:.1f}"),
            ("mAP50:95", f"{100 * summary['mAP50_95']:.1f}"),
            ("frames in", f"{frames['visible']} visible, {frames['thermal']} thermal"),
            ("pairs", str(summary["pairs"])),
            ("latency p50 / p95", f"{latency['p50']:.0f} / {latency['p95']:.0f} ms"),
        ]
        print()
        for name, value in rows:
            print(f"   {name:<18} {value}")
        print(f"\n   {seconds / 60:.1f} minutes; report: {self.out / 'report.html'}", flush=True)


@contextmanager
def _process(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A running process with its output in `log`; however the block is left, it has ended afterwards.

    It also ends where this process is killed, which leaves no block: the next demo would meet it in the same folder.
    """
    environment["PYTHONUNBUFFERED"] = "1"
    parent = os.getpid()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches it from here alone, once
            preexec_fn=lambda: _before_start(parent),  # there is no second thread, so that this is safe
        )
        try:
            yield process
        finally:
            _end(process)


def _before_start(parent: int) -> None:
    """Runs in the new process."""
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the kernel ends it with its parent
    if os.getppid() != parent:  # which has been killed already
        os._exit(1)
    # A shell starts its background jobs deaf to SIGINT, and they would pass that on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        os.killpg(process.pid, sign)
        try:
            process.wait(timeout=ENDING)
        except subprocess.TimeoutExpired:
            continue


def _follow(
    process: subprocess.Popen[bytes],
    log: Path,
    show: Callable[[str], object] | None,
    each_time: Callable[[], None] | None,
) -> None:
    """Until the process ends: show whole lines as they come into its log, and call `each_time` twice a second."""
    rest = ""
    with log.open(encoding="utf-8", errors="replace") as lines:
        while True:
            ended = process.poll() is not None
            if each_time is not None:
                each_time()
            rest += lines.read()
            *whole, rest = rest.split("\n")
            if show is not None and whole:
                show("".join(f"   {line}\n" for line in whole))
                sys.stdout.flush()
            if ended:
                return
            time.sleep(0.5 if each_time is not None else 0.1)


def _failure(title: str, code: int, command: Sequence[str], log: Path) -> str:
    said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = said[-1] if said else "it said nothing"
    return f"{title} failed with exit code {code}: {last} (log: {log}; command: {shlex.join(command)})"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_ros.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs, help="of training (default %(default)s)")
    args = parser.parse_args(argv)
    if args.epochs < 1:
        raise UserError(f"--epochs must be at least 1, got {args.epochs}")
    use_large_messages()  # inherited by the node and the player
    Demo(args.out, Recipe(epochs=args.epochs)).run()


if __name__ == "__main__":
    run_cli(main)
