"""Command-line arguments that commands on bags share: topics, how frames are paired, and how a bag is labelled."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rscmd_model.errors import UserError
from rscmd_ros.bags.topics import THERMAL_TOPIC, VISIBLE_TOPIC
from rscmd_ros.node.pairing_options import PairingOptions
from rscmd_ros.pairing.nearest import POLICIES

if TYPE_CHECKING:
    from rscmd_ros.bags.labelling import LabelJob


def topic_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --visible-topic and --thermal-topic."""
    parser.add_argument("--visible-topic", default=VISIBLE_TOPIC, metavar="T", help="in the bag (default %(default)s)")
    parser.add_argument("--thermal-topic", default=THERMAL_TOPIC, metavar="T", help="in the bag (default %(default)s)")


def pairing_arguments(parser: argparse.ArgumentParser, about: str = "as the node's parameters") -> None:
    """Add a group with one flag for each of the `PairingOptions`; `pairing_options` reads them.

    Args:
        parser: of the command.
        about: the group, for the help.
    """
    pairing = parser.add_argument_group("pairing", about)
    for field in dataclasses.fields(PairingOptions):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        if isinstance(default, bool):
            pairing.add_argument(flag, action="store_true", default=default)
        elif isinstance(default, str):
            pairing.add_argument(flag, choices=POLICIES, default=default)
        else:
            unit = "MS" if field.name.endswith("_ms") else "N"
            pairing.add_argument(flag, type=type(default), default=default, metavar=unit, help="(default %(default)s)")


def pairing_options(args: argparse.Namespace) -> PairingOptions:
    """The options that a command line with `pairing_arguments` gives.

    Raises:
        UserError: one is out of range, or two do not go together.
    """
    return PairingOptions(**{field.name: getattr(args, field.name) for field in dataclasses.fields(PairingOptions)})


def label_arguments(parser: argparse.ArgumentParser, needed: bool = True) -> None:
    """Add what `label_job` reads: the bag, the model, which pairs, the labels, pairing and speed.

    Args:
        parser: of the command.
        needed: the bag and the model must be given.
    """
    from rscmd_ros.bags.job import BATCH
    from rscmd_ros.bags.sampling import Sampling
    from rscmd_ros.bags.tracked_labels import Choice

    usual, choice = Sampling(), Choice()
    bag = "rosbag2 folder, or a .mcap or .db3 file"
    parser.add_argument("bag", type=Path, nargs=None if needed else "?", metavar="BAG", help=bag)
    parser.add_argument(
        "--model", type=Path, required=needed, help="labels: model.safetensors, or what export made of it"
    )
    parser.add_argument("--registration", type=Path, help="registration.yaml in place of the model's own")
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
        default="",
        metavar="SCORE",
        help="from here on a box is sure, in place of what follows from --precision; or CLASS=SCORE, and several with "
        "commas",
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


def label_job(args: argparse.Namespace, out: Path) -> LabelJob:
    """What a command line with `label_arguments` asks for.

    Args:
        args: the command line.
        out: folder of the set.

    Raises:
        UserError: a value is out of range.
    """
    from rscmd_ros.bags.labelling import LabelJob
    from rscmd_ros.bags.sampling import Sampling
    from rscmd_ros.bags.tracked_labels import Choice

    for option in ("batch", "threads"):
        if getattr(args, option) is not None and not 1 <= getattr(args, option) <= 1024:
            raise UserError(f"--{option} must be within 1..1024, got {getattr(args, option)}")
    return LabelJob(
        bag=args.bag,
        model=args.model,
        out=out,
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


def _sure(text: str) -> dict[str, float]:
    """By class name its limit; under an empty name that of all classes."""
    limits = {}
    for word in text.split(",") if text else ():
        name, _, number = word.rpartition("=")
        try:
            limits[name] = float(number)
        except ValueError:
            raise UserError(f"--sure {word}: give a number above 0 and up to 1, or CLASS=NUMBER") from None
    return limits
