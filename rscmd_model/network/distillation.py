"""Learning without forgetting (LwF, Li and Hoiem, arXiv 1606.09282) for a detector: a finished model's answers to the
pairs of another site are taught beside their labels, to the model that goes on from it.

Adapted: the scores of a detector are no softmax over classes, so that classes have a binary cross-entropy, without a
temperature; and a box counts by how sure the finished model was of it, since most of the anchors show nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rscmd_model.network.frozen_model import FrozenModel


class OldAnswers(FrozenModel):
    """A finished model whose answers are taught."""

    def loss(self, answers: Mapping[str, Any], x: Tensor, gains: Any) -> Tensor:
        """How far a model's answers are from the old ones: the sum over the answers that both give.

        Args:
            answers: by name, as heads give them: "boxes" (B, 4 bins, N) and "scores" (B, classes, N), both logits.
            x: (B, 4, H, W) in [0, 1], what was answered.
            gains: "cls" and "dfl" of the detection loss, which this one has as well.

        Returns:
            a scalar with a gradient.
        """
        names = [name for name in answers if name in self.header.config.answers]
        with torch.no_grad():
            old = self.beside(x).answers(x, names)
        return torch.stack([distance(answers[name], old[name][1], gains) for name in names]).sum()


def distance(answer: Mapping[str, Tensor], old: Mapping[str, Tensor], gains: Any) -> Tensor:
    """How far an answer is from an old one.

    Binary cross-entropy with the old scores, and the Kullback-Leibler divergence from the old distributions of a box's
    sides, weighted by the old score of its surest class. Both are divided by the sum of these scores, as the detection
    loss is by its targets'.

    Args:
        answer, old: "boxes" (B, 4 bins, N) and "scores" (B, classes, N), both logits.
        gains: "cls" and "dfl".
    """
    scores = old["scores"].float().sigmoid()
    sure = scores.amax(1)
    classes = functional.binary_cross_entropy_with_logits(answer["scores"].float(), scores, reduction="none").sum()
    now, then = (of["boxes"].float().unflatten(1, (4, -1)).log_softmax(2) for of in (answer, old))
    boxes = (functional.kl_div(now, then, reduction="none", log_target=True).sum(2).mean(1) * sure).sum()
    return (gains.cls * classes + gains.dfl * boxes) / sure.sum().clamp_min(1)
