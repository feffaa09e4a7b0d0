"""Reading a plain detector of ultralytics, given as a file. Nothing is downloaded, installed, changed or deleted."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv

from rscmd_model.config import FAMILIES, SCALES, check_names
from rscmd_model.errors import UserError, first_line, shown
from rscmd_model.network.families import find_family

_HEADS = {"Segment": "segmentation", "Pose": "pose", "OBB": "oriented boxes", "Classify": "classification"}


@dataclass(frozen=True)
class Detector:
    """A plain detector of ultralytics.

    Attributes:
        family: its layers, a key of `config.FAMILIES`.
        scale: n, s, m, l or x.
        names: class names by index.
        state: float32 weights and statistics by their names there, model.LAYER.REST.
        activations: by the name of each convolution, the kind of its activation.
    """

    family: str
    scale: str
    names: Mapping[int, str]
    state: Mapping[str, Tensor]
    activations: Mapping[str, str]

    def __str__(self) -> str:
        return f"{FAMILIES[self.family]}{self.scale}, {len(self.names)} classes"


def read_detector(path: str | Path) -> Detector:
    """Read an ultralytics detection checkpoint (.pt) of one of `config.FAMILIES`; which one is told by its weights.

    No code from the file is run (only known ultralytics and torch classes are rebuilt, where torch is 2.6 or newer).

    Raises:
        UserError: no such file, damaged, or anything else than such a checkpoint; the message says what it is.
    """
    path = Path(path)
    _check_archive(path)
    model = _load(path)
    kind = type(model.model[-1]).__name__
    if kind in _HEADS:
        raise UserError(f"{path} is a model for {_HEADS[kind]}, not a plain detector: give a {_wanted()}")
    state = {name: value.float() for name, value in model.state_dict().items()}
    if not any(name.endswith(".bn.weight") for name in state):
        raise UserError(f"{path} is a fused checkpoint (its BatchNorm is folded away): give the one it was made from")
    stem = next(iter(state.values()))
    if stem.ndim == 4 and stem.shape[1] != 3:
        raise UserError(f"{path} takes images of {stem.shape[1]} channels: give a {_wanted()} of colour images")
    if broken := next((name for name, value in state.items() if not torch.isfinite(value).all()), None):
        raise UserError(f"{path}: weight {broken!r} is not finite; download or copy it again")
    names = {int(number): str(name) for number, name in dict(model.names).items()}
    check_names(names)
    shapes = {name: value.shape for name, value in state.items()}
    for family in FAMILIES:
        for scale in SCALES:
            # A family's stem is as wide as its scale: few are built to be compared.
            if stem.shape[0] == find_family(family).scaling[scale].channels(64) and shapes == plain_shapes(
                family, scale, len(names)
            ):
                return Detector(family, scale, names, state, activations(model))
    raise UserError(f"{path} is no plain detector of {' or '.join(FAMILIES.values())}: its layers are others")


def plain_shapes(family: str, scale: str, classes: int) -> dict[str, torch.Size]:
    """The tensors of the plain detector of that family, scale and number of classes, by their names there."""
    found = find_family(family)
    with torch.random.fork_rng(devices=[]):
        parts = (found.Backbone(3, scale), found.Branch(found.channels(scale), scale, classes))
    return {
        f"model.{found.coco_layers[layer]}.{rest}": value.shape
        for part in parts
        for name, value in part.state_dict().items()
        for layer, _, rest in [name.partition(".")]
    }


def activations(model: nn.Module) -> dict[str, str]:
    """By the name of each convolution, the kind of its activation."""
    return {name: type(layer.act).__name__ for name, layer in model.named_modules() if isinstance(layer, Conv)}


def _check_archive(path: Path) -> None:
    """Raise `UserError` unless the file is a whole archive as torch.save writes it."""
    if not path.is_file():
        raise UserError(f"no weights file {path} (weights are never downloaded: give the path of a {_wanted()})")
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if start.startswith(b"version https://git-lfs"):
            raise UserError(f"{path} is a Git LFS pointer, not the weights: run git lfs pull where it comes from")
        if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
            raise UserError(f"{path} is an HTML page, not weights: download the file itself")
        if not start.startswith(b"PK"):
            raise UserError(f"{path} is no ultralytics checkpoint: give the path of a {_wanted()}")
        with zipfile.ZipFile(path) as archive:
            members = {Path(name).name for name in archive.namelist()}
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is cut short or damaged ({first_line(error)}): download or copy it again") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if damaged:
        raise UserError(f"{path} is damaged ({damaged}): download or copy it again")
    if "constants.pkl" in members:
        raise UserError(f"{path} is a TorchScript export: give the checkpoint it was made from")
    if "data.pkl" not in members:
        raise UserError(f"{path} is no ultralytics checkpoint: give the path of a {_wanted()}")


def _load(path: Path) -> Any:
    """The model in a checkpoint."""
    from ultralytics.nn.tasks import torch_safe_load

    try:
        # By its full path: ultralytics deletes and downloads again what it cannot read under a bare official name.
        checkpoint, _ = torch_safe_load(os.path.abspath(path), safe_only=True)
    except Exception as error:  # the loader raises many kinds; for the user they are one
        raise UserError(f"{path} is no ultralytics checkpoint: {shown(first_line(error), 300)}") from None
    model = checkpoint.get("ema") or checkpoint.get("model")
    if not isinstance(model, nn.Module):
        raise UserError(f"{path} holds weights without their model (a state dict): give the whole checkpoint")
    layers = getattr(model, "model", None)
    if not isinstance(layers, nn.Sequential):
        raise UserError(f"{path} is no detector of ultralytics but a {type(model).__name__}")
    return model


def _wanted() -> str:
    return " or ".join(f"{family}*.pt" for family in FAMILIES)
