"""What a finished model remembers of the pairs it was trained on: the second moments of what its convolutions read.

    M = E[x x^T]   (C x C, x the C input channels of a convolution at one position, the mean over all of them)

An update dW of the convolution's weights with dW M = 0 changes nothing that it answered to those pairs: it is zero at
every tap of the kernel, wherever that lies. With M = U diag(e) U^T and U_1 the eigenvectors whose eigenvalue is above
`lam_min` times the largest,

    P = U_1 U_1^T,    dW <- dW (I - P)

lets a training use the directions alone that the earlier pairs hardly did. It is the one-sided rule of DNS (NeurIPS
2025, arXiv 2503.14963), there for linear layers on frozen features; earlier the same idea is Adam-NSCL (CVPR 2021,
arXiv 2103.07113) and GPM (ICLR 2021, arXiv 2103.09762). Adapted: M is of channels and not of whole C k k patches, which
is a k^2-th of the width in each direction and keeps more than it must. M is not centred, which is right where biases
stay as they are. The second side of DNS (what reads the outputs) is left out: its released code has it without effect,
and it holds for linear readers alone.

Groups of a grouped convolution have a moment each. A depthwise convolution has one number for each channel, so that all
of it is kept.

`memory.safetensors` holds the moments by the names of the convolutions, float32 (groups, C, C), and no image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from rscmd_model import __version__
from rscmd_model.errors import UserError, quoted
from rscmd_model.files import sha256_of, whole_file
from rscmd_model.network.header import damage, read_whole
from rscmd_model.network.model import RscmdModel

FILE = "memory.safetensors"
"""The memory's name beside the model it is of."""
LAM_MIN = 0.01
"""Of the largest eigenvalue: directions above it are kept. DNS's own, by its paper (0.1 in its code)."""
FORMAT_VERSION = 1
_ENTRY = "rscmd_memory"  # of the safetensors metadata
_NOISE = 1e-6  # of the largest eigenvalue: what is below it may be rounding to 32 bits, also with lam_min 0


@dataclass(frozen=True)
class Site:
    """The pairs of a place that a memory is of.

    Attributes:
        name: of the data.
        split_hash: of the split, as `datasets.pairs.split_hash` gives it.
        pairs: how many.
    """

    name: str
    split_hash: str
    pairs: int


@dataclass(frozen=True, eq=False)
class Memory:
    """Second moments of what the convolutions of a model read.

    Attributes:
        model: SHA-256 of the model file.
        sites: whose pairs, the first one first.
        moments: by the name of a convolution (groups, C, C) float32, C the input channels of a group.
        positions: by the same name how many positions each is the mean of.
    """

    model: str
    sites: tuple[Site, ...] = ()
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    positions: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        pairs = " and ".join(f"{site.pairs} pairs of {site.name}" for site in self.sites)
        return f"what {len(self.moments)} convolutions read in {pairs or 'nothing'}"

    def with_earlier(self, earlier: Memory) -> Memory:
        """This memory and an earlier one of the same network, which was kept in between.

        What was kept is answered as before, and so its moments hold for this model, too. Each site counts by its
        positions.

        Args:
            earlier: of the model that this one's training went on from.
        """
        moments, positions = dict(earlier.moments), dict(earlier.positions)
        for name, moment in self.moments.items():
            mine, before = self.positions[name], positions.get(name, 0)
            share = mine / max(mine + before, 1)
            moments[name] = moment * share + moments.get(name, torch.zeros_like(moment)) * (1 - share)
            positions[name] = mine + before
        return Memory(self.model, (*earlier.sites, *self.sites), moments, positions)


@contextmanager
def recording(model: nn.Module, moments: dict[str, Tensor], positions: dict[str, int]) -> Iterator[None]:
    """Add up, while the block runs, what each convolution of a model reads.

    Args:
        model: is asked in the block.
        moments: gets (groups, C, C) float64 by the convolutions' names, summed over positions.
        positions: gets how many.
    """

    def look(name: str, conv: nn.Conv2d, x: Tensor) -> None:
        # In 64 bits: the smallest directions are the ones that will be free.
        grouped = x.detach().unflatten(1, (conv.groups, -1)).transpose(0, 1).transpose(1, 2).flatten(2).double()
        found = grouped @ grouped.mT
        moments[name] = moments[name] + found if name in moments else found
        positions[name] = positions.get(name, 0) + grouped.shape[-1]

    hooks = [
        conv.register_forward_pre_hook(lambda conv, given, name=name: look(name, conv, given[0]))
        for name, conv in convolutions(model).items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions of a network by their names, but for the fixed ones that read a box off its distribution."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and ".dfl." not in f".{name}."
    }


