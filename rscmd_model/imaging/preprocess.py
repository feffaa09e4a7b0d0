"""From a pair of images to the network's input, and boxes back: where each pixel goes, and one pass that puts it there.

The pixels are those that validation sees in training: ultralytics' LetterBox on the stack that `images.stack_pair`
makes. `datasets.paired` takes the sizes from `place`, and the tests hold the pixels to LetterBox's.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from rscmd_model.config import STRIDE
from rscmd_model.imaging.images import lay_over
from rscmd_model.imaging.registration import FILL, Registration

# Which channel of (blue, green, red, thermal plane) becomes which of (red, green, blue, thermal); -1 is black.
_PAIR = (2, 0, 1, 1, 0, 2, 3, 3)
_VISIBLE = (2, 0, 1, 1, 0, 2, -1, 3)
_THERMAL = (-1, 0, -1, 1, -1, 2, 0, 3)


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network's input.

    Attributes:
        frame: (height, width) of the image whose pixels boxes are in.
        network: (height, width) of the network's input.
        inner: (height, width) of the image inside it; the rest is grey.
        top, left: rows and columns of grey before it.
    """

    frame: tuple[int, int]
    network: tuple[int, int]
    inner: tuple[int, int]
    top: int
    left: int

    def to_frame(self, boxes: np.ndarray) -> np.ndarray:
        """Corners (N, 4) in network pixels to those of the frame, clipped to it; float32."""
        offset = np.array([self.left, self.top] * 2, np.float32)
        gain = np.array(self.inner[::-1] * 2, np.float32) / np.array(self.frame[::-1] * 2, np.float32)
        return np.clip((boxes - offset) / gain, 0, np.array(self.frame[::-1] * 2, np.float32))


def place(frame: tuple[int, int], side: int, fixed: tuple[int, int] | None = None) -> Placement:
    """Fit an image into the network's input without changing its shape.

    Args:
        frame: (height, width) of the image.
        side: its longer side becomes this many pixels, a multiple of 32; the shorter is padded to a multiple of 32.
        fixed: (height, width) of a network that takes no other input: the image is fitted into that and padded to it.

    Returns:
        the placement, the image in the middle.
    """
    height, width = fixed or (side, side)
    ratio = min(height / frame[0], width / frame[1])
    inner = max(round(frame[0] * ratio), 1), max(round(frame[1] * ratio), 1)
    pad_y, pad_x = height - inner[0], width - inner[1]
    if fixed is None:
        pad_y, pad_x = pad_y % STRIDE, pad_x % STRIDE
    network = (inner[0] + pad_y, inner[1] + pad_x)
    return Placement(frame, network, inner, round(pad_y / 2 - 0.1), round(pad_x / 2 - 0.1))


def fill(
    out: np.ndarray,
    placement: Placement,
    visible: np.ndarray | None,
    plane: np.ndarray | None,
    registration: Registration | None = None,
) -> None:
    """Write a pair into the network's input.

    Args:
        out: (height, width, 4) uint8 of the placement's network size; becomes red, green, blue, thermal.
        placement: of this pair.
        visible: (H, W, 3) uint8 BGR of the frame's size; None leaves those channels black.
        plane: (h, w) uint8, the plane a `ThermalContract` made; None leaves that channel black.
        registration: where thermal pixels lie in the frame.

    Raises:
        UserError: an image is not of the shape the registration was made for.
    """
    laid = None if plane is None else lay_over(plane, placement.frame[::-1], registration)
    images, order = [image for image in (visible, laid) if image is not None], _PAIR
    if len(images) == 1:
        order = _THERMAL if visible is None else _VISIBLE
    (height, width), top, left = placement.inner, placement.top, placement.left
    if placement.inner != placement.network:
        out[:] = FILL
    inner = out[top : top + height, left : left + width]
    if placement.inner == placement.frame:
        cv2.mixChannels(images, [inner], order)
        return
    stack = np.empty((*placement.frame, 4), np.uint8)
    cv2.mixChannels(images, [stack], order)
    cv2.resize(stack, (width, height), dst=inner, interpolation=cv2.INTER_LINEAR)
