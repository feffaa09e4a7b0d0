"""How sure each modality alone is of the right classes: the score that balancing methods compare.

    s_m = 1/|P| * sum over i in P of sigmoid(z_m[i, c_i])

P are the anchors that the FUSED answer's assignment made positive, and c_i is the class of the object that anchor i is
assigned to: one assignment for both modalities, or the ratio would compare different anchors. z_m are the class logits
of the fused branch when it reads f_m and zeros in the place of the other modality's features. A classifier's softmax
would be 1 for a single class, whatever the modality sees; hence the sigmoid.

The zeros are not neutral: the branch has biases, and finds something in two modalities of zeros, too. With fusion=mean
they would halve f_m besides, and a branch that starts from weights finds nothing in half of what it knows: there f_m
stands in both places. BatchNorm of the branch uses the statistics of what it reads here, since its running ones are of
both modalities together; where a training holds these still, it uses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rscmd_model.config import MODALITIES
from rscmd_model.errors import UserError
from rscmd_model.methods.base import Features, number
from rscmd_model.methods.sum import SumSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.objective import Scored, TrainingStep

MOMENTUM = 0.1
"""Weight of a new batch in the running means."""
WARM_UP = 5
"""Scored batches before a ratio is told: at first both scores are what the heads start with, and their ratio noise."""


@dataclass(frozen=True)
class ScoreSettings(SumSettings):
    """Settings of methods that score the modalities, besides those of `Sum`.

    Attributes:
        score_every: the modalities are scored in the first batch of each epoch and every so many batches after it; a
            whole number from 1. A score costs two passes of the fused branch.
    """

    score_every: float = number(8, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.score_every.is_integer():
            raise UserError(f"score_every {self.score_every:g} is a number of batches: give a whole one")


class UnimodalScore(nn.Module):
    """Running means of both modalities' scores, and their ratio.

    They are buffers: a resumed run goes on with them, and a finished model tells what they were at the end.

    Args:
        every: as `ScoreSettings.score_every`.

    Attributes:
        means: (3,), running means over scored batches, and over the pairs of one: of the sum of the visible scores over
            the positive anchors, of the thermal ones, and of the number of these anchors. They start at 0, which the
            ratios do not notice.
        counted: how many batches they are of.
    """

    means: Tensor
    counted: Tensor

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self._epoch, self._batch = -1.0, 0
        self.register_buffer("means", torch.zeros(3))
        self.register_buffer("counted", torch.zeros((), dtype=torch.int64))

    @property
    def scores(self) -> Tensor:
        """(2,), s_m of the visible and the thermal modality, within 0 to 1; nan before the first batch."""
        return self.means[:2] / self.means[2]

    @property
    def ratios(self) -> Tensor:
        """(2,), each modality's score over the other's; 1 in the first `WARM_UP` scored batches."""
        sums = self.means[:2]
        ratios = sums / sums.flip(0).clamp_min(torch.finfo(sums.dtype).tiny)
        return torch.where(self.counted >= WARM_UP, ratios, torch.ones_like(ratios))

    def update(self, model: RscmdModel, step: TrainingStep) -> None:
        """Score a batch, if it is one of those that are. One without a positive anchor, in all processes, is left out.

        Args:
            model: in training mode.
            step: the forward pass of the batch.
        """
        if not self._due(model.method.progress):
            return
        fused, images = step.scored["fused"], step.batch["img"]
        positives, classes = fused.positives, assigned_classes(fused, step.batch)
        sums = []
        for m in MODALITIES:
            logits = alone(model, m, images, step.features)["scores"].gather(1, classes[:, None]).squeeze(1)
            sums.append((logits.float().sigmoid() * positives).sum())
        now = torch.stack([*sums, positives.sum().float()]) / len(positives)
        if dist.is_available() and dist.is_initialized():  # all have the same number of pairs
            dist.all_reduce(now)
            now /= dist.get_world_size()
        found = now[2] > 0
        self.means.copy_(torch.where(found, self.means.lerp(now, MOMENTUM), self.means))
        self.counted += found

    def _due(self, progress: float) -> bool:
        """Whether this batch is scored. Counted anew in each epoch, as a resumed run does."""
        self._batch = self._batch + 1 if progress == self._epoch else 0
        self._epoch = progress
        return self._batch % self.every == 0


def assigned_classes(scored: Scored, batch: dict[str, Any]) -> Tensor:
    """(B, N) int64: the class of the object that each positive anchor of the fused answer is assigned to, 0 elsewhere.

    Args:
        scored: of the fused answer. Its objects are numbered within their pair, without those of the weight 0.
        batch: as `TrainingStep` has it.
    """
    of, classes = batch["batch_idx"].view(-1).long(), batch["cls"].view(-1).long()
    if "weights" in batch:
        objects = batch["weights"][:, 0] > 0
        of, classes = of[objects], classes[objects]
    pairs = torch.arange(len(scored.positives), device=of.device)
    number_in_pair = ((of == pairs[:, None]).cumsum(1) - 1)[of, torch.arange(len(of), device=of.device)]
    table = classes.new_zeros(len(pairs), max(len(of), 1))
    table[of, number_in_pair] = classes
    return table.gather(1, torch.where(scored.positives, scored.objects, 0)).masked_fill(~scored.positives, 0)


def alone(model: RscmdModel, modality: str, x: Tensor, features: dict[str, Features]) -> Any:
    """What the fused branch answers when it reads one modality's features, and nothing of the other's.

    No gradient is kept. BatchNorm uses the statistics of this batch and leaves its own as they are; where a training
    holds them still, it uses its own.

    Args:
        model: the whole network.
        modality: the one that is read.
        x: (B, 4, H, W), the batch of stacks.
        features: of each modality.
    """
    own = features[modality]
    other = own if model.method.settings.fusion == "mean" else [torch.zeros_like(level) for level in own]
    given = {m: own if m == modality else other for m in features}
    with torch.no_grad(), _statistics_kept(model.branch("fused"), model.method):
        return model.branch("fused")(model.method.fuse(model, x, given))


@contextmanager
def _statistics_kept(*parts: nn.Module) -> Iterator[None]:
    """BatchNorm that would count this batch into its running statistics leaves them, and its counter, alone."""
    norms = [n for part in parts for n in part.modules() if isinstance(n, nn.BatchNorm2d) and n.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
