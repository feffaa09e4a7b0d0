"""YOLOv8's layers. Their names carry the layer numbers of yolov8.yaml: `b4` is its layer 4, `n12` its layer 12."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from ultralytics.nn.modules import SPPF, C2f, Concat, Conv, Detect

from rscmd_model.network.families import Family, Scale, layer_numbers
from rscmd_model.network.lean import LeanBranch

SCALING = {
    "n": Scale(0.33, 0.25, 1024),
    "s": Scale(0.33, 0.50, 1024),
    "m": Scale(0.67, 0.75, 768),
    "l": Scale(1.00, 1.00, 512),
    "x": Scale(1.00, 1.25, 512),
}


class Backbone(nn.Module):
    """YOLOv8's backbone for one modality."""

    def __init__(self, channels: int, scale: str) -> None:
        super().__init__()
        w = {c: SCALING[scale].channels(c) for c in (64, 128, 256, 512, 1024)}
        d = {r: SCALING[scale].repeats(r) for r in (3, 6)}
        self.b0 = Conv(channels, w[64], 3, 2)
        self.b1 = Conv(w[64], w[128], 3, 2)
        self.b2 = C2f(w[128], w[128], d[3], True)
        self.b3 = Conv(w[128], w[256], 3, 2)
        self.b4 = C2f(w[256], w[256], d[6], True)
        self.b5 = Conv(w[256], w[512], 3, 2)
        self.b6 = C2f(w[512], w[512], d[6], True)
        self.b7 = Conv(w[512], w[1024], 3, 2)
        self.b8 = C2f(w[1024], w[1024], d[3], True)
        self.b9 = SPPF(w[1024], w[1024], 5)
        self.b9.cv1.act = nn.SiLU()  # published YOLOv8 has it; some releases of ultralytics leave it out

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) in [0, 1], H and W multiples of 32 -> features at strides 8, 16 and 32."""
        p3 = self.b4(self.b3(self.b2(self.b1(self.b0(x)))))
        p4 = self.b6(self.b5(p3))
        return [p3, p4, self.b9(self.b8(self.b7(p4)))]


class Head(Detect):
    """The decoupled anchor-free head in the form that YOLOv8 uses."""

    legacy = True


class Branch(nn.Module):
    """Neck and head of one answer; `head` is layer 22."""

    def __init__(self, channels: tuple[int, ...], scale: str, classes: int) -> None:
        super().__init__()
        c3, c4, c5 = channels
        d = SCALING[scale].repeats(3)
        self.up = nn.Upsample(None, 2, "nearest")
        self.cat = Concat(1)
        self.n12 = C2f(c5 + c4, c4, d)
        self.n15 = C2f(c4 + c3, c3, d)
        self.n16 = Conv(c3, c3, 3, 2)
        self.n18 = C2f(c3 + c4, c4, d)
        self.n19 = Conv(c4, c4, 3, 2)
        self.n21 = C2f(c4 + c5, c5, d)
        self.head = Head(nc=classes, ch=channels)

    def forward(self, features: list[Tensor]) -> Any:
        """Features at the three strides -> what `ultralytics.nn.modules.Detect` returns for them."""
        p3, p4, p5 = features
        n4 = self.n12(self.cat([self.up(p5), p4]))
        n3 = self.n15(self.cat([self.up(n4), p3]))
        n4 = self.n18(self.cat([self.n16(n3), n4]))
        return self.head([n3, n4, self.n21(self.cat([self.n19(n4), p5]))])


FAMILY = Family(
    scaling=SCALING,
    features=(256, 512, 1024),
    Backbone=Backbone,
    Branch=Branch,
    LeanBranch=LeanBranch,
    coco_layers=layer_numbers(backbone=10, neck=(12, 15, 16, 18, 19, 21), head=22),
)
