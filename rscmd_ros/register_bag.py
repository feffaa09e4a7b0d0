"""Estimate from a recorded bag where the thermal camera's pixels lie in the image of the visible camera beside it.

    python -m rscmd_ros.register_bag BAG --out registration.yaml --overlay overlay.png
    python -m rscmd_ros.register_bag BAG --out registration.yaml --extrinsics 0.08 0 0 0 0 0 1 --depth 10

The bag is paired as the node pairs. Pairs that show something new are used, spread over the drive: record while moving,
a minute or more, with structure all over the image. All pairs together give the registration; then each pair is asked
on its own, and an estimate with which the pairs do not agree, as when a camera was knocked on the way, is told and not
written. A table says what one homography leaves, by rows of the image. The overlay shows thermal edges over the visible
image, before and after; it is written either way.

With --extrinsics and --depth, and camera_info of both cameras in the bag, the registration that the node would make of
them is compared with the estimate.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rscmd_model.arguments import check_outputs, parse, registration_outputs
from rscmd_model.errors import UserError, run_cli, shown
from rscmd_ros.bags.arguments import pairing_arguments, pairing_options, topic_arguments
from rscmd_ros.pairing.frames import Stream

_LEAST_PAIRS = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, estimate, show, and write what can be trusted."""
    args = _parse(argv)
    options = pairing_options(args)
    from rscmd_model.imaging.registration import save_registration
    from rscmd_model.imaging.registration_overlay import SHOWN, save_overlay
    from rscmd_ros.bags.registering import Extrinsics, register
    from rscmd_ros.cameras.camera import info_topic

    topics = {"visible": args.visible_topic, "thermal": args.thermal_topic}
    extrinsics = None
    if args.extrinsics:
        infos: dict[Stream, str] = {
            "visible": args.visible_info_topic or info_topic(args.visible_topic),
            "thermal": args.thermal_info_topic or info_topic(args.thermal_topic),
        }
        extrinsics = Extrinsics(tuple(args.extrinsics), args.depth, infos)
    found = register(args.bag, topics, options, most=args.pairs, extrinsics=extrinsics, progress=_progress)
    print("\n".join(found.lines))
    if args.overlay:
        few = found.pairs[:: max(1, len(found.pairs) // SHOWN)][:SHOWN]
        save_overlay(args.overlay, few, found.estimate.registration)
        print(f"overlay: {args.overlay}")
    if found.problem:
        raise UserError(f"not good enough to use, and not written: {found.problem}")
    if args.out:
        source = f"Estimated by rscmd_ros.register_bag from {shown(args.bag.name)}."
        save_registration(args.out, found.estimate.registration, [source, *found.chosen, *found.lines])
        print(f"registration: {args.out}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_ros.register_bag",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bag", type=Path, metavar="BAG", help="rosbag2 folder, or a .mcap or .db3 file")
    topic_arguments(parser)
    registration_outputs(parser)
    pairing_arguments(parser)
    calibration = parser.add_argument_group(
        "calibration", "as the node's parameters extrinsics and registration_depth_m"
    )
    calibration.add_argument(
        "--extrinsics",
        type=float,
        nargs=7,
        metavar=("X", "Y", "Z", "QX", "QY", "QZ", "QW"),
        help="pose of the thermal optical frame in the visible one, m, as tf2_echo VISIBLE THERMAL prints it",
    )
    calibration.add_argument("--depth", type=float, metavar="M", help="of what is laid over each other, m")
    for stream in ("visible", "thermal"):
        calibration.add_argument(
            f"--{stream}-info-topic", metavar="T", help="camera_info (default: that beside the image topic)"
        )
    args = parse(parser, argv)
    check_outputs(args, _LEAST_PAIRS)
    if (args.extrinsics is None) != (args.depth is None):
        raise UserError("--extrinsics and --depth go together: a homography by the extrinsics is right for one depth")
    if args.depth is not None and not 0 < args.depth < float("inf"):
        raise UserError(f"--depth {args.depth:g}: give the distance in m, above 0")
    return args


def _progress(line: str) -> None:
    print(line, flush=True)


def cli() -> NoReturn:
    """What the installed command runs: a user's mistake is one line and exit code 2."""
    run_cli(main)


if __name__ == "__main__":
    cli()
