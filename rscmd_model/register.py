"""Estimate where a thermal camera's pixels lie in the image of the visible camera beside it.

    python -m rscmd_model.register --data data.yaml --split train --out registration.yaml --overlay overlay.png
    python -m rscmd_model.register --visible V1.png V2.png --thermal T1.png T2.png --out registration.yaml
    python -m rscmd_model.register --points picked.csv --visible V1.png --thermal T1.png --out registration.yaml

Without --points, points are matched across the two spectra in all pairs together; give pictures with structure all over
(buildings, kerbs, parked cars), ten pairs or more, of one pair of cameras. With --points they are those picked by hand:
rows of x_thermal y_thermal x_visible y_visible, or as a heading with these names has them, in px of the pictures. The
overlay shows thermal edges over the visible image, before and after. An estimate that cannot be trusted is told and not
written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rscmd_model.arguments import check_outputs, command_parser, parse, registration_outputs
from rscmd_model.datasets.opening import data_arguments, open_given, palette_argument
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import UserError, run_cli
from rscmd_model.imaging.estimate_registration import from_images, from_points
from rscmd_model.imaging.images import read_thermal, read_visible
from rscmd_model.imaging.patch_matching import GreyPair, grey_pair
from rscmd_model.imaging.picked_points import read_points
from rscmd_model.imaging.registration import save_registration
from rscmd_model.imaging.registration_overlay import SHOWN, save_overlay
from rscmd_model.imaging.thermal import ThermalContract


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, estimate, show, and write what can be trusted."""
    args = _parse(argv)
    points = np.vstack([read_points(path) for path in args.points]) if args.points else None
    files = _files(args)
    pairs = _load(files if points is None else files[:SHOWN], args.palette_ok)
    if points is None:
        estimate = from_images(pairs, progress=lambda line: print(line, flush=True))
        source = f"from {len(pairs)} image pairs"
    else:
        (height, width), (h, w) = pairs[0][0].shape, pairs[0][1].shape
        estimate = from_points(points, (w, h), (width, height))
        source = f"from {len(points)} picked points"
    lines = estimate.lines()
    print("\n".join(lines))
    if args.overlay:
        save_overlay(args.overlay, pairs[:SHOWN], estimate.registration)
        print(f"overlay: {args.overlay}")
    if estimate.problem:
        raise UserError(f"not good enough to use, and not written: {estimate.problem}")
    if args.out:
        save_registration(args.out, estimate.registration, [f"Estimated by rscmd_model.register {source}.", *lines])
        print(f"registration: {args.out}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("register", __doc__)
    data_arguments(parser, required=False)
    parser.add_argument("--split", default="train", help="its split (default: %(default)s)")
    parser.add_argument("--visible", type=Path, nargs="+", help="visible images instead, and ...")
    parser.add_argument("--thermal", type=Path, nargs="+", help="... the thermal image of each")
    parser.add_argument("--points", type=Path, nargs="+", help="points picked by hand, .csv or .yaml")
    palette_argument(parser)
    registration_outputs(parser)
    args = parse(parser, argv)
    check_outputs(args)
    return args


def _files(args: argparse.Namespace) -> list[tuple[Path, Path]]:
    """The image pairs that the command line names, at most --pairs of them, evenly spread."""
    if args.data and (args.visible or args.thermal):
        raise UserError("give --data, or --visible and --thermal, not both")
    if args.data:
        data = open_given(args)
        found = [(pair.visible, pair.thermal) for pair in find_pairs(data, args.split)]
    else:
        visible, thermal = args.visible or [], args.thermal or []
        if len(visible) != len(thermal):
            raise UserError(
                f"{len(visible)} --visible and {len(thermal)} --thermal images: give pairs, in the same order"
            )
        found = list(zip(visible, thermal))
    if not found:
        raise UserError("give the pictures: --data data.yaml, or --visible V... and --thermal T...")
    if len(found) > args.pairs:
        found = [found[i] for i in np.linspace(0, len(found) - 1, args.pairs).round().astype(int)]
    return found


def _load(files: Sequence[tuple[Path, Path]], palette_ok: bool) -> list[GreyPair]:
    """The pictures as they are matched."""
    pairs = []
    for visible, thermal in files:
        raw = read_thermal(thermal, ThermalContract(palette_ok=True) if palette_ok else None)
        colour = read_visible(visible)
        try:
            pairs.append(grey_pair(colour, raw))
        except UserError as error:
            raise UserError(f"{thermal}: {error}") from None
    return pairs


if __name__ == "__main__":
    run_cli(main)
