"""Single-camera controls that nobody trained, for tests of methods that learn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rscmd_model.config import MODALITIES
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.methods import method_config
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import ModelHeader, save_model

NAMES = {0: "person", 1: "car"}


def control(
    folder: Path, modality: str, *, names: dict[int, str] = NAMES, split_hash: str = "abc", scale: str = "n"
) -> Path:
    """The file of one of them."""
    torch.manual_seed(7)
    about: dict[str, Any] = {"data": {"name": "drawn", "split_hash": split_hash}}
    header = ModelHeader(method_config(modality, scale=scale), names, 64, ThermalContract(), **about)
    model = RscmdModel(header.config, names)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.get_buffer("running_mean").uniform_(-0.1, 0.1)
    file = folder / f"{modality}.safetensors"
    save_model(file, model, header)
    return file


def controls(folder: Path, **about: Any) -> dict[str, Path]:
    """The files of both, by modality; `about` as for `control`."""
    return {m: control(folder, m, **about) for m in MODALITIES}
