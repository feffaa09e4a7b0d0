"""See why a model is as good as it is: the gradients that reach its backbones, and what its backbones know.

    python -m rscmd_model.diagnose gradients --run runs/sum runs/rsc runs/rscmd --plot gradients.png
    python -m rscmd_model.diagnose gradients --model model.safetensors --data data.yaml --csv OUT.csv
    python -m rscmd_model.diagnose probe --model A.safetensors B.safetensors --data data.yaml epochs=20

"gradients" (the word may be left out) compares the gradient that the fused loss sends to each modality's features with
the unimodal loss's at the same features: over the epochs of runs that were trained with --diagnose, or in finished
models. "probe" freezes each backbone, trains a fresh neck and head on it and scores that. `COMMAND --help` says more.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rscmd_model.config import MODALITIES
from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_data
from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import write_json
from rscmd_model.options import parse_options
from rscmd_model.versions import require

if TYPE_CHECKING:
    from rscmd_model.gradients import GradientRow


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and measure."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
    elif words[0] == "probe":
        run_probe(words[1:])
    elif words[0] == "gradients" or words[0].startswith("-"):
        run_gradients(words[words[0] == "gradients" :])
    else:
        raise UserError(f"{words[0]!r} is not one of gradients, probe")


def run_gradients(words: list[str]) -> None:
    """The command `gradients`."""
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_model.diagnose gradients",
        description="The fused loss's gradients at each modality's features against the unimodal losses'.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, nargs="+", help="folders of runs trained with --diagnose, to compare")
    what.add_argument("--model", type=Path, nargs="+", help="finished models to measure on --data")
    data_arguments(parser, required=False)
    camera_arguments(parser)
    parser.add_argument("--split", default="train", help="split to measure on (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=64, help="spread over the split (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pairs per batch (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="write the figures here (one file per run or model, named after it)")
    parser.add_argument("--plot", type=Path, help="draw them here (.png, .svg, .pdf)")
    args = parser.parse_args(words)
    if args.model and not args.data:
        parser.error("--model needs --data data.yaml")
    data = opened(args) if args.data else ""
    from rscmd_model.gradient_course import common_reference, describe, plot, read_rows, write_rows

    courses: dict[str, list[GradientRow]] = {}
    for name, path in labels(args.run or args.model).items():
        if args.run:
            if not (path / "gradients.csv").is_file():
                raise UserError(
                    f"{path} has no gradients.csv: train with --diagnose, or give --model {path / 'model.safetensors'}"
                )
            courses[name] = read_rows(path / "gradients.csv")
            if not courses[name]:
                raise UserError(f"{path / 'gradients.csv'} has no rows yet: no epoch of that run is complete")
        else:
            courses[name] = measure_file(path, data, args.split, args.pairs, args.batch, args.device)
    reference = common_reference(courses)
    print("\n\n".join(describe(name, rows, reference) for name, rows in courses.items()))
    for name, rows in courses.items() if args.csv else ():
        file = args.csv if len(courses) == 1 else args.csv.with_stem(f"{args.csv.stem}-{name}")
        write_rows(file, rows)
        print(f"wrote {file}")
    if args.plot:
        plot(courses, args.plot)
        print(f"wrote {args.plot}")


def opened(args: argparse.Namespace) -> str:
    """The data of the command line, opened once to be sure that they are there, as one line that opens them again."""
    return open_data(args.data, args.root, args.split_file, args.registration, args.palette_ok).spec


def measure_file(model: Path, data: str, split: str, pairs: int, batch: int, device: str) -> list[GradientRow]:
    """The gradients in a finished model, on `pairs` pairs of a split, in batches of `batch`.

    Raises:
        UserError: a bad model, data set, split or device, a model of one camera, classes that differ.
    """
    require("torch", "ultralytics")
    from ultralytics.cfg import get_cfg

    from rscmd_model.gradient_recorder import ProbePairs
    from rscmd_model.gradients import OpenModel, measure
    from rscmd_model.model_file import load_model
    from rscmd_model.torch_backends import select_device

    if pairs < 1 or batch < 1:
        raise UserError(f"--pairs {pairs} and --batch {batch} must be 1 or more")
    chosen = select_device(device)
    network, header = load_model(model)
    config = open_data(data)
    if list(header.names.values()) != list(config.names.values()):
        raise UserError(
            f"{model} finds {', '.join(header.names.values())}; {data} has {', '.join(config.names.values())}"
        )
    open_model = OpenModel(network.to(chosen))
    dataset = ProbePairs(
        pairs,
        img_path=split,
        imgsz=header.image_size,
        hyp=get_cfg(),
        data={"config": config, "names": config.names, "nc": len(config.names), "channels": 4},
    )
    return measure(open_model, dataset.batches(batch, chosen))


def run_probe(words: list[str]) -> None:
    """The command `probe`."""
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_model.diagnose probe",
        description="Linear probing: a fresh neck and head trained on each frozen backbone, and scored.",
    )
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="model.safetensors; name the controls too")
    data_arguments(parser)
    camera_arguments(parser)
    parser.add_argument("--split", default="val", help="split to score (default: %(default)s)")
    parser.add_argument("--modality", choices=MODALITIES, nargs="+", default=list(MODALITIES), help="default: both")
    parser.add_argument("--json", type=Path, help="write the scores here")
    parser.add_argument("--csv", type=Path, help="write the table here")
    parser.add_argument("options", nargs="*", metavar="key=value", help="ultralytics' options, the same for all")
    # They may stand anywhere, also behind an argument that takes several values.
    given = [word for word in words if re.match(r"\w+=", word)]
    args = parser.parse_args([word for word in words if word not in given])
    require("torch", "ultralytics")
    from rscmd_model.model_file import read_header
    from rscmd_model.probe import format_table, probe, write_table

    options = parse_options(args.options + given)
    models = labels(args.model)
    for file in models.values():  # a wrong one is told before hours of training
        read_header(file)
    data, results = opened(args), []
    for name, file in models.items():
        results += probe(name, file, data, args.split, args.modality, options)
    if not results:
        raise UserError(f"none of these models has a {args.modality[0]} backbone")
    print(format_table(results))
    if args.json:
        write_json(args.json, {"split": args.split, "options": options, "results": [asdict(r) for r in results]})
    if args.csv:
        write_table(args.csv, results)


def labels(paths: Sequence[Path]) -> dict[str, Path]:
    """A short name for each run folder or model file: the folder's, for a model.safetensors too.

    Raises:
        UserError: two would have the same name.
    """
    named: dict[str, Path] = {}
    for path in paths:
        whole = path.resolve()
        name = whole.parent.name if whole.name == "model.safetensors" else whole.stem if whole.suffix else whole.name
        if name in named:
            raise UserError(f"{named[name]} and {path} would both be called {name!r}: rename one")
        named[name] = path
    return named


if __name__ == "__main__":
    run_cli(main)
