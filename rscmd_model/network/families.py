"""A family of layers: what the streams and their answers are built of. Each is the file of its name in this folder.

`config.FAMILIES` has their names, which are read without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Scale:
    """How large one scale of a family is, as the scales of its yaml in ultralytics say.

    Attributes:
        depth: multiple of how often a block is repeated.
        width: multiple of the numbers of channels.
        most: most channels of a layer, before `width` is applied.
    """

    depth: float
    width: float
    most: int

    def channels(self, number: int) -> int:
        """Channels at this scale of a layer that the yaml gives `number` channels: a multiple of 8."""
        return -(-int(min(number, self.most) * self.width) // 8) * 8

    def repeats(self, number: int) -> int:
        """How often a block is repeated at this scale that the yaml repeats `number` times: 1 or more."""
        return max(round(number * self.depth), 1)


@dataclass(frozen=True)
class Family:
    """A family of layers.

    Attributes:
        scaling: its scales by name.
        features: channels in the yaml of what a backbone gives at strides 8, 16 and 32.
        Backbone: built with (channels of the image, scale); (B, C, H, W) in [0, 1] -> features at the three strides.
        Branch: neck and head of one answer, built with (channels of the features, scale, number of classes); features
            -> what its `head`, an `ultralytics.nn.modules.Detect`, gives.
        LeanBranch: the same for a lean unimodal answer.
        coco_layers: the number in the yaml of each part with weights of a Backbone or Branch, by the part's name. Under
            these numbers the weights lie in a checkpoint of the plain detector.
    """

    scaling: Mapping[str, Scale]
    features: tuple[int, int, int]
    Backbone: type[nn.Module]
    Branch: type[nn.Module]
    LeanBranch: type[nn.Module]
    coco_layers: Mapping[str, int]

    def channels(self, scale: str) -> tuple[int, int, int]:
        """Channels of the features at strides 8, 16 and 32."""
        fine, middle, coarse = (self.scaling[scale].channels(number) for number in self.features)
        return fine, middle, coarse


def find_family(name: str) -> Family:
    """The family of a name in `config.FAMILIES`, or of `config.LINEAR_SPPF`."""
    family: Family = import_module(f"rscmd_model.network.{name}").FAMILY
    return family


def with_classes(branch: nn.Module, classes: int) -> nn.Module:
    """Give a branch's head that many classes and leave the width of its towers as it is.

    Args:
        branch: with a `head`, an `ultralytics.nn.modules.Detect`.
        classes: number of classes.
    """
    head: Any = branch.head
    if classes != head.nc:
        for tower in head.cv3:
            tower[-1] = nn.Conv2d(tower[-1].in_channels, classes, 1)
        head.nc, head.no = classes, classes + 4 * head.reg_max
    return branch


def layer_numbers(backbone: int, neck: Sequence[int], head: int) -> dict[str, int]:
    """`Family.coco_layers` where names carry the numbers: b0, b1, ... in the backbone, n12 and so on in the neck, head.

    Args:
        backbone: how many layers the backbone has.
        neck: numbers of the neck's layers that have weights.
        head: number of the head.
    """
    return {**{f"b{i}": i for i in range(backbone)}, **{f"n{i}": i for i in neck}, "head": head}
