"""Modality decoupling (MD): what of the fused loss reaches a backbone.

The features of each modality pass through D on their way into the fusion. "off" is the identity. "stop" is the
stop-gradient, so that each backbone is taught by its own modality alone (the rule of DGL, arXiv 2507.10213, for
classification). "map" is our reading of the gradient mapping of arXiv 2511.15433, see `GradientMap`; "project" is the
part of it that removes conflicts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class GradientMap(torch.autograd.Function):
    """Two copies of a feature, for the fused and the unimodal branch, whose gradients are reconciled on the way back.

    Per sample, with g_f the fused loss's gradient at the feature and g_u the unimodal loss's: where they conflict
    (g_f . g_u < 0) the part of g_f along g_u is removed; with `resize`, what is left is scaled to the size of g_u. The
    backbone receives g_u plus the mapped g_f, so the fused loss can add to what a modality learns and never undo it,
    nor, with `resize`, outweigh it. The projection is that of Yu et al., Gradient Surgery for Multi-Task Learning
    (arXiv 2001.06782), applied at the features.
    """

    @staticmethod
    def forward(ctx: Any, feature: Tensor, resize: bool) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the same twice: for the fused branch, for the unimodal branch."""
        ctx.resize = resize
        return feature.view_as(feature), feature.view_as(feature)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Gradients of the two copies -> one gradient of the feature."""
        fused, unimodal = grads
        f, u = fused.flatten(1).float(), unimodal.flatten(1).float()
        along = (f * u).sum(1, keepdim=True) / u.square().sum(1, keepdim=True).clamp_min(1e-30)
        f = f - along.clamp_max(0) * u
        if ctx.resize:
            f = f * (u.norm(dim=1, keepdim=True) / f.norm(dim=1, keepdim=True).clamp_min(1e-15))
        return unimodal + f.view_as(fused).to(fused.dtype), None


def decouple(features: list[Tensor], md: str) -> tuple[list[Tensor], list[Tensor]]:
    """Split one modality's features into those the fused branch reads and those its own branch reads.

    Args:
        features: per stride (B, C, H, W).
        md: "off", "stop", "map" or "project", see the module's text.
    """
    if md == "stop":
        return [f.detach() for f in features], features
    if md in ("map", "project"):
        pairs = [GradientMap.apply(f, md == "map") for f in features]
        return [p[0] for p in pairs], [p[1] for p in pairs]
    return features, features
