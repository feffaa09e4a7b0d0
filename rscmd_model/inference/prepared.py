"""A checked pair on its way to the network, and a batch of them as most backends take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rscmd_model.imaging.images import lay_over
from rscmd_model.imaging.preprocess import Placement, fill
from rscmd_model.imaging.registration import Registration


@dataclass(frozen=True)
class Prepared:
    """A checked pair on its way to the network.

    Attributes:
        answers: of the network, those that are asked for: one, or several that are to be joined.
        visible: (H, W, 3) uint8 BGR, or None.
        plane: (h, w) uint8, the thermal image as its contract shows it, or None.
        placement: where the image lies in the network's input.
        registration: where thermal pixels lie in the visible image, or None.
    """

    answers: tuple[str, ...]
    visible: np.ndarray | None
    plane: np.ndarray | None
    placement: Placement
    registration: Registration | None

    def laid_over(self) -> np.ndarray:
        """The thermal plane, which is there, in the pixels that boxes are in: (H, W) uint8."""
        assert self.plane is not None
        return lay_over(self.plane, self.placement.frame[::-1], self.registration)


def stacked(pairs: Sequence[Prepared], fixed: tuple[int, int, int] | None) -> np.ndarray:
    """The network's input (B, H, W, 4) uint8 for pairs of one network size: red, green, blue, thermal.

    B is their number, or that of a file exported for batches of one size (`Backend.fixed`); then black pairs fill it
    up.

    Raises:
        UserError: an image is not of the shape the registration was made for.
    """
    count = fixed[0] if fixed else len(pairs)
    batch = np.empty((count, *pairs[0].placement.network, 4), np.uint8)
    for out, pair in zip(batch, pairs):
        fill(out, pair.placement, pair.visible, pair.plane, pair.registration)
    batch[len(pairs) :] = 0
    return batch
