"""The lean unimodal answer, of which every family can have one: a quarter of a full branch's arithmetic, or less."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from ultralytics.nn.modules import Conv, Detect


class LeanHead(Detect):
    """A lighter head: depthwise convolutions for the classes, as YOLO11's, and one convolution for the boxes."""

    legacy = False

    def __init__(self, nc: int, ch: tuple[int, ...]) -> None:
        super().__init__(nc=nc, ch=ch)
        for tower in self.cv2:
            del tower[1]  # the second of two 3x3 convolutions of equal width


class LeanBranch(nn.Module):
    """A unimodal answer at a quarter of a branch's arithmetic: coarse features added to fine ones, and a light head."""

    def __init__(self, channels: tuple[int, ...], scale: str, classes: int) -> None:
        super().__init__()
        c3, c4, c5 = channels
        self.up = nn.Upsample(None, 2, "nearest")
        self.top5 = Conv(c5, c4, 1)
        self.top4 = Conv(c4, c3, 1)
        self.head = LeanHead(nc=classes, ch=channels)

    def forward(self, features: list[Tensor]) -> Any:
        """Features at the three strides -> what `ultralytics.nn.modules.Detect` returns for them."""
        p3, p4, p5 = features
        p4 = p4 + self.up(self.top5(p5))
        return self.head([p3 + self.up(self.top4(p4)), p4, p5])
