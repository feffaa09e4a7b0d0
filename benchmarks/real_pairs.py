"""RSC-MD against its controls on real photographs, each trained once, and the scored pairs played as a bag.

    python benchmarks/real_pairs.py            # what `make real` runs

Trains the methods of benchmarks/ablation.py with its recipe for photographs and seed 0 on the train pairs of llvip_mini
(or of any other data) by `python -m rscmd_model.ablate`, which scores them on the val pairs; makes a bag of the val
pairs and evaluates rscmd on it. What is already in --out is not trained again. For several seeds see
benchmarks/ablation.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ablation import LLVIP_MINI, METHODS, PHOTO_RECIPE, in_place, run

from rscmd_model.datasets.opening import data_arguments, open_data
from rscmd_model.errors import run_cli

BAG = "--rate-visible 10 --rate-thermal 10 --thermal-offset-ms 10 --jitter-ms 5 --seed 0"


def main() -> None:
    """Parse the command line, train what is missing, score, play the bag."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_arguments(parser, required=False)
    parser.add_argument("--methods", default=METHODS, help="rscmd among them (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="folder (default: %(default)s)")
    parser.add_argument("options", nargs="*", metavar="key=value", help="ultralytics' options in place of the recipe's")
    args = parser.parse_intermixed_args()
    data = ["--data", open_data(args.data or LLVIP_MINI, args.root, args.split_file).spec]
    recipe = in_place(PHOTO_RECIPE, args.options)
    run("rscmd_model.ablate", *data, "--methods", args.methods, "--seeds", "1", "--out", args.out, *recipe)

    print("\n=== rscmd as a bag", flush=True)
    bag, model, report = args.out / "bag", args.out / "rscmd-seed0" / "model.safetensors", args.out / "report.html"
    run("rscmd_ros.make_bag", *data, "--split", "val", "--out", bag, *BAG.split(), "--force")
    run("rscmd_ros.evaluate_bag", bag, "--model", model, "--json", args.out / "bag.json", "--report", report)


if __name__ == "__main__":
    run_cli(main)
