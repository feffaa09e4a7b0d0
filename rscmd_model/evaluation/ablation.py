"""An ablation: several methods trained with one recipe and several seeds, each scored, and the tables of it."""

from __future__ import annotations

import csv
import json
import os
import re
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rscmd_model.config import LINEAR_SPPF
from rscmd_model.datasets.pairs import DataConfig, find_pairs
from rscmd_model.errors import UserError
from rscmd_model.evaluation.ablation_plot import answer_name, plot_ablation
from rscmd_model.files import lock_folder, whole_file, write_json
from rscmd_model.options import word

RECIPE = {"val": False, "plots": False, "verbose": False}  # what an ablation adds to ultralytics' defaults
OWN_OPTIONS = ("seed", "project", "name", "resume", "exist_ok")  # set for each run
FIGURES = ("mAP50", "mAP50_95")
COSTS = ("parameters", "gflops", "step_ms", "memory_mb")
CONTROLS = {"fused": "sum", "visible": "visible", "thermal": "thermal"}  # what each answer has to beat


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        method: as it is written on the command line, such as "rscmd+md=map".
        seed: 0 or more.
    """

    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.method}-seed{self.seed}"


@dataclass(frozen=True)
class Ablation:
    """What all trainings of an ablation share.

    Attributes:
        out: folder of everything.
        data: the data set.
        split: what is scored.
        scale: of both streams.
        family: of the layers of both streams.
        options: ultralytics' options, without `OWN_OPTIONS`.
    """

    out: Path
    data: DataConfig
    split: str
    scale: str
    family: str
    options: Mapping[str, Any]

    def command(self, run: Run) -> list[str]:
        """The command line of one run, which anybody can repeat by hand; a run that was interrupted is resumed."""
        start = [sys.executable, "-m", "rscmd_model.train", "--score", self.split]
        last = self.out / run.name / "weights" / "last.pt"
        if last.is_file():
            return [*start, f"resume={last}"]
        words = [word(key, value) for key, value in self.options.items()]
        words += [f"project={self.out}", f"name={run.name}", f"seed={run.seed}", "exist_ok=True"]
        size = ["--scale", self.scale, "--family", self.family]
        return [*start, "--data", self.data.spec, "--method", run.method, *size, *words]

    def is_finished(self, run: Run) -> bool:
        """Whether a run is trained and scored."""
        return (self.out / run.name / "scores.json").is_file()

    def epochs(self, run: Run) -> int:
        """How many epochs of a run are done."""
        results = self.out / run.name / "results.csv"
        return max(0, len(results.read_text().splitlines()) - 1) if results.is_file() else 0


def ablate(
    ablation: Ablation,
    methods: Sequence[str],
    seeds: int,
    jobs: int,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Train what is missing, score it, and write the tables of what there is.

    Args:
        ablation: what all runs share.
        methods: as they are written on the command line.
        seeds: the seeds are 0 to `seeds` - 1.
        jobs: trainings side by side.
        progress: called with lines to show, the tables at last.

    Raises:
        UserError: the data are wrong; the folder is in use, cannot be written or holds another ablation; or a run
            failed, after all others were trained.
    """
    counts = {split: len(find_pairs(ablation.data, split)) for split in ("train", ablation.split)}
    with lock_folder(ablation.out, "ablation"):
        claim(ablation)
        # Seed by seed, so that an ablation that is interrupted has whole seeds to show.
        runs = [Run(method, seed) for seed in range(seeds) for method in methods]
        missing = [run for run in runs if not ablation.is_finished(run)]
        progress(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished before; {counts} pairs")
        failed = train_all(missing, ablation, jobs, progress)
        rows = read_rows([run for run in runs if run not in failed], ablation.out)
        if rows:
            title = f"{ablation.data.name}, {ablation.split}: {counts[ablation.split]} pairs"
            write_results(ablation.out, rows, title)
            progress("\n" + (ablation.out / "table.md").read_text(encoding="utf-8"))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(run.name for run in failed)}; the first one said: "
            f"{next(iter(failed.values()))}; see {ablation.out}/RUN.log, then call this again"
        )


def claim(ablation: Ablation) -> None:
    """Take the folder for this ablation: its recipe is written there, or stands there already.

    Raises:
        UserError: it holds an ablation of another recipe, whose runs must not be mixed with these.
    """
    recipe = {
        "data": ablation.data.spec,
        "split": ablation.split,
        "model": ablation.scale,
        "family": ablation.family,
        "options": dict(ablation.options),
    }
    file = ablation.out / "recipe.json"
    if not file.is_file():
        write_json(file, recipe)
        return
    try:
        # Ablations from before there were families do not name theirs.
        before = {"family": LINEAR_SPPF, **json.loads(file.read_text(encoding="utf-8"))}
    except (TypeError, ValueError):
        raise UserError(f"{file} is no recipe of an ablation: choose another --out") from None
    if before != json.loads(json.dumps(recipe)):
        changed = sorted(k for k in before.keys() | recipe.keys() if before.get(k) != recipe.get(k))
        words = " and ".join("scale" if key == "model" else key for key in changed)
        raise UserError(f"{ablation.out} holds an ablation with another {words}: choose another --out")


