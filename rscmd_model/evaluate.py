"""Score a model on a split of image pairs by COCO's rules.

    python -m rscmd_model.evaluate --model model.safetensors --data data.yaml --split val --json OUT

Boxes with a score of 0.001 or more count, at most 100 per image, after NMS at IoU 0.7, one class per box: what the node
would publish at that threshold. With --drop the named camera is lost and the other's own branch answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_data
from rscmd_model.datasets.pairs import DataConfig, PairFiles, find_pairs, read_labels
from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import write_json
from rscmd_model.images import read_thermal, read_visible
from rscmd_model.inference import Predictor
from rscmd_model.scoring import Truth, score

LOWEST_SCORE = 0.001  # below it the precision-recall curve has nothing more to gain


def main() -> None:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_model.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model.safetensors")
    data_arguments(parser)
    camera_arguments(parser)
    parser.add_argument("--split", default="val", help="split to score (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--drop", choices=("visible", "thermal"), help="play that this camera is lost")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pairs per batch (default: %(default)s)")
    args = parser.parse_args()
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give 1 or more")

    data = open_data(args.data, args.root, args.split_file, args.registration, args.palette_ok)
    pairs = find_pairs(data, args.split)
    predictor = Predictor(
        args.model,
        device=args.device,
        conf=LOWEST_SCORE,
        max_det=100,
        registration=data.registration,
        palette_ok=data.thermal_contract.palette_ok,
    )
    if predictor.registration is not None:
        print(f"registration: {'of the data' if data.registration else 'of the model, since the data have none'}")
    result = evaluate(predictor, data, pairs, drop=args.drop, batch=args.batch)
    print(f"{args.split}: {result['pairs']} pairs, mAP50 {result['mAP50']:.3f}, mAP50:95 {result['mAP50_95']:.3f}")
    for name, figures in result["per_class"].items():
        if figures["truths"]:
            print(
                f"  {name}: mAP50 {figures['mAP50']:.3f}, mAP50:95 {figures['mAP50_95']:.3f} "
                f"({figures['truths']} objects)"
            )
        else:
            print(f"  {name}: no object in this split")
    if args.json:
        write_json(args.json, result)


def evaluate(
    predictor: Predictor, data: DataConfig, pairs: Sequence[PairFiles], *, drop: str | None = None, batch: int = 16
) -> dict[str, Any]:
    """Score a predictor on pairs.

    Args:
        predictor: its own thresholds are used.
        data: the data set the pairs are of.
        pairs: what to score on.
        drop: "visible" or "thermal" to leave that image out, or None.
        batch: pairs per batch.

    Returns:
        mAP50, mAP50_95 (0 to 1), per_class, pairs, and drop.

    Raises:
        UserError: the model's classes are not the data's, or a file is unreadable.
    """
    if list(predictor.names.values()) != list(data.names.values()):
        raise UserError(
            f"the model finds {', '.join(predictor.names.values())}; {data.name} has {', '.join(data.names.values())}"
        )
    truths, predictions, sizes = [], [], []
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        visibles = [read_visible(pair.visible) for pair in part]
        thermals = [read_thermal(pair.thermal, predictor.thermal) for pair in part]
        for pair, visible in zip(part, visibles):
            height, width = visible.shape[:2]
            labels = read_labels(data, pair)
            centre, half = labels[:, 1:3], labels[:, 3:] / 2
            boxes = np.hstack((centre - half, centre + half)) * np.array([width, height] * 2, np.float32)
            truths.append(Truth(boxes, labels[:, 0].astype(np.int64)))
            sizes.append((width, height))
        if drop is None:
            predictions += predictor.predict_batch(visibles, thermals)
        else:  # one by one, since each answer is wanted in the pixels of its own visible image
            predictions += [
                predictor.predict(
                    None if drop == "visible" else v, None if drop == "thermal" else t, size=v.shape[1::-1]
                )
                for v, t in zip(visibles, thermals)
            ]
    return {**score(truths, predictions, data.names, sizes).to_dict(), "pairs": len(pairs), "drop": drop}


if __name__ == "__main__":
    run_cli(main)
