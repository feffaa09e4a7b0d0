"""A training that goes on from a finished model on the pairs of another site, and what it keeps of the first one.

Everything of the finished model goes on: its layers, its method with all settings, every weight and statistic. What the
second site has to agree in is checked before anything is written. What is kept is decided by a memory of the first
site, see `network/memory.py`; `hold` makes an optimizer's steps obey it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from rscmd_model.datasets.pairs import DataConfig
from rscmd_model.errors import UserError, several
from rscmd_model.files import sha256_of
from rscmd_model.methods import parse_method
from rscmd_model.network.memory import LAM_MIN, Kept, convolutions, read_memory
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import ModelHeader, load_model


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished model that a training goes on from.

    Attributes:
        file: model.safetensors.
        sha256: of its content.
        model: on the CPU, in evaluation mode.
        header: of the file.
    """

    file: Path
    sha256: str
    model: RscmdModel
    header: ModelHeader

    def __str__(self) -> str:
        size = f"{self.header.config.layers}, {len(self.header.names)} classes"
        return f"{size}, trained as {self.header.config.title} at {self.header.image_size} px"

    def check_asked(self, method: str | None, family: str | None, scale: str | None) -> None:
        """Raise `UserError` where another method, family or scale is asked for; None asks for none."""
        config = self.header.config
        wrong = (family or config.family, scale or config.scale) != (config.family, config.scale)
        if method is not None:  # by the defaults of a random start, or those of a start from weights
            named = [parse_method(method, head_classes=classes) for classes in (0, 1)]
            wrong |= all((n.method, n.settings) != (config.method, config.settings) for n in named)
        if wrong:
            raise UserError(
                f"{self.file} is {config.title} of {config.layers}, and a training goes on with that: leave out "
                "--method, --family and --scale"
            )

    def check(self, data: DataConfig, options: Mapping[str, Any]) -> None:
        """Make sure that the model can be trained on another site's pairs.

        Args:
            data: of the site.
            options: of the training.

        Raises:
            UserError: classes or thermal contract are others; it says what to do.
        """
        ours, theirs = list(self.header.names.values()), list(data.names.values())
        if options.get("single_cls"):
            theirs = ["item"]  # ultralytics' word
        if ours != theirs:
            raise UserError(
                f"{self.file} finds {several(ours)}, and {data.name} has {several(theirs)}: give the data the same "
                "names in the same order, or start a new model (--weights)"
            )
        before, now = self.header.thermal, data.thermal_contract
        if not before.reads_as(now):
            raise UserError(
                f"{self.file} reads thermal images by {before.to_dict()}, and {data.name} has the thermal contract "
                f"{now.to_dict()}: one model has one, so give data.yaml the model's as thermal_contract"
            )

    def other_registration(self, data: DataConfig) -> str:
        """A line for people where the new site's cameras lie otherwise than the first one's, else an empty text.

        Args:
            data: of the new site.
        """
        if data.registration == self.header.registration:
            return ""
        kinds = ["a registration" if r else "aligned pairs" for r in (self.header.registration, data.registration)]
        return (
            f"the cameras of {data.name} are registered otherwise than those of {self.file} ({kinds[0]} there, "
            f"{kinds[1]} here): the new model's file names the new one; for the first site give "
            "--registration, or a data.yaml that names it"
        )


def read_finished(file: str | Path) -> Finished:
    """Read the model that a training is to go on from.

    Raises:
        UserError: as `load_model`.
    """
    file = Path(file)
    model, header = load_model(file)
    return Finished(file, sha256_of(file), model, header)


def keep(finished: Finished, file: str | Path, lam_min: float | None = None) -> Kept:
    """What a training keeps that goes on from a finished model.

    Args:
        finished: the model.
        file: its memory.
        lam_min: as in `Kept`; None is its default.

    Raises:
        UserError: as `read_memory`, or the memory is of another model.
    """
    file = Path(file).resolve()
    memory = read_memory(file)
    if memory.model != finished.sha256:
        raise UserError(
            f"{file} is the memory of another model than {finished.file}: give the one that was written beside it, or "
            "make one with python -m rscmd_model.remember"
        )
    kept = Kept(str(file), sha256_of(file), LAM_MIN if lam_min is None else lam_min)
    kept.projectors(finished.model, memory)  # told now, and not when the training has made its folder
    return kept


def hold(model: RscmdModel, kept: Kept, optimizer: Optimizer) -> str:
    """Let an optimizer move nothing that the model's memory says was used.

    What it does to a convolution's weights in a step, momentum and weight decay included, is multiplied by I - P. All
    that no projector is for stays as it is: biases, BatchNorm's scales and offsets, and what the memory does not know,
    such as parameters of a method that are no convolution's. A memory of nothing holds nothing.

    Args:
        model: the network; its BatchNorm has frozen statistics.
        kept: what to keep.
        optimizer: of the network's parameters. Which one does not matter, since its steps are what is changed.

    Returns:
        a line for people that says how much is free.

    Raises:
        UserError: as `Kept.read` and `Kept.projectors`.
    """
    memory = kept.read()
    free = kept.projectors(model, memory)
    if not free:
        return f"{kept.file} remembers nothing: nothing is kept"
    if dist.is_initialized():  # processors of two kinds may find the same directions up to their rounding
        for directions in free.values():
            dist.broadcast(directions, 0)
    layers = convolutions(model)
    moved = {f"{name}.weight": (layers[name].weight, free[name]) for name in free if free[name].any()}
    unknown = {f"{name}.weight" for name in memory.moments.keys() - free.keys()}  # have read zeros alone
    for name, parameter in model.named_parameters():
        if name not in moved and name not in unknown:
            parameter.requires_grad_(False)
    before: list[Tensor] = []

    def look(*_: Any) -> None:
        before[:] = [weight.detach().clone() for weight, _ in moved.values()]

    def project(*_: Any) -> None:
        with torch.no_grad():
            for old, (weight, directions) in zip(before, moved.values(), strict=True):
                weight.copy_(old + unused_part(weight - old, directions))
        before.clear()

    optimizer.register_step_pre_hook(look)
    optimizer.register_step_post_hook(project)
    count = sum(directions[..., 0].numel() for directions in free.values())
    rank = sum(float(_trace(directions)) for directions in free.values())
    energy = [float(_trace(free[name].cpu() @ (z := memory.moments[name])) / _trace(z)) for name in free]
    return (
        f"{kept.file}, lam_min {kept.lam_min:g}: {rank / count:.0%} of the directions of {len(free)} convolutions are "
        f"free, and in {len(free) - len(moved)} none; they hold {sum(energy) / len(energy):.2%} of what was read. "
        "Biases and BatchNorm stay as they are"
    )


def _trace(blocks: Tensor) -> Tensor:
    """Of (groups, C, C), over all groups."""
    return blocks.diagonal(dim1=1, dim2=2).sum()


def unused_part(update: Tensor, free: Tensor) -> Tensor:
    """An update of a convolution's weights without what acts on used directions.

    Args:
        update: (O, C / groups, h, w).
        free: (groups, C / groups, C / groups), as `unused_directions` gives it.
    """
    grouped = update.reshape(len(free), -1, free.shape[1], update[0, 0].numel())
    return torch.einsum("goit,gij->gojt", grouped, free).reshape(update.shape)
