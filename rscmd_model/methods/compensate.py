"""`compensate`: what a lost camera would have given is made from the other one's features.

    L = L_det(h(F)) + L_det(h(F')) + kd * mean(1 - cos(stop(F), F')) + div * mean(cos(c_m, f_m)^2)

F = f_v + f_t as in `sum`; F' = f_m + c_m is what the fused branch h reads where only the camera m is there. With
another fusion, F' is what that makes of f_m and c_m. The compensation is c_m = T_m(f_m), with T_m(f) = f + N(f) at each
stride and N a 1x1, a 3x3 and a 1x1 convolution (half as wide between): the start is near "the other camera sees the
same". For each sample of a batch one lost camera is drawn, and all samples go through h in one further pass. The cosine
of kd is over channels at each position; that of div is of features pooled over positions. With both cameras nothing is
added: the answer is that of `sum`. A lone camera is answered by h(F'), as by a branch of its own.

After DIS2 (arXiv 2601.13502, WACV 2026 workshop; code nhikieu/DIS2 497afc2, which segments RGB and height maps; of the
paper the abstract was at hand). Faithful: a compensation of each modality for the other, one missing case drawn, a loss
on the missing path, distillation towards the stopped full path (weight 5, after a warm-up), and a penalty on the
squared cosine between pooled compensation and pooled features (weight 1), which keeps it from repeating what is there.
Adapted: c_m reads the features and not the image through a second encoder; one h reads both paths, where DIS2 has a
decoder for each; the case is drawn for each sample and not for each batch, and evenly (DIS2: RGB in 0.6 of the batches,
which is visible_lost=0.6, the second setting); distillation at the fused features alone; no losses of single modalities
and no class-wise attention, since a detector's head is one for each class already.

The BatchNorm layers of h see the batch of F' as well as that of F, and their running statistics are of both. So do
those of fusion=adapt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from ultralytics.nn.modules import Conv

from rscmd_model.config import other_modality
from rscmd_model.errors import UserError
from rscmd_model.methods.base import Features, choice, drawn, number
from rscmd_model.methods.pooling import pooled
from rscmd_model.methods.sum import Sum, SumSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.objective import TrainingStep

REHEARSED = "compensated"
"""The answer that bears a loss in training: h(F'), each sample with the lost camera that was drawn for it."""


class Translator(nn.ModuleList):
    """Makes, of one camera's features at each stride, what stands for the other's: T(f) = f + N(f)."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__(
            nn.Sequential(Conv(c, c // 2, 1), Conv(c // 2, c // 2, 3), nn.Conv2d(c // 2, c, 1)) for c in channels
        )

    def forward(self, features: Features) -> Features:
        """Features at the three strides -> the same shapes."""
        return [f + layer(f) for layer, f in zip(self, features)]


def _chosen(visible_lost: Tensor, thermal: Features, visible: Features) -> Features:
    """Of each sample the first where its visible camera is lost, (B, 1, 1, 1) bool, and else the second."""
    return [torch.where(visible_lost, t, v) for t, v in zip(thermal, visible)]


@dataclass(frozen=True)
class CompensateSettings(SumSettings):
    """Settings of `Compensate` besides those of `Sum`.

    Attributes:
        kd: weight of the distillation from F to F', 0 or more.
        kd_from: share of the training, 0 to 1, from which kd holds; before, it is 0. DIS2 begins after 5 epochs, of a
            number that was not released; the default is 5 of 100.
        div: weight of the penalty on compensations that repeat the features, 0 or more.
        visible_lost: share of the samples, between 0 and 1, that are trained as if the visible camera were lost; the
            others lose the thermal one. DIS2's draw is 0.6.
        stop_gradient: "on" keeps what F' teaches from the backbones, which learn as in `sum`; "off" lets it through.
    """

    kd: float = number(5.0, least=0)
    kd_from: float = number(0.05, least=0, most=1)
    div: float = number(1.0, least=0)
    visible_lost: float = number(0.5, above=0)
    stop_gradient: str = choice("on", "off")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.visible_lost >= 1:
            raise UserError(
                f"visible_lost {self.visible_lost:g} must be less than 1, or one camera is never trained for"
            )


class Compensate(Sum):
    """Plain fusion, and an answer for each lone camera by the same branch."""

    Settings = CompensateSettings

    def __init__(self, settings: Any, channels: tuple[int, int, int]) -> None:
        super().__init__(settings, channels)
        self.translators = nn.ModuleDict({m: drawn(f"translator {m}", Translator, channels) for m in self.modalities})

    @classmethod
    def shipped(cls, settings: Any) -> tuple[str, ...]:
        """The fused answer and one for each lone camera."""
        return ("fused", *cls.modalities)

    @property
    def taught(self) -> tuple[str, ...]:
        """The fused answer, and one to a batch in which each pair has lost a camera."""
        return ("fused", REHEARSED)

    @property
    def branches(self) -> dict[str, str]:
        """The fused branch gives every answer."""
        return {"fused": "full"}

    @property
    def weights(self) -> dict[str, float]:
        """Of the two losses between features."""
        s = self.settings
        return {"kd": s.kd if self.progress >= s.kd_from else 0.0, "div": s.div}

    def answer(self, model: RscmdModel, name: str, fused: Features | None, alone: dict[str, Features]) -> Any:
        """A modality's answer is h(F') with the other camera lost; see `Method.answer`."""
        if name == REHEARSED:
            assert fused is not None
            return self._rehearsed(model, fused, alone)
        if name == "fused":
            return super().answer(model, name, fused, alone)
        stand_in = self.translators[name](alone[name])
        return model.branch(name)(self.joined(self.adapted({name: alone[name], other_modality(name): stand_in})))

    def _rehearsed(self, model: RscmdModel, fused: Features, alone: dict[str, Features]) -> Any:
        """The head's answer to F', and in training with it the losses "kd" and "div", for which F' and c_m are at hand
        here."""
        if self.settings.stop_gradient == "on":
            alone = {m: [f.detach() for f in own] for m, own in alone.items()}
        # Both cameras' compensations of every sample, so that no BatchNorm depends on what was drawn.
        made = {m: self.translators[m](own) for m, own in alone.items()}
        lost = torch.rand(len(fused[0]), device=fused[0].device).view(-1, 1, 1, 1) < self.settings.visible_lost
        pair = {
            "visible": _chosen(lost, made["thermal"], alone["visible"]),
            "thermal": _chosen(lost, alone["thermal"], made["visible"]),
        }
        read = self.joined(self.adapted(pair))
        if not self.training:
            return model.branch(REHEARSED)(read)
        whole = fused
        if model.augmentation.modality_dropout:  # some of `fused` are of black images, which is nothing to strive for
            with torch.no_grad():
                whole = self.joined(self.adapted(alone))
        kd = [1 - cosine_similarity(w.detach().float(), r.float(), dim=1).mean() for w, r in zip(whole, read)]
        there, theirs = (_chosen(lost, of["thermal"], of["visible"]) for of in (alone, made))
        div = [cosine_similarity(pooled(c.float()), pooled(f.float())).square().mean() for c, f in zip(theirs, there)]
        answer: dict[str, Any] = model.branch(REHEARSED)(read)
        return {**answer, "kd": torch.stack(kd).mean(), "div": torch.stack(div).mean()}

    def losses(self, model: RscmdModel, step: TrainingStep) -> dict[str, Tensor]:
        """Detection losses of F and of F', and the two between features; see `Method.losses`."""
        rehearsed = step.answers[REHEARSED]
        named = super().losses(model, step)
        return {**named, "kd": rehearsed["kd"], "div": rehearsed["div"]}
