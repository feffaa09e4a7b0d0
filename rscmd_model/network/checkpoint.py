"""Reading a plain detector of ultralytics, given as a file. Nothing is downloaded, installed, changed or deleted."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv

from rscmd_model.config import FAMILIES, SCALES, check_names
from rscmd_model.errors import UserError, first_line, several, shown
from rscmd_model.network.families import find_family

# A word in the class of its last layer -> what a model is for.
_HEADS = {"Segment": "segmentation", "Pose": "pose", "OBB": "oriented boxes", "Classify": "classification"}

# What zipfile raises for archives whose bytes were changed.
_DAMAGE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, struct.error, zlib.error)


@dataclass(frozen=True)
class Detector:
    """A plain detector of ultralytics.

    Attributes:
        file: where it was read.
        family: its layers, a key of `config.FAMILIES`.
        scale: n, s, m, l or x.
        names: class names by index.
        state: float32 weights and statistics by their names there, model.LAYER.REST.
        activations: by the name of each convolution, the kind of its activation.
    """

    file: Path
    family: str
    scale: str
    names: Mapping[int, str]
    state: Mapping[str, Tensor]
    activations: Mapping[str, str]

    def __str__(self) -> str:
        return f"{FAMILIES[self.family]}{self.scale}, {len(self.names)} classes"

    def check_size(self, family: str | None, scale: str | None) -> None:
        """Raise `UserError` where another family or scale is asked for; None asks for none."""
        if family not in (None, self.family) or scale not in (None, self.scale):
            asked = FAMILIES.get(family or self.family, FAMILIES["yolov8"]) + (scale or self.scale)
            raise UserError(
                f"{self.file} is {FAMILIES[self.family]}{self.scale} and the model is {asked}: give --family "
                f"{self.family} --scale {self.scale}, or leave both out"
            )


def read_detector(path: str | Path) -> Detector:
    """Read an ultralytics detection checkpoint (.pt) of one of `config.FAMILIES`; which one is told by its weights.

    With torch 2.6 or newer no code from the file is run: numbers, and layers of ultralytics and torch, are all that is
    rebuilt. Older torch cannot tell what a file names before it builds it, and reads it as the pickle that it is: give
    it files of people you trust.

    Raises:
        UserError: no such file, damaged, or anything else than such a checkpoint; the message says what it is.
    """
    path = Path(path)
    _check_archive(path)
    model = _load(path)
    head = type(model.model[-1]).__name__
    if task := next((task for word, task in _HEADS.items() if word in head), None):
        raise UserError(f"{path} is a model for {task}, not a plain detector: give a {_wanted()}")
    state = {name: value.float() for name, value in model.state_dict().items()}
    if not any(name.endswith(".bn.weight") for name in state):
        raise UserError(f"{path} is a fused checkpoint (its BatchNorm is folded away): give the one it was made from")
    stem = next(iter(state.values()))
    if stem.ndim == 4 and stem.shape[1] != 3:
        raise UserError(f"{path} takes images of {stem.shape[1]} channels: give a {_wanted()} of colour images")
    if broken := next((name for name, value in state.items() if not torch.isfinite(value).all()), None):
        raise UserError(f"{path}: weight {broken!r} is not finite; download or copy it again")
    names = _names(path, model)
    shapes = {name: value.shape for name, value in state.items()}
    for family in FAMILIES:
        for scale in SCALES:
            wide = find_family(family).scaling[scale].channels(64)  # of the stem: a quick look before all is built
            if len(stem) == wide and shapes == plain_shapes(family, scale, len(names)):
                return Detector(path, family, scale, names, state, activations(model))
    plan = getattr(model, "yaml", None)
    called = f" but of {shown(plan['yaml_file'])}" if isinstance(plan, dict) and "yaml_file" in plan else ""
    raise UserError(f"{path} is no plain detector of {' or '.join(FAMILIES.values())}{called}: give a {_wanted()}")


def plain_shapes(family: str, scale: str, classes: int) -> dict[str, torch.Size]:
    """The tensors of the plain detector of that family, scale and number of classes, by their names there."""
    found = find_family(family)
    # Not on the meta device: DFL's arange would there import half of torch's compiler, which takes ten seconds.
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


def _names(path: Path, model: Any) -> dict[int, str]:
    """The names of a model's classes by number."""
    names: Any = getattr(model, "names", None)
    try:
        found = {
            int(number): str(name)
            for number, name in (dict(enumerate(names)) if isinstance(names, list) else dict(names)).items()
        }
        check_names(found)
    except (TypeError, ValueError):
        raise UserError(f"{path} does not name its classes: give a {_wanted()}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found


def _check_archive(path: Path) -> None:
    """Raise `UserError` unless the file is a whole archive as torch.save writes it."""
    if not path.is_file():
        raise UserError(f"no weights file {path} (weights are never downloaded: give the path of a {_wanted()})")
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if not start:
            raise UserError(f"{path} is empty: download or copy it again")
        if start.startswith(b"version https://git-lfs"):
            raise UserError(f"{path} is a Git LFS pointer, not the weights: run git lfs pull where it comes from")
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<"):
            raise UserError(f"{path} is an HTML page, not weights: download the file itself")
        if not start.startswith(b"PK"):
            raise UserError(f"{path} is no ultralytics checkpoint: give the path of a {_wanted()}")
        with zipfile.ZipFile(path) as archive:
            members = {Path(name).name for name in archive.namelist()}
            damaged = archive.testzip()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except _DAMAGE as error:
        raise UserError(f"{path} is cut short or damaged ({first_line(error)}): download or copy it again") from None
    if damaged:
        raise UserError(f"{path} is damaged ({shown(damaged)}): download or copy it again")
    if "constants.pkl" in members:
        raise UserError(f"{path} is a TorchScript export: give the checkpoint it was made from")
    if "data.pkl" not in members:
        raise UserError(f"{path} is no ultralytics checkpoint: give the path of a {_wanted()}")


def _load(path: Path) -> Any:
    """The model in a checkpoint."""
    # Not torch_safe_load, which installs packages that a file names, and which deletes and downloads again what it
    # cannot read or find: also a file whose path has an apostrophe, or which is called yolov5n.pt.
    from ultralytics.nn.tasks import _SafeLoad

    try:
        if not _SafeLoad.SUPPORTED:
            checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        else:
            with _SafeLoad.loading(path):
                _check_classes(path)
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # the loader raises many kinds; for the user they are one
        raise UserError(f"{path} is no ultralytics checkpoint ({shown(first_line(error), 300)})") from None
    model = checkpoint.get("ema") or checkpoint.get("model") if isinstance(checkpoint, dict) else checkpoint
    if not isinstance(model, nn.Module):
        raise UserError(f"{path} holds weights without their model (a state dict): give the whole checkpoint")
    layers = getattr(model, "model", None)
    if not isinstance(layers, nn.Sequential) or not layers:
        raise UserError(f"{path} is no detector of ultralytics but a {type(model).__name__}: give a {_wanted()}")
    return model


def _check_classes(path: Path) -> None:
    """Raise `UserError` where a checkpoint names other classes than those that are allowed by now."""
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if any(name.startswith("rscmd_model.") for name in foreign):
        raise UserError(
            f"{path} is of a training of rscmd_model: go on with it by resume={path}, or give a {_wanted()}"
        )
    if foreign:
        raise UserError(f"{path} is no ultralytics checkpoint (it needs {several(foreign, 3)}): give a {_wanted()}")


def _wanted() -> str:
    return " or ".join(f"{family}*.pt" for family in FAMILIES)
