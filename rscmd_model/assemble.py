"""Make a two-camera model of a YOLO checkpoint, without any training.

    python -m rscmd_model.assemble --weights yolov8n.pt --classes person,bicycle,car --out model.safetensors
    python -m rscmd_model.assemble --weights yolo11s.pt --thermal-weights thermal11s.pt --out model.safetensors

The checkpoint (yolov8*.pt or yolo11*.pt, never downloaded) answers for each camera; the thermal image is grey to it.
A pair is answered by all answers of the model joined box by box, and also by a fused one where one checkpoint serves
both cameras. `predict`, `evaluate`, `export`, the node and `evaluate_bag` take the file as any other. Training on one's
own pairs comes later: `rscmd_model.train --weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from rscmd_model.arguments import command_parser, parse
from rscmd_model.errors import UserError, first_line, run_cli
from rscmd_model.imaging.registration import load_registration
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.network.header import ModelHeader, check_image_size
from rscmd_model.versions import require


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, assemble, write the model."""
    parser = command_parser("assemble", __doc__)
    parser.add_argument("--weights", type=Path, required=True, help="ultralytics detection checkpoint")
    parser.add_argument(
        "--thermal-weights", type=Path, help="another one of the same family and scale for the thermal camera"
    )
    parser.add_argument(
        "--classes", metavar="NAME,NAME", help="names of the classes to find (default: all that --weights finds)"
    )
    parser.add_argument("--out", type=Path, required=True, help="model.safetensors to write")
    parser.add_argument(
        "--image-size",
        type=int,
        default=640,
        metavar="PX",
        help="longer side of the network's input, a multiple of 32 (default: %(default)s)",
    )
    parser.add_argument(
        "--registration", type=Path, help="registration.yaml of the two cameras, see rscmd_model.register"
    )
    parser.add_argument(
        "--thermal-contract",
        metavar="YAML",
        default="{source: mono8, scale: [0, 255]}",
        help="how thermal images become grey, as in {source: mono16, scale: {percentile: [1, 99]}}; docs/thermal.md "
        "(default: %(default)s)",
    )
    args = parse(parser, argv)
    if args.out.suffix != ".safetensors":
        raise UserError(f"--out {args.out}: give a file that ends in .safetensors")
    check_image_size(args.image_size)
    thermal = _contract(args.thermal_contract)
    registration = load_registration(args.registration) if args.registration else None
    require("torch", "ultralytics")

    from rscmd_model.network.assembly import assemble
    from rscmd_model.network.model_file import save_model

    names = [name.strip() for name in args.classes.split(",")] if args.classes is not None else None
    model = assemble(args.weights, args.thermal_weights, names)
    joined = model.config.pair_answers[-1]
    header = ModelHeader(model.config, model.names, args.image_size, thermal, registration=registration, answer=joined)
    save_model(args.out, model, header)
    print(
        f"{args.out}: {model.config.layers} for both cameras, {len(model.names)} classes, answers "
        f"{', '.join(model.config.answers)} and all joined (the default); not trained on any pair"
    )


def _contract(text: str) -> ThermalContract:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--thermal-contract is no YAML: {first_line(error)}") from None
    return ThermalContract.from_dict(data)


if __name__ == "__main__":
    run_cli(main)
