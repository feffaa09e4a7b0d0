"""The one type that carries boxes between rooms: validated once, used at every boundary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes found in one image (or one pair).

    Attributes:
        boxes: (N, 4) float32, corners x0, y0, x1, y1 in pixels, x to the right and y down, with x0 <= x1 and y0 <= y1.
        scores: (N,) float32 in [0, 1].
        classes: (N,) int64, index of the class, 0 or more.

    Raises:
        ValueError: an array has the wrong shape, is not finite or is out of range; the message gives what was
            expected and what came.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, dtype=np.float32)
        scores = np.asarray(self.scores, dtype=np.float32)
        classes = np.asarray(self.classes)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes: expected shape (N, 4), got {boxes.shape}")
        for name, array in (("scores", scores), ("classes", classes)):
            if array.shape != (len(boxes),):
                raise ValueError(
                    f"{name}: expected shape ({len(boxes)},) to go with {len(boxes)} boxes, got {array.shape}"
                )
        if not np.isfinite(boxes).all():
            raise ValueError("boxes: expected finite numbers, got NaN or infinity")
        if (boxes[:, 2:] < boxes[:, :2]).any():
            raise ValueError("boxes: expected x0 <= x1 and y0 <= y1 (corners, not centre and size)")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError("scores: expected values in [0, 1]")
        if classes.size and (not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0):
            raise ValueError(f"classes: expected integers of 0 or more, got dtype {classes.dtype}")
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "classes", classes.astype(np.int64))

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, which: np.ndarray) -> Detections:
        """Some of them: `which` is a mask (N,) or indexes (M,)."""
        return Detections(self.boxes[which], self.scores[which], self.classes[which])

    @staticmethod
    def empty() -> Detections:
        """Nothing found."""
        return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
