"""Score a model on a split of image pairs by COCO's rules, sound or with something gone wrong.

    python -m rscmd_model.evaluate --model model.safetensors --data data.yaml --split val --json OUT
    python -m rscmd_model.evaluate ... --drop none visible thermal --noise 0 10 20 40 --plot noise.png
    python -m rscmd_model.evaluate ... --protocol missing --rates 30,50,70 --json missing.json --plot missing.png

Boxes with a score of 0.001 or more count, at most 100 per image, after NMS at IoU 0.7, one class per box: what the node
would publish at that threshold. Classes are matched by name. Those that only the model or only the data have are named,
and do not count.

Faults given together happen together, in this order: time offset, shift, dark, noise, drop. One of --time-offset,
--shift, --dark and --noise may have several values: that is a sweep. --drop and --answer may have several beside it, a
curve for each. A unimodal branch is scored as the answer to a lost camera: --drop visible scores the thermal branch.
--answer fused ensemble scores whole pairs by the fused answer and by all answers joined, a row for each.

--protocol missing scores sets of pairs of which a share has lost a camera: the visible one, the thermal one, or half
and half. Whole pairs and those with one image compete by score. The other camera's branch answers for the lost one, or
the fused head, which sees the lost image as black, frozen or noise: a row for each. Beside --json OUT.json the tables
of lost cameras are kept in OUT_tables/.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rscmd_model.arguments import command_parser, parse
from rscmd_model.config import MODALITIES
from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_given
from rscmd_model.datasets.pairs import DataConfig, PairFiles, list_pairs, whole_pairs
from rscmd_model.datasets.telling import left_out_line, reading_lines
from rscmd_model.errors import UserError, run_cli
from rscmd_model.evaluation.classes import shared_classes
from rscmd_model.evaluation.curves import check_plot, plot_sweep
from rscmd_model.evaluation.faults import LOST_ANSWERS, PAIR_ANSWERS, Fault, describe
from rscmd_model.evaluation.missing import LOOKS, RATES, run_protocol
from rscmd_model.evaluation.missing_report import plot, table
from rscmd_model.evaluation.sweep import LOWEST_SCORE, sweep
from rscmd_model.files import check_writable, write_json
from rscmd_model.inference.predictor import Predictor

AXES = ("time_offset", "shift", "dark", "noise")  # the faults that have a size; also names of arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and evaluate."""
    parser = command_parser("evaluate", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="model.safetensors")
    data_arguments(parser)
    camera_arguments(parser)
    parser.add_argument("--split", default="val", help="split to score (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pairs per batch (default: %(default)s)")
    _add_faults(parser)
    _add_protocol(parser)
    args = parse(parser, argv)
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give 1 or more")
    plan = None if args.protocol else _plan(args)
    if args.protocol:
        _check_protocol(args)
    check_writable(args.json, args.plot)

    data = open_given(args)
    listing = list_pairs(data, args.split)
    pairs = whole_pairs(data, args.split, listing)
    predictor = Predictor(
        args.model,
        device=args.device,
        conf=LOWEST_SCORE,
        max_det=100,
        registration=data.registration,
        palette_ok=data.thermal_contract.palette_ok,
    )
    if line := left_out_line(args.split, listing):
        print(line)
    for line in reading_lines(data, predictor.thermal, predictor.registration):
        print(line)
    for line in shared_classes(predictor.names, data.names, data.name).lines():
        print(line)
    if plan is None:
        _run_protocol(args, predictor, data, pairs)
    else:
        _play(args, predictor, data, pairs, *plan)


def _play(
    args: argparse.Namespace,
    predictor: Predictor,
    data: DataConfig,
    pairs: Sequence[PairFiles],
    faults: Sequence[Fault],
    axis: str | None,
) -> None:
    """Score with faults, tell it and keep it."""
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
        choices=(*LOST_ANSWERS, *PAIR_ANSWERS),
        help="who answers for a lost camera: the other camera's own branch (default), or the fused head, which is fed "
        "a black image in its place (zeros); and who answers a whole pair: fused, or ensemble (all answers joined; "
        "default: as the model says)",
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
    group.add_argument(
        "--seed", type=int, default=0, help="of the noise and of the tables of lost cameras (default: %(default)s)"
    )
    group.add_argument("--plot", type=Path, metavar="OUT.png", help="draw the sweep, or the protocol")


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("protocol of a lost camera")
    group.add_argument("--protocol", choices=("missing",), help="score sets of pairs, some of which lack an image")
    group.add_argument(
        "--rates",
        type=_rates,
        metavar="R,R",
        help=f"percentages of the pairs that have lost a camera (default: {','.join(f'{r:g}' for r in RATES)}); 100 is "
        "scored too",
    )
    group.add_argument(
        "--lost-as", nargs="+", choices=LOOKS, help="what the fused head sees of a lost camera (default: each)"
    )


