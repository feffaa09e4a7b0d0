"""`model.safetensors`: the weights of everything shipped and a JSON header that says what they are. No pickle.

The header is the entry "rscmd" of the safetensors metadata; `header.py` describes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rscmd_model.errors import UserError
from rscmd_model.files import whole_file
from rscmd_model.header import HEADER, ModelHeader, damage, read_header
from rscmd_model.model import RscmdModel

__all__ = ["ModelHeader", "load_model", "read_header", "save_model"]


def save_model(path: str | Path, model: RscmdModel, header: ModelHeader) -> None:
    """Write a model file whole: aside first, then renamed.

    Args:
        path: ends in .safetensors; its folder is made if need be.
        model: in any precision; float32 is written. Not fused.
        header: must be of this model.

    Raises:
        UserError: the file cannot be written (folder, permission, full disk).
    """
    weights = {
        k: v.detach().cpu().float().contiguous() if v.is_floating_point() else v.detach().cpu()
        for k, v in model.state_dict().items()
    }
    with whole_file(path) as aside:
        # Written by Python, with the permissions of any new file; save_file would let nobody but its user read it.
        aside.write_bytes(save(weights, metadata={HEADER: header.to_json()}))


def load_model(path: str | Path) -> tuple[RscmdModel, ModelHeader]:
    """Load a model file into a model in evaluation mode, float32 on the CPU.

    Raises:
        UserError: as `read_header`, or the weights do not fit the header.
    """
    header = read_header(path)
    weights: dict[str, Any] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                weights[key] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise UserError(damage(Path(path), error)) from None
    with torch.random.fork_rng():  # building draws initial weights, which must not disturb the caller's random state
        model = RscmdModel(header.config, header.names)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise UserError(f"{path}: its weights do not fit its own header; the file is damaged or was edited") from None
    return model.eval(), header
