"""Where the time of a bag evaluation goes, what reading ahead and batches gain, and how many bags scale over workers.

    python benchmarks/bags.py --model model.safetensors                 # the first two tables
    python benchmarks/bags.py --model model.safetensors --workers 1 2   # and many bags through Ray (pip install ray)

The bags hold --pairs synthetic pairs each, as mcap. The ways take turns, and a ratio is taken within a round; medians
over the rounds are reported. torch has --threads threads throughout. The files are in the page cache: reading them from
a disk or over a network comes on top. With --workers each way is a process of its own, start-up included, with an empty
results folder, and the JSON files of all ways are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import write_json
from rscmd_model.inference.predictor import Predictor
from rscmd_model.synthetic.writing import write_world
from rscmd_ros.bags.answers import Answers, answer_pairs
from rscmd_ros.bags.job import BATCH, LOWEST_SCORE
from rscmd_ros.bags.pairs import Pairing, read_pairs
from rscmd_ros.bags.reader import open_bag
from rscmd_ros.bags.score import Outcome, figures, outcome
from rscmd_ros.bags.topics import THERMAL_TOPIC, TRUTH_TOPIC, VISIBLE_TOPIC
from rscmd_ros.bags.truth import truth_from_topic
from rscmd_ros.make_bag import main as make_bag
from rscmd_ros.node.pairing_options import PairingOptions

TOPICS = {"visible": VISIBLE_TOPIC, "thermal": THERMAL_TOPIC}


def one_bag(bag: Path, model: Path, rounds: int, batch: int) -> dict[str, float]:
    """Milliseconds per pair of each part and each way, and the ways' ratios to one by one; prints both tables."""
    predictor = Predictor(model, device="cpu", conf=LOWEST_SCORE)
    ways = {
        "one by one": (1, False),
        "one by one, read ahead": (1, True),
        f"batches of {batch}": (batch, False),
        f"batches of {batch}, read ahead": (batch, True),
    }
    predictor.warm_up()
    with open_bag(bag) as opened:
        answer_pairs(opened, TOPICS, PairingOptions(), predictor, batch=batch)
    spent: dict[str, list[float]] = {}
    outcomes: dict[str, Outcome] = {}
    with open_bag(bag) as opened:
        truths = truth_from_topic(opened, TRUTH_TOPIC)
    for _ in range(rounds):
        with open_bag(bag) as opened:
            started = time.perf_counter()
            pairs = sum(1 for _ in read_pairs(opened, TOPICS, PairingOptions(), Pairing(), predictor.thermal))
            spent.setdefault("reading and pairing", []).append((time.perf_counter() - started) / pairs * 1e3)
        for name, (size, overlap) in ways.items():
            started = time.perf_counter()
            with open_bag(bag) as opened:
                got: Answers = answer_pairs(opened, TOPICS, PairingOptions(), predictor, batch=size, overlap=overlap)
            spent.setdefault(name, []).append((time.perf_counter() - started) / pairs * 1e3)
            outcomes[name] = outcome(
                got.pairing, got.by_stamp, truths, predictor.names, ledger=got.pairing.ledger, pairs=pairs
            )
        started = time.perf_counter()
        figures([outcomes["one by one"]], predictor.names)
        spent.setdefault("scoring", []).append((time.perf_counter() - started) / pairs * 1e3)
    result = {f"{name}_ms": statistics.median(values) for name, values in spent.items()}
    print(f"\n| {pairs} pairs, {rounds} rounds | ms per pair | of one by one | farthest box, px | mAP50:95 |")
    print("|---|---|---|---|---|")
    for name in ("reading and pairing", "scoring"):
        print(f"| {name} alone | {result[f'{name}_ms']:.1f} | | | |")
    for name in ways:
        ratio = statistics.median(a / b for a, b in zip(spent[name], spent["one by one"]))
        apart = _apart(outcomes["one by one"], outcomes[name])
        mean = 100 * figures([outcomes[name]], predictor.names).summary["mAP50_95"]
        result |= {f"{name}_ratio": ratio, f"{name}_px": apart}
        print(f"| {name} | {result[f'{name}_ms']:.1f} | {ratio:.2f} | {apart:.1g} | {mean:.3f} |", flush=True)
    return result


def _apart(one: Outcome, other: Outcome) -> float:
    """The largest difference between boxes of two evaluations, px; infinite where their numbers differ."""
    largest = 0.0
    for a, b in zip(one.scored or (), other.scored or (), strict=True):
        if len(a.found) != len(b.found):
            return float("inf")
        largest = max([largest, *abs(a.found.boxes - b.found.boxes).max(axis=1, initial=0).tolist()])
    return largest


def many_bags(bags: Sequence[Path], args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds of the whole command in this process and with Ray; prints the table."""
    ways: dict[str, list[str]] = {"one after another": []} | {
        f"Ray, {n} at once": ["--ray", "local", "--workers", str(n)] for n in args.workers
    }
    seconds: dict[str, float] = {}
    contents: dict[str, object] = {}
    print(
        f"\n| {len(bags)} bags, {args.threads} threads each | s | of the first with Ray | result |\n|---|---|---|---|"
    )
    for number, (name, words) in enumerate(ways.items()):
        out = folder / f"{number}.json"
        command = [sys.executable, "-m", "rscmd_ros.evaluate_bag", *map(str, bags), "--model", str(args.model)]
        command += ["--device", "cpu", "--threads", str(args.threads), "--results", str(folder / f"kept{number}")]
        started = time.perf_counter()
        done = subprocess.run([*command, "--json", str(out), *words], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{name}: {done.stderr.strip()}")
        seconds[name] = time.perf_counter() - started
        contents[name] = json.loads(out.read_text())
        same = "identical" if contents[name] == contents["one after another"] else "DIFFERENT"
        ratio = f"{seconds[name] / seconds[f'Ray, {args.workers[0]} at once']:.2f}" if words else ""
        print(f"| {name} | {seconds[name]:.1f} | {ratio} | {same} |", flush=True)
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model.safetensors")
    parser.add_argument("--pairs", type=int, default=120, help="in each bag (default %(default)s)")
    parser.add_argument("--bags", type=int, default=4, help="with --workers (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 512), metavar=("W", "H"), help="of the pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="*", default=[], help="bags at once through Ray, e.g. 1 2")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = write_world(folder / "world", train=1, val=args.pairs, size=tuple(args.size), seed=0)
        bags = [folder / f"bag{n}" for n in range(args.bags if args.workers else 1)]
        for n, bag in enumerate(bags):
            make_bag(["--data", str(world), "--split", "val", "--out", str(bag), "--drop", "0.02", "--seed", str(n)])
        size = sum(part.stat().st_size for part in bags[0].iterdir())
        print(f"{args.size[0]}x{args.size[1]}, {size / 1e6:.0f} MB a bag, {os.cpu_count()} processors")
        result: dict[str, object] = {"one_bag": one_bag(bags[0], args.model, args.rounds, args.batch)}
        if args.workers:
            result["many_bags_s"] = many_bags(bags, args, folder)
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    run_cli(lambda: main())
