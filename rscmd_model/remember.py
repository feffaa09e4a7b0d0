"""Write the memory of a finished model: what its convolutions read in the pairs it was trained on, and no picture.

    python -m rscmd_model.remember --model model.safetensors --data data.yaml

`rscmd_model.train --remember` does this at the end of a training. The memory lies beside the model, and
`rscmd_model.train --continue model.safetensors --keep memory.safetensors` takes it (docs/second_site.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rscmd_model.arguments import command_parser, parse
from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_given
from rscmd_model.datasets.pairs import find_pairs, split_hash
from rscmd_model.devices import inference_device
from rscmd_model.errors import UserError, run_cli
from rscmd_model.network.header import read_header
from rscmd_model.versions import require


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, show the model its pairs, write what it read."""
    parser = command_parser("remember", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="model.safetensors of a finished training")
    data_arguments(parser)
    camera_arguments(parser)
    parser.add_argument("--split", default="train", help="split that was trained on (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="memory to write (default: memory.safetensors beside the model)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    args = parse(parser, argv)
    if args.out and args.out.suffix != ".safetensors":
        raise UserError(f"--out {args.out}: give a file that ends in .safetensors")
    require("torch", "ultralytics")
    data = open_given(args)
    trained_on = read_header(args.model).data
    if trained_on and trained_on.get("split_hash") != split_hash(find_pairs(data, args.split)):
        print(f"{args.model} was trained on other pairs than these, of {trained_on.get('name')}")

    from rscmd_model.network.memory import FILE, save_memory
    from rscmd_model.training.remembering import remember

    device = inference_device(args.device)
    memory = remember(args.model, data, args.split, device=device, progress=lambda line: print(line, flush=True))
    file = args.out or args.model.with_name(FILE)
    save_memory(file, memory)
    print(f"{file}: {memory}")


if __name__ == "__main__":
    run_cli(main)