def train_all(missing: Sequence[Run], ablation: Ablation, jobs: int, progress: Callable[[str], None]) -> dict[Run, str]:
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
        process = subprocess.Popen(ablation.command(run), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
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


def read_rows(runs: Sequence[Run], out: Path) -> list[dict[str, Any]]:
    """Gather the scores and costs of finished runs.

    Args:
        runs: all of them finished.
        out: folder of the ablation.

    Returns:
        a row for each run and answer: method, seed, branch (the answer's name), mAP50 and mAP50_95 (0 to 1), and what
        the run cost.
    """
    rows = []
    for run in runs:
        scores = json.loads((out / run.name / "scores.json").read_text())
        cost = json.loads((out / run.name / "cost.json").read_text())
        for branch, figures in scores["branches"].items():
            both = {column: figures[column] for column in FIGURES}
            rows.append({"method": run.method, "seed": run.seed, "branch": branch, **both, **cost})
    return rows


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Summarize rows over their seeds.

    Args:
        rows: of `read_rows`.

    Returns:
        a row for each method and answer: method, branch, seeds (how many), mean and sample standard deviation (None for
        one seed) of both figures in points (0 to 100), and the medians of what the runs cost.
    """
    table = []
    for method, branch in dict.fromkeys((row["method"], row["branch"]) for row in rows):
        here = [row for row in rows if (row["method"], row["branch"]) == (method, branch)]
        line: dict[str, Any] = {"method": method, "branch": branch, "seeds": len(here)}
        for column in FIGURES:
            values = [100 * row[column] for row in here]
            line[column] = statistics.mean(values)
            line[f"{column}_spread"] = statistics.stdev(values) if len(values) > 1 else None
        for column in COSTS:
            known = [row[column] for row in here if row[column] is not None]
            line[column] = statistics.median(known) if known else None
        table.append(line)
    return table


def write_results(out: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Write results.csv, table.csv, table.md and ablation.png, each whole.

    Args:
        out: folder.
        rows: of `read_rows`.
        title: of the picture.

    Raises:
        UserError: a file cannot be written.
    """
    table = summarize(rows)
    for name, lines in (("results.csv", rows), ("table.csv", table)):
        with whole_file(out / name) as aside, aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0].keys())
            writer.writeheader()
            writer.writerows(lines)
    with whole_file(out / "table.md") as aside:
        aside.write_text(markdown(table) + compare(rows), encoding="utf-8")
    plot_ablation(out / "ablation.png", rows, title)


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """The table of `summarize` for people. What a run cost stands in the line of its main answer."""
    lines = [
        "| method | mAP50 | mAP50:95 | parameters (M) | GFLOPs | step (ms) | memory (MB) |",
        "|---|---|---|---|---|---|---|",
    ]

    def figure(line: dict[str, Any], column: str) -> str:
        spread = line[f"{column}_spread"]
        return f"{line[column]:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")

    for line in table:
        name, costs = answer_name(line["method"], line["branch"]), [""] * 4
        if name == line["method"]:
            step = "" if line["step_ms"] is None else f"{line['step_ms']:.0f}"
            costs = [f"{line['parameters'] / 1e6:.2f}", f"{line['gflops']:.2f}", step, f"{line['memory_mb']:.0f}"]
        lines.append(f"| {name} | {figure(line, 'mAP50')} | {figure(line, 'mAP50_95')} | {' | '.join(costs)} |")
    return "\n".join(lines) + "\n"


def compare(rows: Sequence[dict[str, Any]]) -> str:
    """What each answer gains over its control, for people.

    Answer and control have the same seed, and so the same first weights. The control of a fused answer is `sum`, that
    of a unimodal answer the detector of that modality. Without a run of the control there is no line, and without any
    line there is no table.
    """
    lines = []
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        scores.setdefault((row["method"], row["branch"]), {})[row["seed"]] = 100 * row["mAP50_95"]
    for (method, branch), values in scores.items():
        control = CONTROLS[branch]
        others = scores.get((control, branch), {})
        gains = [value - others[seed] for seed, value in values.items() if seed in others]
        if gains and method != control:
            each = ", ".join(f"{gain:+.1f}" for gain in gains)
            lines.append(f"| {answer_name(method, branch)} | {control} | {each} | {statistics.mean(gains):+.1f} |")
    head = ["| points of mAP50:95 | over | seed by seed | mean |", "|---|---|---|---|"]
    return "\n".join(["", *head, *lines, ""]) if lines else ""
