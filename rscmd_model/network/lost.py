"""Samples of a training that have lost one camera for good: which of a batch are left, and which labels are theirs.

A batch names them by "lost" (B,) int64: the camera that each sample has lost, by its number in `LOST`, or 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rscmd_model.config import MODALITIES

LOST = {modality: number for number, modality in enumerate(MODALITIES, 1)}


def rows_with(modality: str, lost: Tensor) -> Tensor:
    """The samples that have a camera.

    Args:
        modality: the camera.
        lost: (B,) int64, of a batch.

    Returns:
        (R,) int64, their places in the batch, in order.
    """
    return (lost != LOST[modality]).nonzero().flatten()


def labels_of(rows: Tensor, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The labels of some samples, numbered as in a batch of these alone.

    Args:
        rows: (R,) int64, of `rows_with`.
        batch: "img" (B, 4, H, W), "batch_idx", "cls", "bboxes", and "weights" where labels have some.

    Returns:
        `batch` with fewer rows of labels; its images are still all of them.
    """
    place = rows.new_full((len(batch["img"]),), -1)
    place[rows] = torch.arange(len(rows), device=rows.device)
    place_of_label = place[batch["batch_idx"].long()]
    kept = place_of_label >= 0
    labels = {key: batch[key][kept] for key in ("cls", "bboxes", "weights") if key in batch}
    return {**batch, **labels, "batch_idx": place_of_label[kept].to(batch["batch_idx"])}
