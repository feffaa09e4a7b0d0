"""Train a detector on visible-thermal pairs.

    python -m rscmd_model.train --data data.yaml --method rscmd --scale n epochs=100 imgsz=640 device=0

    python -m rscmd_model.train resume=runs/rscmd/weights/last.pt
    torchrun --nproc-per-node 2 -m rscmd_model.train --data data.yaml batch=32
    python -m rscmd_model.train --data second.yaml --continue model.safetensors --keep memory.safetensors epochs=20

A method may carry changes of its settings, as in rscmd+md=map or rsc+rsc=shared+lambda_visible=2.

Options in the form key=value are ultralytics' own (epochs, imgsz, batch, optimizer, lr0, patience, amp, device,
workers, seed, project, name, resume, plots, ...). The run's folder, runs/METHOD with its changes by default, gets the
checkpoints, curves and plots, and model.safetensors: the best epoch, which the node, predict and evaluate read.
"""

from __future__ import annotations

import argparse
import os
import shutil
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
from rscmd_model.config import MODALITIES, Augmentation, ModelConfig
from rscmd_model.datasets.opening import (
    camera_arguments,
    data_arguments,
    open_given,
    replay_arguments,
    teaching_arguments,
)
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import whole_file
from rscmd_model.methods import METHODS, method_class, needs_teachers, parse_method
from rscmd_model.options import parse_options
from rscmd_model.versions import require

