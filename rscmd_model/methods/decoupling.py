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
    """Two copies of each feature, for fused and unimodal branch, whose gradients are reconciled on the way back.

    Per sample and feature, with g_f the fused loss's gradient at the feature and g_u the unimodal loss's: where they
    conflict (g_f . g_u < 0) the part of g_f along g_u is removed; with `resize`, what is left is scaled to the size of
    g_u. The backbone receives g_u plus the mapped g_f, so the fused loss can add to what a modality learns and never
    undo it, nor, with `resize`, outweigh it. The projection is that of Yu et al., Gradient Surgery for Multi-Task
    Learning (arXiv 2001.06782), applied at the features.
    """

    @staticmethod
    def forward(ctx: Any, resize: bool, *features: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) each -> all of them for the fused branch, and then all of them for the unimodal branch."""
        ctx.resize, ctx.last = resize, features[0].is_contiguous(memory_format=torch.channels_last)
        return tuple(f.view_as(f) for f in features * 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the two copies of each feature -> one gradient of each feature."""
        # All at once as far as it goes, because a GPU that is faster than its host is bound by the start of operations;
        # and in the order in which the features lie, which the backbone's own gradients have.
        rows = [g.permute(0, 2, 3, 1) if ctx.last else g for g in grads]
        flat = [row.flatten(1) for row in rows]
        sizes = [g.shape[1] for g in flat[: len(flat) // 2]]
        both = torch.cat(flat, 1).float().unflatten(1, (2, -1))  # (B, fused and unimodal, values of all features)
        fused, unimodal = (of.split(sizes, 1) for of in both.unbind(1))
        products = (both * both[:, 1:]).split(sizes, 2)
        f_u, u_u = torch.stack([of.sum(2) for of in products], 2).unbind(1)  # (B, features)
        conflict = (f_u / u_u.clamp_min(1e-30)).clamp_max(0)
        if ctx.resize:
            left = [torch.addcmul(f, u, -c[:, None]) for f, u, c in zip(fused, unimodal, conflict.unbind(1))]
            scale = (u_u / torch.stack([of.square().sum(1) for of in left], 1).clamp_min(1e-30)).sqrt()
            mapped = [torch.addcmul(u, f, s[:, None]) for u, f, s in zip(unimodal, left, scale.unbind(1))]
        else:
            share = 1 - conflict
            mapped = [torch.addcmul(f, u, s[:, None]) for f, u, s in zip(fused, unimodal, share.unbind(1))]
        mapped = [of.view(row.shape).to(row.dtype) for of, row in zip(mapped, rows)]
        return None, *(of.permute(0, 3, 1, 2) if ctx.last else of for of in mapped)


def decouple(features: list[Tensor], md: str) -> tuple[list[Tensor], list[Tensor]]:
    """Split one modality's features into those the fused branch reads and those its own branch reads.

    Args:
        features: per stride (B, C, H, W).
        md: "off", "stop", "map" or "project", see the module's text.
    """
    if md == "stop":
        return [f.detach() for f in features], features
    if md in ("map", "project"):
        copies: tuple[Tensor, ...] = GradientMap.apply(md == "map", *features)
        return list(copies[: len(features)]), list(copies[len(features) :])
    return features, features
