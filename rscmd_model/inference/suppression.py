"""Non-maximum suppression without torch: from a network's answer to the boxes that are kept."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

MOST_CANDIDATES = 30000  # as ultralytics' NMS


def suppress(answer: np.ndarray, conf: float, iou: float, max_det: int) -> list[np.ndarray]:
    """Keep the best of boxes that overlap, within each class; what ultralytics' `non_max_suppression` keeps.

    Args:
        answer: (B, 4 + classes, N) floats: x and y of the centre, width, height in network pixels, then the score of
            each class in [0, 1].
        conf: scores above this count. Each box has the one class that scores highest.
        iou: boxes of a class that overlap more than this are one.
        max_det: most boxes per image.

    Returns:
        for each image (M, 6) float32 by falling score: corners x0, y0, x1, y1 in network pixels, score, class.
    """
    return [_one(image, conf, iou, max_det) for image in answer]


def _one(image: np.ndarray, conf: float, iou: float, max_det: int) -> np.ndarray:
    scores = image[4:].max(0)
    found = np.flatnonzero(scores > conf)
    if not len(found):
        return np.zeros((0, 6), np.float32)
    found = found[np.argsort(-scores[found], kind="stable")][:MOST_CANDIDATES]
    centre, half = image[:2, found].T, image[2:4, found].T / 2
    classes = image[4:, found].argmax(0)
    rows = np.hstack((centre - half, centre + half, scores[found, None], classes[:, None])).astype(np.float32)
    return rows[kept(rows, iou)[:max_det]]


def kept(rows: np.ndarray, iou: float) -> np.ndarray:
    """Which boxes NMS within each class keeps.

    Args:
        rows: (M, 6) by falling score, more than 0, as `suppress` gives them; at least one.
        iou: boxes of a class that overlap more than this are one.

    Returns:
        rising indices into `rows`.
    """
    classes = rows[:, 5]
    return np.sort(np.concatenate([_kept(rows, classes == number, iou) for number in np.unique(classes)]))


def _kept(rows: np.ndarray, members: np.ndarray, iou: float) -> np.ndarray:
    """Which of the `members`, boxes of one class by falling score, are kept: indices into `rows`."""
    (places,) = np.nonzero(members)
    corners = rows[places, :4].astype(np.float64)
    corner_and_size = np.hstack((corners[:, :2], corners[:, 2:] - corners[:, :2]))
    nms: Any = cv2.dnn.NMSBoxes  # its hints ask for lists; it takes arrays
    return places[np.asarray(nms(corner_and_size, rows[places, 4], 0.0, iou), np.int64)]
