"""Starting both streams and every answer from the weights of a plain detector of the same family and scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rscmd_model.errors import several
from rscmd_model.network.checkpoint import Detector, activations, read_detector
from rscmd_model.network.families import find_family
from rscmd_model.network.lean import LeanBranch
from rscmd_model.network.model import RscmdModel


@dataclass(frozen=True)
class Loaded:
    """What of a model came from a file.

    Attributes:
        parts: by part of the model ("visible backbone", "fused class head"), how many of its numbers came from the
            file, and how many it has. Counters do not count.
        classes: names of the classes whose outputs are the file's.
        unknown: names of the classes whose outputs kept their random start.
        kept: names of the tensors that kept their start, or a part of it.
        new_norms: names of the BatchNorm layers whose statistics did.
        other: names of the model's convolutions that are followed by another activation than in the file.
    """

    parts: Mapping[str, tuple[int, int]]
    classes: tuple[str, ...]
    unknown: tuple[str, ...]
    kept: tuple[str, ...]
    other: tuple[str, ...] = ()

    @property
    def new_norms(self) -> tuple[str, ...]:
        return tuple(name.removesuffix(".running_var") for name in self.kept if name.endswith(".running_var"))

    def __str__(self) -> str:
        lines = [f"{part}: {came:,} of {there:,} numbers" for part, (came, there) in self.parts.items()]
        if self.classes:
            lines.append(f"outputs by name for {several(self.classes)}")
        if self.unknown:
            lines.append(f"random outputs for {several(self.unknown)}")
        if self.other:
            lines.append(f"the activation is not the file's after {several(self.other, 4)}")
        return "\n  ".join(lines)


def load_weights(model: RscmdModel, weights: str | Path | Detector, only: str | None = None) -> Loaded:
    """Start every backbone, neck and head of `model` from a plain detector.

    The thermal stem's filters are the sum over the colour channels, which gives a grey image the same response. The
    outputs for a class are those of the file's class of that name, whatever the case of its letters. A lean branch
    takes what has the same place and shape. What is left keeps its start.

    Args:
        model: the network; its family and scale must be the file's.
        weights: path of an ultralytics checkpoint, or what `read_detector` made of it.
        only: "visible" or "thermal": start nothing but this camera's backbone and its own branch.

    Raises:
        UserError: as `read_detector`, or another family or scale.
    """
    detector = weights if isinstance(weights, Detector) else read_detector(weights)
    detector.check_size(model.config.family, model.config.scale)
    rows = _same_classes(model.names, detector.names) if _towers_fit(model, detector) else {}
    parts: dict[str, tuple[int, int]] = {}
    kept = []
    with torch.no_grad():
        for name, target in model.state_dict().items():
            if only and name.split(".")[1] != only:
                continue
            came = _copy(target, name, _value(model, name, detector), rows)
            if not target.is_floating_point():  # a count of steps: of BatchNorm, or of what a method draws
                continue
            part = _part(name)
            before, there = parts.get(part, (0, 0))
            parts[part] = (before + came, there + target.numel())
            if came < target.numel():
                kept.append(name)
    ours, theirs = activations(model), detector.activations
    other = [name for name, act in ours.items() if theirs.get(_source(model, name), act) != act]
    classes, unknown = (tuple(name for n, name in model.names.items() if (n in rows) == came) for came in (True, False))
    return Loaded(parts, classes, unknown, tuple(kept), tuple(other))


def _towers_fit(model: RscmdModel, detector: Detector) -> bool:
    """Whether the last layers of the towers for the classes read as many channels as in the file, or more."""
    return all(
        value.shape[1] >= detector.state[_source(model, name)].shape[1]
        for name, value in model.state_dict().items()
        if _is_class_output(name) and name.endswith("weight")
    )


def _same_classes(ours: Mapping[int, str], theirs: Mapping[int, str]) -> dict[int, int]:
    """By the number of a class of ours, the number of the class of that name there."""
    numbers = {name.casefold(): number for number, name in theirs.items()}
    return {number: numbers[name.casefold()] for number, name in ours.items() if name.casefold() in numbers}


def _value(model: RscmdModel, name: str, detector: Detector) -> Tensor | None:
    """What the file has for a tensor of the model."""
    value = detector.state.get(_source(model, name))
    if value is not None and name.startswith("backbones.thermal.b0.conv"):
        value = value.sum(1, keepdim=True)
    return value


def _copy(target: Tensor, name: str, value: Tensor | None, rows: Mapping[int, int]) -> int:
    """Put what fits of `value` into `target`. Returns how many numbers came."""
    if value is None:
        return 0
    if _is_class_output(name):
        value = _widened(value, (len(value), *target.shape[1:]), 0)
        if value.shape[1:] != target.shape[1:]:
            return 0
        for ours, theirs in rows.items():
            target[ours] = value[theirs]
        return len(rows) * target[0].numel()
    if ".head.cv3." in name:
        value = _widened(value, target.shape, 1 if name.endswith("running_var") else 0)
    if value.shape != target.shape:
        return 0
    target.copy_(value)
    return target.numel()


def _widened(value: Tensor, shape: Sequence[int], rest: float) -> Tensor:
    """The tensor of a narrower class tower as part of a wider one, whose further channels give nothing.

    Their filters, scales and offsets are 0, and so is what they answer. Where a side is longer than in `shape`, the
    tensor is given back as it is.
    """
    if value.ndim != len(shape) or any(have > room for have, room in zip(value.shape, shape)):
        return value
    wide = value.new_full(tuple(shape), rest)
    wide[tuple(slice(side) for side in value.shape)] = value
    return wide


def _is_class_output(name: str) -> bool:
    """Whether a tensor has a row for each class: the last layer, number 2, of a tower for the classes."""
    return ".head.cv3." in name and name.rsplit(".", 2)[1] == "2"


def _source(model: RscmdModel, name: str) -> str:
    """The name in a plain detector of what has this name here: backbones.thermal.b4.x is model.4.x there.

    branches.fused.n12.x is model.12.x and branches.fused.head.x is model.22.x, of YOLOv8.
    """
    kind, _, rest = name.partition(".")
    branch, _, rest = rest.partition(".")
    part, _, rest = rest.partition(".")
    numbers = find_family(model.config.family).coco_layers
    if kind not in ("backbones", "branches") or part not in numbers:
        return name
    if kind == "branches" and isinstance(model.branches[branch], LeanBranch):
        rest = _of_lean_head(rest)
    return f"model.{numbers[part]}.{rest}"


def _of_lean_head(rest: str) -> str:
    """The name in a plain head of a tensor of a `LeanHead`, whose towers for the boxes lack their second layer."""
    words = rest.split(".")
    if words[0] == "cv2" and words[2] == "1":
        words[2] = "2"
    return ".".join(words)


def _part(name: str) -> str:
    """Which part of the model a tensor is of, for people."""
    kind, which, *rest = name.split(".")
    if kind == "backbones":
        return f"{which} backbone"
    if kind != "branches":
        return kind
    if rest[0] != "head":
        return f"{which} neck"
    return f"{which} class head" if rest[1] == "cv3" else f"{which} box head"
