"""Write a split of a paired data set as a rosbag2 bag, as two cameras would have been recorded.

    python -m rscmd_ros.make_bag --data data.yaml --split val --out BAG --rate-visible 30 --rate-thermal 9 \\
        --thermal-offset-ms 20 --jitter-ms 5 --drop 0.02 --seed 0 --storage mcap

Topics: /visible/image (bgr8), /thermal/image (mono8 or mono16, as the files are) and /ground_truth (the labels of each
recorded visible frame, under its header). The pairs of the split are the instants of the world, in the order of their
names, --rate-visible of them per second. Each camera takes pictures at its own rate; each picture is that of the
instant nearest in time. Jitter moves the moment a picture is taken; the offset moves only the thermal stamps, not the
pictures. A dropped frame is not recorded. The same seed gives the same bag.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rscmd_model.datasets.opening import data_arguments, open_data, palette_argument
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import run_cli
from rscmd_ros.bags.timing import Timing


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_ros.make_bag",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Timing()
    data_arguments(parser)
    palette_argument(parser)
    parser.add_argument("--split", default="val", help="which split (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new bag")
    parser.add_argument("--rate-visible", type=float, default=default.rate_visible, metavar="HZ")
    parser.add_argument("--rate-thermal", type=float, default=default.rate_thermal, metavar="HZ")
    parser.add_argument("--thermal-offset-ms", type=float, default=0.0, metavar="MS", help="thermal stamps are late by")
    parser.add_argument(
        "--jitter-ms", type=float, default=0.0, metavar="MS", help="each picture up to MS early or late"
    )
    parser.add_argument("--drop", type=float, default=0.0, metavar="FRACTION", help="share of frames not recorded")
    parser.add_argument("--seed", type=int, default=0, help="of jitter and drops (default %(default)s)")
    parser.add_argument(
        "--pause",
        type=float,
        default=0.0,
        metavar="S",
        help="time from one sequence of pictures (what stands before the last _ of a name) to the next (default "
        "%(default)s)",
    )
    parser.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap")
    parser.add_argument("--force", action="store_true", help="replace an earlier bag at --out")
    args = parser.parse_args(argv)
    from rscmd_ros.bags.writing import write_bag

    timing = Timing(
        args.rate_visible,
        args.rate_thermal,
        args.thermal_offset_ms,
        args.jitter_ms,
        args.drop,
        args.seed,
        args.pause,
    )
    data = open_data(args.data, args.root, args.split_file, palette_ok=args.palette_ok)
    counts = write_bag(
        data,
        find_pairs(data, args.split),
        args.out,
        timing,
        storage=args.storage,
        force=args.force,
        progress=lambda line: print(line, flush=True),
    )
    print(f"wrote {args.out}: " + ", ".join(f"{count} on {topic}" for topic, count in counts.items()))


def cli() -> NoReturn:
    """What the installed command runs: a user's mistake is one line and exit code 2."""
    run_cli(main)


if __name__ == "__main__":
    cli()
