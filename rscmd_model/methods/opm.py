"""`opm`: on-the-fly prediction modulation. The fused answer has to do without the surer camera, now and then.

    rho_m = s_m / s_other        q_m = q_base (1 + lam tanh(rho_m - 1)) if rho_m > 1, else 0

s_m says how sure modality m alone is of the right classes (`unimodal_score`). A batch takes part with the probability
p_exe, and then each sample of it loses modality m with the probability q_m. The weaker camera is never taken away.

Source: Wei, Hu, Du, Wen: On-the-fly Modulation for Balanced Multimodal Learning (TPAMI 2024, arXiv 2410.11582), by its
published code.

Faithful: the rule, and the constants of the code, q_base 0.5, lam 0.5, p_exe 0.7, from epoch 6 of 100 to the end.

Adapted: (1) The score is a detector's, and a running mean over batches, so q follows from the batches before this one.
(2) A lost camera's features are those of a black image, as with modality dropout, and not zeros: zeros are nothing that
a backbone gives. (3) The code divides the features that are left by 1 - theta, theta the mean of q over both
modalities' dimensions. A sum has nothing to be mended so: a sample that keeps both cameras is what inference sees.
(4) Of several processes each draws for its own share of the batch, from the same q.

ogm=on modulates the gradients as well, see `ogm`; its settings are those of that method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from rscmd_model.config import Augmentation
from rscmd_model.errors import UserError
from rscmd_model.methods.base import Features, check_share, choice, number
from rscmd_model.methods.ogm import Ogm, OgmSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel

_OF_OGM = "alpha", "form", "ge", "ogm_from", "ogm_until"


@dataclass(frozen=True)
class OpmSettings(OgmSettings):
    """Settings of `Opm` besides those of `OgmSettings`.

    Attributes:
        q_base: probability of losing a camera that is barely the surer one, 0 (never) to 1.
        lam: by what share it grows with rho, from 0; q_base (1 + lam) is at most 1.
        p_exe: probability that a batch takes part, 0 to 1.
        opm_from, opm_until: the share of the training, 0 to 1, between which cameras are lost.
        ogm: "on" modulates the gradients as well.
    """

    q_base: float = number(0.5, least=0, most=1)
    lam: float = number(0.5, least=0)
    p_exe: float = number(0.7, least=0, most=1)
    opm_from: float = number(0.06)
    opm_until: float = number(1.0)
    ogm: str = choice("off", "on")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.q_base * (1 + self.lam) > 1:
            told = f"q_base {self.q_base:g} and lam {self.lam:g} make a probability of up to q_base (1 + lam)"
            raise UserError(f"{told}: give q_base (1 + lam) <= 1")
        check_share("opm", self.opm_from, self.opm_until)
        if self.ogm == "off":
            for name in _OF_OGM:
                if getattr(self, name) != self.__dataclass_fields__[name].default:
                    raise UserError(f"{name} is a setting of gradient modulation: give ogm=on too, or leave it out")


def drop_probability(ratios: Tensor, q_base: float, lam: float) -> Tensor:
    """q_m of each modality.

    Args:
        ratios: (2,), rho_m.
        q_base, lam: as in `OpmSettings`.

    Returns:
        (2,), each 0 or within q_base and q_base (1 + lam), and one of them 0.
    """
    q = q_base * (1 + lam * torch.tanh(ratios - 1))
    return torch.where(ratios > 1, q, torch.zeros_like(q))


class Opm(Ogm):
    """Plain fusion, that loses the surer camera in some samples."""

    Settings: ClassVar[type[OgmSettings]] = OpmSettings

    def check_augmentation(self, augmentation: Augmentation) -> None:
        """Raises `UserError` for modality dropout, which could take the other camera of a sample."""
        if augmentation.modality_dropout:
            raise UserError("method opm takes cameras away by itself: leave out modality dropout")

    @property
    def scoring(self) -> bool:
        """See `Ogm.scoring`."""
        return self.training and (
            (super().scoring and self.settings.ogm == "on") or self.progress < self.settings.opm_until
        )

    @property
    def modulating(self) -> bool:
        """See `Ogm.modulating`."""
        return super().modulating and self.settings.ogm == "on"

    @property
    def dropping(self) -> bool:
        """Whether cameras are lost now."""
        return self.training and self.settings.opm_from <= self.progress < self.settings.opm_until

    @property
    def q(self) -> Tensor:
        """(2,), the probability that a sample loses the visible and the thermal camera."""
        return drop_probability(self.score.ratios, self.settings.q_base, self.settings.lam)

    def split(
        self, model: RscmdModel, x: Tensor, features: dict[str, Features]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """What `Ogm` gives to the fusion, without the surer camera in some samples."""
        to_fuse, own = super().split(model, x, features)
        if self.dropping and float(torch.rand(())) < self.settings.p_exe:
            draw = torch.rand(len(x), device=x.device)
            to_fuse = model.without(x, to_fuse, {m: draw < q for m, q in zip(self.modalities, self.q)})
        return to_fuse, own
