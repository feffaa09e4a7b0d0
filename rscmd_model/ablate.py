"""Train several methods with one recipe and one initialisation per seed, score each, and write the table.

    python -m rscmd_model.ablate --data data.yaml --methods visible,thermal,sum,rsc,rscmd --seeds 3 epochs=100 imgsz=640

A method may carry changes, as in rscmd+md=map or rsc+rsc=shared+lambda_visible=2; every setting of the model's
configuration can be changed. Options in the form key=value are ultralytics' own and the same for every run. No epoch is
chosen by its validation score: the model of the last epoch is scored.

    python -m rscmd_model.ablate --data data.yaml --folds frames.csv --weights yolov8n.pt --seeds 3 --lost epochs=45

With --folds every pair is scored by a model that was trained without its fold, and all of them as one; the drives that
the file names are drawn anew for intervals of 95 %. docs/ablation.md says how.

--out gets a folder for each run, results.csv (a row for each method, seed and answer), table.csv and table.md (mean and
spread over the seeds), differences.csv (what each answer gains over its control) and ablation.png. An ablation
that was interrupted goes on where it stopped when it is called again: a finished run is not trained again, an
unfinished one is resumed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rscmd_model.arguments import (
    batchnorm_argument,
    command_parser,
    family_argument,
    frozen_statistics,
    given_scale,
    incomplete_argument,
    option_words,
    parse,
    scale_argument,
)
from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_given, teaching_arguments
from rscmd_model.datasets.pairs import DataConfig
from rscmd_model.devices import check_device
from rscmd_model.errors import UserError, run_cli
from rscmd_model.evaluation.ablation import ablate
from rscmd_model.evaluation.ablation_runs import OWN_OPTIONS, RECIPE, Ablation
from rscmd_model.evaluation.folds import BLOCK, Drives, Folds, read_drives, read_folds
from rscmd_model.methods import METHODS, parse_method
from rscmd_model.options import parse_options


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train what is missing, write the tables."""
    parser = command_parser("ablate", __doc__)
    data_arguments(parser)
    camera_arguments(parser)
    teaching_arguments(parser)
    parser.add_argument(
        "--methods",
        default="visible,thermal,sum,rsc,rscmd",
        help="separated by commas, each with its changes: rscmd+md=map; or all (default: %(default)s). "
        "Where one learns from the single-camera controls, these are trained first",
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 (default: %(default)s)")
    scale_argument(parser)
    family_argument(parser)
    parser.add_argument("--split", default="val", help="split to score (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ablation"), help="folder for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, help="trainings side by side (default: one on a GPU, else as many as there are cores)"
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="train through Ray: local, or HOST:PORT of a cluster; all machines see --out, data and weights at the "
        "same paths",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="with --ray: trainings at once (default: one per GPU, or processor)"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint that each training starts from, as train takes it; family and scale are the file's",
    )
    batchnorm_argument(parser)
    incomplete_argument(parser)
    evidence = parser.add_argument_group("folds and intervals")
    evidence.add_argument(
        "--folds",
        type=Path,
        metavar="CSV",
        help="columns name (of a pair) and fold: the pairs of train and --split together, each scored by a model that "
        "was trained without its fold",
    )
    evidence.add_argument(
        "--group", metavar="COLUMN", help=f"column of the drives, which are drawn whole (default: {BLOCK}, if there)"
    )
    evidence.add_argument(
        "--fold-count", type=int, metavar="K", help="make K folds of whole drives instead of reading the column fold"
    )
    evidence.add_argument(
        "--frames", type=Path, metavar="CSV", help="without folds: columns name and drive, for intervals alone"
    )
    evidence.add_argument(
        "--resamples", type=int, default=1000, help="drawn for an interval; 0: no intervals (default: %(default)s)"
    )
    evidence.add_argument(
        "--lost", action="store_true", help="also score the fused answer with each camera's image black"
    )
    option_words(parser, "ultralytics' options, the same for all")
    args = parse(parser, argv)
    named = ",".join(METHODS) if args.methods == "all" else args.methods
    methods = list(dict.fromkeys(method for method in named.split(",") if method))
    if not methods or args.seeds < 1 or (args.jobs is not None and args.jobs < 1):
        raise UserError("give at least one method, one seed and one job")
    if args.workers is not None and (not args.ray or args.workers < 1):
        raise UserError("--workers says how many trainings --ray has at once, 1 or more (--ray local: this machine)")
    if args.jobs and args.ray:
        raise UserError("--jobs is for trainings without Ray: with --ray give --workers")
    scale, family = given_scale(args), args.family
    for method in methods:
        parse_method(method, scale=scale, family=family)
    options = {**RECIPE, **parse_options(args.options)}
    for taken in OWN_OPTIONS:
        if taken in options:
            raise UserError(f"{taken}= is set by the ablation itself, for each run: leave it out")
    if options.get("single_cls"):
        raise UserError("single_cls=True: an ablation scores the data's own classes, leave it out")
    if args.incomplete.rate:
        _check_incomplete(methods, options)
    data = open_given(args)
    folds, drives = _evidence(args, data)
    weights = args.weights.resolve() if args.weights else None
    if weights:
        from rscmd_model.network.checkpoint import read_detector  # here, since --help should not wait for torch

        start = read_detector(weights)
        start.check_size(family, scale)
        scale, family = start.scale, start.family
    size = scale or "n", family or "yolov8"
    frozen = frozen_statistics(args)
    ablation = Ablation(args.out, data, args.split, *size, options, weights, folds, args.lost, frozen, args.incomplete)
    if args.ray is None:  # the machines of a cluster may have other devices
        check_device(options.get("device"))
    jobs = args.workers if args.ray else args.jobs or _usual_jobs()
    progress = partial(print, flush=True)
    ablate(ablation, methods, args.seeds, jobs, progress, ray=args.ray, drives=drives, resamples=args.resamples)


def _check_incomplete(methods: Sequence[str], options: dict[str, Any]) -> None:
    """Tell what does not go with --incomplete before the folder is claimed. Raises `UserError`."""
    from ultralytics.cfg import get_cfg  # here, since --help should not wait for it

    from rscmd_model.training.incomplete import check_incomplete

    for method in methods:
        check_incomplete(parse_method(method).method, get_cfg(overrides=options))


def _evidence(args: argparse.Namespace, data: DataConfig) -> tuple[Folds | None, Drives | None]:
    """The folds and the drives that a command line names.

    Raises:
        UserError: its options do not go together, or as `read_folds`.
    """
    if args.resamples < 0:
        raise UserError("--resamples: give how many, or 0 for no intervals")
    if args.folds and args.frames:
        raise UserError("--folds names the drives as well: leave out --frames")
    if args.fold_count is not None and not args.folds:
        raise UserError("--fold-count makes folds of the drives that --folds FILE names: give both")
    if args.folds:
        return read_folds(data, ("train", args.split), args.folds, args.group, args.fold_count)
    if args.frames:
        return None, read_drives(data, args.split, args.frames, args.group)
    if args.group:
        raise UserError("--group names a column of --folds FILE or --frames FILE: give one")
    return None, None


def _usual_jobs() -> int:
    import torch  # here, since --help should not wait for it

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


if __name__ == "__main__":
    run_cli(main)
