"""`rsc`: representation space constraint (arXiv 2511.15433). Each modality keeps a loss of its own.

    L = L_det(h(f_v + f_t)) + lambda_v L_det(h_v(f_v)) + lambda_t L_det(h_t(f_t))

f_m are the features of modality m, h is the fused branch and h_m the modality's own. Through its own loss a backbone
receives a gradient that the other camera cannot suppress. The branches are kept: when a camera is lost, the other one's
branch answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from rscmd_model.errors import UserError
from rscmd_model.methods.base import Features, choice, number
from rscmd_model.methods.sum import Sum, SumSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


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
            alone, which leaves the fused answer as `sum` trains it).
    """

    rsc: str = choice("own", "shared")
    teach: str = choice("backbone", "head")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rsc, self.teach) == ("shared", "head"):
            raise UserError(
                "teach=head leaves the fused answer alone, and rsc=shared has no other head: give one of them"
            )


class Rsc(Sum):
    """A detection loss for each modality alone, beside the fused one's."""

    Settings: ClassVar[type[BranchSettings]] = RscSettings
    takes_incomplete = True
    from_weights: ClassVar[Mapping[str, Any]] = {**Sum.from_weights, "branch": "full"}

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
