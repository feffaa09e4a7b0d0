"""Train several methods with one recipe and one initialisation per seed, score each, and write the table.

    python -m rscmd_model.ablate --data data.yaml --methods visible,thermal,sum,rsc,rscmd --seeds 3 epochs=100 imgsz=640

A method may carry changes, as in rscmd+md=map or rsc+rsc=shared+lambda_visible=2; every setting of the model's
configuration can be changed. Options in the form key=value are ultralytics' own and the same for every run. No epoch is
chosen by its validation score: the model of the last epoch is scored.

--out gets a folder for each run, results.csv (a row for each run and branch), table.csv and table.md (mean and spread
over the seeds, and in table.md what each answer gains over its control, seed by seed) and ablation.png. An ablation
that was interrupted goes on where it stopped when it is called again: a finished run is not trained again, an
unfinished one is resumed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rscmd_model.ablation_plot import answer_name, plot_ablation
from rscmd_model.config import FAMILIES, SCALES, parse_method
from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.devices import check_device
from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import lock_folder, whole_file, write_json
from rscmd_model.options import parse_options, word

RECIPE = {"val": False, "plots": False, "verbose": False}  # what an ablation adds to ultralytics' defaults
FIGURES = ("mAP50", "mAP50_95")
COSTS = ("parameters", "gflops", "step_ms", "memory_mb")
CONTROLS = {"fused": "sum", "visible": "visible", "thermal": "thermal"}  # what each answer has to beat


@dataclass(frozen=True)
class Run:
    """One training: a method as it is written on the command line, and a seed."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.method}-seed{self.seed}"


def main() -> None:
    """Parse the command line, train what is missing, write the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_model.ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data_arguments(parser)
    camera_arguments(parser)
    parser.add_argument(
        "--methods",
        default="visible,thermal,sum,rsc,rscmd",
        help="separated by commas, each with its changes: rscmd+md=map (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 (default: %(default)s)")
    parser.add_argument("--model", choices=SCALES, default="n", help="scale of both streams (default: %(default)s)")
    parser.add_argument(
        "--family", choices=FAMILIES, default="yolov8", help="layers of both streams (default: %(default)s)"
    )
    parser.add_argument("--split", default="val", help="split to score (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ablation"), help="folder for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, help="trainings side by side (default: one on a GPU, else as many as there are cores)"
    )
    parser.add_argument("options", nargs="*", metavar="key=value", help="ultralytics' options, the same for all")
    args = parser.parse_intermixed_args()
    methods = list(dict.fromkeys(word for word in args.methods.split(",") if word))
    if not methods or args.seeds < 1 or (args.jobs is not None and args.jobs < 1):
        raise UserError("give at least one method, one seed and one job")
    for method in methods:
        parse_method(method)
    options = {**RECIPE, **parse_options(args.options)}
    for taken in ("seed", "project", "name", "resume", "exist_ok"):
        if taken in options:
            raise UserError(f"{taken}= is set by the ablation itself, for each run: leave it out")
    if options.get("single_cls"):
        raise UserError("single_cls=True: an ablation scores the data's own classes, leave it out")
    data = open_data(args.data, args.root, args.split_file, args.registration, args.palette_ok)
    pairs = {split: len(find_pairs(data, split)) for split in ("train", args.split)}
    check_device(options.get("device"))
    if args.jobs is None:
        import torch  # here, since --help should not wait for it

        args.jobs = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    lock = lock_folder(args.out, "ablation")
    claim(
        args.out,
        {"data": data.spec, "split": args.split, "model": args.model, "family": args.family, "options": options},
    )

    # Seed by seed, so that an ablation that is interrupted has whole seeds to show.
    runs = [Run(method, seed) for seed in range(args.seeds) for method in methods]
    missing = [run for run in runs if not (args.out / run.name / "scores.json").is_file()]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished before; {pairs} pairs", flush=True)
    failed = train_all(missing, data.spec, args, options)
    rows = read_rows([run for run in runs if run not in failed], args.out)
    if rows:
        write_results(args.out, rows, f"{data.name}, {args.split}: {pairs[args.split]} pairs")
        print("\n" + (args.out / "table.md").read_text(encoding="utf-8"), flush=True)
    lock.close()
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(run.name for run in failed)}; the first one said: "
            f"{next(iter(failed.values()))}; see {args.out}/RUN.log, then call this again"
        )


def claim(out: Path, recipe: dict[str, Any]) -> None:
    """Take `out` for an ablation of this recipe.

    Raises:
        UserError: it holds an ablation of another recipe, whose runs must not be mixed with these.
    """
    file = out / "recipe.json"
    if file.is_file():
        try:
            # Ablations from before there were families do not name theirs.
            before = {"family": "yolov8", **json.loads(file.read_text(encoding="utf-8"))}
        except (TypeError, ValueError):
            raise UserError(f"{file} is no recipe of an ablation: choose another --out") from None
        if before != json.loads(json.dumps(recipe)):
            changed = sorted(k for k in before.keys() | recipe.keys() if before.get(k) != recipe.get(k))
            raise UserError(f"{out} holds an ablation with another {' and '.join(changed)}: choose another --out")
    else:
        write_json(file, recipe)


def train_all(missing: Sequence[Run], data: str, args: argparse.Namespace, options: dict[str, Any]) -> dict[Run, str]:
    """Train and score runs, `args.jobs` at a time; says every minute how far they are.

    Returns:
        the runs that failed, each with the last line that it said.
    """
    running: dict[Run, subprocess.Popen[bytes]] = {}
    stopping = threading.Event()

    def one(run: Run) -> str | None:
        process = subprocess.Popen(command(run, data, args, options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        running[run] = process
        if stopping.is_set():
            process.terminate()
        said = copy_output(process, args.out / f"{run.name}.log")
        return None if process.wait() == 0 else said

    def epochs(run: Run) -> int:
        results = args.out / run.name / "results.csv"
        return max(0, len(results.read_text().splitlines()) - 1) if results.is_file() else 0

    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            jobs = {run: pool.submit(one, run) for run in missing}
            while wait(jobs.values(), timeout=60).not_done:
                done = sum(job.done() for job in jobs.values())
                now = [f"{run.name} epoch {epochs(run)}" for run, job in jobs.items() if job.running()]
                print(f"{done}/{len(jobs)} done; {', '.join(now)}", flush=True)
        except BaseException:  # trainings must not go on alone: the next call resumes them
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running.values()):
                process.terminate()
            raise
        return {run: said for run, job in jobs.items() if (said := job.result()) is not None}


def copy_output(process: subprocess.Popen[bytes], log: Path) -> str:
    """Write down what a process says until it ends, and give the last line of it.

    On a full disk the rest of the log is lost. It comes through a pipe, so that the last line is not, and so that the
    process ends when nobody is there to read it.
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


