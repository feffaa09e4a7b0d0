"""Score a model on a split of image pairs by COCO's rules, sound or with something gone wrong.

    python -m rscmd_model.evaluate --model model.safetensors --data data.yaml --split val --json OUT
    python -m rscmd_model.evaluate ... --drop none visible thermal --noise 0 10 20 40 --plot noise.png

Boxes with a score of 0.001 or more count, at most 100 per image, after NMS at IoU 0.7, one class per box: what the node
would publish at that threshold.

Faults given together happen together, in this order: time offset, shift, dark, noise, drop. One of --time-offset,
--shift, --dark and --noise may have several values: that is a sweep. --drop and --answer may have several beside it, a
curve for each. A unimodal branch is scored as the answer to a lost camera: --drop visible scores the thermal branch.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rscmd_model.config import MODALITIES
from rscmd_model.curves import check_plot, plot_sweep
from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_data
from rscmd_model.datasets.pairs import DataConfig, PairFiles, find_pairs, read_labels
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError, run_cli
from rscmd_model.faults import Fault, describe, with_neighbours
from rscmd_model.files import write_json
from rscmd_model.images import read_thermal, read_visible
from rscmd_model.inference import Predictor
from rscmd_model.scoring import Truth, score

LOWEST_SCORE = 0.001  # below it the precision-recall curve has nothing more to gain
AXES = ("time_offset", "shift", "dark", "noise")  # the faults that have a size; also names of arguments


def main() -> None:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_model.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model.safetensors")
    data_arguments(parser)
    camera_arguments(parser)
    parser.add_argument("--split", default="val", help="split to score (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pairs per batch (default: %(default)s)")
    _add_faults(parser)
    # A space before a negative value keeps argparse from taking it for an option, as it would take -4,0.
    args = parser.parse_args([f" {word}" if re.match(r"-[\d.]", word) else word for word in sys.argv[1:]])
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give 1 or more")
    faults, axis = _plan(args)

    data = open_data(args.data, args.root, args.split_file, args.registration, args.palette_ok)
    pairs = find_pairs(data, args.split)
    predictor = Predictor(
        args.model,
        device=args.device,
        conf=LOWEST_SCORE,
        max_det=100,
        registration=data.registration,
        palette_ok=data.thermal_contract.palette_ok,
    )
    if predictor.registration is not None:
        print(f"registration: {'of the data' if data.registration else 'of the model, since the data have none'}")
    points = sweep(predictor, data, pairs, faults, seed=args.seed, batch=args.batch)
    count = f"{points[0]['pairs']} pairs"
    if points[0]["left_out"]:
        count += f" ({points[0]['left_out']} more left out: their sequence has no frame at every offset)"
    if len(faults) == 1:
        _print_single(f"{args.split}{'' if faults[0] == Fault() else ', ' + describe(faults[0])}: {count}", points[0])
    else:
        _print_table(f"{args.split}: {count}", faults, points, axis)
    if args.json:
        head = {"split": args.split, "seed": args.seed}
        write_json(args.json, {**points[0], **head} if len(faults) == 1 else {**head, "axis": axis, "points": points})
    if args.plot:
        title = f"{args.model.name} on {args.split}, {points[0]['pairs']} pairs"
        plot_sweep(args.plot, list(zip(faults, points)), axis, title)


def _add_faults(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("faults", "several values are separated by spaces: --noise 0 10 20")
    group.add_argument("--drop", nargs="+", choices=("none", *MODALITIES), help="play that this camera is lost")
    group.add_argument(
        "--answer",
        nargs="+",
        choices=("branch", "zeros"),
        help="who answers for a lost camera: the other camera's own branch (default), or the fused head, which is fed "
        "a black image in its place",
    )
    group.add_argument(
        "--shift", nargs="+", type=_shift, metavar="DX,DY", help="move the thermal image, px of the visible one"
    )
    group.add_argument(
        "--noise", nargs="+", type=float, metavar="SIGMA", help="add Gaussian noise of this many grey levels"
    )
    group.add_argument("--on", choices=(*MODALITIES, "both"), help="which images get the noise (default: both)")
    group.add_argument(
        "--dark",
        nargs="+",
        type=float,
        metavar="FACTOR",
        help="multiply the light on the visible image (0 to 1), with the shot and read noise of a dark picture",
    )
    group.add_argument(
        "--time-offset",
        nargs="+",
        type=int,
        metavar="FRAMES",
        help="take the thermal image of a later (or earlier, -N) frame of the sequence; stems end in the frame's "
        "number, as 000012_03 or 190001; 0 is scored too, on the same pairs",
    )
    group.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    group.add_argument("--plot", type=Path, metavar="OUT.png", help="draw the sweep")


def _shift(word: str) -> tuple[float, float]:
    try:
        dx, dy = (float(number) for number in word.split(","))
    except ValueError:
        raise UserError(f"--shift {word.strip()}: give DX,DY in pixels, as in --shift 4,0") from None
    return dx, dy


def _plan(args: argparse.Namespace) -> tuple[list[Fault], str | None]:
    """The settings to score, in the order to tell them, and which fault's size varies (None: none does)."""
    values: dict[str, list[Any]] = {name: list(dict.fromkeys(getattr(args, name) or [])) for name in AXES}
    if values["time_offset"] and 0 not in values["time_offset"]:
        values["time_offset"].insert(0, 0)
    swept = [name for name in AXES if len(values[name]) > 1]
    if len(swept) > 1:
        one, other = (f"--{name.replace('_', '-')}" for name in swept[:2])
        raise UserError(f"{one} and {other} both have several values: sweep one and give the other one value")
    if args.on and not values["noise"]:
        raise UserError("--on says which images get noise: give --noise as well")
    if args.answer and not set(args.drop or ()) & set(MODALITIES):
        raise UserError("--answer says who answers for a lost camera: give --drop visible or thermal as well")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give 0 or more")
    axis = swept[0] if swept else None
    same: dict[str, Any] = {name: values[name][0] for name in AXES if values[name]}
    faults = [
        Fault(**(same | ({axis: value} if axis else {})), noise_on=args.on or "both", drop=drop, answer=answer)
        for drop in (None if lost == "none" else lost for lost in dict.fromkeys(args.drop or ["none"]))
        for answer in (dict.fromkeys(args.answer or ["branch"]) if drop else ["branch"])
        for value in (values[axis] if axis else [None])
    ]
    if args.plot:
        check_plot(args.plot)
        if len(faults) == 1:
            raise UserError("--plot draws a sweep: give a fault several values")
    return faults, axis


