"""Frozen detectors of one camera each, which a method learns from. They are no part of the model that learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rscmd_model.config import MODALITIES, ModelConfig
from rscmd_model.errors import UserError
from rscmd_model.files import sha256_of
from rscmd_model.methods.base import Features
from rscmd_model.network.header import read_header
from rscmd_model.network.model_file import load_model


class Teachers:
    """The two single-camera controls of a student: in evaluation mode, without a gradient.

    A model that learns from them bears them as a plain attribute, so that neither the optimizer nor the moving average
    nor the model file sees them. A checkpoint has their files' names and digests alone, see `reopened`.

    Args:
        files: by modality the model.safetensors of its control.
        digests: by modality the file's SHA-256, where it is known what it has to be.

    Raises:
        UserError: a file cannot be read, is no control of its camera, or is another than the digest says.
    """

    def __init__(self, files: Mapping[str, Path], digests: Mapping[str, str] | None = None) -> None:
        self.files = {m: Path(files[m]).resolve() for m in MODALITIES}
        self.headers, self._networks = {}, {}
        for m, file in self.files.items():
            self.headers[m] = header = read_header(file)
            if header.config.modalities != (m,):
                raise UserError(
                    f"teacher {file} is no detector of the {m} camera alone but {header.config.title}: give the "
                    f"model.safetensors of --method {m} (first visible, then thermal)"
                )
            self._networks[m] = load_model(file)[0].requires_grad_(False)
        self.digests = {m: sha256_of(file) for m, file in self.files.items()}
        for m, digest in (digests or {}).items():
            if self.digests[m] != digest:
                raise UserError(f"teacher {self.files[m]} is not the file any more that the run began with")

    def __deepcopy__(self, memo: Any) -> Teachers:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "digests": self.digests}

    def reopened(self) -> Teachers:
        """The same teachers, from what a checkpoint has of them.

        Raises:
            UserError: as the class.
        """
        return Teachers(self.files, self.digests)

    def check(self, config: ModelConfig, names: Mapping[int, str], split_hash: str) -> None:
        """Check that they can teach a student.

        Args:
            config: of the student.
            names: its classes.
            split_hash: of the pairs that it is trained on. A teacher that saw others may know the pairs to be scored.

        Raises:
            UserError: another size, other classes or another training split.
        """
        for m, header in self.headers.items():
            told = f"teacher {self.files[m]}"
            theirs = header.config
            if (theirs.scale, theirs.family) != (config.scale, config.family):
                raise UserError(f"{told} is a {theirs.layers}, and the model a {config.layers}: they have to be alike")
            if list(header.names.values()) != list(names.values()):
                raise UserError(f"{told} finds {', '.join(header.names.values())}; the data have other classes")
            if header.data.get("split_hash") != split_hash:
                raise UserError(
                    f"{told} was trained on another training split than this one: train it on the same data"
                )

    def features(self, x: Tensor) -> dict[str, Features]:
        """Their features by modality, as `RscmdModel.features` gives them.

        Args:
            x: (B, 4, H, W) in [0, 1], the stacks as the student sees them.
        """
        found = {}
        for m, network in self._networks.items():
            with torch.no_grad():
                found[m] = network.to(x.device, memory_format=_format(x)).features(x, m)
        return found

    def answers(self, features: Mapping[str, Features]) -> dict[str, dict[str, Tensor]]:
        """What their heads say to `features`, by modality: "boxes" (B, 4 bins, N) and "scores" (B, classes, N)."""
        with torch.no_grad():
            return {m: network.branch(m)(features[m])[1] for m, network in self._networks.items()}

    def backbone(self, modality: str) -> torch.nn.Module:
        """The backbone of one of them."""
        return self._networks[modality].backbones[modality]


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
