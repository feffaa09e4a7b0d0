"""The command lines of `python -m rscmd_model.*`: what their parsers share."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rscmd_model.config import COMPLETE, FAMILIES, SCALES, Incomplete
from rscmd_model.errors import UserError


def command_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the docstring of the command.

    Args:
        name: of the command, as in "train" or "diagnose probe".
        about: the docstring, whose lines are kept as they are.
    """
    return argparse.ArgumentParser(
        prog=f"python -m rscmd_model.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse(parser: argparse.ArgumentParser, words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line, with two things that argparse cannot do by itself.

    A negative value with a comma, as in `--shift -4,0`, is a value and not an unknown flag. And the words of a parser
    with `option_words` may stand anywhere, also behind a flag that takes several values.

    Args:
        parser: of `command_parser`.
        words: the command line without the name of the command; None takes that of the process.

    Returns:
        what argparse found; `args.options` holds the words key=value, in their order.
    """
    words = list(sys.argv[1:] if words is None else words)
    takes_options = parser.get_default("options") is not None
    options = [word for word in words if takes_options and re.match(r"\w+=", word)]
    # Behind a space argparse takes no word for a flag.
    rest = [f" {word}" if re.fullmatch(r"-[\d.][-+\d.,eE]*", word) else word for word in words if word not in options]
    args, unknown = parser.parse_known_args(rest)
    if flags := [word for word in unknown if word.startswith("-") or not takes_options]:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    if takes_options:
        loose = {*options, *args.options, *unknown}
        args.options = [word for word in words if word in loose]
    return args


def option_words(parser: argparse.ArgumentParser, about: str = "ultralytics' options") -> None:
    """Let a command take words of the form key=value.

    `parse` gives them as `args.options`, and `options.parse_options` reads them.

    Args:
        parser: of `command_parser`.
        about: for the help.
    """
    parser.add_argument("options", nargs="*", default=[], metavar="key=value", help=about)


def scale_argument(parser: argparse.ArgumentParser) -> None:
    """Add --scale, and --model as its older name; `given_scale` reads them."""
    parser.add_argument("--scale", choices=SCALES, help="scale of both streams (default: that of --weights, else n)")
    parser.add_argument("--model", choices=SCALES, metavar="SCALE", help="the older name of --scale")


def family_argument(parser: argparse.ArgumentParser) -> None:
    """Add --family."""
    parser.add_argument(
        "--family", choices=FAMILIES, help="layers of both streams (default: those of --weights, else yolov8)"
    )


def batchnorm_argument(parser: argparse.ArgumentParser) -> None:
    """Add --batchnorm; `frozen_statistics` reads it."""
    parser.add_argument(
        "--batchnorm",
        choices=("batch", "frozen"),
        help="whether training normalises by each batch's statistics, or by those of the weights it starts from, which "
        "then stay as they are (default: frozen where it starts from some, batch without)",
    )


def frozen_statistics(args: argparse.Namespace, start: Path | None = None) -> bool:
    """Whether BatchNorm's statistics stay as they are, by `batchnorm_argument` and --weights.

    Args:
        args: parsed.
        start: another file than --weights that the training starts from.

    Raises:
        UserError: they are to stay, and there are none to begin with.
    """
    start = start or args.weights
    if args.batchnorm == "frozen" and not start:
        raise UserError("--batchnorm frozen keeps the statistics of --weights: give these as well")
    return args.batchnorm == "frozen" or (args.batchnorm is None and start is not None)


def incomplete_argument(parser: argparse.ArgumentParser) -> None:
    """Add --incomplete, an `Incomplete`."""
    parser.add_argument(
        "--incomplete",
        type=Incomplete.parse,
        default=COMPLETE,
        metavar="RATE[,CAMERA]",
        help="share of the training's pairs that have lost one camera for good, 0 to 1, and which: visible, thermal or "
        "either, half of them each (default: 0; either)",
    )


def registration_outputs(parser: argparse.ArgumentParser) -> None:
    """Add --pairs, --out and --overlay of the commands that estimate a registration; `check_outputs` looks at them."""
    parser.add_argument("--pairs", type=int, default=40, help="use at most so many pairs (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the registration here (.yaml)")
    parser.add_argument("--overlay", type=Path, help="draw before and after into this picture (.png or .jpg)")


def check_outputs(args: argparse.Namespace, least: int = 1) -> None:
    """Make sure that `registration_outputs` can be used.

    Args:
        args: of the command line.
        least: pairs.

    Raises:
        UserError: they cannot; it says what to give.
    """
    if args.pairs < least:
        raise UserError(f"--pairs {args.pairs}: give {least} or more")
    if not args.out and not args.overlay:
        raise UserError("give --out registration.yaml, --overlay PICTURE, or both")
    if args.out and args.out.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"--out {args.out}: give a .yaml file")
    if args.overlay and args.overlay.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--overlay {args.overlay}: give a .png or .jpg file")


def given_scale(args: argparse.Namespace) -> str | None:
    """The scale that a command line names by `scale_argument`, or None.

    Raises:
        UserError: it names two different ones.
    """
    if args.scale and args.model and args.scale != args.model:
        raise UserError(f"--scale {args.scale} and --model {args.model}: give one, --model is its older name")
    scale: str | None = args.scale or args.model
    return scale
