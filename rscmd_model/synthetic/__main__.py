"""Write a synthetic visible+thermal world as a paired YOLO data set.

    python -m rscmd_model.synthetic --out DIR --train 400 --val 96 --size 192 160 --seed 0

The same arguments give the same bytes. The pictures of a split are short sequences, named SEQUENCE_FRAME, so that
sorted order is the order of play; scenes of train and val are different ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rscmd_model.arguments import command_parser, parse
from rscmd_model.errors import UserError, run_cli
from rscmd_model.synthetic.world import WorldConfig
from rscmd_model.synthetic.writing import write_world


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write the world."""
    parser = command_parser("synthetic", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; an earlier world there is replaced")
    parser.add_argument("--train", type=int, default=400, help="training pairs (default %(default)s)")
    parser.add_argument("--val", type=int, default=96, help="validation pairs (default %(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(192, 160), metavar=("W", "H"), help="px (default 192 160)"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default %(default)s)")
    dials = parser.add_argument_group("dials of the world", "how hard it is, and for which camera")
    for field in dataclasses.fields(WorldConfig):
        flag = "--" + field.name.replace("_", "-")
        default = field.default
        dials.add_argument(flag, type=type(default), default=default, metavar="X", help=f"(default {default})")
    imbalance = parser.add_argument_group("imbalance", "one camera made worse than the dials above say")
    imbalance.add_argument("--weaker", choices=("visible", "thermal"), help="the camera that is worse")
    imbalance.add_argument("--imbalance", type=float, default=0.0, metavar="X", help="0 to 1, sets all three below")
    for name, what in (
        ("weak", "how many objects it hardly sees"),
        ("noisy", "noise and blur"),
        ("misleading", "things that look like something to it alone"),
    ):
        imbalance.add_argument(f"--{name}", type=float, metavar="X", help=f"0 to 1, {what} (default --imbalance)")
    args = parse(parser, argv)
    dialled = {d: getattr(args, d) for d in ("weak", "noisy", "misleading")}
    if args.weaker is None and (args.imbalance or any(dialled.values())):
        raise UserError("--imbalance, --weak, --noisy and --misleading need --weaker visible or --weaker thermal")
    try:
        config = WorldConfig(**{field.name: getattr(args, field.name) for field in dataclasses.fields(WorldConfig)})
        if args.weaker:
            config = config.weaken(args.weaker, **{d: args.imbalance if x is None else x for d, x in dialled.items()})
    except ValueError as error:
        raise UserError(str(error)) from None
    written = write_world(
        args.out,
        train=args.train,
        val=args.val,
        size=(args.size[0], args.size[1]),
        seed=args.seed,
        config=config,
        progress=lambda line: print(line, flush=True),
    )
    print(f"wrote {written}")


if __name__ == "__main__":
    run_cli(main)
