"""What a model file says of itself: one JSON object, the same in every format. Reading it needs no torch.

The header grows by new keys, which older readers leave alone. A model setting is written only where it differs from the
value that a missing one stands for (`UNWRITTEN`, and `missing` of a method's setting): a new setting keeps out no older
reader until used. Readers of version 1 and 2 know six methods as flags ("rsc", "md"), which are still read here; those
of version 3 know YOLOv8 by the family `LINEAR_SPPF` alone. All of them refuse what is written now by its version, with
the advice to update.

Model files are read, never mapped: a file that is overwritten while it is mapped ends the process (SIGBUS).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rscmd_model import __version__
from rscmd_model.config import FLAGS, LINEAR_SPPF, STRIDE, ModelConfig, check_names, is_number
from rscmd_model.errors import UserError, shown
from rscmd_model.imaging.registration import Registration
from rscmd_model.imaging.thermal import ThermalContract

FORMAT_VERSION = 4  # the newest this reader knows, and what it writes
HEADER = "rscmd"
"""Under this name the header lies in the metadata of a file."""
DIGEST = "rscmd_sha256"
"""Under this name lies a SHA-256 over the header and all it describes. Files from before it was written have none."""

LARGEST_SIDE = 4096
"""Of the network's input, in px. A pair of that size takes gigabytes; a number beyond it is damage."""
LARGEST_FILE = 4 << 30
_LARGEST_INDEX = 8 << 20  # of a safetensors file: some 100 bytes for each tensor, and the header

UNWRITTEN: dict[str, Any] = {
    "scale": "n",
    "family": LINEAR_SPPF,
    "settings": {},
    "modalities": ["visible", "thermal"],
    "answers": ["fused", "visible", "thermal"],
    "head_classes": 0,
}
"""What a field of `ModelConfig` is that a header does not name. Never change a value here: files would be misread. A
field that is new in `ModelConfig` gets the value that means "as before"."""
_UNWRITTEN_FLAGS = {**FLAGS, "branch": "full"}
"""The same for headers of format 2 and older; those from before there were lean branches do not name the kind."""


