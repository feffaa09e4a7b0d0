"""`sum`: one neck and head on the sum of both backbones' features. The control that every fusion has to beat.

A neck that was trained on the features of one backbone is at home with the mean of two and not with their sum, which is
twice as large. From COCO weights, without any training, the mean finds far more: it is the fusion of a start from
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from ultralytics.nn.modules import Conv

from rscmd_model.methods.base import Features, Method, MethodSettings, choice, drawn

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


class Adapter(nn.ModuleList):
    """One modality's own 1x1 convolution (with BatchNorm) at each stride, on what the fused branch is to read."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__(Conv(c, c, 1, act=False) for c in channels)

    def forward(self, features: Features) -> Features:
        """Features at the three strides -> the same shapes."""
        return [layer(f) for layer, f in zip(self, features)]


@dataclass(frozen=True)
class SumSettings(MethodSettings):
    """Settings of `Sum`.

    Attributes:
        fusion: how the two streams meet. "sum" (of the backbones' features), "mean" (half of it) or "adapt" (the sum,
            each feature through a 1x1 convolution of its own first).
    """

    fusion: str = choice("sum", "mean", "adapt")


class Sum(Method):
    """Plain fusion."""

    Settings = SumSettings
    takes_incomplete = True
    from_weights: ClassVar[Mapping[str, Any]] = {"fusion": "mean"}

    def __init__(self, settings: Any, channels: tuple[int, int, int]) -> None:
        super().__init__(settings, channels)
        self.adapters = nn.ModuleDict()
        if settings.fusion == "adapt":
            for m in self.modalities:
                self.adapters[m] = drawn(f"adapter {m}", Adapter, channels)

    def fuse(self, model: RscmdModel, x: Tensor, features: dict[str, Features]) -> Features:
        """See `Method.fuse`."""
        return self.joined(self.adapted(features))

    def adapted(self, features: dict[str, Features]) -> dict[str, Features]:
        """Each modality's features as they go into the sum: with fusion=adapt through its adapter."""
        return {m: self.adapters[m](f) if m in self.adapters else f for m, f in features.items()}

    def joined(self, features: dict[str, Features]) -> Features:
        """The sum of adapted features, or with fusion=mean half of it; those of a modality that is missing are 0."""
        fused = [reduce(add, levels) for levels in zip(*features.values())]
        return [f / 2 for f in fused] if self.settings.fusion == "mean" else fused
