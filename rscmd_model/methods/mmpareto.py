"""`mmpareto`: the losses of `rsc`, and a common direction for each backbone where the fused loss and its own disagree.

    a backbone m with the gradients g_f (fused) and g_m (own)
    g = g_f + g_m                       if cos(g_f, g_m) > 0
    g = 2 (a g_f + (1 - a) g_m)         else; a in [0, 1] makes the norm least (MGDA)
    each tensor of g is stretched to the norm that it has in g_f + g_m, where it is shorter; then all are times gamma

The point of least norm between two gradients runs against neither, so the step harms no loss. It is short, and a short
step finds sharp minima, say the authors: hence the stretching, and gamma.

Source: Wei and Hu, "MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance", ICML 2024, arXiv
2405.17730, read with its code (GeWu-Lab/MMPareto_ICML2024).

Faithful: all of the rule, gamma 1.5 included, which acts without a conflict, too: backbones have 1.5 times the learning
rate of `rsc`. gamma=1 takes that away. Adapted: the unimodal classifiers are the detector's lean branches. A tensor
that the least norm makes 0 cannot be stretched; it has its gradient of the plain sum, where the code divides by 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rscmd_model.methods.base import Features, number
from rscmd_model.methods.rsc import BranchSettings, Rsc
from rscmd_model.methods.surgery import by_answer, flat, reconciled

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


@dataclass(frozen=True)
class MmParetoSettings(BranchSettings):
    """Settings of `MmPareto` besides those of `BranchSettings`.

    Attributes:
        gamma: factor of every backbone's gradient, more than 0. 1 leaves the step as long as that of `rsc`.
    """

    gamma: float = number(1.5, above=0)


class MmPareto(Rsc):
    """RSC with Pareto integration in the backbones."""

    Settings = MmParetoSettings
    differentiates_apart = True

    def split(
        self, model: RscmdModel, x: Tensor, features: dict[str, Features]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """Every loss reaches the backbones."""
        return features, features

    @property
    def branches(self) -> dict[str, str]:
        """See `Method.branches`."""
        return {"fused": "full", **dict.fromkeys(self.modalities, self.settings.branch)}

    def total(self, model: RscmdModel, losses: dict[str, Tensor]) -> Tensor:
        """See `Method.total`."""
        answers = by_answer(losses, self.weights, self.modalities)
        return reconciled(model, super().total(model, losses), answers, self.combine)

    def combine(self, part: str, gradients: dict[str, list[Tensor]]) -> list[Tensor]:
        """See `surgery.Rule`; the parts that two losses reach are the backbones."""
        fused, own = gradients.values()
        of_fused, of_own = integration(flat(fused), flat(own))
        joined = []
        for f, m in zip(fused, own):
            plain, found = f + m, of_fused * f + of_own * m
            norm, wanted = found.norm(), plain.norm()
            stretched = found * (wanted / norm).clamp_min(1)
            joined.append(self.settings.gamma * torch.where(norm == 0, plain, stretched))
        return joined


def integration(fused: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of two gradients (N,) of one backbone: 1 and 1 without a conflict, else 2a and 2 (1 - a)."""
    difference = fused - own
    # The least norm on the line between the two lies at this share of the fused one.
    share = (-torch.dot(own, difference) / torch.dot(difference, difference).clamp_min(1e-30)).clamp(0, 1)
    agree = torch.dot(fused, own) > 0
    return torch.where(agree, 1.0, 2 * share), torch.where(agree, 1.0, 2 * (1 - share))
