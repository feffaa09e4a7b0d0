"""`smp`: sequential modality prioritisation, a part of G2D. The surer camera's backbone waits.

    L = L_det(h(D(f_v) + D(f_t)))        D(f_m) = stop(f_m) for the surer modality, in the first part of the training

Which camera is the surer one is measured once, before the training begins: by the mean score of the right class that
the single-camera controls give at the anchors that the fused answer's assignment makes positive, on 64 training pairs.
`stronger=visible` or `thermal` says so instead, and needs no controls.

Source: Rakib et al., G2D: Boosting Multimodal Learning with Gradient-Guided Distillation, ICCV 2025, arXiv 2506.21514,
and its published code; the paper came to us second hand. Faithful: in the stage one modality alone receives gradients,
the one of the lower score; half of the training by default (150 of 300 epochs; the authors tune it for each data set,
`smp_until`). Adapted: the score, which in a classifier is a softmax; measured once and not in each batch, so that it
does not flicker; and the features are detached instead of gradients set to 0, under which weight decay would go on
shrinking the waiting backbone. Its BatchNorm goes on counting what it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rscmd_model.config import MODALITIES
from rscmd_model.methods.base import Features, choice, number
from rscmd_model.methods.sum import Sum, SumSettings
from rscmd_model.methods.unimodal_score import assigned_classes

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


@dataclass(frozen=True)
class SmpSettings(SumSettings):
    """Settings of `Smp` besides those of `Sum`.

    Attributes:
        smp_until: the share of the training, 0 to 1, in which the surer modality's backbone waits.
        stronger: which is the surer one: "measured", "visible" or "thermal".
    """

    smp_until: float = number(0.5, least=0, most=1)
    stronger: str = choice("measured", *MODALITIES)


class Smp(Sum):
    """Plain fusion in which the surer camera's backbone waits at first.

    Attributes:
        sure: (2,), what the controls' scores were, visible and thermal; equal ones let neither wait.
    """

    Settings: ClassVar[type[SmpSettings]] = SmpSettings
    sure: Tensor

    def __init__(self, settings: Any, channels: tuple[int, int, int]) -> None:
        super().__init__(settings, channels)
        self.register_buffer("sure", torch.tensor([float(settings.stronger == m) for m in MODALITIES]))

    @classmethod
    def needs_teachers(cls, settings: Any) -> bool:
        """To measure which camera is the surer one."""
        return bool(settings.stronger == "measured")

    @property
    def waits(self) -> str | None:
        """The modality whose backbone is not trained now."""
        visible, thermal = self.sure.tolist()
        if not self.training or self.progress >= self.settings.smp_until or visible == thermal:
            return None
        return MODALITIES[int(thermal > visible)]

    def start(self, model: RscmdModel, pairs: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """Measure the controls, where they are to be measured."""
        if self.settings.stronger != "measured" or not self.settings.smp_until:
            return
        assert model.teachers
        training, sums, count = model.training, torch.zeros(len(MODALITIES)), 0
        model.eval()
        for batch in pairs():
            x = batch["img"]
            with torch.no_grad():
                scored = model.init_criterion().detection(model.answers(x, ("fused",))["fused"], batch)
            classes = assigned_classes(scored, batch)
            answers = model.teachers.answers(model.teachers.features(x))
            for place, modality in enumerate(MODALITIES):
                right = answers[modality]["scores"].gather(1, classes[:, None]).squeeze(1).sigmoid()
                sums[place] += right[scored.positives].sum()
            count += int(scored.positives.sum())
        model.train(training)
        self.sure.copy_(sums / max(count, 1))

    def split(
        self, model: RscmdModel, x: Tensor, features: dict[str, Features]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """No gradient for the modality that waits."""
        to_fuse, alone = super().split(model, x, features)
        waits = self.waits
        return {m: [f.detach() for f in its] if m == waits else its for m, its in to_fuse.items()}, alone
