"""RSC-MD against its controls on real photographs: one recipe, five methods, and the winner of the paper as a bag.

    python benchmarks/real_pairs.py            # what `make real` runs; some 20 minutes on two cores

Trains visible, thermal, sum, rsc and rscmd from random weights on the train pairs of llvip_mini (or of any data.yaml
in the native layout), scores each on the val pairs with the model of its last epoch (none is chosen by its val
score), scores the branches of rscmd alone, and plays the val pairs as a bag. Without a GPU, as many trainings run side
by side as there are cores, since ultralytics gives each nearly all cores but one. A method whose model is already in
--out is not trained again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import torch

from rscmd_model.config import METHODS
from rscmd_model.datasets.opening import data_arguments, open_data
from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import whole_file, write_json

LLVIP_MINI = Path(__file__).resolve().parents[2] / "shared" / "llvip_mini" / "data.yaml"
RECIPE = {
    "epochs": 60,
    "imgsz": 320,
    "batch": 8,
    "nbs": 8,
    "optimizer": "AdamW",
    "lr0": 0.001,
    "close_mosaic": 15,
    "val": False,
    "plots": False,
}
BAG = ["--rate-visible", "10", "--rate-thermal", "10", "--thermal-offset-ms", "10", "--jitter-ms", "5"]


def run(*words: str | Path, log: Path | None = None) -> None:
    """Run one of the project's entry points, its output shown as it comes or kept in `log`."""
    command = [sys.executable, "-m", *map(str, words)]
    with log.open("w") if log else contextlib.nullcontext() as file:
        if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT if log else None).returncode:
            raise UserError(f"failed: {' '.join(command[1:])}" + (f" (see {log})" if log else ""))


def train_all(missing: dict[str, Path], args: argparse.Namespace, recipe: dict[str, object]) -> None:
    """Train the methods that have no model yet, the longest first; says every minute where each one is."""

    def train(method: str) -> None:
        options = [f"{k}={v}" for k, v in recipe.items()]
        options += [f"project={args.out}", f"name={method}", "exist_ok=True"]
        words = ["rscmd_model.train", "--data", args.data, "--method", method, "--out", missing[method], *options]
        run(*words, log=args.out / f"{method}.log")

    def epochs(method: str) -> int:
        results = args.out / method / "results.csv"
        return max(0, len(results.read_text().splitlines()) - 1) if results.is_file() else 0

    workers = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        jobs = {method: pool.submit(train, method) for method in reversed(missing)}
        while wait(jobs.values(), timeout=60).not_done:
            print("  ".join(f"{m} {epochs(m)}/{recipe['epochs']}" for m in jobs), flush=True)
    for job in jobs.values():
        job.result()


def score(model: Path, data: str, out: Path, *more: str) -> dict[str, float]:
    """Score a model on the val pairs; the figures are kept in `out`."""
    run("rscmd_model.evaluate", "--model", model, "--data", data, "--json", out, *more)
    return json.loads(out.read_text())


def main() -> None:
    """Parse the command line, train what is missing, score, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_arguments(parser, required=False)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/real"), help="folder for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the weights and the augmentation (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=RECIPE["epochs"], help="epochs (default: %(default)s)")
    args = parser.parse_args()
    args.data = open_data(args.data or LLVIP_MINI, args.root, args.split_file).spec
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = {**RECIPE, "epochs": args.epochs, "seed": args.seed}
    models = {method: args.out / f"{method}-seed{args.seed}-{args.epochs}.safetensors" for method in METHODS}
    missing = {method: model for method, model in models.items() if not model.is_file()}
    if missing:
        print(f"=== training {', '.join(missing)}", flush=True)
        train_all(missing, args, recipe)
    print("\n=== scores on the val pairs", flush=True)
    table = {method: score(model, args.data, args.out / f"{method}.json") for method, model in models.items()}
    model = models["rscmd"]
    for lost, left in (("thermal", "visible"), ("visible", "thermal")):
        table[f"rscmd, {left} branch alone"] = score(model, args.data, args.out / f"rscmd-{left}.json", "--drop", lost)

    print("\n=== rscmd as a bag", flush=True)
    bag = args.out / "bag"
    run(
        "rscmd_ros.make_bag",
        "--data",
        args.data,
        "--split",
        "val",
        "--out",
        bag,
        *BAG,
        "--seed",
        str(args.seed),
        "--force",
    )
    files = ["--json", args.out / "bag.json", "--report", args.out / "report.html"]
    run("rscmd_ros.evaluate_bag", bag, "--model", model, *files)
    table["rscmd, as a bag"] = json.loads((args.out / "bag.json").read_text())

    lines = ["| method | mAP50 | mAP50:95 |", "|---|---|---|"]
    lines += [f"| {name} | {100 * r['mAP50']:.1f} | {100 * r['mAP50_95']:.1f} |" for name, r in table.items()]
    write_json(args.out / "summary.json", {"recipe": recipe, "results": table})
    with whole_file(args.out / "table.md") as aside:
        aside.write_text("\n".join(lines) + "\n")
    print("\n" + "\n".join(lines) + f"\n\nreport: {args.out / 'report.html'}")


if __name__ == "__main__":
    run_cli(main)
