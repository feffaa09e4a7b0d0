"""The interface of a method: what `RscmdModel`, its objective and the trainer ask of one."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from rscmd_model.config import MODALITIES, Augmentation, is_number
from rscmd_model.errors import UserError, quoted

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.objective import TrainingStep

Features = list[Tensor]
"""One tensor (B, C, H, W) for each of the strides 8, 16 and 32."""

_LARGEST_NUMBER = 1e6
_Part = TypeVar("_Part", bound=nn.Module)


def drawn(name: str, build: Callable[..., _Part], *args: Any) -> _Part:
    """`build(*args)`, a part whose random start depends on torch's seed and its own name alone.

    So the methods of one seed share one initialisation: the visible backbone of every model starts the same, whatever
    else the model has.
    """
    seed = torch.initial_seed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((seed + zlib.crc32(name.encode())) % 2**63)
        return build(*args)


def choice(default: str, *others: str, missing: str | None = None) -> Any:
    """A field of `MethodSettings` that takes one of several words.

    Args:
        default: the word that holds when none is given.
        others: further words.
        missing: what a model file means that does not name the setting; by default `default`. Whoever changes a default
            names the old one here, or files would be misread.
    """
    return field(default=default, metadata={"allowed": (default, *others), "missing": missing or default})


def number(
    default: float,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    missing: float | None = None,
) -> Any:
    """A field of `MethodSettings` that takes a number, more than `above`, or from `least` to `most`. `missing` is as
    for `choice`."""
    means = default if missing is None else missing
    return field(default=default, metadata={"above": above, "least": least, "most": most, "missing": means})


def check_share(name: str, start: float, end: float) -> None:
    """Raise `UserError` unless NAME_from and NAME_until name a share of the training."""
    if not 0 <= start < end <= 1:
        told = f"{name}_from {start:g} and {name}_until {end:g} are shares of the training"
        raise UserError(f"{told}: give 0 <= {name}_from < {name}_until <= 1")


@dataclass(frozen=True)
class MethodSettings:
    """The settings of a method: fields made by `choice` and `number`. On a command line they stand after its name.

    Raises:
        UserError: a value is none that the field takes.
    """

    def __post_init__(self) -> None:
        for f in fields(self):
            value, rules = getattr(self, f.name), f.metadata
            if "allowed" in rules:
                if value not in rules["allowed"]:
                    raise UserError(f"{f.name} {quoted(value)} is not one of {', '.join(rules['allowed'])}")
                continue
            if not is_number(value) or not abs(value) <= _LARGEST_NUMBER:
                raise UserError(f"{f.name} {quoted(value)} is not a number, or beyond {_LARGEST_NUMBER:g}")
            if rules["above"] is not None and value <= rules["above"]:
                raise UserError(f"{f.name} {value:g} must be more than {rules['above']:g}")
            least, most = rules["least"], rules["most"]
            if (least is not None and value < least) or (most is not None and value > most):
                raise UserError(f"{f.name} {value:g}: give {least:g} {'or more' if most is None else f'to {most:g}'}")
            object.__setattr__(self, f.name, float(value))

    @classmethod
    def parsed(cls, name: str, text: str) -> Any:
        """The value that a command line's text means; unknown names are left to whoever builds the settings.

        Raises:
            UserError: a number is needed, and it is none.
        """
        of = cls.__dataclass_fields__.get(name)
        if of is None or "allowed" in of.metadata:
            return text
        try:
            return float(text)
        except ValueError:
            raise UserError(f"{name} needs a number, got {quoted(text)}") from None

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> MethodSettings:
        """The settings of a model file, see `written`.

        Raises:
            UserError: a setting is not known, or its value is none.
        """
        missing = {f.name: f.metadata["missing"] for f in fields(cls)}
        if unknown := [name for name in written if name not in missing]:
            raise UserError(f"unknown setting {quoted(unknown[0])}; known: {', '.join(missing) or 'none'}")
        return cls(**{**missing, **written})

    def written(self) -> dict[str, Any]:
        """What a model file has to name: the settings that are not what a missing one stands for."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {f.name: values[f.name] for f in fields(self) if values[f.name] != f.metadata["missing"]}


