"""`dgl`: disentangled gradient learning. Each loss teaches what is its own: the fused one h, a modality's its backbone.

    L = L_det(h(F)) + lambda_v L_det(h°(f_v)) + lambda_t L_det(h°(f_t)),   F = stop(f_v) + stop(f_t)

h° is h with its parameters held constant. The fused loss is cut at the features and teaches neck and head alone; a
modality's loss goes through the same neck and head, leaves no gradient there, and teaches the modality's backbone.

Source: Wei et al., "Boosting Multimodal Learning via Disentangled Gradient Learning", ICCV 2025, arXiv 2507.10213, read
with its code (shicaiwei123/ICCV2025-GDL).

Faithful: both cuts, and the weight of the unimodal losses, whose published values are 2 to 5. Adapted: the modules that
are shared are a detector's neck and head, not one fusion layer, and h reads f_m as it is, where the paper fuses it with
zeros; for a sum these are the same. What the paper's linear layers do not have is BatchNorm: h's running statistics
are of all three inputs, as with `rsc=shared`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.func import functional_call

from rscmd_model.methods.base import Features, number
from rscmd_model.methods.decoupling import decouple
from rscmd_model.methods.shared import SharedHead
from rscmd_model.methods.sum import SumSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


@dataclass(frozen=True)
class DglSettings(SumSettings):
    """Settings of `Dgl` besides those of `Sum`.

    Attributes:
        lambda_visible, lambda_thermal: weight of each modality's loss (the paper's alpha), more than 0.
    """

    lambda_visible: float = number(4.0, above=0)
    lambda_thermal: float = number(4.0, above=0)


class Dgl(SharedHead):
    """The fused loss teaches neck and head, each modality's loss its backbone."""

    Settings = DglSettings

    @property
    def weights(self) -> dict[str, float]:
        """lambda_v and lambda_t."""
        return {m: getattr(self.settings, f"lambda_{m}") for m in self.modalities}

    def split(
        self, model: RscmdModel, x: Tensor, features: dict[str, Features]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """No gradient of the fused loss reaches a backbone."""
        both = {m: decouple(f, "stop" if self.training else "off") for m, f in features.items()}
        return {m: to_fuse for m, (to_fuse, _) in both.items()}, {m: alone for m, (_, alone) in both.items()}

    def answer(self, model: RscmdModel, name: str, fused: Features | None, alone: dict[str, Features]) -> Any:
        """In training a modality's answer comes from h with its parameters held constant."""
        if name == "fused" or not self.training:
            return super().answer(model, name, fused, alone)
        branch = model.branch(name)
        constant = {key: p.detach() for key, p in branch.named_parameters()}
        return functional_call(branch, constant, (alone[name],))
