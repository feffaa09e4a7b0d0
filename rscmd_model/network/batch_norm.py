"""Batch normalisation whose layers count their batches together, since a GPU pays for each operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional

_met: ContextVar[list[Tensor] | None] = ContextVar("_met", default=None)
"""Counters of the layers that a pass of `counted_together` has come through; None outside of one."""


class BatchNorm(nn.BatchNorm2d):
    """torch's; within `counted_together` it leaves its counter of batches to that."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same, normalised."""
        met = _met.get()
        if met is None or not self.training or not self.track_running_stats or self.momentum is None:
            return super().forward(x)
        assert self.num_batches_tracked is not None
        met.append(self.num_batches_tracked)
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
        )


def replace_norms(model: nn.Module) -> None:
    """Make `BatchNorm` of every torch.nn.BatchNorm2d."""
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = BatchNorm


@contextmanager
def counted_together() -> Iterator[None]:
    """Count the batches of all layers in one operation at the end, where torch takes one for each layer."""
    met: list[Tensor] = []
    token = _met.set(met)
    try:
        yield
    finally:
        _met.reset(token)
        counters = {id(counter): counter for counter in met}
        times = Counter(map(id, met))  # a branch may answer several times
        for number in set(times.values()):
            torch._foreach_add_([counters[key] for key, of in times.items() if of == number], number)