class Method(nn.Module):
    """A way to teach a model. This class itself has two cameras, fuses by a sum and teaches the fused answer alone.

    A method owns what it adds to the network: its parameters are trained, averaged, checkpointed and shipped with the
    model. What must not be (a frozen teacher) is kept in a tuple, where torch does not look for it.

    Args:
        settings: of its own kind.
        channels: of the features at strides 8, 16 and 32.

    Attributes:
        progress: share of the training that is over, 0 to 1; set by the trainer at each epoch.
        modalities: the cameras, and so the backbones, that the model has.
        frozen: names of the model's parts that are not trained.
        takes_incomplete: whether the method can be trained on pairs that have lost a camera for good (`TrainingStep`
            says what `losses` then meets). It is not inherited: what a subclass changes has to be thought through anew.
        differentiates_apart: whether `total` differentiates the answers' losses one by one, as `surgery` does. Where it
            does not, they are computed as one.
        presets: several settings under one word, as values by name for each word: "preset=WORD" on a command line.
        from_weights: the defaults that are others where a model starts from a plain detector's weights.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    from_weights: ClassVar[Mapping[str, Any]] = {}
    modalities: ClassVar[tuple[str, ...]] = MODALITIES
    frozen: ClassVar[tuple[str, ...]] = ()
    takes_incomplete: ClassVar[bool] = False
    differentiates_apart: ClassVar[bool] = False

    def __init__(self, settings: Any, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.settings = settings
        self.progress = 0.0

    @classmethod
    def shipped(cls, settings: Any) -> tuple[str, ...]:
        """The answers that a finished model gives, the main one first: "fused" and modalities."""
        return ("fused",)

    @classmethod
    def needs_teachers(cls, settings: Any) -> bool:
        """Whether it learns from the two single-camera controls, which are then `model.teachers`."""
        return False

    @classmethod
    def asks_teachers(cls, settings: Any) -> bool:
        """Whether it learns from them beyond its start, so that a training that goes on needs them again."""
        return cls.needs_teachers(settings)

    @property
    def taught(self) -> tuple[str, ...]:
        """The answers that bear a loss, the main one first. In training these are computed."""
        return self.shipped(self.settings)

    @property
    def taught_in_turn(self) -> tuple[str, ...]:
        """The answers that bear a loss in some of the batches."""
        return self.taught

    @property
    def unimodal(self) -> tuple[str, ...]:
        """Those of `taught` that read one camera alone, whose name they bear."""
        return tuple(name for name in self.taught if name in self.modalities)

    @property
    def branches(self) -> dict[str, str]:
        """The necks and heads that the model builds, by name, and of which kind each is: "full" or "lean"."""
        return dict.fromkeys(self.taught, "full")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss in the total; 1 for a loss that is not named."""
        return {}

    def check_augmentation(self, augmentation: Augmentation) -> None:
        """Called before a training with the faults that it is to play.

        Raises:
            UserError: the method cannot be trained with them.
        """

    def split(
        self, model: RscmdModel, x: Tensor, features: dict[str, Features]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """Each modality's features twice: for the fusion, and for its own answer. The place of modality decoupling.

        Args:
            model: the whole network.
            x: (B, 4, H, W), the batch of stacks.
            features: of each modality.
        """
        return features, features

    def fuse(self, model: RscmdModel, x: Tensor, features: dict[str, Features]) -> Features:
        """The features that the fused answer reads, from those that `split` made for the fusion."""
        return [visible + thermal for visible, thermal in zip(features["visible"], features["thermal"])]

    def answer(self, model: RscmdModel, name: str, fused: Features | None, alone: dict[str, Features]) -> Any:
        """One answer, as its branch's head gives it.

        Args:
            model: the whole network.
            name: of an answer that is shipped or taught.
            fused: what `fuse` gave; None when only answers of single modalities are asked for.
            alone: what `split` made for each modality's own answer.
        """
        return model.branch(name)(fused if name == "fused" else alone[name])

    def losses(self, model: RscmdModel, step: TrainingStep) -> dict[str, Tensor]:
        """The losses of a batch by name, each a scalar with a gradient, unweighted, mean over the batch.

        Progress bars, results.csv and plots show them under these names. Here these are box, cls and dfl of the main
        answer, and one sum of the three for each further answer that is taught.

        Args:
            model: the whole network.
            step: the forward pass of the batch.
        """
        main, *others = self.taught
        sums = {name: torch.stack(list(step.scored[name].parts.values())).sum() for name in others}
        return {**step.scored[main].parts, **sums}

    def figures(self, features: dict[str, Features]) -> dict[str, Tensor]:
        """What of a training batch is shown beside its losses, by name: scalars without a gradient, finite.

        Progress bars and results.csv show their means over an epoch.

        Args:
            features: of each modality, as the backbones gave them.
        """
        return {}

    def start(self, model: RscmdModel, pairs: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """Called once where a training begins that is not a resumed one.

        Args:
            model: the whole network, with the weights that it starts from.
            pairs: gives batches as `losses` takes them, of some 64 training pairs, unaugmented.
        """

    def total(self, model: RscmdModel, losses: dict[str, Tensor]) -> Tensor:
        """What the backward pass of a batch starts from, mean over the batch: a scalar or a vector, to be summed.

        The place of a rule for the gradients of the parameters, see `surgery`. Whatever its backward does, its value
        is the weighted sum of the losses.

        Args:
            model: the whole network.
            losses: those that `losses` named.
        """
        weights = self.weights
        return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()])

    def before_step(self, model: RscmdModel) -> None:
        """Called before each step of the optimizer, with the gradients of the whole step in the parameters.

        With amp=fp16 they are still multiplied by the gradient scaler's factor.
        """
