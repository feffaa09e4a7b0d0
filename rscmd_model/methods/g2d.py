"""`g2d`: distillation from both single-camera controls, while the surer camera's backbone waits (see `smp`).

    L = L_det(h(D(f_v) + D(f_t))) + lambda_feature sum_m MSE(f_m, f~_m) + lambda_logit sum_m K(h, h~_m)

f~_m and h~_m are the features and the answer of modality m's control, frozen, on the same augmented image. K teaches
the fused answer what each control says at the anchors that its own assignment makes positive: binary cross-entropy of
the class scores (sum over the classes) and the Kullback-Leibler divergence of the box's four distributions (mean),
softened by a temperature T and multiplied by T^2. Each anchor counts by the control's own score of the right class.

Source: Rakib et al., G2D: Boosting Multimodal Learning with Gradient-Guided Distillation, ICCV 2025, arXiv 2506.21514,
and its published code, whose weights and temperature of 1 are the defaults; the paper came to us second hand. Faithful:
the feature term, and that both controls teach the fused answer. Adapted: the logit term, which in a classifier is a
softmax over classes; and its weight by the control's own score, without which a control teaches the fused answer that
what it cannot see is background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from rscmd_model.methods.base import number
from rscmd_model.methods.smp import Smp, SmpSettings
from rscmd_model.methods.unimodal_score import assigned_classes

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.objective import TrainingStep


@dataclass(frozen=True)
class G2dSettings(SmpSettings):
    """Settings of `G2d` besides those of `Smp`.

    Attributes:
        lambda_feature, lambda_logit: weights of the two terms, 0 or more.
        temperature: of the logit term, more than 0.
    """

    lambda_feature: float = number(1.0, least=0)
    lambda_logit: float = number(1.0, least=0)
    temperature: float = number(1.0, above=0)


class G2d(Smp):
    """Distillation from both controls, and the order of `Smp`."""

    Settings = G2dSettings

    @classmethod
    def needs_teachers(cls, settings: Any) -> bool:
        """They teach."""
        return True

    @property
    def weights(self) -> dict[str, float]:
        """Those of the two terms."""
        s = self.settings
        return {**super().weights, "feature": s.lambda_feature, "logit": s.lambda_logit}

    def losses(self, model: RscmdModel, step: TrainingStep) -> dict[str, Tensor]:
        """Those of `Sum`, "feature" and "logit"."""
        losses = super().losses(model, step)
        assert model.teachers
        taught = model.teachers.features(step.batch["img"])
        pairs = [(s, t) for m in self.modalities for s, t in zip(step.features[m], taught[m])]
        losses["feature"] = torch.stack([functional.mse_loss(s.float(), t.float()) for s, t in pairs]).sum()
        fused = step.scored["fused"]
        at = fused.positives.nonzero(as_tuple=True)  # asked once: it waits for the device
        classes = assigned_classes(fused, step.batch)[at]
        kept = [
            answer_distance(step.answers["fused"], answer, at, classes, self.settings.temperature)
            for answer in model.teachers.answers(taught).values()
        ]
        losses["logit"] = torch.stack(kept).sum()
        return losses


def answer_distance(
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    at: tuple[Tensor, ...],
    classes: Tensor,
    temperature: float,
) -> Tensor:
    """How far an answer is from a teacher's at positive anchors, each of which counts by the teacher's own score.

    Args:
        student, teacher: "boxes" (B, 4 bins, N) and "scores" (B, classes, N), both logits.
        at: sample and anchor of P positive anchors, (P,) int64 each.
        classes: (P,) int64, the right class of each.
        temperature: more than 0.

    Returns:
        a scalar, mean over the positive anchors; 0 without any.
    """
    (s_class, s_box), (t_class, t_box) = (
        (of["scores"].transpose(1, 2)[at].float(), of["boxes"].transpose(1, 2)[at].float()) for of in (student, teacher)
    )
    own = t_class.gather(1, classes[:, None]).squeeze(1).sigmoid()
    soft = (t_class / temperature).sigmoid()
    by_class = functional.binary_cross_entropy_with_logits(s_class / temperature, soft, reduction="none").sum(1)
    log_student, log_teacher = ((box.unflatten(1, (4, -1)) / temperature).log_softmax(2) for box in (s_box, t_box))
    by_box = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(2).mean(1)
    return (own * (by_class + by_box)).sum() / max(len(own), 1) * temperature**2
