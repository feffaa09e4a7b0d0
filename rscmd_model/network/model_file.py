"""`model.safetensors`: the weights of everything shipped and a JSON header that says what they are. No pickle.

The header is the entry "rscmd" of the safetensors metadata; `header.py` describes it. A digest beside it tells a file
that is no longer what was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rscmd_model.errors import UserError
from rscmd_model.files import whole_file
from rscmd_model.network.header import (
    DIGEST,
    HEADER,
    ModelHeader,
    damage,
    parse_header,
    read_header,
    read_metadata,
    read_whole,
    unusable,
)
from rscmd_model.network.model import RscmdModel

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
    text = header.to_json()
    with whole_file(path) as aside:
        # Written by Python, with the permissions of any new file; save_file would let nobody but its user read it.
        aside.write_bytes(_in_order(save(weights, metadata={HEADER: text, DIGEST: _digest(text, weights)})))


def _in_order(content: bytes) -> bytes:
    """The same file with its metadata by name: safetensors has no order, and equal models give equal files."""
    size = 8 + int.from_bytes(content[:8], "little")
    head = json.loads(content[8:size])
    head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[size:]


def load_model(path: str | Path) -> tuple[RscmdModel, ModelHeader]:
    """Load a model file into a model in evaluation mode, float32 on the CPU.

    Raises:
        UserError: as `read_header`, or the weights are not those that were written, are not finite, or do not fit the
            header.
    """
    path = Path(path)
    content = read_whole(path)
    metadata = read_metadata(path, content)
    header = parse_header(path, metadata[HEADER])
    try:
        weights = load(content)
    except (SafetensorError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise damage(path, error) from None
    del content
    if DIGEST in metadata and metadata[DIGEST] != _digest(metadata[HEADER], weights):
        raise damage(path, f"its content is not what its {DIGEST} stands for")
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: weight {name!r} is not finite; copy the file again, or train the model again")
    try:
        with torch.random.fork_rng():  # building draws initial weights: the caller's random state is left alone
            model = RscmdModel(header.config, header.names)
    except UserError as error:  # of a method or setting
        raise unusable(path, header.code_version, error) from None
    try:
        kinds = {k: v.dtype for k, v in model.state_dict().items()}
        if any(kinds.get(k, v.dtype) != v.dtype for k, v in weights.items()):
            raise RuntimeError("of another type")
        model.load_state_dict(weights)
    except RuntimeError:
        raise UserError(f"{path}: its weights do not fit its own header; the file is damaged or was edited") from None
    return model.eval(), header


def _digest(header: str, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header and every weight: name, type, shape, numbers. The order in the file does not matter."""
    digest = hashlib.sha256(header.encode(errors="surrogatepass"))
    for name, tensor in sorted(weights.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode(errors="surrogatepass"))
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
