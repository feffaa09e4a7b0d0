"""Find objects in one visible-thermal pair of files, or in one image of it.

    python -m rscmd_model.predict --model model.safetensors --visible V.png --thermal T.png --json OUT --out PICTURE

Without --json and --out the objects are printed as JSON: a list of {"class", "score", "box": [x0, y0, x1, y1]}, boxes
in pixels of the visible image. A thermal image alone is answered in its own pixels; with a registration in those of the
visible image that it was made for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2

from rscmd_model.arguments import command_parser, parse
from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import whole_file, write_json
from rscmd_model.imaging.draw import side_by_side
from rscmd_model.imaging.images import read_thermal, read_visible
from rscmd_model.imaging.registration import load_registration
from rscmd_model.inference.predictor import Predictor


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and predict."""
    parser = command_parser("predict", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="model.safetensors")
    parser.add_argument("--visible", type=Path, help="visible image; leave out to answer from the thermal one alone")
    parser.add_argument("--thermal", type=Path, help="thermal image; leave out to answer from the visible one alone")
    parser.add_argument("--json", type=Path, help="write the objects here")
    parser.add_argument("--out", type=Path, help="draw them into this picture (.png or .jpg)")
    parser.add_argument("--conf", type=float, default=0.25, help="lowest score, 0 to 1 (default: %(default)s)")
    parser.add_argument("--iou", type=float, default=0.7, help="NMS overlap, 0 to 1 (default: %(default)s)")
    parser.add_argument("--registration", type=Path, help="registration.yaml in place of the model's own, if any")
    parser.add_argument("--palette-ok", action="store_true", help="take a colour-palette thermal image by its luma")
    parser.add_argument(
        "--answer",
        choices=("fused", "ensemble"),
        help="what answers the pair: fused, or ensemble, all answers of the model joined (default: as the model says)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    args = parse(parser, argv)
    for name in ("conf", "iou"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name} {getattr(args, name)}: give a number from 0 to 1")
    if args.visible is None and args.thermal is None:
        raise UserError("give --visible, --thermal or both")
    if args.answer and None in (args.visible, args.thermal):
        raise UserError("--answer says what answers a whole pair, and a single image has its own branch: give both")
    if args.out and args.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--out {args.out}: give a .png or .jpg file")
    predictor = Predictor(
        args.model,
        device=args.device,
        conf=args.conf,
        iou=args.iou,
        registration=load_registration(args.registration) if args.registration else None,
        palette_ok=args.palette_ok,
        answer=args.answer,
    )
    visible = read_visible(args.visible) if args.visible else None
    thermal = read_thermal(args.thermal, predictor.thermal) if args.thermal else None
    found = predictor.predict(visible, thermal)
    objects = [
        {"class": predictor.names[int(c)], "score": round(float(s), 5), "box": [round(float(x), 2) for x in box]}
        for box, s, c in zip(found.boxes, found.scores, found.classes)
    ]
    if args.json:
        write_json(args.json, objects)
    if args.out:
        plane = predictor.thermal_view(visible, thermal) if thermal is not None else None
        with whole_file(args.out) as aside:
            picture = cv2.imencode(args.out.suffix, side_by_side(visible, plane, found, predictor.names))[1]
            aside.write_bytes(picture.tobytes())  # cv2.imwrite would say nothing of a full disk
    for file in filter(None, (args.json, args.out)):
        print(f"{file}: {len(found)} {'object' if len(found) == 1 else 'objects'}")
    if not args.json and not args.out:
        print(json.dumps(objects, indent=2))


if __name__ == "__main__":
    run_cli(main)
