"""Label a recorded bag with a model: from a drive to a set that training reads, without drawing a box.

    python -m rscmd_ros.label_bag BAG --model assembled.safetensors --registration registration.yaml --out data

The pairs are those that the node would make. Every answer of the model is asked: what one camera sees becomes a label
of both. Objects are followed through the recording, forward and backward: one that is seen surely in some frames is
labelled in those between, and one that flashes up once is not. What is neither sure nor background becomes a region
that teaches nothing.

The set has paired pictures, YOLO labels, and a sidecar beside each label file with scores, who has seen what, tracks
and unsure regions. Its val split is the end of the recording, with a gap before it. A run that was broken off goes on
where it was, by the same command.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rscmd_model.errors import UserError, run_cli
from rscmd_ros.bags.arguments import pairing_arguments, pairing_options, topic_arguments
from rscmd_ros.bags.job import BATCH


def _parser() -> argparse.ArgumentParser:
    from rscmd_ros.bags.sampling import Sampling
    from rscmd_ros.bags.tracked_labels import Choice

    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_ros.label_bag",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual, choice = Sampling(), Choice()
    parser.add_argument("bag", type=Path, nargs="?", metavar="BAG", help="rosbag2 folder, or a .mcap or .db3 file")
    parser.add_argument("--model", type=Path, help="model.safetensors, or what export made of it")
    parser.add_argument("--registration", type=Path, help="registration.yaml in place of the model's own")
    parser.add_argument("--out", type=Path, required=True, help="folder of the set")
    parser.add_argument(
        "--force", action="store_true", help="replace the model's labels of the set at --out; a person's labels stay"
    )
    parser.add_argument(
        "--corrected",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="take over what was corrected in CVAT (.xml) or Label Studio (.json) into the set at --out, and nothing "
        "else; BAG and --model are not needed",
    )
    topic_arguments(parser)
    which = parser.add_argument_group("which pairs")
    which.add_argument(
        "--rate", type=float, default=usual.rate, metavar="N", help="pairs answered per second (default %(default)s)"
    )
    amount = which.add_mutually_exclusive_group()
    amount.add_argument(
        "--pairs", type=int, default=usual.pairs, metavar="N", help="pairs of the set, at most (default %(default)s)"
    )
    amount.add_argument("--period", type=float, metavar="S", help="from pair to pair at least, in place of --pairs")
    which.add_argument(
        "--val-share",
        type=float,
        default=usual.val_share,
        metavar="X",
        help="of the recording, at its end (default %(default)s)",
    )
    which.add_argument(
        "--gap", type=float, default=usual.gap, metavar="S", help="before the val split (default %(default)s)"
    )
    which.add_argument("--png", action="store_true", help="visible pictures without loss, not as JPEG")
    scores = parser.add_argument_group("labels", "scores are those of both cameras' joint answer, 0 to 1")
    scores.add_argument(
        "--precision",
        type=float,
        default=choice.precision,
        metavar="SHARE",
        help="of the labels that should be right; each class's sure score follows from it (default %(default)s)",
    )
    scores.add_argument(
        "--sure",
        nargs="+",
        default=[],
        metavar="SCORE",
        help="from here on a box is sure, in place of what follows from --precision; CLASS=SCORE for single classes",
    )
    scores.add_argument(
        "--followed",
        type=float,
        default=choice.followed,
        metavar="SCORE",
        help="from here on a box is a label whose track has a sure one (default %(default)s)",
    )
    scores.add_argument(
        "--unsure",
        type=float,
        default=choice.unsure,
        metavar="SCORE",
        help="from here on a box that is no label is a region that teaches nothing (default %(default)s)",
    )
    pairing_arguments(parser)
    speed = parser.add_argument_group("speed")
    speed.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default %(default)s)")
    speed.add_argument("--threads", type=int, metavar="N", help="of torch (default: its own choice)")
    speed.add_argument(
        "--batch", type=int, default=BATCH, metavar="N", help="pairs through the network together (default %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    args = _parser().parse_args(argv)
    for option in ("batch", "threads"):
        if getattr(args, option) is not None and not 1 <= getattr(args, option) <= 1024:
            raise UserError(f"--{option} must be within 1..1024, got {getattr(args, option)}")
    if args.corrected:
        from rscmd_model.labelling.showing import take_corrections

        if args.force:
            raise UserError("--corrected takes over a person's labels, and --force makes the model's anew: give one")
        for line in take_corrections(args.out, args.corrected):
            print(line)
        return
    if args.bag is None or args.model is None:
        raise UserError("give BAG and --model, or --corrected FILE for a set that is there")
    from rscmd_ros.bags.labelling import LabelJob, label_bag
    from rscmd_ros.bags.sampling import Sampling
    from rscmd_ros.bags.tracked_labels import Choice

    job = LabelJob(
        bag=args.bag,
        model=args.model,
        out=args.out,
        registration=args.registration,
        visible_topic=args.visible_topic,
        thermal_topic=args.thermal_topic,
        options=pairing_options(args),
        sampling=Sampling(args.rate, args.pairs, args.period, args.val_share, args.gap),
        choice=Choice(args.precision, _sure(args.sure), args.followed, args.unsure),
        png=args.png,
        device=args.device,
        batch=args.batch,
    )
    done = label_bag(job, force=args.force, threads=args.threads, progress=lambda line: print(line, flush=True))
    for line in done.lines():
        print(line)


def _sure(words: Sequence[str]) -> dict[str, float]:
    """By class name its limit; under an empty name that of all classes."""
    limits = {}
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            limits[name] = float(number)
        except ValueError:
            raise UserError(f"--sure {word}: give a number above 0 and up to 1, or CLASS=NUMBER") from None
    return limits


def cli() -> NoReturn:
    """What the installed command runs: a user's mistake is one line and exit code 2."""
    run_cli(main)


if __name__ == "__main__":
    cli()
