"""`gmd`: gradient-guided modality decoupling. One branch learns to answer from both cameras and from each one alone.

    losses   L_f = L_det(h(F)), L_v = L_det(h(f_v)), L_t = L_det(h(f_t)): one for each non-empty subset of cameras
    rule     for each loss i, over the others j in random order:
             g_i <- g_i - min(g_i . g_j, 0) / |g_j|^2 g_j         (g_j as it was before any projection)
             then the mean of all g_i where every loss reaches, their sum elsewhere

Where two losses disagree about a direction, neither moves the weights along it: the projection of PCGrad (Yu et al.,
NeurIPS 2020, arXiv 2001.06782). `rscmd+rsc=shared+md=project` is the relative at the features, for one side alone.

Source: Wang et al., "Gradient-Guided Modality Decoupling for Missing-Modality Robustness", AAAI 2024, arXiv 2402.16318;
read from its code, which is for segmentation with four modalities and 15 subsets.

Faithful: the losses, the projection, the mean. Adapted: the conflict is judged for each backbone and for the branch by
itself; the code has one vector of all weights, in which a conflict in the neck would bend a backbone. A backbone is
reached by two of the three losses, so the mean acts in the branch alone: there it makes the step a third of that of
`rsc+rsc=shared`, where `reduce=sum` keeps it. h reads f_m as it is: the mean of the cameras that are there. Left out:
Dynamic Sharing, a norm layer for each subset. Not copied: the code shuffles a copy of the list, and so never changes
the order; here it is drawn from torch's generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rscmd_model.methods.base import choice
from rscmd_model.methods.shared import SharedHead
from rscmd_model.methods.sum import SumSettings
from rscmd_model.methods.surgery import by_answer, flat, reconciled, shaped

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


@dataclass(frozen=True)
class GmdSettings(SumSettings):
    """Settings of `Gmd` besides those of `Sum`.

    Attributes:
        reduce: what the projected gradients of the branch, which every loss reaches, are joined to: their "mean" (as
            published; a third of a plain sum's step) or their "sum".
    """

    reduce: str = choice("mean", "sum")


class Gmd(SharedHead):
    """A loss for each subset of the cameras, whose gradients are projected out of each other's way."""

    Settings = GmdSettings
    differentiates_apart = True

    def total(self, model: RscmdModel, losses: dict[str, Tensor]) -> Tensor:
        """See `Method.total`."""
        answers = by_answer(losses, self.weights, self.modalities)
        return reconciled(model, super().total(model, losses), answers, self.combine)

    def combine(self, part: str, gradients: dict[str, list[Tensor]]) -> list[Tensor]:
        """See `surgery.Rule`."""
        vectors = [flat(g) for g in gradients.values()]
        projected = []
        for i, vector in enumerate(vectors):
            others = [j for j in torch.randperm(len(vectors)).tolist() if j != i]
            projected.append(projection(vector, [vectors[j] for j in others]))
        joined = torch.stack(projected).sum(0)
        if self.settings.reduce == "mean" and len(gradients) == len(self.shipped(self.settings)):
            joined = joined / len(projected)
        return shaped(joined, next(iter(gradients.values())))


def projection(gradient: Tensor, others: list[Tensor]) -> Tensor:
    """PCGrad's: what of a gradient (N,) does not run against the others, taken in their order."""
    for other in others:
        against = torch.dot(gradient, other).clamp_max(0)
        gradient = gradient - against / torch.dot(other, other).clamp_min(1e-30) * other
    return gradient
