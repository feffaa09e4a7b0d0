"""`lif`: fusion weighted by how bright the visible image is (the LIF of M2D-LIF).

    F = 2 W f_v + 2 (1 - W) f_t        W = beta min((B - alpha) / (2 alpha), 1/2) + 1/2

B is the brightness of the visible image at each position of stride 8, from a small net; at strides 16 and 32 W is
averaged. In the dark (B = 0) W is 1/2 - beta/2, in the light 1/2 + beta/2: 0.3 and 0.7 with the published beta. The
net's own loss is the distance of B from the brightest of red, green and blue; the detection loss trains it too.

Source: Zhao et al., Rethinking Multi-modal Object Detection from the Perspective of Mono-Modality Feature Learning,
ICCV 2025, arXiv 2503.11780, and its published code; the formulas of the paper came to us second hand. Faithful: the
formula with alpha 0.31 and beta 0.4, the net's form, and the code's loss with its weight of 1.3 (the paper has an L2
loss to the L of LAB). Adapted:

- The factor 2, with which beta=0 is `sum` bit for bit. The published base is the mean of the streams, half of a sum.
- The net's width: 8-16-16 channels. The published 32-64-64 are as much arithmetic as all of YOLOv8n (`net=published`).
- Its last bias starts at alpha, where both streams weigh the same. A ReLU that starts below 0 would never be trained.

With `net=none` W comes from the image's own brightness, without a net; the paper has this below the net.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from rscmd_model.methods.base import Features, choice, drawn, number
from rscmd_model.methods.sum import Sum, SumSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.objective import TrainingStep

_WIDTHS = {"scaled": (8, 16, 16), "published": (32, 64, 64)}
_STRIDE = 8  # of the finest features, and of the brightness


class BrightnessNet(nn.Sequential):
    """Three 3x3 convolutions, each with ReLU and average pooling by 2, and a 1x1 convolution with ReLU.

    Args:
        widths: channels of the three.
        start: about what it answers before it is trained, more than 0.
    """

    def __init__(self, widths: tuple[int, int, int], start: float) -> None:
        layers: list[nn.Module] = []
        for came, goes in zip((3, *widths), widths):
            layers += [nn.Conv2d(came, goes, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
        last = nn.Conv2d(widths[-1], 1, 1)
        nn.init.constant_(last.get_parameter("bias"), start)
        super().__init__(*layers, last, nn.ReLU())


@dataclass(frozen=True)
class LifSettings(SumSettings):
    """Settings of `Lif` besides those of `Sum`.

    Attributes:
        net: "scaled" (8-16-16 channels), "published" (32-64-64) or "none" (the image's own brightness).
        alpha: the brightness at which both streams weigh the same, more than 0.
        beta: how far apart the weights of both streams can be, 0 to 1.
        lambda_lif: weight of the net's own loss, 0 or more.
    """

    net: str = choice("scaled", "published", "none")
    alpha: float = number(0.31, above=0)
    beta: float = number(0.4, least=0, most=1)
    lambda_lif: float = number(1.3, least=0)


class Lif(Sum):
    """Fusion weighted by the visible image's brightness."""

    Settings: ClassVar[type[LifSettings]] = LifSettings

    def __init__(self, settings: Any, channels: tuple[int, int, int]) -> None:
        super().__init__(settings, channels)
        self.brightness = None
        if settings.net != "none":
            self.brightness = drawn("brightness", BrightnessNet, _WIDTHS[settings.net], settings.alpha)

    def bright(self, x: Tensor) -> Tensor:
        """The brightness B (B, 1, H/8, W/8), 0 or more, of a batch of stacks (B, 4, H, W)."""
        return brightest(x) if self.brightness is None else self.brightness(x[:, :3])

    def weight(self, brightness: Tensor) -> Tensor:
        """W (B, 1, H/8, W/8) of the visible features, within 1/2 - beta/2 and 1/2 + beta/2."""
        s = self.settings
        return s.beta * ((brightness - s.alpha) / (2 * s.alpha)).clamp(max=0.5) + 0.5

    def fuse(self, model: RscmdModel, x: Tensor, features: dict[str, Features]) -> Features:
        """See `Method.fuse`."""
        weight = self.weight(self.bright(x))
        visible, thermal = [], []
        for stride, (v, t) in enumerate(zip(features["visible"], features["thermal"])):
            here = (functional.avg_pool2d(weight, 2**stride) if stride else weight).to(v.dtype)
            visible.append(2 * here * v)
            thermal.append(2 * (1 - here) * t)
        return super().fuse(model, x, {"visible": visible, "thermal": thermal})

    @property
    def weights(self) -> dict[str, float]:
        """That of the net's own loss."""
        return {**super().weights, "brightness": self.settings.lambda_lif}

    def losses(self, model: RscmdModel, step: TrainingStep) -> dict[str, Tensor]:
        """Those of `Sum`, and "brightness" where there is a net."""
        losses = super().losses(model, step)
        if self.brightness is not None:
            x = step.batch["img"]
            losses["brightness"] = (self.bright(x) - brightest(x)).abs().mean()
        return losses


def brightest(x: Tensor) -> Tensor:
    """The brightest of red, green and blue, averaged over the positions of stride 8: (B, 1, H/8, W/8) in [0, 1]."""
    return functional.avg_pool2d(x[:, :3].amax(1, keepdim=True), _STRIDE)
