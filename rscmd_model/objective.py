"""The RSC-MD objective (arXiv 2511.15433), as far as it is known, in the notation of that paper's problem.

Each modality m has features f_m. The fused head answers on F = D(f_v) + D(f_t); with the representation space
constraint (RSC) each modality answers alone as well. The total is

    L = L_det(fused) + lambda_v L_det(visible) + lambda_t L_det(thermal).

D is modality decoupling (MD): what the fused loss may send back into a backbone. "off" is the identity. "stop" is the
stop-gradient, so that each backbone is taught by its own modality alone (the rule of DGL, arXiv 2507.10213, for
classification). "map" is our reading of the paper's gradient mapping, see `GradientMap`; "project" is the part of it
that removes conflicts. Which of these the authors use is not known to us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.utils.loss import v8DetectionLoss

if TYPE_CHECKING:
    from rscmd_model.model import RscmdModel


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


class Objective:
    """YOLOv8's detection loss (CIoU, distribution focal loss, BCE) on every answer, weighted by the model's config.

    Args:
        model: its `args`, when the trainer has set them, give the gains of the three parts.
    """

    def __init__(self, model: RscmdModel) -> None:
        if not hasattr(model, "args"):
            model.args = get_cfg()
        self.config = model.config
        # The heads agree in classes, strides and bins, which is all that the criterion takes from one.
        self.criterion = v8DetectionLoss(model)

    def losses(self, answers: dict[str, Any], batch: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
        """Per answer its box, cls and dfl loss, each a scalar with a gradient, unweighted, mean over the batch."""
        out = {}
        for name, answer in answers.items():
            parts = self.criterion.get_assigned_targets_and_loss(self.criterion.parse_output(answer), batch)[1]
            out[name] = dict(zip(("box", "cls", "dfl"), parts))
        return out

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The total as the ultralytics trainer wants it.

        Args:
            preds: `RscmdModel.answers` in training; the main answer alone in evaluation.
            batch: "batch_idx", "cls" and "bboxes" (normalised centre and size) of all objects; "img".

        Returns:
            the weighted parts times the batch size, to be summed, and the named parts: box_loss, cls_loss and dfl_loss
            of the main answer, and the sum of the three, unweighted, for each further one ("visible", "thermal"; zero
            in evaluation, where they are not computed).
        """
        main = self.config.branches[0]
        answers = preds if isinstance(preds, dict) and main in preds else {main: preds}
        losses = self.losses(answers, batch)
        size = batch["img"].shape[0]
        total = torch.stack([self.config.weight(n) * p for n, parts in losses.items() for p in parts.values()]) * size
        items = {f"{part}_loss": value.detach() for part, value in losses[main].items()}
        for name in self.config.taught[1:]:
            if name in losses:
                items[f"{name}_loss"] = torch.stack(list(losses[name].values())).sum().detach()
        return total, items
