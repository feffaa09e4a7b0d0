"""`mwam`: weights for the backbones' gradients from the frequencies of the images (modality weight allocation module).

Each image is cut into blocks of 8 x 8 px, and each block taken through an orthonormal DCT.

    FRM_m = sum |low / (high + 1e-6)|     low: a block's 2 x 2 lowest frequencies, high: its 2 x 2 highest, mirrored
    FRM^_m <- 0.5 FRM^_m + 0.5 FRM_m      after each batch
    T_m = FRM^_m / mean over m of FRM^    K_m = alpha - beta sigmoid(lam (T_m - gamma))

The sum runs over batch, blocks and channels. All gradients of backbone m are multiplied by K_m, through all of the
training: the camera whose images have more of the low frequencies is held back. Nothing of it is left afterwards.

Source: MWAM (ICLR 2026, arXiv 2602.22644), by the paper; its code (a6103121/MWAM) for the DCT. Constants are the
paper's for CASIA-SURF, BraTS and NYU, alpha 1.5, beta 1, lam 6, gamma 0.7; for small batches (1 and 4) it names lam 4
and gamma 1. The code has others, and takes T from this batch over the bank's mean.

Faithful: K, the bank, the constants. As published (frm=published), FRM has two flaws. A sum over channels makes an RGB
image count three times an equal grey one. And the ratio is ill-conditioned: a flat block counts some 10^6, a natural
one some hundreds, so that T tells how much padding there is and not what the images show. frm=mended, the default,
takes the mean over channels and over blocks, and leaves out blocks that are flat in either image. A letterboxed image
has the FRM of the unpadded one, if the padding is of whole blocks. What is left is heavy-tailed still: a block whose
highest frequencies happen to be near 0 outweighs many others. The bank takes the mean over blocks in both forms, which
is other than the sum only for a batch of another size.

With the published constants, equal images give K = 0.64 for both, a lower rate for both backbones. normalise=on divides
K by its mean, so that equal images give 1, and the method differs from `sum` by the balance alone.

Images are read as they are trained on, augmented. Adam divides a constant K out again: compare methods that scale
gradients under SGD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rscmd_model.errors import UserError
from rscmd_model.methods.base import Features, choice, number
from rscmd_model.methods.gradient_scale import scale_gradients
from rscmd_model.methods.sum import Sum, SumSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel

_BLOCK = 8
_UNIT = 1e6
"""The bank is kept in so many, since a checkpoint's 16-bit copy has to hold it."""
_FLAT = 0.5 / 255
"""A block is flat where its pixels, within 0 to 1, differ by less than this: less than one grey level."""


@dataclass(frozen=True)
class MwamSettings(SumSettings):
    """Settings of `Mwam` besides those of `Sum`.

    Attributes:
        alpha, beta, lam, gamma: of K; 0 <= beta < alpha, so that K is above alpha - beta and below alpha. beta 0 and
            alpha 1 is `sum`.
        frm: "mended" or "published", see the module's text.
        normalise: "on" divides K by its mean over the modalities.
    """

    alpha: float = number(1.5, above=0)
    beta: float = number(1.0)
    lam: float = number(6.0, above=0)
    gamma: float = number(0.7)
    frm: str = choice("mended", "published")
    normalise: str = choice("off", "on")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < self.alpha:
            raise UserError(
                f"beta {self.beta:g} is not within 0 and alpha {self.alpha:g}, and a gradient would turn round"
            )


