"""The network: two YOLOv8 streams, fusion by sum at strides 8, 16 and 32, a neck and head for each answer it gives."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv, Detect
from ultralytics.nn.tasks import BaseModel
from ultralytics.utils.torch_utils import fuse_conv_and_bn, initialize_weights

from rscmd_model.config import MODALITIES, Augmentation, ModelConfig
from rscmd_model.network.families import find_family

# Checkpoints of earlier versions name these layers as this module's.
from rscmd_model.network.lean import LeanBranch, LeanHead
from rscmd_model.network.yolov8 import Backbone, Branch, Head
from rscmd_model.objective import Objective, decouple

__all__ = ["STRIDES", "Adapter", "Backbone", "Branch", "Head", "LeanBranch", "LeanHead", "RscmdModel"]

STRIDES = (8, 16, 32)
_CHANNELS = {"visible": slice(0, 3), "thermal": slice(3, 4)}

_Part = TypeVar("_Part", bound=nn.Module)


def _drawn(name: str, build: Callable[..., _Part], *args: Any) -> _Part:
    """`build(*args)`, a part whose random start depends on torch's seed and its own name alone.

    So the methods of one seed share one initialisation: the visible backbone of every model starts the same, whatever
    else the model has.
    """
    seed = torch.initial_seed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((seed + zlib.crc32(name.encode())) % 2**63)
        return build(*args)


class Adapter(nn.ModuleList):
    """One modality's own 1x1 convolution (with BatchNorm) at each stride, on what the fused branch is to read."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__(Conv(c, c, 1, act=False) for c in channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features at the three strides -> the same shapes."""
        return [layer(f) for layer, f in zip(self, features)]


