"""Nearly equal pairs on both sides of a split: a score on them says how well a model remembers, not how well it sees.

The hash is Zauner's perceptual hash ("Implementation and Benchmarking of Perceptual Image Hash Functions", 2010): the
signs of the 8 x 8 lowest frequencies of a 32 x 32 picture about their median, 64 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

# Of 64 bits, in each of the two images. See docs/datasets/README.md for how it was chosen.
NEAR = 6


def perceptual_hash(image: np.ndarray) -> np.uint64:
    """64-bit hash of (H, W) uint8 or uint16; pictures that look alike differ in few bits."""
    height, width = image.shape
    if step := min(height, width) // 128:  # by a whole number and in its own type first, which is several times faster
        image = cv2.resize(image, (width // step, height // step), interpolation=cv2.INTER_AREA)
    small = cv2.resize(image.astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small)[:8, :8].ravel()
    low[0] = np.median(low[1:])  # the mean brightness says nothing
    bits = low > np.median(low[1:])
    return np.packbits(bits).view(np.uint64)[0]


def near_copies(train: np.ndarray, other: np.ndarray, near: int = NEAR) -> Iterator[tuple[int, int, int]]:
    """Pairs of `other` that have a near copy in `train`.

    Args:
        train: (N, 2) uint64, hash of the visible and of the thermal image of each pair.
        other: (M, 2) uint64.
        near: the most bits that may differ, in each of the two images.

    Yields:
        index in `other`, index of the nearest pair in `train`, and the larger of the two distances.
    """
    if not len(train):
        return
    signs, other_signs = _signs(train), _signs(other)
    for start in range(0, len(other), 256):  # 256 x 12000 x 2 numbers are 25 MB
        # Two rows of 64 signs agree in as many more places than they differ in as their product says; all are whole
        # numbers that float32 holds exactly.
        agree = other_signs[:, start : start + 256] @ signs.transpose(0, 2, 1)
        apart = (64 - agree.min(axis=0)) / 2
        nearest = apart.argmin(axis=1)
        for row, column in enumerate(nearest):
            if apart[row, column] <= near:
                yield start + row, int(column), int(apart[row, column])


def _signs(hashes: np.ndarray) -> np.ndarray:
    """(N, 2) uint64 as (2, N, 64) float32: -1 for each bit that is not set, 1 for each that is."""
    bits = np.unpackbits(np.ascontiguousarray(hashes.T).view(np.uint8), axis=1).reshape(2, -1, 64)
    return bits.astype(np.float32) * 2 - 1
