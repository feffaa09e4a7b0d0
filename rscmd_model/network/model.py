"""The network: a backbone for each camera, and a neck and head for each answer it gives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv, Detect
from ultralytics.nn.tasks import BaseModel
from ultralytics.utils.torch_utils import fuse_conv_and_bn, initialize_weights

from rscmd_model.config import LINEAR_SPPF, MODALITIES, Augmentation, ModelConfig
from rscmd_model.errors import UserError
from rscmd_model.methods import method_class
from rscmd_model.methods.base import Features, drawn

# Checkpoints of earlier versions name these layers as this module's.
from rscmd_model.methods.sum import Adapter
from rscmd_model.network.batch_norm import counted_together, replace_norms
from rscmd_model.network.families import find_family, with_classes
from rscmd_model.network.lean import LeanBranch, LeanHead
from rscmd_model.network.lost import rows_with
from rscmd_model.network.objective import Objective
from rscmd_model.network.yolov8 import Backbone, Branch, Head

if TYPE_CHECKING:
    from rscmd_model.network.distillation import OldAnswers
    from rscmd_model.network.memory import Kept
    from rscmd_model.network.teachers import Teachers

__all__ = ["STRIDES", "Adapter", "Backbone", "Branch", "Head", "LeanBranch", "LeanHead", "RscmdModel"]

STRIDES = (8, 16, 32)
_CHANNELS = {"visible": slice(0, 3), "thermal": slice(3, 4)}


class Taught(NamedTuple):
    """What a forward pass of training gives: the features of each modality, and the answers that bear a loss.

    Where samples have lost a camera for good, their features of it are those of a black image, and its own answer is to
    the samples that have it; where none has it, there is no such answer.
    """

    features: dict[str, Features]
    answers: dict[str, Any]


class RscmdModel(BaseModel):
    """An RGB-thermal detector, taught by a method.

    Args:
        config: size, method and answers.
        names: class names by index.

    Attributes:
        teachers: the single-camera controls that the method learns from, where it does; see `Teachers`.
        frozen_statistics: whether a training leaves BatchNorm's running statistics as they are, and normalises by them.
        new_norms: names of the BatchNorm layers to which this does not apply, since their statistics are no data's yet.
        kept: what a training keeps of an earlier one; None where it keeps nothing.
        old: the model that a training goes on from, where its answers are taught; None where they are not.

    The input is (B, 4, H, W) in [0, 1]: red, green, blue, thermal. H and W are multiples of 32.

    Raises:
        UserError: no such method, a setting it does not have, or answers it does not give.
    """

    frozen_statistics = False
    new_norms: tuple[str, ...] = ()
    teachers: Teachers | None = None
    kept: Kept | None = None
    old: OldAnswers | None = None

    def __init__(self, config: ModelConfig, names: dict[int, str]) -> None:
        super().__init__()
        kind = method_class(config.method)
        settings = kind.Settings.read(config.settings)
        if (config.modalities, config.answers) != (kind.modalities, kind.shipped(settings)):
            raise UserError(f"method {config.title} does not give {', '.join(config.answers)} to its modalities")
        self.config = config
        self.augmentation = Augmentation()  # the trainer sets it; it travels with the model, into checkpoints too
        self.names = dict(names)
        self.nc = len(names)
        self.task = "detect"
        self.yaml = {**config.to_dict(), "nc": self.nc, "channels": 4}
        self.criterion: Objective | None = None
        family = find_family(config.family)
        channels = family.channels(config.scale)
        self.backbones, self.branches = nn.ModuleDict(), nn.ModuleDict()
        for m in config.modalities:
            self.backbones[m] = drawn(f"backbone {m}", family.Backbone, 3 if m == "visible" else 1, config.scale)
        method = kind(settings, channels)
        for name, of in method.branches.items():
            branch = family.LeanBranch if of == "lean" else family.Branch
            self.branches[name] = drawn(f"branch {name}", self._branch, branch, channels)
        self.method = method  # after the others: the optimizer's state in a checkpoint follows this order
        self.stride = torch.tensor(STRIDES, dtype=torch.float32)
        for head in self.heads():
            head.stride = self.stride.clone()
            head.bias_init()
        initialize_weights(self)  # it sets BatchNorm's momentum, and knows torch's alone
        replace_norms(self)

    def _branch(self, kind: type[nn.Module], channels: tuple[int, int, int]) -> nn.Module:
        """A neck and head for the model's classes, as wide as for those of `head_classes`."""
        branch = kind(channels, self.config.scale, self.config.head_classes or self.nc)
        return with_classes(branch, self.nc)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Checkpoints from before format 4 call their family yolov8, whose layers were others then.
        sppf: list[Any] = [backbone.get_submodule("b9.cv1") for backbone in self.backbones.values()]
        if self.config.family == "yolov8" and any(isinstance(layer.act, nn.Identity) for layer in sppf):
            self.config = replace(self.config, family=LINEAR_SPPF)

    def train(self, mode: bool = True) -> RscmdModel:
        """As torch's; with `frozen_statistics` BatchNorm normalises by its running statistics and leaves them, but for
        `new_norms`."""
        super().train(mode)
        for name, norm in self.named_modules() if mode and self.frozen_statistics else ():
            if isinstance(norm, nn.BatchNorm2d) and name not in self.new_norms:
                norm.eval()
        return self

    def heads(self) -> list[Detect]:
        """The detection heads, the main answer's first."""
        return [branch.head for branch in self.branches.values()]

    @property
    def model(self) -> list[Detect]:
        """Where the ultralytics trainer looks for the head: `model.model[-1]`."""
        return [self.branches[self.config.answers[0]].head]

    def branch(self, name: str) -> nn.Module:
        """The neck and head that give the answer `name`: where it has none of its own, the fused one's."""
        return self.branches[name if name in self.branches else "fused"]

    def features(self, x: Tensor, modality: str) -> Features:
        """Features of one modality, at strides 8, 16 and 32, from the 4-channel stack."""
        return self.backbones[modality](x[:, _CHANNELS[modality]])

    def answers(self, x: Tensor, names: Iterable[str] | None = None) -> dict[str, Any]:
        """The answers of some branches ("fused", "visible", "thermal") to a batch of stacks.

        By default all that there are, in training all that are taught. Only what the named answers need is computed: a
        unimodal answer runs one backbone.
        """
        wanted = tuple(names or (self.method.taught if self.training else self.config.answers))
        needed = self.config.modalities if "fused" in wanted else [m for m in self.config.modalities if m in wanted]
        return self.answers_to({m: self.features(x, m) for m in needed}, x, wanted)

    def answers_to(
        self, features: dict[str, Features], x: Tensor, wanted: Sequence[str], lost: Tensor | None = None
    ) -> dict[str, Any]:
        """As `answers`, from the features of the modalities that `wanted` needs; `lost` is as for `predict`."""
        fused, alone = None, features
        if "fused" in wanted:
            to_fuse, alone = self.split(features, x)
            seen = x
            if self.training and self.augmentation.modality_dropout:
                seen, to_fuse = self._drop_modalities(x, to_fuse, lost)
            fused = self.method.fuse(self, seen, to_fuse)
        if lost is not None:
            rows = {m: rows_with(m, lost) for m in self.method.unimodal}
            alone = {m: [level[rows[m]] for level in alone[m]] for m in rows}
            wanted = [name for name in wanted if name not in rows or len(rows[name])]
        return {name: self.method.answer(self, name, fused, alone) for name in wanted}

    def split(self, features: dict[str, Features], x: Tensor) -> tuple[dict[str, Features], dict[str, Features]]:
        """Each modality's features for the fusion, and for its own answer, as the method has it."""
        return self.method.split(self, x, features)

    def features_left(self, x: Tensor, modality: str, lost: Tensor) -> Features:
        """As `features`, of the samples that have the modality; the others get those of a black image.

        What is lost moves no statistics and teaches nothing. `lost` is as for `predict`.
        """
        rows = rows_with(modality, lost)
        there = self.features(x[rows], modality) if len(rows) else None
        # After the others: older releases of torch, under autocast, give them the weights of a pass without gradients.
        black = self.black_features(x, modality)
        every = [level.expand(len(x), *level.shape[1:]) for level in black]
        return [b.to(f.dtype).index_copy(0, rows, f) for b, f in zip(every, there)] if there else every

    def black_features(self, x: Tensor, modality: str) -> Features:
        """Features (1, C, H, W) of a black image of the size of `x`.

        They are those that evaluation would compute (running statistics), and no gradient goes through them: there is
        nothing to be learnt about a camera from an image of nothing.
        """
        norms = [n for n in self.backbones[modality].modules() if isinstance(n, nn.BatchNorm2d) and n.training]
        for norm in norms:
            norm.training = False
        with torch.no_grad():
            black = self.features(torch.zeros_like(x[:1]), modality)
        for norm in norms:
            norm.training = True
        return black

    def _drop_modalities(
        self, x: Tensor, to_fuse: dict[str, Features], lost: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Features]]:
        """Modality dropout: some samples lose one camera, in what the fused branch reads and nothing else.

        So a unimodal branch is never taught to find objects in a black image. A sample that has lost a camera for good
        keeps the other one.

        Returns:
            the stacks with black planes where a camera was lost, and the features.
        """
        draw = torch.rand(len(x), device=x.device) / self.augmentation.modality_dropout  # below 1: one is dropped
        if lost is not None:
            draw = draw.masked_fill(lost > 0, 1)
        lost_now = dict(zip(MODALITIES, (draw < 0.5, (draw >= 0.5) & (draw < 1))))
        planes = [x[:, _CHANNELS[m]].masked_fill(gone.view(-1, 1, 1, 1), 0) for m, gone in lost_now.items()]
        return torch.cat(planes, 1), self.without(x, to_fuse, lost_now)

    def without(self, x: Tensor, features: dict[str, Features], lost: Mapping[str, Tensor]) -> dict[str, Features]:
        """Features in which some samples' are replaced by `black_features`.

        Args:
            x: (B, 4, H, W), the batch of stacks.
            features: of each modality.
            lost: (B,) bool for each modality, the samples in which it is lost.
        """
        out: dict[str, Features] = {}
        for m, gone in lost.items():
            black = self.black_features(x, m)
            out[m] = [torch.where(gone.view(-1, 1, 1, 1), b.to(f.dtype), f) for b, f in zip(black, features[m])]
        return out

    def predict(
        self, x: Tensor, profile: bool = False, augment: bool = False, embed: Any = None, lost: Tensor | None = None
    ) -> Any:
        """What the ultralytics trainer calls: a `Taught` in training, the main answer in evaluation.

        In training `lost` (B,) int64 names the camera that each sample has lost for good, see `network.lost`; None says
        that all are complete.

        Of several main answers (`ModelConfig.main`) it is the boxes of all, and by name what else each head gives.
        """
        if not self.training:
            found = self.answers(x, self.config.main)
            if len(found) == 1:
                return next(iter(found.values()))
            # A validation suppresses overlapping boxes of all of them, which comes near to joining them.
            boxes, raw = zip(*found.values())
            return torch.cat(boxes, 2), dict(zip(found, raw))
        with counted_together():
            if lost is None:
                features = {m: self.features(x, m) for m in self.config.modalities}
            else:
                features = {m: self.features_left(x, m, lost) for m in self.config.modalities}
            return Taught(features, self.answers_to(features, x, self.method.taught, lost))

    def init_criterion(self) -> Objective:
        """The training objective; called by the ultralytics trainer."""
        return Objective(self)

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss (its parts in a vector, times batch size) and each named part, for an ultralytics batch.

        Args:
            batch: "img" (B, 4, H, W) in [0, 1], "batch_idx", "cls" and "bboxes" of all objects, and "weights" and
                "lost" as `TrainingStep` has them.
            preds: what `predict` gave for it, if it was called already.
        """
        if self.criterion is None:
            self.criterion = self.init_criterion()
        if preds is None:
            preds = self.predict(batch["img"], lost=batch.get("lost"))
        if isinstance(preds, Taught):
            return self.criterion(self, preds.answers, preds.features, batch)
        return self.criterion.of_main(preds, batch)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As torch's; weights from before there were methods are known by their names of then."""
        renamed = {re.sub(r"^adapters\.", "method.adapters.", name): value for name, value in state_dict.items()}
        return super().load_state_dict(renamed, *args, **kwargs)

    def reopen(self) -> None:
        """Read the models that this one learns from, where it comes from a checkpoint or another process.

        Raises:
            UserError: as `Teachers` and `OldAnswers`.
        """
        self.teachers, self.old = self.teachers and self.teachers.reopened(), self.old and self.old.reopened()

    def set_head_attr(self, **attributes: Any) -> None:
        """Set attributes on every detection head; called by the ultralytics trainer."""
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
