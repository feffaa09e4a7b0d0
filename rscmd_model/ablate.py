"""Train several methods with one recipe and one initialisation per seed, score each, and write the table.

    python -m rscmd_model.ablate --data data.yaml --methods visible,thermal,sum,rsc,rscmd --seeds 3 epochs=100 imgsz=640

A method may carry changes, as in rscmd+md=map or rsc+rsc=shared+lambda_visible=2; every setting of the model's
configuration can be changed. Options in the form key=value are ultralytics' own and the same for every run. No epoch is
chosen by its validation score: the model of the last epoch is scored.

--out gets a folder for each run, results.csv (a row for each run and branch), table.csv and table.md (mean and spread
over the seeds, and in table.md what each answer gains over its control, seed by seed) and ablation.png. An ablation
that was interrupted goes on where it stopped when it is called again: a finished run is not trained again, an
unfinished one is resumed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rscmd_model.arguments import command_parser, family_argument, given_scale, option_words, parse, scale_argument
from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_given
from rscmd_model.devices import check_device
from rscmd_model.errors import UserError, run_cli
from rscmd_model.evaluation.ablation import OWN_OPTIONS, RECIPE, Ablation, ablate
from rscmd_model.methods import parse_method
from rscmd_model.options import parse_options


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train what is missing, write the tables."""
    parser = command_parser("ablate", __doc__)
    data_arguments(parser)
    camera_arguments(parser)
    parser.add_argument(
        "--methods",
        default="visible,thermal,sum,rsc,rscmd",
        help="separated by commas, each with its changes: rscmd+md=map (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 (default: %(default)s)")
    scale_argument(parser)
    family_argument(parser)
    parser.add_argument("--split", default="val", help="split to score (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ablation"), help="folder for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, help="trainings side by side (default: one on a GPU, else as many as there are cores)"
    )
    option_words(parser, "ultralytics' options, the same for all")
    args = parse(parser, argv)
    methods = list(dict.fromkeys(method for method in args.methods.split(",") if method))
    if not methods or args.seeds < 1 or (args.jobs is not None and args.jobs < 1):
        raise UserError("give at least one method, one seed and one job")
    scale, family = given_scale(args) or "n", args.family or "yolov8"
    for method in methods:
        parse_method(method, scale=scale, family=family)
    options = {**RECIPE, **parse_options(args.options)}
    for taken in OWN_OPTIONS:
        if taken in options:
            raise UserError(f"{taken}= is set by the ablation itself, for each run: leave it out")
    if options.get("single_cls"):
        raise UserError("single_cls=True: an ablation scores the data's own classes, leave it out")
    ablation = Ablation(args.out, open_given(args), args.split, scale, family, options)
    check_device(options.get("device"))
    ablate(ablation, methods, args.seeds, args.jobs or _usual_jobs(), lambda line: print(line, flush=True))


def _usual_jobs() -> int:
    import torch  # here, since --help should not wait for it

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


if __name__ == "__main__":
    run_cli(main)
