"""How much a split of M3FD leaks, and how its classes fall, told from the published boxes alone.

    python benchmarks/m3fd_splits.py DAMSDet/dataset/coco_m3fd/annotations

M3FD is made of short sequences, so neighbours in number are near copies. Without the images that shows in the boxes: a
val pair counts as leaked when a train pair at most 40 numbers away has the same image size and covers at least half of
its boxes (same class, IoU above 0.5). The folder holds the two COCO files of DAMSDet's repository.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou

from rscmd_model.datasets import coco, published
from rscmd_model.errors import UserError, run_cli

REACH = 40
Pair = tuple[tuple[int, int], list[str], torch.Tensor]


def covered(one: Pair, other: Pair) -> bool:
    """Whether `other` covers at least half of the boxes of `one`."""
    (size, names, boxes), (other_size, other_names, other_boxes) = one, other
    if size != other_size or not names or not other_names:
        return False
    same = torch.from_numpy(np.array(names)[:, None] == np.array(other_names)[None])
    return bool(((box_iou(boxes, other_boxes) > 0.5) & same).any(1).float().mean() >= 0.5)


def main() -> None:
    """Parse the command line and print one row for each split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="folder of m3fd_train_new.json and m3fd_val_new.json")
    folder = parser.parse_args().annotations
    pairs: dict[int, Pair] = {}
    for file in ("m3fd_train_new.json", "m3fd_val_new.json"):
        for name, image in coco.load(folder / file).images.items():
            assert image.size is not None  # COCO files have it
            boxes = torch.tensor([shape.box for shape in image.shapes], dtype=torch.float32).reshape(-1, 4)
            pairs[int(Path(name).stem)] = (image.size, [shape.name for shape in image.shapes], boxes)
    if len(pairs) != 4199:
        raise UserError(f"{folder} has {len(pairs)} pairs, not the 4199 of DAMSDet")
    shipped = Path(published.__file__).parent / "splits"
    splits = {file.stem: published.read_split_file(file) for file in sorted(shipped.iterdir())}
    mixed = random.Random(0).sample(sorted(pairs), len(pairs))
    splits["a random fifth"] = {"val": tuple(f"{i:05d}" for i in mixed[:840])}
    splits["a random fifth"]["train"] = tuple(f"{i:05d}" for i in mixed[840:])
    total = Counter(name for _, names, _ in pairs.values() for name in names)
    print(f"| split | train | val | leaked | {' | '.join(total)} |")
    print("|" + "---|" * (4 + len(total)))
    for title, lists in splits.items():
        train, val = ({int(stem) for stem in lists[split]} for split in ("train", "val"))
        near = {i: [j for j in range(i - REACH, i + REACH + 1) if j in train] for i in val}
        leaked = sum(any(covered(pairs[i], pairs[j]) for j in near[i]) for i in val)
        counts = Counter(name for i in val for name in pairs[i][1])
        shares = " | ".join(f"{100 * counts[name] / total[name]:.0f} %" for name in total)
        print(f"| {title} | {len(train)} | {len(val)} | {100 * leaked / len(val):.1f} % | {shares} |")


if __name__ == "__main__":
    run_cli(main)
