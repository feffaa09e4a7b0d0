"""The ablation of docs/ablation.md: synthetic worlds, balanced and not, and real photographs.

    python benchmarks/ablation.py                        # everything; one to three hours on two cores
    python benchmarks/ablation.py --only balanced --seeds 1 --methods sum,rscmd,rscmd+md=map
    python benchmarks/ablation.py --world-seed 100 --out runs/variants ...    # worlds to choose a variant on
    python benchmarks/ablation.py --only balanced --train 1920 --out runs/more    # more pairs to train on
    python benchmarks/ablation.py --only balanced --out runs/adamw optimizer=AdamW lr0=0.002    # another recipe

Paints the worlds into OUT/worlds and calls `python -m rscmd_model.ablate` for each; its folder is OUT/NAME, and its
intervals are over scenes. Called again, it goes on where it stopped. Variants are chosen on worlds of other seeds than
those that are reported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import whole_file

LLVIP_MINI = Path(__file__).resolve().parents[2] / "shared" / "llvip_mini" / "data.yaml"
METHODS = "visible,thermal,sum,aux,rsc,rscmd"
# A frame of each scene, since variety teaches more than motion.
WORLD = "--size 128 128 --train-sequence 1 --val-sequence 1"
WORLD += " --hidden-in-visible 0.3 --hidden-in-thermal 0.3"
WORLDS = {
    "balanced": "",
    "visible-weak": "--weaker visible --imbalance 0.8",
    "thermal-weak": "--weaker thermal --imbalance 0.8",
}
# The optimizer and its rate are those that `sum` scores best with on worlds and photographs that are not reported.
RECIPE = "optimizer=SGD momentum=0.937 cos_lr=True device=cpu amp=False cache=ram workers=0"
WORLD_RECIPE = f"{RECIPE} epochs=12 imgsz=128 batch=16 nbs=16 lr0=0.02 mosaic=0 close_mosaic=0"
PHOTO_RECIPE = f"{RECIPE} epochs=60 imgsz=256 batch=8 nbs=8 lr0=0.01 close_mosaic=15"


def run(*words: str | Path) -> None:
    """Run one of the project's entry points; its output is shown as it comes."""
    command = [sys.executable, "-m", *map(str, words)]
    if subprocess.run(command).returncode:
        raise UserError(f"failed: {' '.join(command[1:])}")


def in_place(recipe: str, options: list[str]) -> list[str]:
    """The words key=value of a recipe, without those that `options` set otherwise, and `options`."""
    set_otherwise = {word.partition("=")[0] for word in options}
    return [*(word for word in recipe.split() if word.partition("=")[0] not in set_otherwise), *options]


def main() -> None:
    """Parse the command line, paint worlds, run the ablations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*WORLDS, "llvip_mini"]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="some of them (default: all)")
    parser.add_argument("--methods", default=METHODS, help="as rscmd_model.ablate takes them (default: %(default)s)")
    parser.add_argument("--lost", action="store_true", help="also score fused answers with each camera's image black")
    parser.add_argument("--seeds", type=int, help="seeds of the trainings (default: 3, and 5 for llvip_mini)")
    parser.add_argument("--world-seed", type=int, default=0, help="seed of the worlds (default: %(default)s)")
    parser.add_argument("--train", type=int, default=480, help="a world's pairs to train on (default: %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="a world's pairs to score on (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder (default: %(default)s)")
    parser.add_argument("options", nargs="*", metavar="key=value", help="ultralytics' options in place of the recipe's")
    args = parser.parse_intermixed_args()
    for name in args.only:
        print(f"\n=== {name}", flush=True)
        if name == "llvip_mini":
            data, seeds, recipe, drives = LLVIP_MINI, 5, PHOTO_RECIPE, []
            if not data.is_file():
                print(f"skipped: no {data}")
                continue
        else:
            world = args.out / "worlds" / f"{name}-{args.world_seed}"
            if args.train != parser.get_default("train"):
                world = world.with_name(f"{world.name}-{args.train}")
            if args.val != parser.get_default("val"):
                world = world.with_name(f"{world.name}-val{args.val}")
            data, seeds, recipe = world / "data.yaml", 3, WORLD_RECIPE
            if not data.is_file():
                dials = [*WORLD.split(), *WORLDS[name].split(), "--seed", args.world_seed]
                dials += ["--train", args.train, "--val", args.val]
                run("rscmd_model.synthetic", "--out", world, *dials)
            scenes = world / "scenes.csv"  # a pair of each
            stems = [pair.stem for pair in find_pairs(open_data(data), "val")]
            with whole_file(scenes) as aside:
                aside.write_text("\n".join(["name", *stems, ""]))
            drives = ["--frames", scenes]
        words = ["--data", data, "--methods", args.methods, "--seeds", str(args.seeds or seeds)]
        words += [*drives, *(["--lost"] if args.lost else [])]
        run("rscmd_model.ablate", *words, "--out", args.out / name, *in_place(recipe, args.options))


if __name__ == "__main__":
    run_cli(main)
