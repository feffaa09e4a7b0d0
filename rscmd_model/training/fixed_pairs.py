"""A few training pairs as they are, to measure on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rscmd_model.training.paired_dataset import PairedDataset


class FixedPairs(PairedDataset):
    """A few pairs of a split, as they are: spread evenly over its order, so that no one sequence fills them."""

    def __init__(self, count: int, **kwargs: Any) -> None:
        self.count = count
        super().__init__(augment=False, rect=False, cache=None, **kwargs)

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """Visible images of the chosen pairs."""
        every = super().get_img_files(img_path)
        chosen = sorted(set(np.linspace(0, len(every) - 1, min(self.count, len(every))).round().astype(int)))
        self.pairs = {every[i]: self.pairs[every[i]] for i in chosen}
        return list(self.pairs)

    def batches(self, size: int, device: torch.device) -> list[dict[str, Any]]:
        """The pairs in batches, each with pairs from all over the split.

        Args:
            size: pairs per batch, at most.
            device: where to.
        """
        number = -(-len(self) // size)
        found: list[dict[str, Any]] = []
        for start in range(number):
            batch = self.collate_fn([self[i] for i in range(start, len(self), number)])
            batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            batch["img"] = batch["img"].float() / 255
            found.append(batch)
        return found
