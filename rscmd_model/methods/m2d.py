"""`m2d`: multimodal distillation from the single-camera controls (the M2D of M2D-LIF).

    L = L_det(h(f_v + f_t)) + lambda_m2d (L_inner + L_cross)
    L_inner = D(f_v, f~_v) + D(f_t, f~_t)
    L_cross = D'(A_v f_v', A_v f~_v) + D'(A_t f_t', A_t f~_t)        f_v' = f_t and f_t' = f_v: the other student's

f~_m are the features of modality m's control, frozen, on the same augmented image. A_m is the parameter-free attention
(SimAM, Yang et al., ICML 2021) of the control's features: where one camera's control sees something, the other camera's
student is pulled there too. All terms are summed over the strides 8, 16 and 32.

Source: Zhao et al., Rethinking Multi-modal Object Detection from the Perspective of Mono-Modality Feature Learning,
ICCV 2025, arXiv 2503.11780, and its published code; the formulas of the paper came to us second hand. Faithful: both
losses, the distances of the code (channel-wise distillation for L_inner, Pearson's for L_cross, after a BatchNorm
without parameters) and its schedule. Adapted:

- Student and control are of one width, so there is no align layer; that of the published code is random and never
  trained. With student = control both losses have their least value.
- Features are taken at our boundary between backbone and neck, which is after SPPF (the code takes them before).
- `lambda_m2d` is 0.1 of a loss per image. The code's 0.8 stands beside a detection loss that is summed over the
  batch: at its batch of 8 that is 0.1. `lambda_m2d=0.4` is what its batch of 2 (LLVIP) makes of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rscmd_model.config import other_modality
from rscmd_model.methods.base import Features, choice, number
from rscmd_model.methods.distances import channel_wise, correlation, standardised
from rscmd_model.methods.sum import Sum, SumSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.objective import TrainingStep

_LEAST_SHARE = 0.1
"""Of `lambda_m2d`, at the end of the training."""


@dataclass(frozen=True)
class M2dSettings(SumSettings):
    """Settings of `M2d` besides those of `Sum`.

    Attributes:
        lambda_m2d: weight of both losses at first, 0 or more; it falls along a cosine to a tenth.
        inner: the distance of L_inner: "cwd" (channel-wise distillation, as the published code) or "pkd" (Pearson's, as
            the paper's figure).
    """

    lambda_m2d: float = number(0.1, least=0)
    inner: str = choice("cwd", "pkd")


class M2d(Sum):
    """Plain fusion whose backbones also follow the single-camera controls."""

    Settings: ClassVar[type[M2dSettings]] = M2dSettings

    @classmethod
    def needs_teachers(cls, settings: Any) -> bool:
        """It follows their features."""
        return True

    @property
    def weights(self) -> dict[str, float]:
        """lambda, as far as the training is."""
        falling = 1 - (1 - _LEAST_SHARE) * (1 - math.cos(math.pi * self.progress)) / 2
        return {**super().weights, **dict.fromkeys(("inner", "cross"), self.settings.lambda_m2d * falling)}

    def losses(self, model: RscmdModel, step: TrainingStep) -> dict[str, Tensor]:
        """Those of `Sum`, "inner" and "cross"."""
        losses = super().losses(model, step)
        assert model.teachers
        taught = model.teachers.features(step.batch["img"])
        losses["inner"] = sum_of(self._inner(step.features[m], taught[m]) for m in self.modalities)
        losses["cross"] = sum_of(_cross(step.features[other_modality(m)], taught[m]) for m in self.modalities)
        return losses

    def _inner(self, student: Features, teacher: Features) -> Tensor:
        distance = channel_wise if self.settings.inner == "cwd" else correlation
        return sum_of(distance(standardised(s), standardised(t)) for s, t in zip(student, teacher))


def _cross(student: Features, teacher: Features) -> Tensor:
    """How far the other camera's student is from a camera's control, where that is salient."""
    return sum_of(
        correlation(salience(t) * standardised(s), salience(t) * standardised(t)) for s, t in zip(student, teacher)
    )


def salience(features: Tensor) -> Tensor:
    """SimAM: by how much a position stands out in its channel.

    Args:
        features: (B, C, H, W).

    Returns:
        the same shape, in (0.62, 1): sigmoid(0.5) where a value is its channel's mean.
    """
    x = features.float()
    off = (x - x.mean((2, 3), keepdim=True)).square()
    variance = off.sum((2, 3), keepdim=True) / max(off[0, 0].numel() - 1, 1)
    return torch.sigmoid(off / (4 * (variance + 1e-4)) + 0.5)


def sum_of(terms: Any) -> Tensor:
    """The sum of scalars."""
    return torch.stack(list(terms)).sum()
