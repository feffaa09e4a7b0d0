"""Frozen detectors of one camera each, which a method learns from. They are no part of the model that learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rscmd_model.config import MODALITIES, ModelConfig
from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.methods.base import Features
from rscmd_model.network.frozen_model import FrozenModel


class Teachers:
    """The two single-camera controls of a student: in evaluation mode, without a gradient.

    A model that learns from them bears them as a plain attribute, so that neither the optimizer nor the moving average
    nor the model file sees them. A checkpoint, and what goes to another process, has their files' names and digests
    alone, see `reopened`.

    Args:
        files: by modality the model.safetensors of its control.
        digests: by modality the file's SHA-256, where it is known what it has to be.

    Raises:
        UserError: a file cannot be read, is no control of its camera, or is another than the digest says.
    """

    def __init__(self, files: Mapping[str, Path], digests: Mapping[str, str] | None = None) -> None:
        self._models = {m: FrozenModel(files[m], (digests or {}).get(m)) for m in MODALITIES}
        self.files = {m: model.file for m, model in self._models.items()}
        self.digests = {m: model.sha256 for m, model in self._models.items()}
        for m, model in self._models.items():
            if (config := model.header.config).modalities != (m,):
                raise UserError(
                    f"teacher {model.file} is no detector of the {m} camera alone but {config.title}: give the "
                    f"model.safetensors of --method {m} (first visible, then thermal)"
                )

    def __deepcopy__(self, memo: Any) -> Teachers:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "digests": self.digests}

    def reopened(self) -> Teachers:
        """The same teachers, read again where these are what a checkpoint has of them.

        Raises:
            UserError: as the class.
        """
        return self if hasattr(self, "_models") else Teachers(self.files, self.digests)

    def check(self, config: ModelConfig, names: Mapping[int, str], split_hash: str, thermal: ThermalContract) -> None:
        """Check that they can teach a student.

        Args:
            config: of the student.
            names: its classes.
            split_hash: of the pairs that it is trained on. A teacher that saw others may know the pairs to be scored.
            thermal: how its data's thermal images are read.

        Raises:
            UserError: another size, other classes, another training split or another thermal contract.
        """
        for m, model in self._models.items():
            told, header = f"teacher {self.files[m]}", model.header
            theirs = header.config
            if (theirs.scale, theirs.family) != (config.scale, config.family):
                raise UserError(f"{told} is a {theirs.layers}, and the model a {config.layers}: they have to be alike")
            if list(header.names.values()) != list(names.values()):
                raise UserError(f"{told} finds {', '.join(header.names.values())}; the data have other classes")
            if header.data.get("split_hash") != split_hash:
                raise UserError(
                    f"{told} was trained on another training split than this one: train it on the same data"
                )
            if m == "thermal" and not header.thermal.reads_as(thermal):
                raise UserError(
                    f"{told} reads thermal images by {header.thermal.to_dict()}, and the data have the thermal "
                    f"contract {thermal.to_dict()}: train it on the same data"
                )

    def features(self, x: Tensor) -> dict[str, Features]:
        """Their features by modality, as `RscmdModel.features` gives them.

        Args:
            x: (B, 4, H, W) in [0, 1], the stacks as the student sees them.
        """
        with torch.no_grad():
            return {m: model.beside(x).features(x, m) for m, model in self._models.items()}

    def answers(self, features: Mapping[str, Features]) -> dict[str, dict[str, Tensor]]:
        """What their heads say to `features`, by modality: "boxes" (B, 4 bins, N) and "scores" (B, classes, N)."""
        with torch.no_grad():
            return {m: model.network.branch(m)(features[m])[1] for m, model in self._models.items()}

    def backbone(self, modality: str) -> torch.nn.Module:
        """The backbone of one of them."""
        return self._models[modality].network.backbones[modality]
