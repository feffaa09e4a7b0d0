"""Train a detector on a recorded bag that nobody labelled: label, train, label again with the new model.

    python -m rscmd_ros.self_train BAG --model assembled.safetensors --registration registration.yaml \\
        --weights yolov8n.pt --out runs/drive epochs=30 imgsz=640

Each round labels the bag as rscmd_ros.label_bag does, and trains as rscmd_model.train does, from --weights; the first
one labels with --model, every other one with the model of the round before. Labels that a person changed in OUT/data
stay. A round is the last one when its model agrees no better with its labels (on the end of the recording, which is not
trained on) than the one before; when it no longer finds what the first round was surest of; when it answers a person's
pairs worse; or when the model before it is sure of nothing, so that it has no labels. Then the model before it is the
result: OUT/model.safetensors.

Words key=value are ultralytics' options, the same for every round. Called again, it goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rscmd_model.errors import UserError, run_cli
from rscmd_model.options import parse_options
from rscmd_ros.bags.arguments import label_arguments, label_job


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_ros.self_train",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    label_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything")
    parser.add_argument("--weights", type=Path, help="checkpoint that every round starts from, as train takes it")
    parser.add_argument("--method", default="rscmd", help="as train takes it (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="at most (default %(default)s)")
    parser.add_argument("options", nargs="*", metavar="key=value", help="ultralytics' options of the trainings")
    args = parser.parse_intermixed_args(argv)
    if not 1 <= args.rounds <= 20:
        raise UserError(f"--rounds must be within 1..20, got {args.rounds}")
    given = parse_options(args.options)
    for taken in ("project", "name", "resume", "exist_ok"):
        if taken in given:
            raise UserError(f"{taken}= is set by self_train itself, for each round: leave it out")
    from rscmd_ros.bags.self_training import SelfTraining, self_train

    job = label_job(args, args.out / "data")
    training = SelfTraining(job, args.weights, args.out, args.rounds, args.method, tuple(args.options))
    model = self_train(training, threads=args.threads, progress=lambda line: print(line, flush=True))
    print(f"model: {model}")


def cli() -> NoReturn:
    """What the installed command runs: a user's mistake is one line and exit code 2."""
    run_cli(main)


if __name__ == "__main__":
    cli()
