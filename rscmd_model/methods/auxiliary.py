"""`aux`: the control of `rsc`. The same branches with the same losses, but all of them read the fused features.

What it gains over `sum` is deep supervision, which has nothing to do with the modalities. Its further branches are left
unused after the training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from rscmd_model.methods.base import Features
from rscmd_model.methods.rsc import BranchSettings, Rsc

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


class Auxiliary(Rsc):
    """Two further branches on the fused features."""

    Settings = BranchSettings
    takes_incomplete = True

    @classmethod
    def shipped(cls, settings: Any) -> tuple[str, ...]:
        """The fused answer alone."""
        return ("fused",)

    @property
    def taught(self) -> tuple[str, ...]:
        """The fused answer, and two more that are named like the branches they are the control of."""
        return ("fused", *self.modalities)

    @property
    def unimodal(self) -> tuple[str, ...]:
        """None: every answer reads the fused features."""
        return ()

    def split(
        self, model: RscmdModel, x: Tensor, features: dict[str, Features]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """Nothing of its own: no answer reads a single modality's features."""
        return features, features

    @property
    def branches(self) -> dict[str, str]:
        """See `Method.branches`."""
        return {"fused": "full", **dict.fromkeys(self.modalities, self.settings.branch)}

    def answer(self, model: RscmdModel, name: str, fused: Features | None, alone: dict[str, Features]) -> Any:
        """Every answer reads the fused features."""
        return model.branch(name)(fused)
