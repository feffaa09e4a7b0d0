"""Scaling what a backbone receives: an identity whose backward pass multiplies the gradient.

Placed on all features of a modality, it multiplies every gradient of that backbone by the same factor (chain rule).
The published codes of OGM and MWAM multiply the gradients of parameters instead, OGM's of convolutions alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rscmd_model.methods.base import Features


class GradientScale(torch.autograd.Function):
    """The same feature, whose gradient is multiplied on the way back. By exactly 1.0 it stays the same bits."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor, k: Tensor) -> Tensor:
        """(B, C, H, W) and a scalar -> the same feature."""
        ctx.k = k
        return feature.view_as(feature)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Gradient of the feature -> k times it."""
        return grad * ctx.k, None


def scale_gradients(features: dict[str, Features], k: Tensor) -> dict[str, Features]:
    """The same features, whose gradients are multiplied by a factor for each modality.

    Args:
        features: of each modality.
        k: a float for each modality, in their order. It is read in the backward pass, and must not change before.
    """
    return {m: [GradientScale.apply(f, one) for f in own] for (m, own), one in zip(features.items(), k)}
