"""Starting both streams from the COCO weights of a plain detector of the same family, given as a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules import Conv, Detect

from rscmd_model.config import FAMILIES
from rscmd_model.errors import UserError
from rscmd_model.network.families import Family, find_family
from rscmd_model.network.model import RscmdModel


@dataclass(frozen=True)
class LoadCount:
    """What came from the file.

    Attributes:
        loaded: how many of the model's tensors.
        kept: names of the tensors that kept their random start.
        other: names of the model's convolutions that are followed by another activation than in the file.
    """

    loaded: int
    kept: tuple[str, ...]
    other: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.loaded} of {self.loaded + len(self.kept)} tensors loaded"
        if self.kept:
            text += f", {len(self.kept)} not: {_some(self.kept)}"
        if self.other:
            text += f"; the activation is not the file's after {_some(self.other)}"
        return text


def load_weights(model: RscmdModel, path: str | Path) -> LoadCount:
    """Start every backbone, neck and head of `model` from an ultralytics detection checkpoint (.pt) of its family.

    The thermal stem's filters are the sum over the colour channels, which gives a grey image the same response.
    Tensors whose shape differs (the class outputs for another number of classes, another scale) keep their start.
    The file is read without running code from it (only known ultralytics and torch classes are rebuilt).

    Raises:
        UserError: no such file, or not a detection checkpoint of the model's family.
    """
    plain = _read(path, model.config.family)
    numbers = find_family(model.config.family).coco_layers
    state = {name: value.float() for name, value in plain.state_dict().items()}
    kept, loaded = [], 0
    with torch.no_grad():
        for name, target in model.state_dict().items():
            value = state.get(_source(name, numbers))
            if value is not None and name.startswith("backbones.thermal.b0.conv"):
                value = value.sum(1, keepdim=True)
            if value is None or value.shape != target.shape:
                kept.append(name)
            else:
                target.copy_(value)
                loaded += 1
    theirs = dict(_activations(plain))
    other = [name for name, act in _activations(model) if theirs.get(_source(name, numbers), act) != act]
    return LoadCount(loaded, tuple(kept), tuple(other))


def _read(path: str | Path, family: str) -> nn.Module:
    """The plain detector in a checkpoint of this family."""
    from ultralytics.nn.tasks import torch_safe_load

    if not Path(path).is_file():
        raise UserError(f"no weights file {path} (weights are never downloaded: give the path of a {family}*.pt)")
    try:
        checkpoint, _ = torch_safe_load(str(path), safe_only=True)
        model: Any = checkpoint.get("ema") or checkpoint["model"]
        layers = _layers((int(number), layer) for number, layer in model.model.named_children())
        model.state_dict()
    except Exception as error:  # the loader raises many kinds; for the user they are one
        raise UserError(f"{path} is no ultralytics checkpoint: {str(error).splitlines()[0]}") from None
    found = next((name for name in FAMILIES if layers == _layers_of(find_family(name))), None)
    if found is None:
        raise UserError(
            f"{path} is an ultralytics checkpoint but not a detector of {' or '.join(FAMILIES.values())}: its layers "
            "are others"
        )
    if found != family:
        raise UserError(f"{path} is {FAMILIES[found]} and the model is {FAMILIES[family]}: give --family {found}")
    return model


def _layers_of(family: Family) -> dict[int, str]:
    """As `_layers`, of the plain detector of a family."""
    with torch.random.fork_rng(devices=[]):
        parts = (family.Backbone(3, "n"), family.Branch(family.channels("n"), "n", 1))
    return _layers((family.coco_layers.get(name, -1), layer) for part in parts for name, layer in part.named_children())


def _layers(layers: Iterator[tuple[int, nn.Module]]) -> dict[int, str]:
    """By its number, the class of each layer that has weights; of a head, the names of its parts."""
    return {
        number: " ".join(name for name, _ in layer.named_children())
        if isinstance(layer, Detect)
        else type(layer).__name__
        for number, layer in layers
        if next(layer.parameters(), None) is not None
    }


def _source(name: str, numbers: Mapping[str, int]) -> str:
    """The name in a plain detector of what has this name here: backbones.thermal.b4.x is model.4.x there.

    branches.fused.n12.x is model.12.x and branches.fused.head.x is model.22.x, of YOLOv8.
    """
    _, _, part, *rest = *name.split(".", 3), "", "", ""
    return f"model.{numbers[part]}.{rest[0]}" if part in numbers else name


def _activations(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Name of each convolution, and the kind of its activation."""
    return ((name, type(layer.act).__name__) for name, layer in model.named_modules() if isinstance(layer, Conv))


def _some(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
