"""`gate`: each pair weighs its two cameras, at each stride, before they meet.

    F = 2 (w_v f_v + w_t f_t)        (w_v, w_t) = softmax(s(p_v, p_t), s(p_t, p_v))

p_m is f_m pooled over positions and s a small net (linear, SiLU, linear) that scores the camera whose features it gets
first, so swapping the cameras swaps the weights. Its last layer is zero at the start, where both weights are 1/2 and
the fusion is that of `sum`.

The idea of HCT-DMG (arXiv 2305.13583), of which the abstract was at hand and no code: in each batch one modality is
chosen as primary, and the others are worked into it. Adapted, hence its own name: soft weights instead of a choice, as
the rule of the choice is not known; for each sample and not for each batch, or a picture's answer would depend on those
beside it, at inference too; no cross-attention.

A gate can collapse to one camera. Beside the losses a training shows `gate_visible`, the mean of w_v over the batch and
the strides (1/2 at the start; near 0 or 1 one camera is unused), and `gate_spread`, how much it differs between
samples (standard deviation; 0 is a fixed weight).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rscmd_model.methods.base import Features, drawn
from rscmd_model.methods.pooling import pooled
from rscmd_model.methods.sum import Sum

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


class Scorer(nn.Sequential):
    """Pooled features of a camera and of the other one (B, 2 C) -> its score (B, 1), 0 at the start."""

    def __init__(self, channels: int) -> None:
        last = nn.Linear(channels // 4, 1, bias=False)  # a bias would be the same for both cameras
        nn.init.zeros_(last.weight)
        super().__init__(nn.Linear(2 * channels, channels // 4), nn.SiLU(), last)


class Gate(Sum):
    """Plain fusion of weighed features."""

    def __init__(self, settings: Any, channels: tuple[int, int, int]) -> None:
        super().__init__(settings, channels)
        self.scorers = nn.ModuleList(drawn(f"scorer {c}", Scorer, c) for c in channels)

    def shares(self, features: dict[str, Features]) -> list[Tensor]:
        """w_v and w_t of each sample, (B, 2) for each stride; they add up to 1."""
        found = []
        for scorer, visible, thermal in zip(self.scorers, features["visible"], features["thermal"]):
            v, t = pooled(visible), pooled(thermal)
            scores = torch.cat([scorer(torch.cat([v, t], 1)), scorer(torch.cat([t, v], 1))], 1)
            found.append(scores.softmax(1).to(visible.dtype))
        return found

    def fuse(self, model: RscmdModel, x: Tensor, features: dict[str, Features]) -> Features:
        """See `Method.fuse`."""
        shares = self.shares(features)
        weighed = {
            m: [2 * w[:, place, None, None, None] * f for w, f in zip(shares, features[m])]
            for place, m in enumerate(self.modalities)
        }
        return super().fuse(model, x, weighed)

    def figures(self, features: dict[str, Features]) -> dict[str, Tensor]:
        """Mean and spread of the visible camera's weight."""
        with torch.no_grad():
            visible = torch.stack([w[:, 0].float() for w in self.shares(features)])
            return {"gate_visible": visible.mean(), "gate_spread": visible.std(1, correction=0).mean()}
