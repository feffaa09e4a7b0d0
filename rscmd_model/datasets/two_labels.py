"""Two label sets of one pair, one drawn on each camera's image: one of them, or both as one set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rscmd_model.datasets.pairs import Labels
from rscmd_model.errors import UserError
from rscmd_model.imaging.registration import Registration, map_points

CHOICES = ("visible", "thermal", "union")


@dataclass(frozen=True)
class Boxes:
    """Whose boxes are used, always as fractions of the visible image.

    Attributes:
        choice: "visible", "thermal", or "union": an object in both sets once, with the visible image's box, and
            every object that stands in one set alone.
        iou: two boxes of one class are the same object from this IoU on, 0 to 1.
        registration: where thermal pixels lie in the visible image; None where the two are aligned.

    Raises:
        UserError: another choice, or an IoU outside (0, 1].
    """

    choice: str = "visible"
    iou: float = 0.5
    registration: Registration | None = None

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise UserError(f"boxes: give one of {', '.join(CHOICES)}")
        if not 0 < self.iou <= 1:
            raise UserError(f"match_iou: an IoU above 0 and up to 1 is wanted, got {self.iou:g}")

    def of(self, visible: Labels, thermal: Labels) -> Labels:
        """Choose the objects of a pair.

        Args:
            visible: labels of the visible image.
            thermal: labels of the thermal image.

        Returns:
            the labels to use, as fractions of the visible image.
        """
        if self.choice == "visible":
            return visible
        thermal = self._laid_over(thermal)
        if self.choice == "thermal":
            return thermal
        matched = _matches(visible.boxes, thermal.boxes, self.iou)
        alone = np.delete(thermal.boxes, matched, axis=0)
        return Labels(np.concatenate((visible.boxes, alone)), visible.problems + thermal.problems, visible.size)

    def _laid_over(self, labels: Labels) -> Labels:
        """Thermal boxes as fractions of the visible image; the upright box around each, cut at the image's edge."""
        if self.registration is None or not len(labels.boxes):
            return Labels(labels.boxes, labels.problems)
        scale = np.array(self.registration.thermal_size, np.float64)
        centre, half = labels.boxes[:, 1:3], labels.boxes[:, 3:] / 2
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        corners = (centre[:, None] + half[:, None] * signs) * scale - 0.5
        moved = map_points(self.registration.homography, corners.reshape(-1, 2)).reshape(-1, 4, 2)
        moved = np.clip((moved + 0.5) / np.array(self.registration.visible_size), 0, 1)
        low, high = moved.min(axis=1), moved.max(axis=1)
        boxes = np.hstack((labels.boxes[:, :1], (low + high) / 2, high - low)).astype(np.float32)
        return Labels(boxes[(high > low).all(axis=1)], labels.problems)


VISIBLE = Boxes()


def _matches(visible: np.ndarray, thermal: np.ndarray, least: float) -> list[int]:
    """Rows of `thermal` whose object is in `visible`: one to one, the best IoU first. Both (N, 5): class cx cy w h."""
    low, high = visible[:, 1:3] - visible[:, 3:] / 2, visible[:, 1:3] + visible[:, 3:] / 2
    area = visible[:, 3] * visible[:, 4]
    candidates = []
    for row, (cls, cx, cy, w, h) in enumerate(thermal):
        shared = np.minimum(high, (cx + w / 2, cy + h / 2)) - np.maximum(low, (cx - w / 2, cy - h / 2))
        overlap = np.clip(shared, 0, None).prod(axis=1)
        iou = np.where(visible[:, 0] == cls, overlap / np.maximum(area + w * h - overlap, 1e-12), 0)
        candidates += [(-float(iou[i]), row, int(i)) for i in np.flatnonzero(iou >= least)]
    taken: set[int] = set()
    matched: set[int] = set()
    for _, row, i in sorted(candidates):
        if row not in matched and i not in taken:
            matched.add(row)
            taken.add(i)
    return sorted(matched)
