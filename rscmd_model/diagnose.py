"""See why a model is as good as it is: the gradients that reach its backbones, and what its backbones know.

    python -m rscmd_model.diagnose gradients --run runs/sum runs/rsc runs/rscmd --plot gradients.png
    python -m rscmd_model.diagnose gradients --model model.safetensors --data data.yaml --csv OUT.csv
    python -m rscmd_model.diagnose probe --model A.safetensors B.safetensors --data data.yaml epochs=20

"gradients" (the word may be left out) compares the gradient that the fused loss sends to each modality's features with
the unimodal loss's at the same features: over the epochs of runs that were trained with --diagnose, or in finished
models. "probe" freezes each backbone, trains a fresh neck and head on it and scores that. `COMMAND --help` says more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rscmd_model.arguments import command_parser, option_words, parse
from rscmd_model.config import MODALITIES
from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_given
from rscmd_model.errors import UserError, run_cli
from rscmd_model.evaluation.curves import check_plot
from rscmd_model.files import check_writable, write_json
from rscmd_model.options import parse_options
from rscmd_model.versions import require


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


def run_gradients(words: Sequence[str]) -> None:
    """The command `gradients`."""
    parser = command_parser(
        "diagnose gradients", "The fused loss's gradients at each modality's features against the unimodal losses'."
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
    args = parse(parser, words)
    if args.model and not args.data:
        parser.error("--model needs --data data.yaml")
    measuring = ("data", "root", "split_file", "registration", "palette_ok", "split", "pairs", "batch", "device")
    for name in measuring if args.run else ():
        if getattr(args, name) != parser.get_default(name):
            raise UserError(
                f"--{name.replace('_', '-')} is for measuring on --model; a --run has measured while it trained: leave "
                "it out"
            )
    if args.plot:
        check_plot(args.plot)
    check_writable(args.csv, args.plot)
    data = open_given(args).spec if args.data else ""
    require("torch", "ultralytics")
    from rscmd_model.diagnosis.files import gradients_of_model, gradients_of_run, short_names
    from rscmd_model.diagnosis.gradient_table import common_reference, describe, plot, write_rows

    courses = {
        name: gradients_of_run(path)
        if args.run
        else gradients_of_model(path, data, args.split, args.pairs, args.batch, args.device, print)
        for name, path in short_names(args.run or args.model).items()
    }
    reference = common_reference(courses)
    print("\n\n".join(describe(name, rows, reference) for name, rows in courses.items()))
    for name, rows in courses.items() if args.csv else ():
        file = args.csv if len(courses) == 1 else args.csv.with_stem(f"{args.csv.stem}-{name}")
        write_rows(file, rows)
        print(f"wrote {file}")
    if args.plot:
        plot(courses, args.plot)
        print(f"wrote {args.plot}")


def run_probe(words: Sequence[str]) -> None:
    """The command `probe`."""
    parser = command_parser(
        "diagnose probe", "Linear probing: a fresh neck and head trained on each frozen backbone, and scored."
    )
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="model.safetensors; name the controls too")
    data_arguments(parser)
    camera_arguments(parser)
    parser.add_argument("--split", default="val", help="split to score (default: %(default)s)")
    parser.add_argument("--modality", choices=MODALITIES, nargs="+", default=list(MODALITIES), help="default: both")
    parser.add_argument("--json", type=Path, help="write the scores here")
    parser.add_argument("--csv", type=Path, help="write the table here")
    option_words(parser, "ultralytics' options, the same for all")
    args = parse(parser, words)
    require("torch", "ultralytics")
    options = parse_options(args.options)
    from rscmd_model.diagnosis.files import short_names
    from rscmd_model.diagnosis.probe import format_table, probe, write_table
    from rscmd_model.network.model_file import read_header

    models = short_names(args.model)
    if options.get("exist_ok") and "name" in options and len(models) > 1:
        raise UserError("name= with exist_ok=True puts the probes of all models into the same folders: leave one out")
    check_writable(args.json, args.csv)
    for file in models.values():  # a wrong one is told before hours of training
        read_header(file)
    data, results = open_given(args).spec, []
    for name, file in models.items():
        results += probe(name, file, data, args.split, args.modality, options)
    if not results:
        raise UserError(f"none of these models has a {args.modality[0]} backbone")
    print(format_table(results))
    if args.json:
        write_json(args.json, {"split": args.split, "options": options, "results": [asdict(r) for r in results]})
    if args.csv:
        write_table(args.csv, results)


if __name__ == "__main__":
    run_cli(main)
