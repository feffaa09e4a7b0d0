"""`complement`: each camera takes from the other what it lacks, before they meet.

    f_v' = r_v * f_v + a_v * C_v(f_t)        f_t' = r_t * f_t + a_t * C_t(f_v)        F = f_v' + f_t'

at each stride, with C a 1x1 convolution and r, a gates of their own for each sample and channel, from both cameras'
features pooled over positions. A separator, a small net, tells the pooled f_v' from the pooled f_t'; its binary cross
entropy is an extra loss (0.1). It is added and not reversed: it keeps the streams apart, so that complementing does
not make them the same.

After BBFN (arXiv 2107.13669, ICMI 2021; code declare-lab/BBFN 1a251bd), which fuses text with audio or video. Faithful:
two gates for each channel, of a linear layer on both pooled streams; the separator, its place behind the complement and
its weight. Adapted: a 1x1 convolution in the place of attention, since the two images show one scene and a position
meets its own; one layer for each stride instead of five; and gates that start neutral. The paper's are sigmoid(z); here
r = 2 sigmoid(z) = 1 + tanh(z / 2) and a = 2 sigmoid(z) - 1 = tanh(z / 2), which are exactly 1 and 0 where z = 0. The
linear layers and the separator's last layer are zero at the start, so the first step is that of `sum`.

The separator of two such cameras has an easy task, since a grey image alone tells them apart: expect its loss to fall
from ln 2 to near 0 soon, and then to teach nothing. With modality dropout it sees the images as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rscmd_model.config import MODALITIES, other_modality
from rscmd_model.methods.base import Features, drawn, number
from rscmd_model.methods.pooling import pooled
from rscmd_model.methods.sum import Sum, SumSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.objective import TrainingStep

Streams = dict[str, Tensor]
"""(B, C, H, W) of each modality, at one stride."""


class Exchange(nn.Module):
    """What the two streams give each other at one stride."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.across = nn.ModuleDict({m: nn.Conv2d(channels, channels, 1, bias=False) for m in MODALITIES})
        self.gates = nn.ModuleDict({m: nn.Linear(2 * channels, 2 * channels) for m in MODALITIES})
        for gate in self.gates.parameters():
            nn.init.zeros_(gate)

    def forward(self, streams: Streams) -> Streams:
        """f_v and f_t -> f_v' and f_t'. As C is linear, of pooled streams it gives what pooling their results does."""
        means = {m: pooled(f) for m, f in streams.items()}
        given: Streams = {}
        for m, own in streams.items():
            other = other_modality(m)
            gates = torch.tanh(self.gates[m](torch.cat([means[m], means[other]], 1)) / 2).to(own.dtype)
            retain, add = gates[..., None, None].chunk(2, 1)
            given[m] = (1 + retain) * own + add * self.across[m](streams[other])
        return given


class Separator(nn.Sequential):
    """A pooled stream (B, C) -> the logit (B, 1) of its being the visible camera's, 0 at the start."""

    def __init__(self, channels: int) -> None:
        last = nn.Linear(channels // 4, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(channels, channels // 4), nn.SiLU(), last)


@dataclass(frozen=True)
class ComplementSettings(SumSettings):
    """Settings of `Complement` besides those of `Sum`.

    Attributes:
        separator: weight of the loss that keeps the streams apart, 0 or more; 0 leaves the separator out.
    """

    separator: float = number(0.1, least=0)


class Complement(Sum):
    """Plain fusion of complemented features."""

    Settings = ComplementSettings

    def __init__(self, settings: Any, channels: tuple[int, int, int]) -> None:
        super().__init__(settings, channels)
        self.exchanges = nn.ModuleList(drawn(f"exchange {c}", Exchange, c) for c in channels)
        parts = [drawn(f"separator {c}", Separator, c) for c in channels] if settings.separator else []
        self.separators = nn.ModuleList(parts)

    def exchanged(self, features: dict[str, Features]) -> dict[str, Features]:
        """f_v' and f_t' at each stride."""
        levels = [dict(zip(features, level)) for level in zip(*features.values())]
        given = [exchange(level) for exchange, level in zip(self.exchanges, levels)]
        return {m: [level[m] for level in given] for m in features}

    def fuse(self, model: RscmdModel, x: Tensor, features: dict[str, Features]) -> Features:
        """See `Method.fuse`."""
        return super().fuse(model, x, self.exchanged(features))

    @property
    def weights(self) -> dict[str, float]:
        """Of the separator's loss."""
        return {"separator": self.settings.separator}

    def losses(self, model: RscmdModel, step: TrainingStep) -> dict[str, Tensor]:
        """Those of `Sum` and the separator's; see `Method.losses`."""
        named = super().losses(model, step)
        return {**named, "separator": self.separation(step.features)} if self.settings.separator else named

    def separation(self, features: dict[str, Features]) -> Tensor:
        """The separator's binary cross entropy, mean over samples, cameras and strides."""
        given = self.exchanged({m: [pooled(f)[..., None, None] for f in own] for m, own in features.items()})
        losses = []
        for m, target in (("visible", torch.ones), ("thermal", torch.zeros)):
            for separator, stream in zip(self.separators, given[m]):
                logit = separator(stream.flatten(1)).float()
                losses.append(binary_cross_entropy_with_logits(logit, target(logit.shape, device=logit.device)))
        return torch.stack(losses).mean()