def _rates(word: str) -> list[float]:
    try:
        rates = [float(number) for number in word.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 <= rate <= 100 for rate in rates):
        raise UserError(f"--rates {word.strip()}: give percentages from 0 to 100, as in --rates 30,50,70")
    return rates


def _check_protocol(args: argparse.Namespace) -> None:
    """Refuse what does not go with the protocol (`UserError`), before anything is scored."""
    for name in (*AXES, "on", "drop", "answer"):
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} does not go with --protocol, which has faults and answers of its own: "
                "leave one of them out"
            )
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give 0 or more")
    if args.plot:
        check_plot(args.plot)


def _run_protocol(args: argparse.Namespace, predictor: Predictor, data: DataConfig, pairs: Sequence[PairFiles]) -> None:
    """Score by the protocol, tell it and keep it."""
    scores = run_protocol(predictor, data, pairs, args.rates or RATES, args.lost_as, seed=args.seed, batch=args.batch)
    print(f"{args.split}: {len(pairs)} pairs", table(scores), sep="\n")
    if args.json:
        tables = args.json.with_name(f"{args.json.stem}_tables")
        scores.write_tables(tables)
        write_json(args.json, {"protocol": args.protocol, "split": args.split, **scores.to_dict()})
    if args.plot:
        plot(args.plot, scores, f"{args.model.name} on {args.split}, {len(pairs)} pairs")


def _shift(word: str) -> tuple[float, float]:
    try:
        dx, dy = (float(number) for number in word.split(","))
    except ValueError:
        raise UserError(f"--shift {word.strip()}: give DX,DY in pixels, as in --shift 4,0") from None
    return dx, dy


def _plan(args: argparse.Namespace) -> tuple[list[Fault], str | None]:
    """The settings to score, in the order to tell them, and which fault's size varies (None: none does)."""
    if args.rates or args.lost_as:
        raise UserError(f"{'--rates' if args.rates else '--lost-as'} goes with --protocol missing: give this as well")
    values: dict[str, list[Any]] = {name: list(dict.fromkeys(getattr(args, name) or [])) for name in AXES}
    if values["time_offset"] and 0 not in values["time_offset"]:
        values["time_offset"].insert(0, 0)
    swept = [name for name in AXES if len(values[name]) > 1]
    if len(swept) > 1:
        one, other = (f"--{name.replace('_', '-')}" for name in swept[:2])
        raise UserError(f"{one} and {other} both have several values: sweep one and give the other one value")
    if args.on and not values["noise"]:
        raise UserError("--on says which images get noise: give --noise as well")
    drops = list(dict.fromkeys(args.drop or ["none"]))
    given = dict.fromkeys(args.answer or ())
    for_lost = [answer for answer in given if answer in LOST_ANSWERS]
    for_pairs = [answer for answer in given if answer in PAIR_ANSWERS]
    if for_lost and not set(drops) & set(MODALITIES):
        raise UserError(
            f"--answer {for_lost[0]} says who answers for a lost camera: give --drop visible or thermal as well"
        )
    if for_pairs and "none" not in drops:
        raise UserError(f"--answer {for_pairs[0]} says who answers a whole pair: give --drop none as well")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give 0 or more")
    axis = swept[0] if swept else None
    same: dict[str, Any] = {name: values[name][0] for name in AXES if values[name]}
    faults = [
        Fault(**(same | ({axis: value} if axis else {})), noise_on=args.on or "both", drop=drop, answer=answer)
        for drop in (None if lost == "none" else lost for lost in drops)
        for answer in ((for_lost if drop else for_pairs) or ["branch"])
        for value in (values[axis] if axis else [None])
    ]
    if args.plot:
        check_plot(args.plot)
        if len(faults) == 1:
            raise UserError("--plot draws a sweep: give a fault several values")
    return faults, axis


def _print_single(title: str, result: dict[str, Any]) -> None:
    print(f"{title}, mAP50 {100 * result['mAP50']:.1f}, mAP50:95 {100 * result['mAP50_95']:.1f}")
    for name, figures in result["per_class"].items():
        if figures["truths"]:
            print(
                f"  {name}: mAP50 {100 * figures['mAP50']:.1f}, mAP50:95 {100 * figures['mAP50_95']:.1f} "
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
        print(f"  {word:{width}}  {number:>{column}}  {100 * point['mAP50']:5.1f}  {100 * point['mAP50_95']:8.1f}")


if __name__ == "__main__":
    run_cli(main)
