"""`instruct`: the fused branch is told which cameras it is reading, by a learned bias for each case.

    F = f_v + f_t + b_both        F = f_v + b_visible        F = f_t + b_thermal

b_case is one number for each channel and stride, zero at the start, so with both cameras a model begins as `sum`. Such
a bias is trained only where its case occurs: in a share `dropout` of the samples one camera, drawn evenly, is left out
of the sum, as if there were no such image. A lone camera is answered by the fused branch, from f_m + b_m, and one
backbone. With fusion=mean it is answered from f_m / 2 + b_m, of which a branch that starts from weights finds nothing
at first; so a start from weights takes fusion=present, the mean of those features that are there.

After RADAR (arXiv 2410.01737, ACM MM 2025), of which a summary was at hand and no code: there instructions (learned
tokens), chosen by which input is missing, and a hyper-network adapt a network to what is missing. This is the idea, and
not RADAR. Adapted: the tokens are biases, since a convolutional neck has no tokens; no hyper-network, as two cameras
have but three cases; no memory and outlier detector, which is about anomalies. That half of the items lose one camera
and half the other, and none both, is the custom of that field (Lee et al., arXiv 2303.03369). Its shares are 30, 50 and
70 %; the default is the smallest, and dropout=0.7, the default of Lee et al., the second setting.

The case is what was drawn, or which answer is asked for. It is never read from pixels: a black frame is a frame, and
belongs to the case in which its camera is there. BatchNorm layers of the fused branch see whole and lone samples in one
batch. Those of fusion=adapt see no sample that is left out: it is left out behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from rscmd_model.config import MODALITIES, Augmentation
from rscmd_model.errors import UserError
from rscmd_model.methods.base import Features, choice, number
from rscmd_model.methods.sum import Sum, SumSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel

CASES = ("both", *MODALITIES)
"""Which cameras there are, in the order of the biases' rows."""
BOTH = CASES.index("both")


@dataclass(frozen=True)
class InstructSettings(SumSettings):
    """Settings of `Instruct` besides those of `Sum`.

    Attributes:
        fusion: as there, or "present": the mean of the features that are there, which is "mean" where both are.
        dropout: share of the samples, 0 to 1, that are trained without one of the cameras.
    """

    fusion: str = choice("sum", "mean", "adapt", "present")
    dropout: float = number(0.3, least=0, most=1)


class Instruct(Sum):
    """Plain fusion with a bias for each case, and an answer for each lone camera by the same branch.

    Attributes:
        cases: (B,) int64, places in `CASES`: the ledger of the batch that is being fused; None where no camera is lost.
    """

    Settings = InstructSettings
    from_weights: ClassVar[Mapping[str, Any]] = {"fusion": "present"}

    def __init__(self, settings: Any, channels: tuple[int, int, int]) -> None:
        super().__init__(settings, channels)
        self.biases = nn.ParameterList(torch.zeros(len(CASES), c) for c in channels)
        self.cases: Tensor | None = None

    @classmethod
    def shipped(cls, settings: Any) -> tuple[str, ...]:
        """The fused answer and one for each lone camera."""
        return ("fused", *cls.modalities)

    @property
    def taught(self) -> tuple[str, ...]:
        """The fused answer alone: it is the one that loses cameras."""
        return ("fused",)

    def check_augmentation(self, augmentation: Augmentation) -> None:
        """Raises `UserError` where a sample may lose one camera here and have the other one's image blackened."""
        if augmentation.modality_dropout and self.settings.dropout:
            raise UserError(
                f"method instruct loses cameras itself (dropout={self.settings.dropout:g}): leave modality dropout "
                "out, or set dropout=0"
            )

    def split(
        self, model: RscmdModel, x: Tensor, features: dict[str, Features]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """As in `Sum`; here the lost cameras of a batch of training are drawn."""
        self.cases = None
        if self.training and self.settings.dropout:
            draw = torch.rand(len(x), device=x.device) / self.settings.dropout  # below 1: a camera is lost
            self.cases = torch.where(draw < 1, 1 + (draw < 0.5).long(), BOTH)
        return super().split(model, x, features)

    def fuse(self, model: RscmdModel, x: Tensor, features: dict[str, Features]) -> Features:
        """The sum of what is there, and the bias of the case."""
        cases, self.cases = self.cases, None
        there = self.adapted(features)
        if cases is None:
            return self.told(self.joined(there), BOTH)
        for place, lost in ((CASES.index("visible"), "thermal"), (CASES.index("thermal"), "visible")):
            out = (cases == place).view(-1, 1, 1, 1)
            # Not masked_fill, which gives up the layout (channels last) that makes convolutions fast.
            there[lost] = [torch.where(out, f.new_zeros(()), f) for f in there[lost]]
        fused = self.joined(there)
        if self.settings.fusion == "present":
            lone = (cases != BOTH).view(-1, 1, 1, 1)
            fused = [torch.where(lone, 2 * f, f) for f in fused]
        return self.told(fused, cases)

    def joined(self, features: dict[str, Features]) -> Features:
        """As in `Sum`; with fusion=present the mean of the features that are given."""
        fused = super().joined(features)
        return [f / len(features) for f in fused] if self.settings.fusion == "present" else fused

    def told(self, fused: Features, case: int | Tensor) -> Features:
        """Add the bias of a case, or of each sample's own, to features (B, C, H, W)."""
        return [f + bias[case].to(f.dtype)[..., None, None] for f, bias in zip(fused, self.biases)]

    def answer(self, model: RscmdModel, name: str, fused: Features | None, alone: dict[str, Features]) -> Any:
        """A modality's answer is the fused branch's in the case that no other camera is there; see `Method.answer`."""
        if name == "fused":
            return super().answer(model, name, fused, alone)
        there = self.joined(self.adapted({name: alone[name]}))
        return model.branch(name)(self.told(there, CASES.index(name)))
