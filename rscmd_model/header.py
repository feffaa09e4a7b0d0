"""What a model file says of itself: one JSON object, the same in every format. Reading it needs no torch.

The header grows by new keys. A file has the lowest format version whose reader does not misread it: a reader of
version 1 would stretch thermal images where a registration is asked for, so a file with one has version 2, and every
other file stays readable for both.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rscmd_model import __version__
from rscmd_model.config import ModelConfig
from rscmd_model.errors import UserError
from rscmd_model.registration import Registration
from rscmd_model.thermal import ThermalContract

FORMAT_VERSION = 2  # the newest this reader knows
HEADER = "rscmd"
"""Under this name the header lies in the metadata of a file."""


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


def read_header(path: str | Path) -> ModelHeader:
    """The header of a model.safetensors alone; costs no more than opening the file.

    Raises:
        UserError: no such file; cut short; not one of ours; or written by a newer version. The message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no model file {path}")
    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(damage(path, error)) from None
    if HEADER not in metadata:
        raise UserError(f"{path} is a safetensors file but not a model of rscmd_model (it has no {HEADER!r} header)")
    return parse_header(path, metadata[HEADER])


def parse_header(path: Path, text: str) -> ModelHeader:
    """A header's JSON text, found in the file `path`. Raises `UserError`: damaged, or of a newer version."""
    try:
        version = json.loads(text)["format_version"]
        if version > FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {version}, newer than the {FORMAT_VERSION} that rscmd_model {__version__} "
                "reads: update rscmd_model"
            )
        return ModelHeader.from_json(text)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has a damaged header ({error!r}): export or train the model again") from None


def damage(path: Path, error: Exception) -> str:
    """What to say of a model.safetensors that cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its JSON header (8 bytes, little endian) and "{".
    if len(start) == 9 and start[8:] == b"{":
        return f"{path} is cut short or damaged ({size} bytes; {error}): copy it again"
    return f"{path} is not a model file: expected the model.safetensors that rscmd_model.train writes"
