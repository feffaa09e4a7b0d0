"""`rsc`: representation space constraint (arXiv 2511.15433). Each modality keeps a loss of its own.

    L = L_det(h(f_v + f_t)) + lambda_v L_det(h_v(f_v)) + lambda_t L_det(h_t(f_t))

f_m are the features of modality m, h is the fused branch and h_m the modality's own. Through its own loss a backbone
receives a gradient that the other camera cannot suppress. The branches are kept: when a camera is lost, the other one's
branch answers.

With `schedule=one` each batch has one of the two unimodal losses, drawn evenly and counted twice. The gradient that is
to be expected is the same, at the price of one branch. What is not drawn has no gradient, and the optimizer leaves it
alone: a branch of its own makes half as many steps, which are twice as long under SGD, and no longer under Adam. The
idea of teaching heads in turn is UniMod's (arXiv 2602.02536, known second hand; its heads are those of a reward model,
and each sample teaches one).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rscmd_model.errors import UserError
from rscmd_model.methods.base import Features, choice, number
from rscmd_model.methods.sum import Sum, SumSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.objective import TrainingStep


@dataclass(frozen=True)
class BranchSettings(SumSettings):
    """Settings of methods with further branches, besides those of `Sum`.

    Attributes:
        branch: the further branches. "lean" (coarse features added to fine ones and a light head, at a quarter of the
            arithmetic) or "full" (neck and head like the fused one's).
        lambda_visible, lambda_thermal: weight of each further loss, more than 0.
    """

    branch: str = choice("lean", "full")
    lambda_visible: float = number(1.0, above=0)
    lambda_thermal: float = number(1.0, above=0)


@dataclass(frozen=True)
class RscSettings(BranchSettings):
    """Settings of `Rsc` besides those of `BranchSettings`.

    Attributes:
        rsc: whose weights give the unimodal answers. "own" (a branch for each modality) or "shared" (the fused branch,
            without further parameters).
        teach: what the modalities' own losses teach. "backbone" (the backbones too) or "head" (their necks and heads
            alone, which leaves the fused answer as `sum` trains it, but for the clipping of all gradients by their
            common norm).
        schedule: which unimodal losses a batch has: "all", or "one" of them, drawn evenly and counted twice.
    """

    rsc: str = choice("own", "shared")
    teach: str = choice("backbone", "head")
    schedule: str = choice("all", "one")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rsc, self.teach) == ("shared", "head"):
            raise UserError(
                "teach=head leaves the fused answer alone, and rsc=shared has no other head: give one of them"
            )


class Rsc(Sum):
    """A detection loss for each modality alone, beside the fused one's.

    Attributes:
        draws: with `schedule=one`, int64 (2,): what the draws start from, and how many batches have been taught. A
            batch's draw follows from these two alone. So it is the same in every process of a training, which all begin
            with the buffers of the first, and in one that is resumed.
    """

    Settings: ClassVar[type[BranchSettings]] = RscSettings
    takes_incomplete = True
    from_weights: ClassVar[Mapping[str, Any]] = {**Sum.from_weights, "branch": "full"}
    draws: Tensor

    def __init__(self, settings: Any, channels: tuple[int, int, int]) -> None:
        super().__init__(settings, channels)
        if self.in_turn:
            self.register_buffer("draws", _first_draw())

    @property
    def in_turn(self) -> bool:
        """Whether a batch has one unimodal loss alone."""
        return getattr(self.settings, "schedule", "all") == "one"

    @property
    def taught_in_turn(self) -> tuple[str, ...]:
        """See `Method.taught_in_turn`."""
        return super().taught

    @property
    def taught(self) -> tuple[str, ...]:
        """The fused answer, and each modality's or, with `schedule=one`, that of the modality drawn for this batch."""
        if not self.in_turn:
            return self.taught_in_turn
        start, batches = self.draws.tolist()
        return ("fused", random.Random(f"{start} {batches}").choice(self.modalities))

    def start(self, model: RscmdModel, pairs: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """A training that goes on from a finished model has draws of its own."""
        if self.in_turn:
            self.draws.copy_(_first_draw())

    @classmethod
    def shipped(cls, settings: Any) -> tuple[str, ...]:
        """The fused answer and one for each modality."""
        return ("fused", *cls.modalities)

    def split(
        self, model: RscmdModel, x: Tensor, features: dict[str, Features]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """What a modality's own loss teaches."""
        to_fuse, alone = super().split(model, x, features)
        if self.settings.teach == "head":
            alone = {m: [f.detach() for f in own] for m, own in alone.items()}
        return to_fuse, alone

    @property
    def branches(self) -> dict[str, str]:
        """See `Method.branches`."""
        own = dict.fromkeys(self.modalities, self.settings.branch) if self.settings.rsc == "own" else {}
        return {"fused": "full", **own}

    @property
    def weights(self) -> dict[str, float]:
        """lambda_v and lambda_t."""
        return {m: getattr(self.settings, f"lambda_{m}") for m in self.modalities}

    def losses(self, model: RscmdModel, step: TrainingStep) -> dict[str, Tensor]:
        """As `Method.losses`, under the same names in every batch.

        With `schedule=one` the loss that was drawn is counted twice and the other is 0, so that the mean of each over
        many batches is that of a training with all. The next batch has a draw of its own.
        """
        found = super().losses(model, step)
        if not self.in_turn:
            return found
        self.draws[1] += 1
        drawn = {m: 2 * found.pop(m) for m in self.modalities if m in found}
        return {**found, **{m: drawn.get(m, torch.zeros_like(found["box"])) for m in self.modalities}}


def _first_draw() -> Tensor:
    return torch.tensor([torch.initial_seed() % 2**63, 0])