def _print_single(title: str, result: dict[str, Any]) -> None:
    print(f"{title}, mAP50 {result['mAP50']:.3f}, mAP50:95 {result['mAP50_95']:.3f}")
    for name, figures in result["per_class"].items():
        if figures["truths"]:
            print(
                f"  {name}: mAP50 {figures['mAP50']:.3f}, mAP50:95 {figures['mAP50_95']:.3f} "
                f"({figures['truths']} objects)"
            )
        else:
            print(f"  {name}: no object in this split")


def _print_table(title: str, faults: Sequence[Fault], points: Sequence[dict[str, Any]], axis: str | None) -> None:
    words = [describe(fault, leave_out=axis) for fault in faults]
    numbers = [",".join(f"{n:g}" for n in np.atleast_1d(getattr(fault, axis))) if axis else "" for fault in faults]
    size = (axis or "").replace("_", " ")
    width, column = max(map(len, words)), max(map(len, [size, *numbers]))
    print(f"{title}\n  {'':{width}}  {size:>{column}}  mAP50  mAP50:95")
    for word, number, point in zip(words, numbers, points):
        print(f"  {word:{width}}  {number:>{column}}  {point['mAP50']:.3f}     {point['mAP50_95']:.3f}")


def evaluate(
    predictor: Predictor, data: DataConfig, pairs: Sequence[PairFiles], *, drop: str | None = None, batch: int = 16
) -> dict[str, Any]:
    """Score a predictor on pairs.

    Args:
        predictor: its own thresholds are used.
        data: the data set the pairs are of.
        pairs: what to score on.
        drop: "visible" or "thermal" to leave that image out, or None; the other camera's own branch answers.
        batch: pairs per batch.

    Returns:
        mAP50, mAP50_95 (0 to 1), per_class, pairs, and what else `sweep` tells of a point.

    Raises:
        UserError: as `sweep`.
    """
    return sweep(predictor, data, pairs, [Fault(drop=drop)], batch=batch)[0]


