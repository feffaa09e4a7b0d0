"""`model.safetensors`: the weights of everything shipped and a JSON header that says what they are. No pickle.

The header is the entry "rscmd" of the safetensors metadata. It grows by new keys. A file has the lowest format version
whose reader does not misread it: a reader of version 1 would stretch thermal images where a registration is asked for,
so a file with one has version 2, and every other file stays readable for both.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rscmd_model import __version__
from rscmd_model.config import ModelConfig
from rscmd_model.errors import UserError
from rscmd_model.files import whole_file
from rscmd_model.model import RscmdModel
from rscmd_model.registration import Registration
from rscmd_model.thermal import ThermalContract

FORMAT_VERSION = 2  # the newest this reader knows
_HEADER = "rscmd"


@dataclass(frozen=True)
class ModelHeader:
    """What a model file says of itself.

    Attributes:
        config: architecture and objective.
        names: class names by index.
        image_size: longer side in pixels at which the network was trained, a multiple of 32.
        thermal: the thermal contract of its training data.
        data: name of the training data and hash of its train split, {"name": ..., "split_hash": ...}.
        metrics: figures of its own validation during training, by name; empty if none.
        registration: where thermal pixels lay in the visible images of the training data; None where they were aligned.
        code_version: version of this package that wrote the file.
    """

    config: ModelConfig
    names: dict[int, str]
    image_size: int
    thermal: ThermalContract
    data: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    registration: Registration | None = None
    code_version: str = __version__

    @property
    def format_version(self) -> int:
        """Version of the file's format; see the module."""
        return 1 if self.registration is None else 2

    def to_json(self) -> str:
        """One JSON object."""
        plain = {**asdict(self), "config": self.config.to_dict(), "thermal": self.thermal.to_dict()}
        plain["format_version"] = self.format_version
        del plain["registration"]
        if self.registration is not None:
            plain["registration"] = self.registration.to_dict()
        return json.dumps(plain, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> ModelHeader:
        """Read `to_json`'s output.

        Raises:
            KeyError, TypeError, ValueError, UserError: something is missing or of the wrong form.
        """
        plain = json.loads(text)
        return ModelHeader(
            # Files from before there were lean branches do not name the kind they have.
            config=ModelConfig.from_dict({"branch": "full", **plain["config"]}),
            names={int(k): str(v) for k, v in plain["names"].items()},
            image_size=int(plain["image_size"]),
            thermal=ThermalContract.from_dict(plain["thermal"]),
            data=dict(plain["data"]),
            metrics=dict(plain["metrics"]),
            registration=Registration.from_dict(plain["registration"]) if plain.get("registration") else None,
            code_version=str(plain["code_version"]),
        )


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
        aside.write_bytes(save(weights, metadata={_HEADER: header.to_json()}))


def read_header(path: str | Path) -> ModelHeader:
    """The header alone; costs no more than opening the file.

    Raises:
        UserError: no such file; cut short; not one of ours; or written by a newer version. The message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no model file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(_damage(path, error)) from None
    if _HEADER not in metadata:
        raise UserError(f"{path} is a safetensors file but not a model of rscmd_model (it has no {_HEADER!r} header)")
    try:
        version = json.loads(metadata[_HEADER])["format_version"]
        if version > FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {version}, newer than the {FORMAT_VERSION} that rscmd_model {__version__} "
                "reads: update rscmd_model"
            )
        return ModelHeader.from_json(metadata[_HEADER])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has a damaged header ({error!r}): export or train the model again") from None


def _damage(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its JSON header (8 bytes, little endian) and "{".
    if len(start) == 9 and start[8:] == b"{":
        return f"{path} is cut short or damaged ({size} bytes; {error}): copy it again"
    return f"{path} is not a model file: expected the model.safetensors that rscmd_model.train writes"


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
        raise UserError(_damage(Path(path), error)) from None
    with torch.random.fork_rng():  # building draws initial weights, which must not disturb the caller's random state
        model = RscmdModel(header.config, header.names)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise UserError(f"{path}: its weights do not fit its own header; the file is damaged or was edited") from None
    return model.eval(), header
