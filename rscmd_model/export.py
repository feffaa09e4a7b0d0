"""Make a file of a trained model that starts and runs faster, with every answer of the model in it.

    python -m rscmd_model.export --model model.safetensors --format openvino --size 640,512
    python -m rscmd_model.export --model model.safetensors --format onnx --int8 --data data.yaml --out model.onnx

`Predictor`, the commands with --model and the node take the file by its name. onnx and openvino run on the CPU,
engine on the NVIDIA GPU it was built on. Without --dynamic the file takes one input size (other images are fitted into
it) and batches of --batch pairs.

The file is put in place only if it answers real pairs as the model does: those of --data's val split, or drawn scenes
without --data. --int8 (onnx, openvino, engine) needs --data: its train split shows the range of values.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rscmd_model.backends import ARCHIVE_HEADER, BFLOAT16, Backend, fixed_input, needed, sealed, write_archive
from rscmd_model.choice import SUFFIXES, open_backend
from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_given
from rscmd_model.datasets.pairs import DataConfig, find_pairs
from rscmd_model.errors import UserError, first_line, run_cli
from rscmd_model.files import whole_file
from rscmd_model.header import HEADER, STRIDE, ModelHeader
from rscmd_model.images import read_thermal, read_visible, stack_pair
from rscmd_model.preprocess import fill, place
from rscmd_model.versions import require

FORMATS = tuple(f for f in SUFFIXES if f != "safetensors")
COUNTS = 0.05  # boxes below this score in both answers are not compared: nobody would see them
CHECKED = 8
CALIBRATED = 64


@dataclass(frozen=True)
class Bound:
    """How far an exported file's answer may lie from the model's, at worst.

    Attributes:
        box: of a corner, as a share of the box's longer side.
        score: of a class's score, 0 to 1.
        whole: the bounds are for the worst box; otherwise for the mean over boxes.
    """

    box: float
    score: float
    whole: bool = True


EXACT = Bound(0.001, 0.001)
HALF = Bound(0.05, 0.03)
INT8 = Bound(0.10, 0.05, whole=False)


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_model.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model.safetensors")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument(
        "--half",
        action="store_true",
        help="16-bit arithmetic; with openvino bfloat16, where the processor is made for it",
    )
    parser.add_argument("--int8", action="store_true", help="8-bit convolutions; needs --data")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="pairs per batch (default: %(default)s)")
    parser.add_argument(
        "--dynamic", action="store_true", help="take every image size and batch, up to --batch on a GPU"
    )
    parser.add_argument(
        "--size", metavar="W,H", help="size of the images to come (default: --data's first pair, or a square)"
    )
    parser.add_argument("--out", type=Path, metavar="PATH", help="file to write (default: beside the model)")
    data_arguments(parser, required=False)
    camera_arguments(parser)
    args = parser.parse_args()
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give 1 or more")
    if args.int8 and args.half:
        raise UserError("--int8 and --half: give one of them")
    data = None
    if args.data:
        data = open_given(args)
    out = args.out or args.model.with_suffix(SUFFIXES[args.format])
    export(
        args.model, args.format, out, half=args.half, int8=args.int8, batch=args.batch, dynamic=args.dynamic,
        size=_size(args.size), data=data,
    )  # fmt: skip


def export(
    model: Path,
    format: str,
    out: Path,
    *,
    half: bool = False,
    int8: bool = False,
    batch: int = 1,
    dynamic: bool = False,
    size: tuple[int, int] | None = None,
    data: DataConfig | None = None,
) -> tuple[float, float]:
    """Write `out`, checked. The arguments are those of the command line.

    Returns:
        the differences found: of corners, as a share of the box's longer side, and of scores; as `Bound` counts them.

    Raises:
        UserError: a bad model, a package that is not installed, or an answer that differs too much: then nothing is
            written.
    """
    if out.suffix.lower() != SUFFIXES[format]:
        raise UserError(f"--out {out}: a file of format {format} ends in {SUFFIXES[format]}")
    if int8 and data is None:
        raise UserError("--int8 needs --data")
    if format == "engine":
        needed("tensorrt", "--format engine")
    if format == "openvino":
        needed("openvino", "--format openvino")
    require("torch", "ultralytics")
    from rscmd_model.torch_backends import TorchBackend

    eager = TorchBackend(model, "cpu", False)
    header = eager.header
    stacks = read_stacks(data, "val", header, CHECKED, size) if data else drawn_stacks(header, size)
    height, width = stacks[0].shape[:2]
    fixed = fixed_input((0, 0, 0) if dynamic else (batch, height, width), out)
    with whole_file(out) as aside:
        calibration = read_stacks(data, "train", header, CALIBRATED, size) if int8 and data else None
        _write_graph(aside, format, eager, fixed, half, calibration, (batch, height, width))
        made, _ = open_backend(aside, "auto", None, "torch")
        bound = INT8 if int8 else HALF if half else EXACT
        box, score = compare(eager, made, stacks, bound.whole)
        kind = "int8" if int8 else "half" if half else "float"
        which = f"{len(stacks)} pairs of {data.name}" if data else f"{len(stacks)} drawn scenes (no --data)"
        worst = "largest" if bound.whole else "mean"
        said = (
            f"{worst} difference to the model on {which}: boxes {box:.4%} of their longer side (at most "
            f"{bound.box:.1%}), scores {score:.5f} (at most {bound.score:g})"
        )
        if box > bound.box or score > bound.score:
            raise UserError(f"{out} is not written, its answers are not the model's: {said}")
        megabytes = aside.stat().st_size / 2**20
    takes = "any size" if fixed is None else f"{width}x{height} px, batch {batch}"
    print(f"{out}: {format}, {kind}, {takes}, {', '.join(header.config.answers)}, {megabytes:.1f} MiB\n{said}")
    return box, score


def compare(model: Backend, made: Backend, stacks: Sequence[np.ndarray], whole: bool) -> tuple[float, float]:
    """How far two backends' answers to the same inputs lie apart, over all branches.

    Args:
        model, made: the one to be trusted, and the other.
        stacks: (H, W, 4) uint8 each, of one size.
        whole: the largest difference, otherwise the mean, of the boxes that score `COUNTS` or more in either answer.

    Returns:
        of corners, as a share of the box's longer side (at least 8 px), and of scores.
    """
    boxes, scores = [np.zeros(1)], [np.zeros(1)]
    repeats = made.fixed[0] if made.fixed else 1
    for stack in stacks:
        for branch in model.header.config.answers:
            a = model.forward(stack[None], branch)[0]
            b = made.forward(np.repeat(stack[None], repeats, 0), branch)[-1]
            if not np.isfinite(b).all():
                return np.inf, np.inf
            seen = np.maximum(a[4:].max(0), b[4:].max(0)) >= COUNTS
            a, b = a[:, seen], b[:, seen]
            centre, half = np.abs(a[:2] - b[:2]), np.abs(a[2:4] - b[2:4]) / 2
            boxes.append((centre + half).max(0) / np.maximum(a[2:4].max(0), 8))
            scores.append(np.abs(a[4:] - b[4:]).max(0))
    both = np.concatenate(boxes), np.concatenate(scores)
    box, score = (float(d.max() if whole else d.mean()) for d in both)
    return box, score


def read_stacks(
    data: DataConfig, split: str, header: ModelHeader, most: int, size: tuple[int, int] | None
) -> list[np.ndarray]:
    """Network inputs (H, W, 4) of some pairs of a split, spread over it, all of the size that the first one has."""
    pairs = find_pairs(data, split)
    stacks: list[np.ndarray] = []
    frame = None
    for pair in pairs[:: max(1, len(pairs) // most)][:most]:
        visible, plane = read_visible(pair.visible), header.thermal.apply(read_thermal(pair.thermal, header.thermal))
        frame = frame or place(size[::-1] if size else visible.shape[:2], header.image_size).network
        placement = place(visible.shape[:2], header.image_size, frame)
        stack = np.empty((*frame, 4), np.uint8)
        fill(stack, placement, visible, plane, data.registration or header.registration)
        stacks.append(stack)
    return stacks


def drawn_stacks(header: ModelHeader, size: tuple[int, int] | None) -> list[np.ndarray]:
    """The same, of drawn scenes."""
    from rscmd_model.datasets.synthetic_world import WorldConfig, generate

    height, width = place(size[::-1] if size else (header.image_size, header.image_size), header.image_size).network
    frames = generate(0, 0, CHECKED, width, height, WorldConfig(), 1)
    return [stack_pair(frame.visible, frame.thermal) for _, frame in frames]


def _write_graph(
    path: Path,
    format: str,
    eager: Backend,
    fixed: tuple[int, int, int] | None,
    half: bool,
    calibration: list[np.ndarray] | None,
    largest: tuple[int, int, int],
) -> None:
    """ONNX, or what OpenVINO or TensorRT makes of it."""
    from rscmd_model.graphs import quantised, to_onnx

    network = eager.network  # type: ignore[attr-defined]

    def graph(branches: Sequence[str] | None = None) -> bytes:
        in_half = half and format == "onnx"  # the others have 16-bit kinds of their own
        try:
            content = to_onnx(network.half() if in_half else network, eager.header, fixed, branches)
        finally:
            network.float()
        return content if calibration is None else quantised(content, calibration, largest[0] if fixed else 1)

    if format == "onnx":
        path.write_bytes(sealed(graph()))
    elif format == "openvino":
        _write_openvino(path, graph(), eager.header, half)
    else:
        from rscmd_model.engine import build_engine

        branches = eager.header.config.answers
        engines = {f"{b}.engine": build_engine(graph([b]), half, None if fixed else largest) for b in branches}
        write_archive(path, {ARCHIVE_HEADER: eager.header.to_json().encode(), **engines})


def _write_openvino(path: Path, onnx: bytes, header: ModelHeader, half: bool) -> None:
    import tempfile

    openvino = needed("openvino", "--format openvino")
    model = openvino.Core().read_model(onnx, b"")
    model.set_rt_info(header.to_json(), HEADER)
    if half:
        model.set_rt_info("yes", BFLOAT16)
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder, "model.xml")
        try:
            openvino.save_model(model, xml, compress_to_fp16=half)
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot write to {folder} ({first_line(error)}): is the disk full?") from None
        members = {name: Path(folder, name).read_bytes() for name in ("model.xml", "model.bin")}
    write_archive(path, {ARCHIVE_HEADER: header.to_json().encode(), **members})


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        width, height = (int(word) for word in text.split(","))
    except ValueError:
        width = height = 0
    if min(width, height) < STRIDE:
        raise UserError(f"--size {text}: give width,height of the images in pixels, as in 640,512")
    return width, height


if __name__ == "__main__":
    run_cli(main)
