"""`ogm`: on-the-fly gradient modulation. The backbone of the surer camera learns more slowly.

    rho_m = s_m / s_other        k_m = 1 - alpha tanh(rho_m - 1) if rho_m > 1, else 1

s_m says how sure modality m alone is of the right classes (`unimodal_score`). All gradients of backbone m are
multiplied by k_m. With "generalisation enhancement" (GE), noise N(0, std of that tensor's gradient before k) is added
to the gradients of both backbones' convolutions, held back or not.

Source: Peng, Wei, Deng, Wang, Hu: Balanced Multimodal Learning via On-the-fly Gradient Modulation (CVPR 2022, arXiv
2203.15332), and Wei, Hu, Du, Wen: On-the-fly Modulation for Balanced Multimodal Learning (TPAMI 2024, arXiv
2410.11582), by their published codes; the text of the second was not at hand, and the form above, which is continuous
at rho = 1, is known to us from another's implementation of it. form=code is what both published codes compute, k = 1 -
tanh(alpha rho), which jumps from 1 to 0.34 there.

Faithful: the rule; GE; the constants of the TPAMI code, alpha 0.8 from epoch 6 to 60 of 100 (Kinetics-Sounds; the CVPR
code names 0.8 for CREMA-D, the smallest of its sets, 0.1 for VGGSound, the largest, and epochs 0 to 50 of 100). Its own
setting is ogm+form=code+ogm_from=0+ogm_until=0.5.

Adapted: (1) The score is a detector's, and a running mean over batches instead of one batch's, so k follows from the
batches before this one. (2) k scales all that a backbone receives; the codes leave BatchNorm and biases alone. (3) The
comparison is strict: at rho = 1 nothing is scaled, where the codes scale one of the two.

With GE, k is applied to the parameters' gradients just before the optimizer's step, since the noise needs them as they
were. Where a step takes several batches, the noise is that of their sum, and so is k, the latest. A gradient scaler's
factor (amp=fp16) is in gradient and noise alike, and is taken out of both. Several processes add the same noise.

Adam divides a constant k out again: compare methods that scale gradients under SGD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from rscmd_model.errors import UserError
from rscmd_model.methods.base import Features, check_share, choice, number
from rscmd_model.methods.gradient_scale import scale_gradients
from rscmd_model.methods.sum import Sum
from rscmd_model.methods.unimodal_score import ScoreSettings, UnimodalScore

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.objective import TrainingStep


@dataclass(frozen=True)
class OgmSettings(ScoreSettings):
    """Settings of `Ogm` besides those of `ScoreSettings`.

    Attributes:
        alpha: how strongly the surer camera is held back, 0 (not at all) to 1.
        form: k as a function of rho. "text" (1 - alpha tanh(rho - 1), never below 1 - alpha) or "code" (1 - tanh(alpha
            rho), which goes to 0).
        ge: "on" adds the noise of generalisation enhancement.
        ogm_from, ogm_until: the share of the training, 0 to 1, between which all this holds.
    """

    alpha: float = number(0.8)
    form: str = choice("text", "code")
    ge: str = choice("off", "on")
    ogm_from: float = number(0.06)
    ogm_until: float = number(0.6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha {self.alpha:g} is not within 0 and 1")
        check_share("ogm", self.ogm_from, self.ogm_until)


def modulation(ratios: Tensor, alpha: float, form: str) -> Tensor:
    """k_m of each modality.

    Args:
        ratios: (2,), rho_m.
        alpha, form: as in `OgmSettings`.

    Returns:
        (2,), each within 0 and 1, and never both below 1.
    """
    # 2 sigmoid(-2 x) is 1 - tanh(x), and keeps its digits where tanh is nearly 1
    k = 1 - alpha * torch.tanh(ratios - 1) if form == "text" else 2 * torch.sigmoid(-2 * alpha * ratios)
    return torch.where(ratios > 1, k, torch.ones_like(k))


class Ogm(Sum):
    """Plain fusion, and the surer camera's backbone is held back."""

    Settings: ClassVar[type[OgmSettings]] = OgmSettings

    def __init__(self, settings: Any, channels: tuple[int, int, int]) -> None:
        super().__init__(settings, channels)
        self.score = UnimodalScore(int(settings.score_every))

    @property
    def scoring(self) -> bool:
        """Whether a score is of use now or later in the training."""
        return self.training and self.progress < self.settings.ogm_until

    @property
    def modulating(self) -> bool:
        """Whether gradients are modulated now."""
        return self.training and self.settings.ogm_from <= self.progress < self.settings.ogm_until

    @property
    def k(self) -> Tensor:
        """(2,), k of the visible and the thermal backbone."""
        return modulation(self.score.ratios, self.settings.alpha, self.settings.form)

    def split(
        self, model: RscmdModel, x: Tensor, features: dict[str, Features]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """What the fused loss sends back is multiplied by k; with GE `before_step` does it."""
        to_fuse, own = super().split(model, x, features)
        scaled = self.modulating and self.settings.ge == "off"
        return scale_gradients(to_fuse, self.k) if scaled else to_fuse, own

    def losses(self, model: RscmdModel, step: TrainingStep) -> dict[str, Tensor]:
        """Those of `Sum`; and the modalities are scored."""
        if self.scoring:
            self.score.update(model, step)
        return super().losses(model, step)

    def before_step(self, model: RscmdModel) -> None:
        """With GE: k times the backbones' gradients, and noise on those of their convolutions."""
        super().before_step(model)
        if not (self.modulating and self.settings.ge == "on"):
            return
        generator = _common_generator(self.score.means.device)
        for m, k in zip(self.modalities, self.k):
            for p in model.backbones[m].parameters():
                if p.grad is None:
                    continue
                noise = p.grad.std() if p.dim() == 4 else None
                p.grad *= k
                if noise is not None:
                    p.grad += noise * torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)


def _common_generator(device: torch.device) -> torch.Generator:
    """A generator that draws the same in every process, seeded from torch's own of the first one."""
    seed = torch.randint(2**62, ()).to(device)
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(seed, 0)
    return torch.Generator(device).manual_seed(int(seed))
