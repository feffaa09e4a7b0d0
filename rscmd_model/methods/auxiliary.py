"""`aux`: the control of `rsc`. The same branches with the same losses, but all of them read the fused features.

What it gains over `sum` is deep supervision, which has nothing to do with the modalities. Its further branches are left
unused after the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rscmd_model.methods.base import Features, choice, number
from rscmd_model.methods.sum import Sum, SumSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


@dataclass(frozen=True)
class AuxiliarySettings(SumSettings):
    """Settings of `Auxiliary` besides those of `Sum`.

    Attributes:
        branch: the further branches. "lean" (coarse features added to fine ones and a light head, at a quarter of the
            arithmetic) or "full" (neck and head like the fused one's).
        lambda_visible, lambda_thermal: weight of each further loss, more than 0.
    """

    branch: str = choice("lean", "full")
    lambda_visible: float = number(1.0, above=0)
    lambda_thermal: float = number(1.0, above=0)


class Auxiliary(Sum):
    """Two further branches on the fused features."""

    Settings = AuxiliarySettings

    @property
    def taught(self) -> tuple[str, ...]:
        """The fused answer, and two more that are named like the branches they are the control of."""
        return ("fused", *self.modalities)

    @property
    def branches(self) -> dict[str, str]:
        """See `Method.branches`."""
        return {"fused": "full", **dict.fromkeys(self.modalities, self.settings.branch)}

    @property
    def weights(self) -> dict[str, float]:
        """See `Method.weights`."""
        return {m: getattr(self.settings, f"lambda_{m}") for m in self.modalities}

    def answer(self, model: RscmdModel, name: str, fused: Features | None, alone: dict[str, Features]) -> Any:
        """Every answer reads the fused features."""
        return model.branch(name)(fused)