# Flags of earlier versions. What they said is a setting of the method now.
_SETTINGS = ("rsc", "md", "lambda_visible", "lambda_thermal")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    args = _parse(argv)
    require("torch", "ultralytics")
    options = parse_options(args.options)
    _check(args, options)
    method, scale, frozen = args.method or "rscmd", given_scale(args), frozen_statistics(args, args.goes_on)
    # All are read before anything is written, the data first: a mistake there needs no torch to be told.
    data = _data(args)
    config = parse_method(method, scale=scale, family=args.family)
    start: Any = None
    kept: Any = None
    teachers = None
    if args.goes_on:
        start, kept = _finished(args)
        start.check_asked(args.method, args.family, scale)
        config, method = start.header.config, start.header.config.title
        _say(f"{args.goes_on}: {start}; its training goes on with BatchNorm {'frozen' if frozen else 'by batch'}")
    elif args.weights:
        from rscmd_model.network.checkpoint import read_detector

        start = read_detector(args.weights)
        start.check_size(args.family, scale)
        config = parse_method(method, scale=start.scale, family=start.family, head_classes=len(start.names))
        _say(f"{args.weights}: {start}; {_told(method, config, frozen)}")
    if not options.get("resume"):  # else all of this stands in the checkpoint
        teachers = _teachers(args, config)
        options["project"] = str(Path(options.get("project") or "runs").resolve())
        options.setdefault("name", method)
    every = args.diagnose_every if args.diagnose_every is not None else 1 if args.diagnose else None

    from rscmd_model.diagnosis.gradient_recorder import GradientRecorder
    from rscmd_model.training.run import score_answers, train, write_memory

    augmentation = Augmentation(args.modality_dropout, args.thermal_shift, args.incomplete)
    recorder = partial(GradientRecorder.attach, every=every)
    file = train(
        *(data, config, options, start, augmentation),
        frozen_statistics=frozen,
        teachers=teachers,
        kept=kept,
        distil=bool(args.distil),
        observers=[recorder],
    )
    if int(os.environ.get("RANK", 0)) > 0:  # of several processes the first one has the model
        return
    GradientRecorder.finish(file.parent)
    if args.score:
        score_answers(file, args.score, args.lost)
    if args.remember:
        write_memory(file)
    if args.out:
        with whole_file(args.out) as aside:
            shutil.copyfile(file, aside)
        file = args.out
    print(f"model: {file}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("train", __doc__)
    data_arguments(parser, required=False)
    camera_arguments(parser)
    teaching_arguments(parser)
    replay_arguments(parser)
    parser.add_argument(
        "--method",
        metavar="NAME[+SETTING=VALUE...]",
        help=f"{', '.join(METHODS)}: a control is trained with the same recipe. With changes of the method's settings: "
        "rscmd+md=map (default: rscmd)",
    )
    scale_argument(parser)
    family_argument(parser)
    parser.add_argument(
        "--weights",
        type=Path,
        help="yolov8*.pt or yolo11*.pt that starts both streams and every answer (never downloaded); family and scale "
        "are the file's, and some defaults are others: means of features, full branches",
    )
    batchnorm_argument(parser)
    second = parser.add_argument_group("a second site", "docs/second_site.md")
    second.add_argument(
        "--continue",
        dest="goes_on",
        type=Path,
        metavar="MODEL",
        help="model.safetensors of a finished training, whose method, layers, classes and weights go on",
    )
    second.add_argument(
        "--keep",
        type=Path,
        metavar="MEMORY",
        help="with --continue: the model's memory.safetensors; steps leave out what the pairs of it used",
    )
    second.add_argument(
        "--lam-min",
        type=float,
        metavar="X",
        help="with --keep: directions count as used above this share of a convolution's largest second moment "
        "(default: 0.01)",
    )
    second.add_argument(
        "--distil",
        action="store_true",
        default=None,
        help="with --continue: the model's own answers to the new pairs are taught beside their labels (LwF)",
    )
    second.add_argument(
        "--remember", action="store_true", help="afterwards write memory.safetensors, for --keep of a later training"
    )
    parser.add_argument(
        "--teachers",
        type=Path,
        nargs=2,
        metavar=("VISIBLE", "THERMAL"),
        help="model.safetensors of the two single-camera controls, trained on the same data, for methods that "
        "learn from them (docs/methods.md)",
    )
    parser.add_argument(
        "--modality-dropout",
        type=float,
        default=Augmentation.modality_dropout,
        metavar="P",
        help="share of the samples whose fused branch sees one camera black, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--thermal-shift",
        type=int,
        default=Augmentation.thermal_shift,
        metavar="PX",
        help="move thermal images by up to this many pixels of the network's input (default: %(default)s)",
    )
    incomplete_argument(parser)
    parser.add_argument(
        "--diagnose", action="store_true", help="record how gradients are suppressed: gradients.csv and .png in the run"
    )
    parser.add_argument(
        "--diagnose-every", type=int, metavar="K", help="every K epochs (implies --diagnose; default 1)"
    )
    parser.add_argument("--score", metavar="SPLIT", help="afterwards score every answer of the model on this split")
    parser.add_argument(
        "--lost", action="store_true", help="with --score: also the fused answer with each camera's image black"
    )
    parser.add_argument("--out", type=Path, help="also copy the finished model to this file")
    option_words(parser)
    for name in _SETTINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", help=argparse.SUPPRESS)
    return parse(parser, argv)


def _check(args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Check that the arguments go together.

    Raises:
        UserError: they do not.
    """
    if old := {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}:
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in old.items())
        method = "+".join([args.method or "rscmd", *(f"{name}={value}" for name, value in old.items())])
        raise UserError(f"{flags}: write --method {method}")
    resumes = options.get("resume")
    if args.data is None and not resumes:
        raise UserError("give --data data.yaml (or resume=RUN/weights/last.pt)")
    for name in ("method", "scale", "model", "family", "weights", "batchnorm", "teachers") if resumes else ():
        if getattr(args, name) is not None:
            raise UserError(f"a resumed run keeps its own model: leave out --{name}")
    for name in ("goes_on", "keep", "lam_min", "distil", "replay", "replay_pairs") if resumes else ():
        if getattr(args, name) is not None:
            flag = {"goes_on": "continue"}.get(name, name.replace("_", "-"))
            raise UserError(f"a resumed run keeps what it began with: leave out --{flag}")
    if args.goes_on and args.weights:
        raise UserError(
            "--continue goes on from a finished model, --weights starts one from a plain detector: give one"
        )
    if args.keep and not args.goes_on:
        raise UserError("--keep is the memory of the model that a training goes on from: give --continue MODEL as well")
    if args.keep and args.batchnorm == "batch":
        raise UserError("--batchnorm batch changes what --keep is to keep: leave one out")
    if args.lam_min is not None and not args.keep:
        raise UserError("--lam-min is about what --keep keeps: give both")
    for name in ("teach", "confidence") if resumes else ():
        if getattr(args, name) is not None:
            raise UserError(f"a resumed run's labels teach what they taught before: leave out --{name}")
    if args.lost and not args.score:
        raise UserError("--lost is about what --score scores: give both")
    if args.score and options.get("single_cls"):
        raise UserError("--score compares with the data's own classes, which single_cls=True gives up: leave one out")


def _say(line: str) -> None:
    """Print a line, of several processes in the first one."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(line)


def _finished(args: argparse.Namespace) -> tuple[Any, Any]:
    """The finished model that a training is to go on from, and what it is to keep of it."""
    from rscmd_model.training.continuing import keep, read_finished

    finished = read_finished(args.goes_on)
    return finished, keep(finished, args.keep, args.lam_min) if args.keep else None


def _teachers(args: argparse.Namespace, config: ModelConfig) -> dict[str, Path] | None:
    """The files of the single-camera controls that a method learns from; None where it learns from none.

    Raises:
        UserError: they are missing, or given for nothing.
    """
    needed = needs_teachers(config, goes_on=args.goes_on is not None)
    if needed and not args.teachers:
        raise UserError(
            f"{config.title} learns from the single-camera controls: train --method visible and --method thermal on "
            "the same data first, and give --teachers VISIBLE/model.safetensors THERMAL/model.safetensors"
        )
    if args.teachers and not needed:
        where = " any more, once it is finished" if needs_teachers(config) else ""
        raise UserError(f"{config.title} learns from no teachers{where}: leave out --teachers")
    return dict(zip(MODALITIES, args.teachers)) if args.teachers else None


def _told(method: str, config: ModelConfig, frozen: bool) -> str:
    """What is trained, and which of its settings are the defaults of a start from weights, for people."""
    given = [word.partition("=")[0] for word in method.split("+")]
    others = {name: value for name, value in method_class(config.method).from_weights.items() if name not in given}
    taken = {name: value for name, value in others.items() if config.settings.get(name) == value}
    told = ", ".join(f"{name}={value}" for name, value in taken.items())
    settings = f", where a start from weights has the defaults {told}" if told else ""
    return f"trained is {config.title}{settings}; BatchNorm {'frozen' if frozen else 'by batch'}"


def _data(args: argparse.Namespace) -> str | None:
    """The data of the command line as one line that opens them again; None where it names none."""
    if args.data is None:
        return None
    data = open_given(args)
    if args.score:
        find_pairs(data, args.score)
    return data.spec


if __name__ == "__main__":
    run_cli(main)
