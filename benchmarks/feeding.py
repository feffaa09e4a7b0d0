"""Pairs a second that the loader of a training makes, and what workers that live on and a cache give.

    python benchmarks/feeding.py --pairs 160 --imgsz 640
    python benchmarks/feeding.py --data data.yaml --workers 8 16 --caches none disk     # of a set of your own

A turn is an epoch: every pair of the split, augmented as training does by default. The turns of one number of workers
are interleaved, so that whatever else the machine is doing hits all alike: for each cache one whose workers are started
anew (the time to end the old ones included), then one with the workers of the turn before. Figures are medians over
--epochs such rounds after one that is not counted; a ratio is taken within a round. Files of cache=disk lie in the
temporary folder, and are read from the page cache where they fit into memory. With a CUDA GPU a training step (the
method and scale given, mixed precision, a batch that is on the device already) is timed beside it.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from train_step import Stepper, make_batch
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader
from ultralytics.utils import LOGGER

from rscmd_model.datasets.opening import open_data
from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import write_json
from rscmd_model.methods import parse_method
from rscmd_model.synthetic.writing import write_world
from rscmd_model.training.paired_dataset import PairedDataset
from rscmd_model.training.resume import EpochLoader, begin_epoch

COUNTS = (0, 1, 2, 4, 8, 16)
CACHES = ("none", "ram", "disk")


def open_pairs(data: Path, cache: str, folder: Path, args: argparse.Namespace) -> PairedDataset:
    """The pairs of the train split as a training has them, with its default augmentation."""
    config = open_data(data)
    mapping = {"config": config, "names": config.names, "nc": len(config.names), "channels": 4}
    options: dict[str, Any] = {
        "hyp": get_cfg(overrides={"imgsz": args.imgsz}),
        "data": mapping,
        "batch_size": args.batch,
    }
    options["cache"] = None if cache == "none" else cache
    return PairedDataset(img_path="train", imgsz=args.imgsz, augment=True, cache_folder=folder / "cache", **options)


def turn(loader: EpochLoader, epoch: int, new: bool) -> float:
    """Seconds of an epoch, with new workers or those that are there."""
    start = time.perf_counter()
    if new:
        loader.reset()
    begin_epoch(0, epoch, loader)
    for _ in loader:
        pass
    return time.perf_counter() - start


def measure(pairs: dict[str, PairedDataset], workers: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """By cache, pairs a second with new workers and with those that live on, and ratios within a round."""
    loaders = {cache: EpochLoader(build_dataloader(of, args.batch, workers)) for cache, of in pairs.items()}
    times: dict[str, list[tuple[float, float]]] = {cache: [] for cache in loaders}
    for epoch in range(args.epochs + 1):
        for cache, loader in loaders.items():
            new = turn(loader, epoch, True) if workers else math.nan
            times[cache].append((new, turn(loader, epoch, False)))
    for loader in loaders.values():
        loader.close()
    results: dict[str, dict[str, float]] = {}
    first = times[next(iter(times))][1:]
    for cache, (_, *rounds) in times.items():
        results[cache] = {
            "living": len(pairs[cache]) / statistics.median(living for _, living in rounds),
            "cached": statistics.median(base[1] / living for (_, living), base in zip(rounds, first)),
        }
        if workers:
            results[cache]["new"] = len(pairs[cache]) / statistics.median(new for new, _ in rounds)
            results[cache]["gain"] = statistics.median(new / living for new, living in rounds)
    return results


def step(args: argparse.Namespace) -> float | None:
    """Pairs a second that a training step takes; None on the CPU, which loads and trains in turns."""
    if not args.device.startswith("cuda"):
        return None
    on = argparse.Namespace(size=args.imgsz, batch=args.batch, objects=4, device=args.device, amp="fp16", compile=False)
    stepper, batch = Stepper(parse_method(args.method, scale=args.scale), True, False, on), make_batch(on)
    times = [sum(stepper.step(batch)) for _ in range(25)][5:]
    return args.batch / statistics.median(times)


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    most = os.cpu_count() or 1
    usual = [count for count in COUNTS if count <= most]
    parser.add_argument("--data", type=Path, help="data.yaml of a set (default: one is drawn, with seed 0)")
    parser.add_argument("--pairs", type=int, default=160, help="to draw (default: %(default)s)")
    parser.add_argument("--imgsz", type=int, default=640, help="image side in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pairs in a batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=usual, help="of the loader (default: %(default)s)")
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES), help="default: all")
    parser.add_argument("--epochs", type=int, default=3, help="rounds that are timed (default: %(default)s)")
    parser.add_argument(
        "--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help="of the step (default: %(default)s)"
    )
    parser.add_argument("--method", default="rscmd", help="of the step on a GPU (default: %(default)s)")
    parser.add_argument("--scale", default="n", help="of the step on a GPU (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args()
    if args.epochs < 1 or min(args.workers) < 0 or max(args.workers) > most:
        raise UserError(
            f"--epochs is 1 or more, --workers up to {most}: a loader starts no more than there are processors"
        )
    LOGGER.setLevel(logging.WARNING)  # progress of the caches
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), (args.imgsz, args.imgsz)
        data = args.data or write_world(folder / "world", train=args.pairs, val=1, size=size, seed=0)
        pairs = {cache: open_pairs(data, cache, folder, args) for cache in args.caches}
        results = {workers: measure(pairs, workers, args) for workers in args.workers}
    of = next(iter(pairs.values()))
    print(f"\n{len(of)} pairs, {args.imgsz} px, batch {args.batch}, {args.epochs} rounds; {most} processors; pairs/s\n")
    print(f"| workers | cache | new workers every epoch | workers that live on | × new | × {args.caches[0]} |")
    print("|---|---|---|---|---|---|")
    for workers, caches in results.items():
        for cache, r in caches.items():
            new, gain = (f"{r['new']:.1f}", f"{r['gain']:.2f}") if workers else ("", "")
            print(f"| {workers} | {cache} | {new} | {r['living']:.1f} | {gain} | {r['cached']:.2f} |")
    taken = step(args)
    told = "not measured, since it is not on a GPU" if taken is None else f"{taken:.0f} pairs/s"
    print(f"\nwhat a step of {args.method}, scale {args.scale}, takes: {told}")
    if args.json:
        settings = {key: str(value) for key, value in vars(args).items()}
        write_json(args.json, {"settings": settings, "processors": most, "results": results, "step": taken})


if __name__ == "__main__":
    run_cli(main)
