"""A finished model that another one learns from, known by its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rscmd_model.errors import UserError
from rscmd_model.files import sha256_of
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import load_model

_Frozen = TypeVar("_Frozen", bound="FrozenModel")


class FrozenModel:
    """A finished model in evaluation mode, without a gradient.

    A model that learns from it bears it as a plain attribute, so that neither the optimizer nor the moving average nor
    the model file sees it. A checkpoint, and what goes to another process, has the file's name and digest alone, see
    `reopened`.

    Args:
        file: model.safetensors.
        sha256: of its content, where it is known what it has to be.

    Attributes:
        network: the model.
        header: what its file says of it.

    Raises:
        UserError: as `load_model`, or it is another file than the digest says.
    """

    def __init__(self, file: str | Path, sha256: str | None = None) -> None:
        self.file = Path(file).resolve()
        if sha256 and not self.file.is_file():
            raise UserError(f"no {self.file}, the model that this training learns from: put it back")
        self.network, self.header = load_model(self.file)
        self.network.requires_grad_(False)
        self.sha256 = sha256_of(self.file)
        if sha256 not in (None, self.sha256):
            raise UserError(f"{self.file} is not the model any more that this training began with: put that one back")

    def __deepcopy__(self, memo: Any) -> FrozenModel:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "sha256": self.sha256}

    def reopened(self: _Frozen) -> _Frozen:
        """The same model, read again where this is what a checkpoint has of it.

        Raises:
            UserError: as the class.
        """
        return self if hasattr(self, "network") else type(self)(self.file, self.sha256)

    def beside(self, x: Tensor) -> RscmdModel:
        """The network on the device of a batch, in its memory format.

        Args:
            x: (B, 4, H, W).
        """
        last = x.is_contiguous(memory_format=torch.channels_last)
        return self.network.to(x.device, memory_format=torch.channels_last if last else torch.contiguous_format)