class FrequencyRatio(nn.Module):
    """FRM of the visible and the thermal images of a batch.

    Args:
        frm: as in `MwamSettings`.

    Attributes:
        dct: (64, 8), what the pixels of a block are multiplied by: for its four lowest frequencies, and for its four
            highest, where the k-th of these belongs to the k-th of those.
    """

    dct: Tensor

    def __init__(self, frm: str) -> None:
        super().__init__()
        self.frm = frm
        n = torch.arange(_BLOCK)
        basis = torch.cos(math.pi / _BLOCK * (n + 0.5) * n[:, None]) * math.sqrt(2 / _BLOCK)  # (frequency, pixel)
        basis[0] /= math.sqrt(2)
        rows = basis[:2], basis[-2:].flip(0)
        pairs = torch.cat([torch.einsum("iu,jv->ijuv", r, r).reshape(4, _BLOCK**2) for r in rows])
        self.register_buffer("dct", pairs.T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """What a batch adds up to.

        Args:
            x: (B, 4, H, W), stacks within 0 to 1, H and W multiples of 8.

        Returns:
            (3,), the sum over blocks for the visible images and for the thermal ones, and the number of blocks.
        """
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # 16 bits have no digits for these ratios
            blocks = self._blocks(x.float())
            low, high = (blocks @ self.dct).chunk(2, dim=-1)
            ratios = (low / (high + 1e-6)).abs().sum(-1)  # (B, 4, blocks)
            visible, thermal = ratios[:, :3], ratios[:, 3]
            if self.frm == "published":
                kept = torch.ones_like(thermal)
                visible = visible.sum(1)
            else:
                least, most = blocks.aminmax(dim=-1)
                flat = most - least < _FLAT
                kept = (~(flat[:, :3].all(1) | flat[:, 3])).to(thermal)
                # The mean over channels, written so that it is exact for three equal ones.
                visible = visible[:, 0] + (visible - visible[:, :1]).mean(1)
            return torch.stack([(visible * kept).sum() / _UNIT, (thermal * kept).sum() / _UNIT, kept.sum()])

    @staticmethod
    def _blocks(x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, blocks, 64)."""
        b, c, h, w = x.shape
        cut = x.reshape(b, c, h // _BLOCK, _BLOCK, w // _BLOCK, _BLOCK).transpose(3, 4)
        return cut.reshape(b, c, -1, _BLOCK**2)


def weights(bank: Tensor, alpha: float, beta: float, lam: float, gamma: float, normalise: str) -> Tensor:
    """K_m of each modality.

    Args:
        bank: (2,), FRM^ of the visible and the thermal images; where it is 0, nothing is known yet and K is 1.
        alpha, beta, lam, gamma, normalise: as in `MwamSettings`.

    Returns:
        (2,), each within alpha - beta and alpha; with normalise their mean is 1.
    """
    mean = bank.mean()
    k = alpha - beta * torch.sigmoid(lam * (bank / mean - gamma))
    k = k / k.mean() if normalise == "on" else k
    return torch.where(mean > 0, k, torch.ones_like(k))


class Mwam(Sum):
    """Plain fusion, and what a backbone receives is weighed by its images' frequencies.

    Attributes:
        bank: (2,), FRM^ in millions. It starts at 0, which K does not notice: both start there.
    """

    Settings = MwamSettings
    bank: Tensor

    def __init__(self, settings: Any, channels: tuple[int, int, int]) -> None:
        super().__init__(settings, channels)
        self.ratio = FrequencyRatio(settings.frm)
        self.register_buffer("bank", torch.zeros(2))

    @property
    def k(self) -> Tensor:
        """(2,), K of the visible and the thermal backbone."""
        s = self.settings
        return weights(self.bank, s.alpha, s.beta, s.lam, s.gamma, s.normalise)

    def split(
        self, model: RscmdModel, x: Tensor, features: dict[str, Features]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """In training the batch's images are counted in, and what the fused loss sends back is multiplied by K."""
        to_fuse, own = super().split(model, x, features)
        if not self.training:
            return to_fuse, own
        self._count(self.ratio(x))
        return scale_gradients(to_fuse, self.k), own

    def _count(self, found: Tensor) -> None:
        """Take a batch's sums into the bank. One in which every block is flat, in all processes, is left out."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(found)
        number = found[2]
        now = self.bank.lerp(found[:2] / number.clamp_min(1), 0.5)
        self.bank.copy_(torch.where(number > 0, now, self.bank))
