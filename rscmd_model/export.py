"""Make a file of a trained model that starts and runs faster, with every answer of the model in it.

    python -m rscmd_model.export --model model.safetensors --format openvino --size 640,512
    python -m rscmd_model.export --model model.safetensors --format onnx --int8 --data data.yaml --out model.onnx

`Predictor`, the commands with --model and the node take the file by its name. openvino runs on the CPU, onnx there and
with onnxruntime-gpu on an NVIDIA GPU (--device cuda:0), engine on the NVIDIA GPU it was built on. Without --dynamic the
file takes one input size (other images are fitted into it) and batches of --batch pairs.

The file is put in place only if it answers real pairs as the model does: those of --data's val split, or drawn scenes
without --data. --int8 (onnx, openvino, engine) needs --data: its train split shows the range of values.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rscmd_model.config import STRIDE
from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_given
from rscmd_model.errors import UserError, run_cli
from rscmd_model.inference.export_file import FORMATS, export
from rscmd_model.inference.opening import SUFFIXES


def main() -> None:
    """Parse the command line, export and print what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_model.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model.safetensors")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument(
        "--half",
        action=argparse.BooleanOptionalAction,
        help="16-bit arithmetic; with openvino bfloat16, where the processor is made for it. Without a word openvino "
        "is measured in both on such a processor, and bfloat16 is taken if it is near enough and faster; --no-half "
        "keeps 32 bits",
    )
    parser.add_argument("--int8", action="store_true", help="8-bit convolutions; needs --data")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="pairs per batch (default: %(default)s)")
    parser.add_argument(
        "--dynamic", action="store_true", help="take every image size and batch, up to --batch on a GPU"
    )
    parser.add_argument(
        "--size", metavar="W,H", help="size of the images to come (default: --data's first pair, or a square)"
    )
    parser.add_argument(
        "--answer",
        choices=("fused", "ensemble"),
        help="what answers a whole pair unless another is asked for: fused, or ensemble, all answers of the model "
        "joined (default: as the model says); all answers are in the file in any case",
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
    done = export(
        args.model, args.format, out, half=args.half, int8=args.int8, batch=args.batch, dynamic=args.dynamic,
        size=_size(args.size), data=data, answer=args.answer,
    )  # fmt: skip
    print(done.summary)


def _size(text: str | None) -> tuple[int, int] | None:
    """(width, height) from "W,H". Raises `UserError` for anything else."""
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
