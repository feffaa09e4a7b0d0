"""Label a recorded bag with a model: from a drive to a set that training reads, without drawing a box.

    python -m rscmd_ros.label_bag BAG --model assembled.safetensors --registration registration.yaml --out data

The pairs are those that the node would make. Every answer of the model is asked: what one camera sees becomes a label
of both. Objects are followed through the recording, forward and backward: one that is seen surely in some frames is
labelled in those between, and one that flashes up once is not. What is neither sure nor background becomes a region
that teaches nothing.

The set has paired pictures, YOLO labels, and a sidecar beside each label file with scores, who has seen what, tracks
and unsure regions. Its val split is the end of the recording, with a gap before it. A run that was broken off goes on
where it was, by the same command.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rscmd_model.errors import UserError, run_cli
from rscmd_ros.bags.arguments import label_arguments, label_job


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_ros.label_bag",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    label_arguments(parser, needed=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of the set")
    parser.add_argument(
        "--force", action="store_true", help="replace the model's labels of the set at --out; a person's labels stay"
    )
    parser.add_argument(
        "--corrected",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="take over what was corrected in CVAT (.xml) or Label Studio (.json) into the set at --out, and nothing "
        "else; BAG and --model are not needed",
    )
    args = parser.parse_args(argv)
    if args.corrected:
        from rscmd_model.labelling.showing import take_corrections

        if args.force:
            raise UserError("--corrected takes over a person's labels, and --force makes the model's anew: give one")
        for line in take_corrections(args.out, args.corrected):
            print(line)
        return
    if args.bag is None or args.model is None:
        raise UserError("give BAG and --model, or --corrected FILE for a set that is there")
    from rscmd_ros.bags.labelling import label_bag

    job = label_job(args, args.out)
    done = label_bag(job, force=args.force, threads=args.threads, progress=lambda line: print(line, flush=True))
    for line in done.lines():
        print(line)


def cli() -> NoReturn:
    """What the installed command runs: a user's mistake is one line and exit code 2."""
    run_cli(main)


if __name__ == "__main__":
    cli()
