"""Batch normalisation without what a training on a GPU pays for and nobody reads."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class BatchNorm(nn.BatchNorm2d):
    """torch's with a fixed momentum, which does not count its batches.

    `num_batches_tracked` is there, as checkpoints have it, and stands still. torch adds to it in each layer and step,
    one operation on the device each, and reads it where there is no momentum: ultralytics' layers have one.
    """

    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same, normalised."""
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )


def leave_batches_uncounted(model: nn.Module) -> None:
    """Make `BatchNorm` of every torch.nn.BatchNorm2d that has a momentum."""
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d and layer.momentum is not None:
            layer.__class__ = BatchNorm