class RscmdModel(BaseModel):
    """An RGB-thermal detector trained by RSC-MD, or one of its controls.

    Args:
        config: architecture and objective.
        names: class names by index.

    The input is (B, 4, H, W) in [0, 1]: red, green, blue, thermal. H and W are multiples of 32.
    """

    def __init__(self, config: ModelConfig, names: dict[int, str]) -> None:
        super().__init__()
        self.config = config
        self.augmentation = Augmentation()  # the trainer sets it; it travels with the model, into checkpoints too
        self.names = dict(names)
        self.nc = len(names)
        self.task = "detect"
        self.yaml = {**config.to_dict(), "nc": self.nc, "channels": 4}
        self.criterion: Objective | None = None
        family = find_family(config.family)
        channels = family.channels(config.scale)
        self.backbones, self.branches, self.adapters = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for m in config.modalities:
            self.backbones[m] = _drawn(f"backbone {m}", family.Backbone, 3 if m == "visible" else 1, config.scale)
            if config.fusion == "adapt":
                self.adapters[m] = _drawn(f"adapter {m}", Adapter, channels)
        for name in config.taught if config.rsc != "shared" else ("fused",):
            lean = config.rsc in ("own", "aux") and config.branch == "lean" and name != "fused"
            kind = family.LeanBranch if lean else family.Branch
            self.branches[name] = _drawn(f"branch {name}", kind, channels, config.scale, self.nc)
        self.progress = 0.0  # share of the training that is over; set by the trainer
        self.stride = torch.tensor(STRIDES, dtype=torch.float32)
        for head in self.heads():
            head.stride = self.stride.clone()
            head.bias_init()
        initialize_weights(self)

    def heads(self) -> list[Detect]:
        """The detection heads, the main answer's first."""
        return [branch.head for branch in self.branches.values()]

    @property
    def model(self) -> list[Detect]:
        """Where the ultralytics engine looks for the head: `model.model[-1]`."""
        return [self.branches[self.config.branches[0]].head]

    def branch(self, name: str) -> nn.Module:
        """The neck and head that give the answer `name`: with rsc "shared" the fused one gives them all."""
        return self.branches[name if name in self.branches else "fused"]

    def features(self, x: Tensor, modality: str) -> list[Tensor]:
        """Features of one modality, at strides 8, 16 and 32, from the 4-channel stack."""
        return self.backbones[modality](x[:, _CHANNELS[modality]])

    def answers(self, x: Tensor, names: Iterable[str] | None = None) -> dict[str, Any]:
        """The answers of some branches ("fused", "visible", "thermal") to a batch of stacks.

        By default all that there are, in training all that are taught. Only what the named branches need is computed: a
        unimodal answer runs one backbone.
        """
        wanted = tuple(names or (self.config.taught if self.training else self.config.branches))
        needed = self.config.modalities if "fused" in wanted else [m for m in self.config.modalities if m in wanted]
        alone = {m: self.features(x, m) for m in needed}
        out: dict[str, Any] = {}
        if "fused" in wanted:
            to_fuse = dict(alone)
            for m in MODALITIES:  # one modality's features, once for the fused branch, once for its own
                to_fuse[m], alone[m] = decouple(alone[m], self.decoupling())
            if self.training and self.augmentation.modality_dropout:
                to_fuse = self._drop_modalities(x, to_fuse)
            to_fuse = {m: self.adapters[m](f) if m in self.adapters else f for m, f in to_fuse.items()}
            fused = [v + t for v, t in zip(to_fuse["visible"], to_fuse["thermal"])]
            out["fused"] = self.branch("fused")(fused)
            if self.config.rsc == "aux":
                alone = dict.fromkeys(MODALITIES, fused)
        out.update({m: self.branch(m)(alone[m]) for m in MODALITIES if m in wanted})
        return out

    def decoupling(self) -> str:
        """The modality decoupling in force: the config's md in its share of the training, "off" otherwise."""
        c = self.config
        return c.md if self.training and c.md_from <= self.progress < c.md_until else "off"

    def _drop_modalities(self, x: Tensor, to_fuse: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """Modality dropout: in some samples, one camera's features are replaced by those of a black image.

        Only what the fused branch reads is replaced, so a unimodal branch is never taught to find objects in a black
        image. The black image's features are those that evaluation would compute (running statistics), and no gradient
        goes through them: there is nothing to be learnt about a camera from an image of nothing.
        """
        draw = torch.rand(len(x), device=x.device) / self.augmentation.modality_dropout  # below 1: a camera is lost
        out: dict[str, list[Tensor]] = {}
        for m, lost in zip(MODALITIES, (draw < 0.5, (draw >= 0.5) & (draw < 1))):
            norms = [n for n in self.backbones[m].modules() if isinstance(n, nn.BatchNorm2d) and n.training]
            for norm in norms:
                norm.training = False
            with torch.no_grad():
                black = self.features(torch.zeros_like(x[:1]), m)
            for norm in norms:
                norm.training = True
            out[m] = [torch.where(lost.view(-1, 1, 1, 1), b.to(f.dtype), f) for b, f in zip(black, to_fuse[m])]
        return out

    def predict(self, x: Tensor, profile: bool = False, augment: bool = False, embed: Any = None) -> Any:
        """What the ultralytics engine calls: every answer in training, the main one in evaluation."""
        main = self.config.branches[0]
        return self.answers(x) if self.training else self.answers(x, [main])[main]

    def init_criterion(self) -> Objective:
        """The training objective; called by the ultralytics engine."""
        return Objective(self)

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss (its parts in a vector, times batch size) and each named part, for an ultralytics batch."""
        if self.criterion is None:
            self.criterion = self.init_criterion()
        return self.criterion(self.predict(batch["img"]) if preds is None else preds, batch)

    def set_head_attr(self, **attributes: Any) -> None:
        """Set attributes on every detection head; called by the ultralytics engine."""
        for head in self.heads():
            for name, value in attributes.items():
                setattr(head, name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> RscmdModel:
        nn.Module._apply(self, fn, recurse)  # the parent class moves the plain tensors of one head; here are several
        for head in self.heads():
            head.stride, head.anchors, head.strides = fn(head.stride), fn(head.anchors), fn(head.strides)
        return self

    def is_fused(self) -> bool:
        """Whether BatchNorm has been folded into the convolutions."""
        return not any(isinstance(m, Conv) and hasattr(m, "bn") for m in self.modules())

    def fuse(self, verbose: bool = False, imgsz: int = 640) -> RscmdModel:
        """Fold BatchNorm into the convolutions, for inference only."""
        for m in self.modules():
            if isinstance(m, Conv) and hasattr(m, "bn"):
                m.conv = fuse_conv_and_bn(m.conv, m.bn)
                delattr(m, "bn")
                m.forward = m.forward_fuse
        return self