def sweep(
    predictor: Predictor,
    data: DataConfig,
    pairs: Sequence[PairFiles],
    faults: Sequence[Fault],
    *,
    seed: int = 0,
    batch: int = 16,
) -> list[dict[str, Any]]:
    """Score a predictor on pairs once for each fault; every image is read once.

    Args:
        predictor: its own thresholds are used.
        data: the data set the pairs are of.
        pairs: what to score on. Where a fault has a time offset, those alone are scored, for every fault, that have a
            frame at each offset.
        faults: what goes wrong, each by itself.
        seed: of the noise, 0 or more.
        batch: pairs per batch.

    Returns:
        per fault: mAP50, mAP50_95 (0 to 1), per_class, pairs, left_out (pairs not scored), and the fields of the fault.

    Raises:
        UserError: the model's classes are not the data's, it has no such answer, a file is unreadable, or no pair has
            the frames wanted.
    """
    if list(predictor.names.values()) != list(data.names.values()):
        raise UserError(
            f"the model finds {', '.join(predictor.names.values())}; {data.name} has {', '.join(data.names.values())}"
        )
    for fault in faults:
        _check_answer(predictor, fault)
    offsets = sorted({fault.time_offset for fault in faults})
    thermal_of: Mapping[tuple[str, int], PairFiles] = {(pair.stem, 0): pair for pair in pairs}
    given = len(pairs)
    if offsets != [0]:
        pairs, thermal_of = with_neighbours(pairs, offsets)
    truths: list[Truth] = []
    sizes: list[tuple[int, int]] = []
    predictions: list[list[Detections]] = [[] for _ in faults]
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        visibles = [read_visible(pair.visible) for pair in part]
        files = {thermal_of[pair.stem, offset].thermal for pair in part for offset in offsets}
        thermals = {file: read_thermal(file, predictor.thermal) for file in files}
        for pair, visible in zip(part, visibles):
            height, width = visible.shape[:2]
            labels = read_labels(data, pair)
            centre, half = labels[:, 1:3], labels[:, 3:] / 2
            boxes = np.hstack((centre - half, centre + half)) * np.array([width, height] * 2, np.float32)
            truths.append(Truth(boxes, labels[:, 0].astype(np.int64)))
            sizes.append((width, height))
        for fault, found in zip(faults, predictions):
            arrived = [
                fault.apply(v, thermals[thermal_of[p.stem, fault.time_offset].thermal], predictor.thermal, seed, p.stem)
                for p, v in zip(part, visibles)
            ]
            found += _predict(predictor, arrived, sizes[start:])
    return [
        {
            **score(truths, found, data.names, sizes).to_dict(),
            "pairs": len(pairs),
            "left_out": given - len(pairs),
            **asdict(fault),
        }
        for fault, found in zip(faults, predictions)
    ]


def _check_answer(predictor: Predictor, fault: Fault) -> None:
    """Refuse a fault that the model has no answer for (`UserError`)."""
    if fault.drop is None:
        return
    left = MODALITIES[1 - MODALITIES.index(fault.drop)]
    there = ", ".join(predictor.config.answers)
    if fault.answer == "branch" and left not in predictor.modalities:
        hint = "; --answer zeros asks its fused head" if "fused" in predictor.config.answers else ""
        raise UserError(f"{fault.drop} lost: this model has no {left} branch to answer (it has {there}){hint}")
    if fault.answer == "zeros" and "fused" not in predictor.config.answers:
        raise UserError(f"--answer zeros: this model has no fused head to feed zeros to (it has {there})")


def _predict(
    predictor: Predictor, arrived: Sequence[tuple[np.ndarray | None, np.ndarray | None]], sizes: list[tuple[int, int]]
) -> list[Detections]:
    """The answers to pairs in the pixels of their visible images, (width, height) each, also where these are lost."""
    found: dict[int, Detections] = {}
    for size in set(sizes[: len(arrived)]):
        members = [i for i in range(len(arrived)) if sizes[i] == size]
        visibles, thermals = zip(*(arrived[i] for i in members))
        found.update(zip(members, predictor.predict_batch(visibles, thermals, size=size)))
    return [found[i] for i in range(len(arrived))]


if __name__ == "__main__":
    run_cli(main)
