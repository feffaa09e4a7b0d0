"""Images to the network's input on the device itself: `preprocess.fill` in torch, and what it is given.

A GPU is sent the images as they are, which takes no time of the processor but that of copying them, and does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rscmd_model.imaging.preprocess import Placement
from rscmd_model.imaging.registration import FILL
from rscmd_model.inference.prepared import Prepared

_ONE = 11  # bits that OpenCV gives the weights of its linear interpolation


class Images(NamedTuple):
    """The images of B pairs that lie alike in the network's input.

    Attributes:
        placement: of each of them.
        visible: (H, W, 3) uint8 BGR each; none where the pairs have no visible image.
        planes: (H, W) uint8 each, thermal planes in the pixels of the visible image; none where they have none.
    """

    placement: Placement
    visible: list[np.ndarray]
    planes: list[np.ndarray]

    @staticmethod
    def alike(pairs: Sequence[Prepared]) -> bool:
        """Whether pairs have the same cameras and lie alike."""
        kinds = {(pair.placement, pair.visible is None, pair.plane is None) for pair in pairs}
        return len(kinds) == 1

    @classmethod
    def of(cls, pairs: Sequence[Prepared]) -> Images:
        """The images of pairs that are alike.

        Raises:
            UserError: an image is not of the shape the registration was made for.
        """
        visible = [pair.visible for pair in pairs if pair.visible is not None]
        return cls(pairs[0].placement, visible, [pair.laid_over() for pair in pairs if pair.plane is not None])

    def parts(self) -> dict[str, list[np.ndarray]]:
        """The images that are there, by what `Letterbox` calls them."""
        return {name: of for name, of in (("visible", self.visible), ("planes", self.planes)) if of}


class Letterbox:
    """What `preprocess.fill` does, on a device.

    The pixels are those of OpenCV's arithmetic, up to one level in a few of them where neither side of the image is a
    simple fraction of the other's: OpenCV's own releases differ as much.

    Args:
        placement: of all images to come.
        device: where they are.
    """

    def __init__(self, placement: Placement, device: torch.device) -> None:
        self.placement = placement
        (height, width), (rows, columns) = placement.frame, placement.inner
        self._halved = (height, width) == (2 * rows, 2 * columns)  # OpenCV then takes the mean of four
        self._down = _Taps.between(height, rows, device)
        self._across = _Taps.between(width, columns, device)

    def __call__(self, visible: Tensor | None, planes: Tensor | None) -> Tensor:
        """One batch of images to the network's input.

        Args:
            visible: (B, H, W, 3) uint8 BGR; without it those channels are black.
            planes: (B, H, W) uint8; without it that channel is black. One of the two is there.

        Returns:
            (B, height, width, 4) uint8 of the placement's network size: red, green, blue, thermal.
        """
        there = visible if visible is not None else planes
        assert there is not None
        (height, width), top, left = self.placement.inner, self.placement.top, self.placement.left
        out = there.new_full((len(there), *self.placement.network, 4), FILL)
        inner = out[:, top : top + height, left : left + width]
        if visible is None or planes is None:
            inner.zero_()
        if visible is not None:
            inner[..., :3] = self._resized(visible).flip(-1)
        if planes is not None:
            inner[..., 3:] = self._resized(planes[..., None])
        return out

    def _resized(self, images: Tensor) -> Tensor:
        """(B, H, W, C) uint8 to (B, h, w, C), as OpenCV's INTER_LINEAR does in whole numbers."""
        if self.placement.inner == self.placement.frame:
            return images
        wide = images.int()
        if self._halved:
            four = wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2]
            return ((four + 2) >> 2).to(torch.uint8)
        x, y = self._across, self._down
        rows = (wide[:, :, x.first] * x.near + wide[:, :, x.second] * x.far) >> 4
        above, below = (rows[:, y.first] * y.near[:, None]) >> 16, (rows[:, y.second] * y.far[:, None]) >> 16
        return ((above + below + 2) >> 2).to(torch.uint8)


class _Taps(NamedTuple):
    """Of each of n pixels in a row the two that it is made of, (n,) int64, and their weights, (n, 1) int32."""

    first: Tensor
    second: Tensor
    near: Tensor
    far: Tensor

    @classmethod
    def between(cls, source: int, target: int, device: torch.device) -> _Taps:
        """Those of a side of `target` pixels made of `source` pixels."""
        at = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
        first = np.floor(at)
        share = np.where((first < 0) | (first >= source - 1), np.float32(0), at - first)
        first = first.astype(np.int64).clip(0, source - 1)
        far = np.rint(share * np.float32(1 << _ONE)).astype(np.int32)
        arrays = (first, (first + 1).clip(max=source - 1), ((1 << _ONE) - far)[:, None], far[:, None])
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))
