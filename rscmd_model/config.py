"""What a model is and how it is taught to bear faults: every choice with its default, in frozen dataclasses."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from rscmd_model.errors import UserError

MODALITIES = ("visible", "thermal")
SCALES = ("n", "s", "m", "l", "x")
FAMILIES = {"yolov8": "YOLOv8", "yolo11": "YOLO11"}
"""Families of layers: their names and how their authors write them. See `network/families.py`."""
CHOICES = {
    "scale": SCALES,
    "family": tuple(FAMILIES),
    "rsc": ("off", "own", "shared", "aux"),
    "md": ("off", "stop", "map", "project"),
    "branch": ("lean", "full"),
    "fusion": ("sum", "adapt"),
}
MOST_CLASSES = 10_000
_LARGEST_NUMBER = 1e6
_LONGEST_NAME = 200


def is_number(value: Any) -> bool:
    """Whether it is an int or a float (not a bool); NaN and infinities are."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_names(names: Mapping[Any, Any]) -> None:
    """Raises `UserError` unless they are different texts, by index 0, 1, ... without a gap, at most `MOST_CLASSES`."""
    if not 0 < len(names) <= MOST_CLASSES:
        raise UserError(f"names: a model has 1 to {MOST_CLASSES} classes, and here are {len(names)}")
    if set(names) != set(range(len(names))):
        raise UserError(f"names need the numbers 0, 1, ... without a gap, got {', '.join(map(repr, names))}")
    for name in names.values():
        if not isinstance(name, str) or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise UserError(f"names: {name!r} is not printable text of at most {_LONGEST_NAME} characters")
    if len(set(names.values())) < len(names):
        raise UserError("names: two classes have one name")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and objective of one detector.

    Attributes:
        scale: width and depth of the family: n, s, m, l or x.
        family: the layers that the streams and their answers are built of, one of `FAMILIES`.
        modalities: the streams that exist: ("visible", "thermal"), or one of them for a single-camera control.
        rsc: representation space constraint, the loss that each modality bears alone. "off", "own" (a detection branch
            for each modality, thrown in at training and shipped), "shared" (the fused branch's weights answer for
            each modality too; no extra parameters) or "aux" (no constraint but its control: the same two branches,
            trained on the fused features and left unused afterwards; what they gain is deep supervision).
        md: modality decoupling, what of the fused loss reaches a backbone. "off" (all of it), "stop" (none), "map"
            (its gradient without the part that opposes the unimodal gradient, at the unimodal gradient's size) or
            "project" (the same at its own size).
        md_from, md_until: the share of the training, 0 to 1, between which md holds; outside it md is off.
        branch: the unimodal branches of rsc "own": "lean" (coarse features added to fine ones and a light head, at a
            quarter of the arithmetic) or "full" (neck and head like the fused one's).
        fusion: how the two streams meet. "sum" (of the backbones' features) or "adapt" (the same, each feature through
            a 1x1 convolution of its own first).
        lambda_visible, lambda_thermal: weight of each unimodal loss, more than 0.

    Raises:
        UserError: a value is not one of those.
    """

    scale: str = "n"
    modalities: tuple[str, ...] = MODALITIES
    rsc: str = "own"
    md: str = "project"
    md_from: float = 0.0
    md_until: float = 1.0
    branch: str = "lean"
    fusion: str = "sum"
    lambda_visible: float = 1.0
    lambda_thermal: float = 1.0
    family: str = "yolov8"

    def __post_init__(self) -> None:
        if not isinstance(self.modalities, list | tuple):
            raise UserError(f"model modalities are a list, as in [visible, thermal], got {self.modalities!r}")
        object.__setattr__(self, "modalities", tuple(self.modalities))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"model {name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("md_from", "md_until", "lambda_visible", "lambda_thermal"):
            value = getattr(self, name)
            if not is_number(value) or not abs(value) <= _LARGEST_NUMBER:
                raise UserError(f"model {name} {value!r} is not a number, or beyond {_LARGEST_NUMBER:g}")
        if self.modalities not in (MODALITIES, *((m,) for m in MODALITIES)):
            raise UserError(f"model modalities {self.modalities} are not visible, thermal or both")
        if len(self.modalities) == 1 and (self.rsc, self.md) != ("off", "off"):
            raise UserError(f"a {self.modalities[0]}-only model has nothing to fuse: rsc and md must be off")
        if self.md != "off" and self.rsc in ("off", "aux"):
            raise UserError(
                f"md={self.md} needs a unimodal loss for each backbone: set rsc to own or shared, or md to off"
            )
        if not 0 <= self.md_from < self.md_until <= 1:
            raise UserError(
                f"md_from {self.md_from:g} and md_until {self.md_until:g} are shares of the training: "
                "give 0 <= md_from < md_until <= 1"
            )
        if len(self.modalities) == 1 and self.fusion != "sum":
            raise UserError(f"a {self.modalities[0]}-only model has nothing to fuse: leave fusion alone")
        if not all(0 < weight < float("inf") for weight in (self.lambda_visible, self.lambda_thermal)):
            raise UserError(
                "lambda_visible and lambda_thermal must be more than 0; for no unimodal loss set rsc to off"
            )

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the answers this model can give, the main one first: "fused" and/or modalities."""
        if len(self.modalities) == 1:
            return self.modalities
        return ("fused", *self.modalities) if self.rsc in ("own", "shared") else ("fused",)

    @property
    def taught(self) -> tuple[str, ...]:
        """Names of the answers that bear a loss in training, the main one first."""
        return ("fused", *self.modalities) if self.rsc == "aux" else self.branches

    def weight(self, branch: str) -> float:
        """Weight of a branch's loss in the total."""
        if len(self.modalities) == 1 or branch == "fused":
            return 1.0
        return self.lambda_visible if branch == "visible" else self.lambda_thermal

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ModelConfig:
        """Build from plain types; unknown keys are refused with the nearest real one named (`UserError`)."""
        known = [field.name for field in fields(ModelConfig)]
        for key in data:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
                raise UserError(f"unknown model setting {key!r}{hint}")
        return ModelConfig(**data)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return {**asdict(self), "modalities": list(self.modalities)}


@dataclass(frozen=True)
class Augmentation:
    """Faults that a training plays on purpose, besides ultralytics' own augmentation. Off by default.

    Attributes:
        modality_dropout: share of the samples (0 to 1) of which the fused branch sees one camera's image black; which
            of the two is drawn evenly. The unimodal branches go on seeing their images.
        thermal_shift: most whole pixels of the network's input by which the thermal image is moved against the visible
            one, to either side and up or down, anew for each sample. Labels stay with the visible image.

    Raises:
        UserError: a value is out of range.
    """

    modality_dropout: float = 0.0
    thermal_shift: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.modality_dropout <= 1:
            raise UserError(f"modality_dropout {self.modality_dropout:g}: give a share of the samples from 0 to 1")
        if self.thermal_shift < 0:
            raise UserError(f"thermal_shift {self.thermal_shift}: give 0 or more whole pixels")


NO_AUGMENTATION = Augmentation()

METHODS = {
    "visible": ModelConfig(modalities=("visible",), rsc="off", md="off"),
    "thermal": ModelConfig(modalities=("thermal",), rsc="off", md="off"),
    "sum": ModelConfig(rsc="off", md="off"),
    "aux": ModelConfig(rsc="aux", md="off"),
    "rsc": ModelConfig(md="off"),
    "rscmd": ModelConfig(),
}


def parse_method(text: str, **changes: Any) -> ModelConfig:
    """A method as it is written on a command line, such as "rscmd" or "rsc+rsc=shared+lambda_visible=2".

    Args:
        text: name of a method, then settings of `ModelConfig` joined by "+".
        changes: further settings; None leaves one alone.

    Raises:
        UserError: no such method or setting, or a combination that makes no sense.
    """
    method, *words = text.split("+")
    base = method_config(method, **changes).to_dict()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"method {text!r}: expected setting=value after '+', as in rscmd+md=map, got {word!r}")
        default = getattr(ModelConfig, key, None)
        try:
            base[key] = float(value) if isinstance(default, float) else value
        except ValueError:
            raise UserError(f"method {text!r}: {key} needs a number, got {value!r}") from None
    return ModelConfig.from_dict(base)


def method_config(method: str, **changes: Any) -> ModelConfig:
    """The configuration of a method by name (a key of `METHODS`), with some settings changed (None leaves one alone).

    Raises:
        UserError: no such method, or a combination that makes no sense.
    """
    if method not in METHODS:
        raise UserError(f"method {method!r} is not one of {', '.join(METHODS)}")
    return replace(METHODS[method], **{k: v for k, v in changes.items() if v is not None})
