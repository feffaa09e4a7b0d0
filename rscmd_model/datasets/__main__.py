"""Check a data set before training on it.

    python -m rscmd_model.datasets check --data llvip --root DIR --sheet sheet.png --json check.json
    python -m rscmd_model.datasets check --data data.yaml

Counts pairs, sizes and boxes, and looks for missing partners, damaged files, boxes outside the image, unknown classes,
thermal images in a colour palette, and near copies across the split. Reads everything, writes nothing into the data's
folder. Exit code: 0 when all is well, 1 when there are problems, 2 when the command cannot be done.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2

from rscmd_model.arguments import command_parser, parse
from rscmd_model.datasets.check import check, show
from rscmd_model.datasets.near_copies import NEAR
from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_given
from rscmd_model.datasets.sheet import contact_sheet
from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import whole_file, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and check."""
    parser = command_parser("datasets", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "check",
        help="look at every file and report what is wrong",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data_arguments(command)
    camera_arguments(command)
    command.add_argument("--sheet", type=Path, metavar="PNG", help="write a picture of random pairs with their boxes")
    command.add_argument("--sheet-pairs", type=int, default=12, metavar="N", help="pairs on it (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="which pairs are on it (default: %(default)s)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    command.add_argument(
        "--near",
        type=int,
        default=NEAR,
        metavar="BITS",
        help="bits of 64 that may differ in each image of a near copy; -1 does not look (default: %(default)s)",
    )
    args = parse(parser, argv)
    if args.sheet_pairs < 1 or not -1 <= args.near <= 64:
        raise UserError("give --sheet-pairs of 1 or more, and --near from -1 to 64")
    if args.sheet and args.sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--sheet {args.sheet}: give a .png or .jpg")
    data = open_given(args)
    for out in (args.sheet, args.json):
        if out and out.resolve().is_relative_to(data.root):
            raise UserError(f"{out} lies in the data's folder, where nothing is written: choose another place")
    report = check(data, near=None if args.near < 0 else args.near, progress=show)
    print("\n".join(report.lines()))
    if args.json:
        write_json(args.json, report.to_dict())
    if args.sheet:
        picture = contact_sheet(data, report.pairs, args.sheet_pairs, args.seed)
        with whole_file(args.sheet) as aside:
            aside.write_bytes(cv2.imencode(args.sheet.suffix, picture)[1].tobytes())
        print(f"contact sheet: {args.sheet}")
    return 1 if report.problems else 0


if __name__ == "__main__":
    run_cli(main)
