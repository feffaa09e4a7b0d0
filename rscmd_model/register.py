"""Estimate where a thermal camera's pixels lie in the image of the visible camera beside it.

    python -m rscmd_model.register --data data.yaml --split train --out registration.yaml --overlay overlay.png
    python -m rscmd_model.register --visible V1.png V2.png --thermal T1.png T2.png --out registration.yaml
    python -m rscmd_model.register --points picked.csv --visible V1.png --thermal T1.png --out registration.yaml

Without --points, points are matched across the two spectra in all pairs together; give pictures with structure all over
(buildings, kerbs, parked cars), ten pairs or more, of one pair of cameras. With --points they are those picked by hand:
rows of x_thermal y_thermal x_visible y_visible, in px of the pictures. The overlay shows thermal edges over the visible
image, before and after. An estimate that cannot be trusted is told and not written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from rscmd_model.alignment import Estimate, GreyPair, from_images, from_points
from rscmd_model.arguments import command_parser, parse
from rscmd_model.datasets.opening import data_arguments, open_given, palette_argument
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import UserError, quoted, run_cli
from rscmd_model.files import whole_file
from rscmd_model.images import lay_over, read_thermal, read_visible
from rscmd_model.registration import Registration, save_registration
from rscmd_model.text import parse_yaml, read_text
from rscmd_model.thermal import ThermalContract

_SHOWN = 3  # pairs in the overlay
_PANEL = 800  # px, width of each of its pictures


def read_points(path: Path) -> np.ndarray:
    """Points picked by hand.

    Args:
        path: .csv or .txt with rows of four numbers (commas, semicolons or spaces between them; a heading and lines
            that begin with # are passed over), or .yaml with a list of such rows.

    Returns:
        (N, 4) float64: x_thermal, y_thermal, x_visible, y_visible.

    Raises:
        UserError: naming the file and the row.
    """
    text = read_text(path, what="points")
    if path.suffix.lower() in (".yaml", ".yml"):
        rows = parse_yaml(text, str(path))
        if not isinstance(rows, list):
            raise UserError(f"{path}: expected a list of rows [x_thermal, y_thermal, x_visible, y_visible]")
    else:
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        rows = [line.replace(";", " ").replace(",", " ").split() for line in lines]
        if rows and rows[0] and rows[0][0][:1].isalpha():
            rows = rows[1:]
    points = []
    for number, row in enumerate(rows, 1):
        try:
            x, y, u, v = (float(value) for value in row)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{path}, row {number}: expected x_thermal y_thermal x_visible y_visible, got {quoted(row)}"
            ) from None
        if not np.isfinite([x, y, u, v]).all():
            raise UserError(f"{path}, row {number}: {quoted(row)} is not finite")
        points.append((x, y, u, v))
    return np.array(points, np.float64).reshape(-1, 4)


def overlay(pairs: Sequence[GreyPair], registration: Registration) -> np.ndarray:
    """Thermal edges in orange over the visible image, as they lie without (left) and with (right) the registration.

    Args:
        pairs: as for `alignment.from_images`; one row of the picture each.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    rows = []
    for visible, thermal in pairs:
        size = (_PANEL, round(visible.shape[0] * _PANEL / visible.shape[1]))
        # The planes are laid over by the very function that training and the node use, at the size shown.
        planes = {"before": lay_over(thermal, size), "after": lay_over(thermal, size, registration)}
        ones = registration.warp(np.full_like(thermal, 255), size) == 255
        panels = []
        for name, plane in planes.items():
            grey = cv2.convertScaleAbs(cv2.resize(visible, size, interpolation=cv2.INTER_AREA), alpha=0.8)
            panel = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
            edges = cv2.Canny(cv2.GaussianBlur(plane, (0, 0), 1.5), 30, 70) > 0
            if name == "after":
                edges &= cv2.erode(ones.astype(np.uint8), np.ones((9, 9))) > 0
                outline, _ = cv2.findContours(ones.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(panel, outline, -1, (233, 180, 86), 1)
            panel[cv2.dilate(edges.astype(np.uint8), np.ones((2, 2))) > 0] = (0, 140, 255)
            cv2.putText(panel, name, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2, cv2.LINE_AA)
            panels.append(panel)
        rows.append(np.hstack(panels))
    return np.vstack(rows)


def _load(files: Sequence[tuple[Path, Path]], palette_ok: bool) -> list[GreyPair]:
    """The pictures, grey. The thermal ones are scaled by percentiles: edges matter here, levels do not."""
    pairs = []
    for visible, thermal in files:
        raw = read_thermal(thermal, ThermalContract(palette_ok=True) if palette_ok else None)
        contract = ThermalContract("mono16" if raw.dtype == np.uint16 else "mono8", (1, 99), percentile=True)
        try:
            plane = contract.apply(raw)
        except UserError as error:
            raise UserError(f"{thermal}: {error}") from None
        pairs.append((cv2.cvtColor(read_visible(visible), cv2.COLOR_BGR2GRAY), plane))
    return pairs


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


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, estimate, show, and write what can be trusted."""
    parser = command_parser("register", __doc__)
    data_arguments(parser, required=False)
    parser.add_argument("--split", default="train", help="its split (default: %(default)s)")
    parser.add_argument("--visible", type=Path, nargs="+", help="visible images instead, and ...")
    parser.add_argument("--thermal", type=Path, nargs="+", help="... the thermal image of each")
    parser.add_argument("--points", type=Path, nargs="+", help="points picked by hand, .csv or .yaml")
    parser.add_argument("--pairs", type=int, default=40, help="use at most so many pairs (default: %(default)s)")
    palette_argument(parser)
    parser.add_argument("--out", type=Path, help="write the registration here (.yaml)")
    parser.add_argument("--overlay", type=Path, help="draw before and after into this picture (.png or .jpg)")
    args = parse(parser, argv)
    if args.pairs < 1:
        raise UserError(f"--pairs {args.pairs}: give 1 or more")
    if not args.out and not args.overlay:
        raise UserError("give --out registration.yaml, --overlay PICTURE, or both")
    if args.out and args.out.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"--out {args.out}: give a .yaml file")
    if args.overlay and args.overlay.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--overlay {args.overlay}: give a .png or .jpg file")
    points = np.vstack([read_points(path) for path in args.points]) if args.points else None
    files = _files(args)
    pairs = _load(files if points is None else files[:_SHOWN], args.palette_ok)
    if points is None:
        estimate = from_images(pairs, progress=lambda line: print(line, flush=True))
        source = f"from {len(pairs)} image pairs"
    else:
        (height, width), (h, w) = pairs[0][0].shape, pairs[0][1].shape
        estimate = from_points(points, (w, h), (width, height))
        source = f"from {len(points)} picked points"
    lines = report(estimate)
    print("\n".join(lines))
    if args.overlay:
        picture = cv2.imencode(args.overlay.suffix, overlay(pairs[:_SHOWN], estimate.registration))[1]
        with whole_file(args.overlay) as aside:
            aside.write_bytes(picture.tobytes())
        print(f"overlay: {args.overlay}")
    if estimate.problem:
        raise UserError(f"not good enough to use, and not written: {estimate.problem}")
    if args.out:
        save_registration(args.out, estimate.registration, [f"Estimated by rscmd_model.register {source}.", *lines])
        print(f"registration: {args.out}")


def report(estimate: Estimate) -> list[str]:
    """What is known of an estimate, a line each."""
    lines = [
        f"{estimate.inliers.sum()} of {len(estimate.points)} points agree, {estimate.error:.2f} px off "
        "(root mean square, px of the visible image)"
    ]
    if len(estimate.points) == 4:
        lines[0] = "4 points fit exactly, so nothing tells how good they are: pick more"
    if estimate.disagreement is not None:
        lines.append(f"the two halves of the pairs put the corners up to {estimate.disagreement:.1f} px apart")
    return lines


if __name__ == "__main__":
    run_cli(main)
