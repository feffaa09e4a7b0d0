"""How well `rscmd_model.register` finds a known misalignment again, on painted pairs and on photographs.

    python benchmarks/registration.py
    python benchmarks/registration.py --painted --pairs 6 --size 320 256    # a short trial
    python benchmarks/registration.py --drive --pairs 16 --size 320 256

Thermal images are warped by known homographies. What is estimated from the warped pairs is compared with the known one
at the four corners of the thermal image; on photographs, which are not aligned to the last pixel themselves, with the
known one after what is estimated from them as they are. The last rows have thermal images that do not belong to the
visible ones.

With --drive the painted pairs are a drive in the course of which the thermal camera is knocked, and what is asked is
whether single pairs agree with the estimate from all of them (`rscmd_ros.register_bag`). In its last rows nothing is
knocked, and the lower half of the image is bent, as no homography can follow: what is near stands apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import UserError, run_cli
from rscmd_model.imaging.estimate_registration import Estimate, from_images
from rscmd_model.imaging.images import read_thermal, read_visible
from rscmd_model.imaging.patch_matching import GreyPair
from rscmd_model.imaging.registration import corners, map_points
from rscmd_model.imaging.registration_agreement import agreement
from rscmd_model.synthetic.world import WorldConfig, generate

LLVIP_MINI = Path(__file__).resolve().parent.parent.parent / "shared" / "llvip_mini" / "data.yaml"

# Shift as a share of the width and height, scale, degrees.
WARPS = {
    "shift 24 px of 1280, x1.05, 1.5 deg": (24 / 1280, -16 / 1024, 1.05, 1.5),
    "shift 80 px of 1280, x0.8, -4 deg": (80 / 1280, 40 / 1024, 0.8, -4.0),
    "shift 60 px of 1280, x1.4, 2 deg": (-60 / 1280, 30 / 1024, 1.4, 2.0),
}

# Share of the drive after which the camera is knocked, by what share of the width, and degrees.
KNOCKS = {
    "not knocked": (1.0, 0.0, 0.0),
    "knocked half way, 0.5 % of the width": (0.5, 0.005, 0.0),
    "knocked half way, 1 %": (0.5, 0.01, 0.0),
    "knocked half way, 2 %": (0.5, 0.02, 0.0),
    "knocked half way, 8 %": (0.5, 0.08, 0.0),
    "knocked half way, 1 degree": (0.5, 0.0, 1.0),
    "knocked after 3/4, 2 %": (0.75, 0.02, 0.0),
}
BENT = (6, 12)  # px at the lower rim


def homography(size: tuple[int, int], x: float, y: float, scale: float, degrees: float) -> np.ndarray:
    """(3, 3), from where the warped thermal image has a pixel to where the original has it."""
    middle = (size[0] / 2 - 0.5, size[1] / 2 - 0.5)
    turn = np.vstack((cv2.getRotationMatrix2D(middle, degrees, scale), [0, 0, 1]))
    turn[:2, 2] += x * size[0], y * size[1]
    return turn


def warped(thermal: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The thermal image as a camera that is misaligned by `matrix` would see it."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(thermal, matrix, thermal.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def row(name: str, pairs: list[GreyPair], wanted: np.ndarray | None) -> Estimate | None:
    """Estimate and print one line of the table."""
    try:
        found = from_images(pairs)
    except UserError as error:
        print(f"| {name} | {len(pairs)} | refused: {str(error).split(':')[0]} | | |", flush=True)
        return None
    away = "-"
    if wanted is not None:
        ends = corners(found.registration.thermal_size)
        gap = map_points(found.registration.homography, ends) - map_points(wanted, ends)
        away = f"{np.hypot(*gap.T).max():.1f}"
    verdict = f"refused: {found.problem}" if found.problem else f"{found.inliers.sum()} of {len(found.points)}"
    halves = "-" if found.disagreement is None else f"{found.disagreement:.1f}"
    print(f"| {name} | {len(pairs)} | {verdict} | {away} | {halves} |", flush=True)
    return found


def table(name: str, pairs: list[GreyPair], aligned: bool) -> None:
    """As they are, then warped in each way."""
    size = (pairs[0][1].shape[1], pairs[0][1].shape[0])
    own = row(f"{name}, as they are", pairs, np.eye(3))
    before = np.eye(3) if aligned or own is None else np.array(own.registration.homography)
    for label, warp in WARPS.items():
        matrix = homography(size, *warp)
        row(f"{name}, {label}", [(v, warped(t, matrix)) for v, t in pairs], before @ matrix)


def bent(thermal: np.ndarray, most: float) -> np.ndarray:
    """The thermal image with its lower half moved to the left, `most` px at the rim, by the square of the depth."""
    rows, columns = np.mgrid[: thermal.shape[0], : thermal.shape[1]].astype(np.float32)
    moved = most * np.clip(2 * rows / thermal.shape[0] - 1, 0, 1) ** 2
    return cv2.remap(thermal, columns + moved, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def drive(pairs: list[GreyPair]) -> None:
    """The table of knocks, and what is left by rows where a homography cannot follow."""
    size = (pairs[0][1].shape[1], pairs[0][1].shape[0])
    own = homography(size, 24 / 1280, -16 / 1024, 1.05, 1.5)
    print("| drive | pairs that show enough | corners off, median and 90 %, px | parts differ by, px | verdict |")
    print("|---|---|---|---|---|")
    for name, (when, shift, degrees) in KNOCKS.items():
        knocked = own @ homography(size, shift, 0.0, 1.0, degrees)
        moved = [(v, warped(t, own if k < when * len(pairs) else knocked)) for k, (v, t) in enumerate(pairs)]
        try:
            agreed = agreement(moved, from_images(moved))
        except UserError as error:
            print(f"| {name} | | | | refused: {str(error).split(':')[0]} |", flush=True)
            continue
        off = " and ".join(f"{p:.1f}" for p in np.percentile(agreed.apart, [50, 90])) if len(agreed.judged) else "-"
        verdict = "refused" if agreed.problem() else "taken"
        print(f"| {name} | {len(agreed.judged)} | {off} | {agreed.moved:.1f} | {verdict} |", flush=True)
    for most in BENT:
        print(f"\nbent, {most} px at the lower rim:")
        moved = [(v, warped(bent(t, most), own)) for v, t in pairs]
        try:
            estimate = from_images(moved)
        except UserError as error:
            print(f"refused: {error}")
            continue
        print("\n".join([*estimate.lines(), *agreement(moved, estimate).lines()]), flush=True)


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12, help="painted ones (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 512), metavar=("W", "H"), help="of the painted ones")
    parser.add_argument("--painted", action="store_true", help="no photographs")
    parser.add_argument("--drive", action="store_true", help="the agreement of single pairs over a drive instead")
    args = parser.parse_args()
    if args.pairs < 6:
        raise UserError(f"--pairs {args.pairs}: give 6 or more, pairs of other scenes are five apart")
    width, height = args.size
    frames = [frame for _, frame in generate(3, 1, args.pairs, width, height, WorldConfig(), 1)]
    painted = [(cv2.cvtColor(frame.visible, cv2.COLOR_BGR2GRAY), frame.thermal) for frame in frames]
    if args.drive:
        drive(painted)
        return
    print("| pairs | number | points that agree | corner error, px | halves differ by, px |")
    print("|---|---|---|---|---|")
    table(f"painted {width}x{height}", painted, aligned=True)
    row("painted, of other scenes", [(painted[i][0], painted[i - 5][1]) for i in range(args.pairs)], None)
    if args.painted:
        return
    if not LLVIP_MINI.is_file():
        print("no photographs: ../shared/llvip_mini is not there")
        return
    data = open_data(LLVIP_MINI)
    photographs = {}
    for split in ("val", "train"):
        photographs[split] = [
            (cv2.cvtColor(read_visible(pair.visible), cv2.COLOR_BGR2GRAY), read_thermal(pair.thermal))
            for pair in find_pairs(data, split)
        ]
        table(f"photographs 1280x1024, {split}", photographs[split], aligned=False)
    mixed = [(a[0], b[1]) for a, b in zip(photographs["val"], photographs["train"])]
    row("photographs, of two cameras", mixed, None)


if __name__ == "__main__":
    run_cli(main)
