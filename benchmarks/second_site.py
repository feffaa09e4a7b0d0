"""What a second site costs the first one, and what helps: the ladder of docs/second_site.md.

    python benchmarks/second_site.py                        # everything; many hours on two cores
    python benchmarks/second_site.py --moves night --methods sum --seeds 1 --train 240 --val 80 --size 96 imgsz=96

For each move, method and seed a model is trained on the first site, and from it one for each step of the ladder on the
second. R[i][j] is the mAP50:95 on site j after training on site i, for each answer of the model:

    forgetting   R[1][1] - R[2][1]
    learning     R[2][2]
    transfer     R[2][2] - the same of a model that was trained on the second site alone, for as many epochs

A first model that has not learned its site yet forgets nothing: it goes on learning there from the second one's pairs.
On drawn worlds the first training therefore has more epochs, and so has joint training.

The row `first site alone` has R[1][1] and, as learning, R[1][2]: what the first site teaches about the second one.

Drawn worlds start from random weights. `roadscene` goes from the day to the night of ../shared/roadscene_flir from
COCO weights; its seed N holds fold N % 4 out. What is finished lies in --out and is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ablation import WORLD, WORLD_RECIPE, WORLDS, in_place, run

from rscmd_model.config import MODALITIES, other_modality
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import run_cli
from rscmd_model.evaluation.faults import Fault
from rscmd_model.evaluation.sweep import LOWEST_SCORE, sweep
from rscmd_model.files import write_json
from rscmd_model.inference.predictor import Predictor

SHARED = Path(__file__).resolve().parents[2] / "shared"
MOVES = {  # from the dials of one world to those of another
    "thermal-weak": (WORLDS["balanced"], WORLDS["thermal-weak"]),
    "balanced": (WORLDS["thermal-weak"], WORLDS["balanced"]),
    "night": ("--night 0", "--night 1"),
}
STEPS = {
    "fine-tuning": "--batchnorm batch",
    "frozen BatchNorm": "--batchnorm frozen",
    "frozen backbones": "freeze=[backbones.visible,backbones.thermal]",
    "replay of 32": "--replay {first} --replay-pairs 32",
    "distillation": "--distil",
    "projection": "--keep {memory}",
    "joint": "--replay {first} --replay-pairs {pairs}",
}
LAST_EPOCH = "val=False plots=False verbose=False"  # no choice of an epoch by the pairs that are scored
# The second training begins at half the first one's rate, and its biases do not start at 0.1.
AGAIN = "lr0=0.01 warmup_epochs=1 warmup_bias_lr=0"
PHOTOS = "epochs=6 imgsz=320 batch=8 nbs=8 optimizer=AdamW lr0=0.0001 cos_lr=True warmup_epochs=1 warmup_bias_lr=0.0001"
PHOTOS += " mosaic=0 device=cpu workers=0"


def main() -> None:
    """Parse the command line, paint or link the sites, train what is missing, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*MOVES, "roadscene"]
    parser.add_argument("--moves", nargs="+", choices=names, default=names, help="some of them (default: all)")
    parser.add_argument("--methods", default="sum,rscmd", help="as rscmd_model.train takes them (default: %(default)s)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="of the ladder (default: all)")
    parser.add_argument(
        "--lam-min", nargs="+", default=["0.01", "0.001"], help="a projection for each (default: 0.01 0.001)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 (default: %(default)s)")
    parser.add_argument("--train", type=int, default=480, help="a world's pairs to train on (default: %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="a world's pairs to score on (default: %(default)s)")
    parser.add_argument(
        "--first-epochs", type=int, default=36, help="of the first training on a world (default: %(default)s)"
    )
    parser.add_argument("--size", type=int, default=128, help="side of a world's pictures, px (default: %(default)s)")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights/yolov8n_coco.pt", help="for roadscene")
    parser.add_argument("--out", type=Path, default=Path("runs/second_site"), help="folder (default: %(default)s)")
    parser.add_argument("options", nargs="*", metavar="key=value", help="ultralytics' options in place of the recipe's")
    args = parser.parse_intermixed_args()
    for move in args.moves:
        if move == "roadscene" and not (SHARED / "roadscene_flir/frames.csv").is_file():
            print(f"skipped: no {SHARED / 'roadscene_flir'}")
            continue
        for method in args.methods.split(","):
            found = [_ladder(args, move, method, seed) for seed in range(args.seeds)]
            print(f"\n### {move}: {method}, {args.seeds} seed{'s' if args.seeds > 1 else ''}\n", flush=True)
            print(_table(found), flush=True)


def _ladder(args: argparse.Namespace, move: str, method: str, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """R of every step: by its name, the site ("first", "second") and the answer."""
    first, second = _photos(args.out, seed % 4) if move == "roadscene" else _worlds(args, move)
    out = args.out / move / f"{method}-seed{seed}"
    recipe = f"{PHOTOS if move == 'roadscene' else WORLD_RECIPE} {LAST_EPOCH}"
    begin = [f"seed={seed}", *in_place(recipe, args.options)]
    again = [f"seed={seed}", *in_place(recipe, [*([] if move == "roadscene" else AGAIN.split()), *args.options])]
    start = ["--weights", args.weights] if move == "roadscene" else []
    model = out / "first/model.safetensors"
    words = ["--method", method, *start, *begin]
    longer = words if move == "roadscene" else in_place(" ".join(map(str, words)), [f"epochs={args.first_epochs}"])

    rows = {"first site alone": _trained(out / "first", first, second, "--data", first, "--remember", *longer)}
    rows["second site alone"] = _trained(out / "second", first, second, "--data", second, *words)
    pairs = len(find_pairs(open_data(first), "train"))
    for step in args.steps:
        for lam_min in args.lam_min if step == "projection" else [""]:
            name = f"{step} {lam_min}".strip()
            folder = out / name.replace(" ", "_")
            given = STEPS[step].format(first=first, memory=model.with_name("memory.safetensors"), pairs=pairs).split()
            given += ["--lam-min", lam_min] if lam_min else []
            if step == "joint":
                command = ["--data", second, *given, *longer]
            else:
                command = ["--data", second, "--continue", model, *given, *again]
            rows[name] = _trained(folder, first, second, *command)
    return rows


def _trained(folder: Path, first: Path, second: Path, *command: Any) -> dict[str, dict[str, float]]:
    """Train, unless it is done, and score on both sites."""
    if not (folder / "scores.json").is_file():
        last = folder / "weights/last.pt"
        if last.is_file():
            resumed = [f"resume={last}", *(["--remember"] if "--remember" in command else [])]
            run("rscmd_model.train", *resumed)
        else:
            place = [f"project={folder.parent}", f"name={folder.name}", "exist_ok=True"]
            run("rscmd_model.train", *command, *place)
    return _scored(folder, first, second)


def _scored(folder: Path, first: Path, second: Path) -> dict[str, dict[str, float]]:
    """mAP50:95 by the site and the answer, kept in scores.json; what a training needs alone is removed."""
    file = folder / "scores.json"
    if not file.is_file():
        predictor = Predictor(folder / "model.safetensors", device="cpu", conf=LOWEST_SCORE, max_det=100)
        there = predictor.config.answers
        faults = {"fused": Fault(answer="fused")} if "fused" in there else {}
        faults |= {answer: Fault(drop=other_modality(answer)) for answer in there if answer in MODALITIES}
        scores = {}
        for site, data in (("first", open_data(first)), ("second", open_data(second))):
            points = sweep(predictor, data, find_pairs(data, "val"), list(faults.values()))
            scores[site] = {answer: point["mAP50_95"] for answer, point in zip(faults, points)}
        write_json(file, scores)
        print(f"{folder}: {scores}", flush=True)
        shutil.rmtree(folder / "weights", ignore_errors=True)
    found: dict[str, dict[str, float]] = json.loads(file.read_text())
    return found


def _worlds(args: argparse.Namespace, move: str) -> tuple[Path, Path]:
    """The data.yaml of both sites. Their scenes are different ones."""
    sites = []
    for seed, (site, dials) in enumerate(zip(("first", "second"), MOVES[move])):
        folder = args.out / "worlds" / f"{move}-{site}-{args.train}-{args.val}-{args.size}"
        if not (folder / "data.yaml").is_file():
            numbers = ["--train", args.train, "--val", args.val, "--seed", 1000 + seed]
            others = WORLD.replace("--size 128 128", f"--size {args.size} {args.size}").split()
            run("rscmd_model.synthetic", "--out", folder, *others, *dials.split(), *numbers)
        sites.append(folder / "data.yaml")
    return sites[0], sites[1]


def _photos(out: Path, fold: int) -> tuple[Path, Path]:
    """The day and the night of roadscene_flir as two sites of links, with a fold of drives held out as val."""
    source = SHARED / "roadscene_flir"
    described = yaml.safe_load((source / "data.yaml").read_text())
    with (source / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    sites = []
    for light in ("day", "night"):
        folder = out / "worlds" / f"roadscene-{light}-fold{fold}"
        for row in rows:
            split = "val" if row["fold"] == str(fold) else "train"
            for kind in ("visible", "thermal", "labels") if row["light"] == light else ():
                for picture in (source / kind / "train").glob(f"{row['name']}.*"):
                    link = folder / kind / split / picture.name
                    link.parent.mkdir(parents=True, exist_ok=True)
                    if not link.is_symlink():
                        os.symlink(picture, link)
        keys = {"train": "visible/train", "val": "visible/val", "names": described["names"]}
        keys["thermal"] = {"train": "thermal/train", "val": "thermal/val"}
        (folder / "data.yaml").write_text(yaml.safe_dump(keys))
        sites.append(folder / "data.yaml")
    return sites[0], sites[1]


def _table(found: Sequence[dict[str, dict[str, dict[str, float]]]]) -> str:
    """A row for each step and answer, mAP50:95 in points; several seeds as mean and standard deviation."""
    lines = ["| step | answer | first site | forgetting | second site | transfer |", "|---|---|---|---|---|---|"]
    for step in found[0]:
        for answer in found[0][step]["first"]:
            old, new = (np.array([100 * rows[step][site][answer] for rows in found]) for site in ("first", "second"))
            before = np.array([100 * rows["first site alone"]["first"][answer] for rows in found])
            alone = np.array([100 * rows["second site alone"]["second"][answer] for rows in found])
            cells = map(_cell, (old, before - old, new, new - alone))
            lines.append(f"| {step} | {answer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread}"


if __name__ == "__main__":
    run_cli(main)
