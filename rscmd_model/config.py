"""What a model is, and which faults its training plays: frozen dataclasses, read and written without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rscmd_model.errors import UserError, did_you_mean, quoted

MODALITIES = ("visible", "thermal")
SCALES = ("n", "s", "m", "l", "x")
FAMILIES = {"yolov8": "YOLOv8", "yolo11": "YOLO11"}
"""Families of layers: their names and how their authors write them. See `network/families.py`."""
LINEAR_SPPF = "yolov8_linear_sppf"
"""The family of models from before format 4, which nobody chooses any more. See its file in `network/`."""
STRIDE = 32
"""The sides of the network's input are multiples of this, in px."""
MOST_CLASSES = 10_000
_LONGEST_NAME = 200
_LARGEST_NUMBER = 1e6
_MOST_SETTINGS = 100


def other_modality(modality: str) -> str:
    """The other one of `MODALITIES`."""
    return MODALITIES[1 - MODALITIES.index(modality)]


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
    """What a detector is: its size, its method, and what it answers. `methods.method_config` builds one.

    Nothing here needs torch, so that an exported model's header is read without it. Whether a method has these settings
    and gives these answers is checked where its class is at hand, in `RscmdModel`.

    Attributes:
        scale: width and depth of the layers: n, s, m, l or x.
        family: the layers that the streams and their answers are built of, one of `FAMILIES`; or `LINEAR_SPPF`.
        method: a key of `methods.METHODS`.
        settings: the settings of the method that are not what a missing one stands for; texts and numbers by name.
        modalities: the streams that exist: ("visible", "thermal"), or one of them for a single-camera control.
        answers: names of the answers this network can give, the main one first: "fused" and/or modalities. A model of
            both cameras without "fused" joins those of its modalities.
        head_classes: number of classes that the class towers are as wide as for, where it is another than that of the
            model's own: the towers of a checkpoint of 80 classes. 0 means the model's own. At scales above n it is 0,
            since their towers are of one width.

    Raises:
        UserError: a value is none of those.
    """

    scale: str = "n"
    family: str = "yolov8"
    method: str = "rscmd"
    settings: Mapping[str, str | float] = field(default_factory=dict)
    modalities: tuple[str, ...] = MODALITIES
    answers: tuple[str, ...] = ("fused", *MODALITIES)
    head_classes: int = 0

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise UserError(f"scale {quoted(self.scale)} is not one of {', '.join(SCALES)}")
        if not isinstance(self.family, str) or self.family not in (*FAMILIES, LINEAR_SPPF):
            raise UserError(f"family {quoted(self.family)} is not one of {', '.join(FAMILIES)}")
        if not _is_name(self.method):
            raise UserError(f"method {quoted(self.method)} is no name of a method")
        if not isinstance(self.settings, Mapping) or len(self.settings) > _MOST_SETTINGS:
            raise UserError(f"settings are values by name, at most {_MOST_SETTINGS}, got {quoted(self.settings)}")
        for name, value in self.settings.items():
            number: Any = value if is_number(value) else None
            if not _is_name(name) or not (_is_name(value) or (number is not None and abs(number) <= _LARGEST_NUMBER)):
                raise UserError(
                    f"setting {quoted(name)}={quoted(value)} is no word by name, nor a number up to {_LARGEST_NUMBER:g}"
                )
        for name, known in (("modalities", MODALITIES), ("answers", ("fused", *MODALITIES))):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not values or any(v not in known for v in values):
                raise UserError(f"{name} are a list of some of {', '.join(known)}, got {quoted(values)}")
            object.__setattr__(self, name, tuple(values))
        if self.modalities not in (MODALITIES, *((m,) for m in MODALITIES)):
            raise UserError(f"modalities {', '.join(self.modalities)} are not visible, thermal or both in this order")
        main = "fused" if len(self.modalities) == 2 else self.modalities[0]
        alone = self.answers == self.modalities  # two cameras and nothing that fuses them
        if (self.answers[0] != main and not alone) or len(set(self.answers)) < len(self.answers):
            raise UserError(f"answers {', '.join(self.answers)} do not begin with {main}, or name one twice")
        wide = self.head_classes
        if isinstance(wide, bool) or not isinstance(wide, int) or not 0 <= wide <= MOST_CLASSES:
            raise UserError(f"head_classes {quoted(wide)} is not a number from 0 to {MOST_CLASSES}")
        if self.scale != "n":
            object.__setattr__(self, "head_classes", 0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Checkpoints from before there were methods hold an object with a flag for each choice.
        self.__dict__.update(state if "method" in state else ModelConfig.from_flags(state).__dict__)
        self.__dict__.setdefault("head_classes", 0)

    @property
    def layers(self) -> str:
        """The layers as their authors name them, with the scale: "YOLOv8n"."""
        return f"{FAMILIES.get(self.family, FAMILIES['yolov8'])}{self.scale}"

    @property
    def title(self) -> str:
        """The method with its changes, as it is written on a command line: "rscmd+md=map"."""
        values = {k: f"{v:g}" if is_number(v) else v for k, v in self.settings.items()}
        return "+".join([self.method, *(f"{name}={value}" for name, value in values.items())])

    @property
    def pair_answers(self) -> tuple[str, ...]:
        """What can answer a whole pair, first what does unless another is asked for.

        It is "fused" where the network has it, or the only modality of a control; and "ensemble", all answers of the
        network joined, where it has several.
        """
        single = self.answers[:1] if self.answers[0] == "fused" or len(self.answers) == 1 else ()
        return (*single, *(("ensemble",) if len(self.answers) > 1 else ()))

    @property
    def main(self) -> tuple[str, ...]:
        """The answers of the network that a whole pair is answered from, unless another answer is asked for."""
        return self.made_of(self.pair_answers[0])

    def made_of(self, answer: str) -> tuple[str, ...]:
        """The answers of the network that `answer` is made of: of "ensemble" all, of any other itself."""
        return self.answers if answer == "ensemble" else (answer,)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ModelConfig:
        """Build from plain types; unknown keys are refused with the nearest real one named (`UserError`)."""
        known = [f.name for f in fields(ModelConfig)]
        for key in data:
            if key not in known:
                hint = did_you_mean(key, known, f"known: {', '.join(known)}")
                raise UserError(f"unknown model setting {quoted(key)}{hint}")
        return ModelConfig(**data)

    @staticmethod
    def from_flags(flags: Mapping[str, Any]) -> ModelConfig:
        """Build from the flags that described a model in files of format 2 and older, all of them.

        Raises:
            UserError: a flag is missing, is not known, or has no such value.
        """
        if set(flags) != set(FLAGS):
            odd = sorted(map(str, set(flags) ^ set(FLAGS)))
            raise UserError(f"unknown or missing model setting {quoted(odd[0])}")
        for name, words in _FLAG_WORDS.items():
            if flags[name] not in words:
                raise UserError(f"model {name} {quoted(flags[name])} is not one of {', '.join(words)}")
        modalities, rsc, md = flags["modalities"], flags["rsc"], flags["md"]
        if not isinstance(modalities, list | tuple):
            raise UserError(f"modalities are a list, got {quoted(modalities)}")
        if len(modalities) == 1:
            method = str(modalities[0])
        else:
            method = {"off": "sum", "aux": "aux"}.get(rsc, "rsc" if md == "off" else "rscmd")
        used = set(_FLAGS_OF_METHOD.get(method, ()))
        if rsc == "shared":  # a unimodal branch was of one kind or the other only where it was the modality's own
            used.discard("branch")
        alone = tuple(modalities)
        return ModelConfig(
            scale=flags["scale"],
            family=LINEAR_SPPF,
            method=method,
            settings={name: flags[name] for name in FLAGS if name in used and flags[name] != FLAGS[name]},
            modalities=alone,
            answers=alone if len(alone) == 1 else ("fused", *alone) if method in ("rsc", "rscmd") else ("fused",),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return {
            "scale": self.scale,
            "family": self.family,
            "method": self.method,
            "settings": dict(self.settings),
            "modalities": list(self.modalities),
            "answers": list(self.answers),
            "head_classes": self.head_classes,
        }


FLAGS: dict[str, Any] = {
    "scale": "n",
    "modalities": list(MODALITIES),
    "rsc": "own",
    "md": "project",
    "md_from": 0.0,
    "md_until": 1.0,
    "branch": "lean",
    "fusion": "sum",
    "lambda_visible": 1.0,
    "lambda_thermal": 1.0,
}
"""The flags of old files, each with the value for which `ModelConfig.settings` names nothing. Never change a value."""
_FLAGS_OF_BRANCHES = ("branch", "fusion", "lambda_visible", "lambda_thermal")
_FLAGS_OF_METHOD = {
    "sum": ("fusion",),
    "aux": _FLAGS_OF_BRANCHES,
    "rsc": ("rsc", *_FLAGS_OF_BRANCHES),
    "rscmd": ("rsc", *_FLAGS_OF_BRANCHES, "md", "md_from", "md_until"),
}
_FLAG_WORDS = {
    "rsc": ("off", "own", "shared", "aux"),
    "md": ("off", "stop", "map", "project"),
    "branch": ("lean", "full"),
    "fusion": ("sum", "adapt"),
}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable() and len(value) <= _LONGEST_NAME


@dataclass(frozen=True)
class Incomplete:
    """Which share of a training's pairs has lost one camera for good. By default none has.

    `datasets.incomplete` draws which pairs these are, from the run's seed.

    Attributes:
        rate: share of the pairs, 0 to 1.
        which: the camera that they have lost: "visible", "thermal" or "either" (half of them one, half the other).

    Raises:
        UserError: a value is out of range.
    """

    rate: float = 0.0
    which: str = "either"

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UserError(f"incomplete {self.rate:g}: give a share of the pairs from 0 to 1")
        if self.which not in (*MODALITIES, "either"):
            raise UserError(f"incomplete: lost camera {quoted(self.which)} is not visible, thermal or either")

    @classmethod
    def parse(cls, text: str) -> Incomplete:
        """What a command line means by RATE or RATE,CAMERA, as "0.7" or "0.7,visible".

        Raises:
            UserError: it means nothing.
        """
        rate, comma, which = text.partition(",")
        try:
            share = float(rate)
        except ValueError:
            raise UserError(f"incomplete {quoted(text)}: give RATE or RATE,CAMERA, as 0.7 or 0.7,visible") from None
        found = cls(share, which if comma else cls.which)
        return found if found.rate else COMPLETE

    def __str__(self) -> str:
        """As `parse` takes it."""
        return f"{self.rate!r},{self.which}" if self.rate else "0"


COMPLETE = Incomplete()


@dataclass(frozen=True)
class Augmentation:
    """Faults that a training plays on purpose, besides ultralytics' own augmentation. Off by default.

    Attributes:
        modality_dropout: share of the samples (0 to 1) of which the fused branch sees one camera's image black; which
            of the two is drawn evenly. The unimodal branches go on seeing their images.
        thermal_shift: most whole pixels of the network's input by which the thermal image is moved against the visible
            one, to either side and up or down, anew for each sample. Labels stay with the visible image.
        incomplete: the pairs that have lost one camera for good.

    Raises:
        UserError: a value is out of range.
    """

    modality_dropout: float = 0.0
    thermal_shift: int = 0
    incomplete: Incomplete = COMPLETE

    def __post_init__(self) -> None:
        if not 0 <= self.modality_dropout <= 1:
            raise UserError(f"modality_dropout {self.modality_dropout:g}: give a share of the samples from 0 to 1")
        if self.thermal_shift < 0:
            raise UserError(f"thermal_shift {self.thermal_shift}: give 0 or more whole pixels")


NO_AUGMENTATION = Augmentation()