@dataclass(frozen=True)
class ModelHeader:
    """What a model file says of itself.

    Attributes:
        config: size, method and answers.
        names: class names by index 0, 1, ...
        image_size: longer side in pixels at which the network was trained, a multiple of 32, at most `LARGEST_SIDE`.
        thermal: the thermal contract of its training data.
        data: name of the training data and hash of its train split, {"name": ..., "split_hash": ...}.
        metrics: figures of its own validation during training, by name; empty if none.
        registration: where thermal pixels lay in the visible images of the training data; None where they were aligned.
        answer: what answers a whole pair unless another is asked for, one of the configuration's `pair_answers`; empty
            becomes the first of them. It is written only where it is not that one.
        code_version: version of this package that wrote the file.

    Raises:
        UserError: a value is not of that kind.
    """

    config: ModelConfig
    names: dict[int, str]
    image_size: int
    thermal: ThermalContract
    data: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    registration: Registration | None = None
    code_version: str = __version__
    answer: str = ""

    def __post_init__(self) -> None:
        if self.answer == "":
            object.__setattr__(self, "answer", self.config.pair_answers[0])
        if self.answer not in self.config.pair_answers:
            raise UserError(f"answer {shown(repr(self.answer))} is not {' or '.join(self.config.pair_answers)}")
        check_names(self.names)
        check_image_size(self.image_size)
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in self.data.items()):
            raise UserError(f"data {self.data!r} is not text by name")
        if not all(isinstance(k, str) and is_number(v) for k, v in self.metrics.items()):
            raise UserError(f"metrics {self.metrics!r} are not numbers by name")
        if not isinstance(self.code_version, str):
            raise UserError(f"code_version {self.code_version!r} is not text")

    def pair_answer(self, asked: str | None) -> str:
        """What answers a whole pair: what was asked for, or the model's own where that is None.

        Raises:
            UserError: the model cannot answer so.
        """
        if asked is None or asked in self.config.pair_answers:
            return asked or self.answer
        there = ", ".join(self.config.answers)
        if asked == "ensemble":
            raise UserError(f"answer ensemble joins several answers, and this model has one ({there}): leave answer")
        if asked == "fused":
            other = "ask for ensemble" if len(self.config.answers) > 1 else "leave answer"
            raise UserError(f"answer fused: this model has no fused answer (it has {there}): {other}")
        raise UserError(f"answer {shown(repr(asked))} is not {' or '.join(self.config.pair_answers)}")

    def to_json(self) -> str:
        """One JSON object."""
        config = self.config.to_dict()
        plain: dict[str, Any] = {
            "config": {k: v for k, v in config.items() if k not in UNWRITTEN or v != UNWRITTEN[k]},
            "names": self.names,
            "image_size": self.image_size,
            "thermal": self.thermal.to_dict(),
            "data": self.data,
            "metrics": self.metrics,
            "code_version": self.code_version,
            "format_version": FORMAT_VERSION,
        }
        if self.registration is not None:
            plain["registration"] = self.registration.to_dict()
        if self.answer != self.config.pair_answers[0]:
            plain["answer"] = self.answer
        return json.dumps(plain, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> ModelHeader:
        """Read `to_json`'s output.

        Raises:
            UserError: something is missing or of the wrong form.
            ValueError, RecursionError: it is no JSON.
        """
        plain = _mapping(json.loads(text), "the header")
        if missing := sorted(
            {"config", "names", "image_size", "thermal", "data", "metrics", "code_version"} - set(plain)
        ):
            raise UserError(f"{' and '.join(missing)} missing")
        names = _mapping(plain["names"], "names")
        numbers: dict[str, Any] = {str(i): i for i in range(len(names))}
        return ModelHeader(
            config=_config(_mapping(plain["config"], "config")),
            names={numbers.get(k, k): v for k, v in names.items()},
            image_size=plain["image_size"],
            thermal=ThermalContract.from_dict(plain["thermal"]),
            data=dict(_mapping(plain["data"], "data")),
            metrics=dict(_mapping(plain["metrics"], "metrics")),
            registration=Registration.from_dict(plain["registration"])
            if plain.get("registration") is not None
            else None,
            code_version=plain["code_version"],
            answer=plain.get("answer", ""),
        )


def check_image_size(size: Any) -> None:
    """Raises `UserError` for what is no side of a network's input in px."""
    if isinstance(size, bool) or not isinstance(size, int) or size % STRIDE or not 0 < size <= LARGEST_SIDE:
        raise UserError(f"image_size {size!r} is not a multiple of {STRIDE} from {STRIDE} to {LARGEST_SIDE}")


def _config(plain: Mapping[str, Any]) -> ModelConfig:
    if "method" in plain:
        return ModelConfig.from_dict({**UNWRITTEN, **plain})
    return ModelConfig.from_flags({**_UNWRITTEN_FLAGS, **plain})


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{what} is no JSON object but {value!r}")
    return value


def read_whole(path: Path) -> bytes:
    """The content of a model file of any format.

    Raises:
        UserError: no such file; it cannot be read; or it is larger than any model.
    """
    if not path.is_file():
        raise UserError(f"no model file {path}")
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size > LARGEST_FILE:
                raise UserError(f"{path} has {size} bytes, and no model file has more than {LARGEST_FILE}")
            return file.read(size)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_header(path: str | Path) -> ModelHeader:
    """The header of a model.safetensors alone; costs no more than opening the file.

    Raises:
        UserError: no such file; cut short; not one of ours; or written by a newer version. The message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no model file {path}")
    try:
        with path.open("rb") as file:
            start = file.read(8)
            start += file.read(min(int.from_bytes(start, "little"), _LARGEST_INDEX))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return parse_header(path, read_metadata(path, start)[HEADER])


def read_metadata(path: Path, content: bytes) -> dict[str, str]:
    """The metadata of a model.safetensors, with the entry `HEADER`.

    Args:
        path: of the file, for messages.
        content: of the file; its first part, as far as the tensors, is enough.

    Raises:
        UserError: cut short or damaged, or not one of ours.
    """
    # A safetensors file begins with the length of its JSON index (8 bytes, little endian) and that index.
    length = int.from_bytes(content[:8], "little")
    if content[8:9] != b"{":
        hint = ""
        if path.suffix == ".pt":
            command = f"python -m rscmd_model.assemble --weights {path} --out model.safetensors"
            hint = f"; of a YOLO checkpoint, make one by `{command}`"
        raise UserError(
            f"{path} is not a model file: expected the model.safetensors that rscmd_model.train writes{hint}"
        )
    if length > min(len(content) - 8, _LARGEST_INDEX):
        raise damage(path, f"its index is to have {length} bytes")
    try:
        metadata = json.loads(content[8 : 8 + length].decode()).get("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is no text")
    except (ValueError, AttributeError, RecursionError) as error:
        raise damage(path, error) from None
    if HEADER not in metadata:
        raise UserError(f"{path} is a safetensors file but not a model of rscmd_model (it has no {HEADER!r} header)")
    return dict(metadata)


def parse_header(path: Path, text: str) -> ModelHeader:
    """A header's JSON text, found in the file `path`. Raises `UserError`: damaged, or of a newer version."""
    version: Any = None
    written_by: Any = None
    try:
        plain = _mapping(json.loads(text), "it")
        version, written_by = plain.get("format_version"), plain.get("code_version")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise UserError(f"format_version {version!r} is not a number from 1")
        if version <= FORMAT_VERSION:
            return ModelHeader.from_json(text)
    except (UserError, ValueError, OverflowError, RecursionError) as error:
        problem: object = error
    else:
        raise UserError(
            f"{path} has format version {shown(version, 20)}, newer than the {FORMAT_VERSION} that rscmd_model "
            f"{__version__} reads: update rscmd_model"
        )
    raise unusable(path, written_by, problem)


def unusable(path: Path, written_by: object, problem: object) -> UserError:
    """What to say of a file whose header has something that this version of the package cannot use."""
    problem = shown(problem, 300)
    if isinstance(written_by, str) and written_by != __version__:
        return UserError(
            f"{path} was written by rscmd_model {shown(written_by, 20)}, and {__version__} cannot use its header "
            f"({problem}): update rscmd_model, or else export or train the model again"
        )
    return UserError(f"{path} has a damaged header ({problem}): export or train the model again")


def damage(path: Path, problem: object) -> UserError:
    """What to say of a model.safetensors that cannot be read or is not what was written."""
    return UserError(f"{path} is cut short or damaged ({shown(problem, 300)}): copy it again")