def unused_directions(moment: Tensor, lam_min: float) -> Tensor:
    """I - P: what an update is multiplied by, so that it leaves out the directions that were used.

    Args:
        moment: (groups, C, C), symmetric.
        lam_min: directions are used whose eigenvalue is above this share of the largest one of their group, 0 to 1.
            With 0 all are, but for those that rounding alone may have made.

    Returns:
        (groups, C, C) float64; exactly 0 where every direction was used.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    free = values <= max(lam_min, _NOISE) * values[:, -1:].clamp_min(0)
    kept_out = vectors * free.unsqueeze(1)
    return kept_out @ kept_out.mT


def save_memory(path: str | Path, memory: Memory) -> None:
    """Write a memory whole.

    Args:
        path: ends in .safetensors.
        memory: what to write.

    Raises:
        UserError: the file cannot be written.
    """
    plain = {
        "model": memory.model,
        "sites": [vars(site) for site in memory.sites],
        "positions": dict(memory.positions),
        "code_version": __version__,
        "format_version": FORMAT_VERSION,
    }
    moments = {name: moment.float().cpu().contiguous() for name, moment in memory.moments.items()}
    with whole_file(path) as aside:
        aside.write_bytes(save(moments, metadata={_ENTRY: json.dumps(plain, sort_keys=True)}))


def read_memory(path: str | Path) -> Memory:
    """Read what `save_memory` wrote.

    Raises:
        UserError: no such file, damaged, or something else; or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no memory {path}: give the {FILE} that train --remember or rscmd_model.remember wrote")
    content = read_whole(path)
    try:
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length].decode()).get("__metadata__", {})
        if _ENTRY not in metadata:
            raise UserError(f"{path} is no memory of a model: give the {FILE} that lies beside it")
        plain: dict[str, Any] = json.loads(metadata[_ENTRY])
        if plain["format_version"] > FORMAT_VERSION:
            raise UserError(f"{path} was written by rscmd_model {quoted(plain['code_version'])}: update rscmd_model")
        moments = dict(sorted(load(content).items()))  # which come in another order in each process
        memory = Memory(
            str(plain["model"]),
            tuple(Site(str(s["name"]), str(s["split_hash"]), int(s["pairs"])) for s in plain["sites"]),
            moments,
            {name: int(plain["positions"][name]) for name in moments},
        )
        for name, moment in moments.items():
            if moment.ndim != 3 or moment.shape[1] != moment.shape[2] or not torch.isfinite(moment).all():
                raise ValueError(f"moment {name!r} is none")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise damage(path, error) from None
    return memory


@dataclass(frozen=True)
class Kept:
    """What a training is to keep. It travels with the model, into checkpoints too.

    Attributes:
        file: the memory.
        sha256: of its content.
        lam_min: see `unused_directions`; 0 up to, but not, 1.

    Raises:
        UserError: lam_min is out of range.
    """

    file: str
    sha256: str
    lam_min: float = LAM_MIN

    def __post_init__(self) -> None:
        if not 0 <= self.lam_min < 1:
            raise UserError(f"--lam-min {self.lam_min:g}: give a share from 0 up to, but not, 1")

    def read(self) -> Memory:
        """The memory.

        Raises:
            UserError: it is gone, was changed since, or as `read_memory`.
        """
        file = Path(self.file)
        try:
            found = sha256_of(file)
        except OSError as error:
            raise UserError(
                f"cannot read {file}, the memory that this training keeps ({error.strerror}): put it back"
            ) from None
        if found != self.sha256:
            raise UserError(f"{file} is not the memory any more that this training began with: put that one back")
        return read_memory(file)

    def projectors(self, model: RscmdModel, memory: Memory) -> dict[str, Tensor]:
        """By the name of a convolution that the memory knows, what its updates are multiplied by.

        Args:
            model: the network that is trained.
            memory: what `read` gave.

        Returns:
            `unused_directions` in float32, on the device of the weights; a convolution that has read nothing but zeros
            has none, and is free.

        Raises:
            UserError: the memory is of another network, or leaves no direction free.
        """
        layers = convolutions(model)
        shapes = {name: (conv.groups, conv.in_channels // conv.groups) for name, conv in layers.items()}
        for name, moment in memory.moments.items():
            if shapes.get(name) != moment.shape[:2]:
                raise UserError(
                    f"{self.file} is the memory of another network (it knows a {quoted(name)} not like here)"
                )
        found = {
            name: unused_directions(moment, self.lam_min).to(layers[name].weight)
            for name, moment in memory.moments.items()
            if moment.any()
        }
        if found and not any(free.any() for free in found.values()):
            raise UserError(f"{self.file} leaves no direction free to learn in: raise --lam-min {self.lam_min:g}")
        return found
