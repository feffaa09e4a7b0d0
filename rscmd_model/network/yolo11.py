"""YOLO11's layers. Their names carry the layer numbers of yolo11.yaml: `b4` is its layer 4, `n13` its layer 13."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from ultralytics.nn.modules import C2PSA, SPPF, C3k2, Concat, Conv, Detect

from rscmd_model.network import lean
from rscmd_model.network.families import Family, Scale, layer_numbers

SCALING = {
    "n": Scale(0.50, 0.25, 1024),
    "s": Scale(0.50, 0.50, 1024),
    "m": Scale(0.50, 1.00, 512),
    "l": Scale(1.00, 1.00, 512),
    "x": Scale(1.00, 1.50, 512),
}
_WITH_C3K = ("m", "l", "x")  # at these scales every C3k2 has C3k blocks inside, whatever the yaml says


class Backbone(nn.Module):
    """YOLO11's backbone for one modality."""

    def __init__(self, channels: int, scale: str) -> None:
        super().__init__()
        w = {c: SCALING[scale].channels(c) for c in (64, 128, 256, 512, 1024)}
        d = SCALING[scale].repeats(2)
        c3k = scale in _WITH_C3K
        self.b0 = Conv(channels, w[64], 3, 2)
        self.b1 = Conv(w[64], w[128], 3, 2)
        self.b2 = C3k2(w[128], w[256], d, c3k, 0.25)
        self.b3 = Conv(w[256], w[256], 3, 2)
        self.b4 = C3k2(w[256], w[512], d, c3k, 0.25)
        self.b5 = Conv(w[512], w[512], 3, 2)
        self.b6 = C3k2(w[512], w[512], d, True)
        self.b7 = Conv(w[512], w[1024], 3, 2)
        self.b8 = C3k2(w[1024], w[1024], d, True)
        self.b9 = SPPF(w[1024], w[1024], 5)
        self.b9.cv1.act = nn.SiLU()  # published YOLO11 has it; ultralytics leaves it out by itself, for YOLO26
        self.b10 = C2PSA(w[1024], w[1024], d)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) in [0, 1], H and W multiples of 32 -> features at strides 8, 16 and 32."""
        p3 = self.b4(self.b3(self.b2(self.b1(self.b0(x)))))
        p4 = self.b6(self.b5(p3))
        return [p3, p4, self.b10(self.b9(self.b8(self.b7(p4))))]


class Head(Detect):
    """The decoupled anchor-free head in the form that YOLO11 uses."""

    legacy = False


class Branch(nn.Module):
    """Neck and head of one answer; `head` is layer 23."""

    def __init__(self, channels: tuple[int, ...], scale: str, classes: int) -> None:
        super().__init__()
        c3, c4, c5 = channels
        w = SCALING[scale].channels(256)  # the neck's finest features have fewer channels than the backbone's
        d = SCALING[scale].repeats(2)
        c3k = scale in _WITH_C3K
        self.up = nn.Upsample(None, 2, "nearest")
        self.cat = Concat(1)
        self.n13 = C3k2(c5 + c4, c4, d, c3k)
        self.n16 = C3k2(c4 + c3, w, d, c3k)
        self.n17 = Conv(w, w, 3, 2)
        self.n19 = C3k2(w + c4, c4, d, c3k)
        self.n20 = Conv(c4, c4, 3, 2)
        self.n22 = C3k2(c4 + c5, c5, d, True)
        self.head = Head(nc=classes, ch=(w, c4, c5))

    def forward(self, features: list[Tensor]) -> Any:
        """Features at the three strides -> what `ultralytics.nn.modules.Detect` returns for them."""
        p3, p4, p5 = features
        n4 = self.n13(self.cat([self.up(p5), p4]))
        n3 = self.n16(self.cat([self.up(n4), p3]))
        n4 = self.n19(self.cat([self.n17(n3), n4]))
        return self.head([n3, n4, self.n22(self.cat([self.n20(n4), p5]))])


class LeanBranch(lean.LeanBranch):
    """The lean answer, at the width of the neck: the backbone's finest features have twice its channels."""

    def __init__(self, channels: tuple[int, ...], scale: str, classes: int) -> None:
        c3, c4, c5 = channels
        w = SCALING[scale].channels(256)
        super().__init__((w, c4, c5), scale, classes)
        self.narrow = Conv(c3, w, 1)

    def forward(self, features: list[Tensor]) -> Any:
        """As `Branch.forward`."""
        p3, p4, p5 = features
        return super().forward([self.narrow(p3), p4, p5])


FAMILY = Family(
    scaling=SCALING,
    features=(512, 512, 1024),
    Backbone=Backbone,
    Branch=Branch,
    LeanBranch=LeanBranch,
    coco_layers=layer_numbers(backbone=11, neck=(13, 16, 17, 19, 20, 22), head=23),
)