def command(run: Run, data: str, args: argparse.Namespace, options: dict[str, Any]) -> list[str]:
    """The command line of one run, which anybody can repeat by hand; a run that was interrupted is resumed."""
    start = [sys.executable, "-m", "rscmd_model.train", "--score", args.split]
    last = args.out / run.name / "weights" / "last.pt"
    if last.is_file():
        return [*start, f"resume={last}"]
    words = [word(key, value) for key, value in options.items()]
    words += [f"project={args.out}", f"name={run.name}", f"seed={run.seed}", "exist_ok=True"]
    return [*start, "--data", data, "--method", run.method, "--model", args.model, "--family", args.family, *words]


def read_rows(runs: Sequence[Run], out: Path) -> list[dict[str, Any]]:
    """A row for each run and branch: method, seed, branch, mAP50 and mAP50_95 (0 to 1), and what the run cost."""
    rows = []
    for run in runs:
        scores = json.loads((out / run.name / "scores.json").read_text())
        cost = json.loads((out / run.name / "cost.json").read_text())
        for branch, figures in scores["branches"].items():
            both = {column: figures[column] for column in FIGURES}
            rows.append({"method": run.method, "seed": run.seed, "branch": branch, **both, **cost})
    return rows


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method and branch, over the seeds.

    Returns:
        method, branch, seeds (how many), mean and sample standard deviation (None for one seed) of both figures in
        points (0 to 100), and the medians of what the runs cost.
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
    """Write results.csv, table.csv, table.md and ablation.png into `out`, each whole."""
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
    """The table of `summarize` for people; what a run cost stands in the line of its main answer."""
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
    """What each answer gains over its control with the same seed, and so the same first weights, for people.

    The control of a fused answer is `sum`, that of a branch alone the detector of that modality. Without a run of the
    control there is no line, and without any line no table.
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


if __name__ == "__main__":
    run_cli(main)
