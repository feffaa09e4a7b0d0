"""Pictures of detections: the visible image beside the thermal one, boxes with class and score on both."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from rscmd_model.detections import Detections

# Colours that stay apart for colour-blind readers (Okabe and Ito), BGR.
_COLOURS = ((0, 159, 230), (233, 180, 86), (115, 158, 0), (66, 228, 240), (178, 114, 0), (0, 94, 213), (167, 121, 204))
_DASH = 4  # px
_GREYS = (200, 60)


def colour(index: int) -> tuple[int, int, int]:
    """BGR of a class, 0 to 255."""
    return _COLOURS[index % len(_COLOURS)]


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, labels: list[str] | None = None, dashed: bool = False
) -> None:
    """Draw boxes into an image.

    Args:
        image: (H, W, 3) uint8 BGR, changed in place.
        boxes: (N, 4) corners in its pixels.
        classes: (N,) integers, which choose the colour.
        labels: a text for each box, or None.
        dashed: thin white outlines, for ground truth.
    """
    thick = max(1, round(max(image.shape[:2]) / 400))
    font = max(image.shape[:2]) / 1100 + 0.12
    for i, (box, cls) in enumerate(zip(boxes, classes)):
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        cv2.rectangle(
            image, (x0, y0), (x1, y1), (255, 255, 255) if dashed else colour(int(cls)), 1 if dashed else thick
        )
        if labels is None:
            continue
        (width, height), base = cv2.getTextSize(labels[i], cv2.FONT_HERSHEY_SIMPLEX, font, 1)
        y = max(y0, height + base)
        x = max(0, min(x0, image.shape[1] - width))
        cv2.rectangle(image, (x, y - height - base), (x + width, y), colour(int(cls)), -1)
        cv2.putText(image, labels[i], (x, y - base // 2), cv2.FONT_HERSHEY_SIMPLEX, font, (0, 0, 0), 1, cv2.LINE_AA)


def dashed_boxes(image: np.ndarray, boxes: np.ndarray) -> None:
    """Draw the outlines of regions into an image, dashed in two greys, so that they show on dark and on light.

    Args:
        image: (H, W, 3) uint8 BGR, changed in place.
        boxes: (N, 4) corners in its pixels.
    """
    height, width = image.shape[:2]
    for x0, y0, x1, y1 in np.rint(boxes).astype(np.int64).tolist():
        across, down = np.arange(x0, x1 + 1), np.arange(y0, y1 + 1)
        for x, y in ((across, y0), (across, y1), (x0, down), (x1, down)):
            xs, ys = np.broadcast_arrays(x, y)
            inside = (xs >= 0) & (xs < width) & (ys >= 0) & (ys < height)
            xs, ys = xs[inside], ys[inside]
            image[ys, xs] = np.where((xs + ys) // _DASH % 2 == 0, *_GREYS)[:, None]


def side_by_side(
    visible: np.ndarray | None,
    thermal: np.ndarray | None,
    found: Detections,
    names: Mapping[int, str],
    truth: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """The images there are, beside each other at the first one's size, with the same boxes on each.

    Args:
        visible: (H, W, 3) uint8 BGR or None.
        thermal: (h, w) uint8 or None, the plane that a thermal contract made.
        found: boxes in pixels of the visible image, or of the thermal one when it is alone.
        names: class names by index.
        truth: (M, 4) boxes and (M,) classes to outline in white, or None.

    Returns:
        (H, W or 2 W, 3) uint8 BGR, enlarged when the images are small, so that the labels can be read.
    """
    panels = [] if visible is None else [visible]
    if thermal is not None:
        panels.append(cv2.cvtColor(thermal, cv2.COLOR_GRAY2BGR))
    height, width = panels[0].shape[:2]
    zoom = max(1, round(480 / width))
    labels = [f"{names.get(int(c), c)} {s:.2f}" for c, s in zip(found.classes, found.scores)]
    drawn = []
    for panel in panels:
        panel = cv2.resize(panel, (width * zoom, height * zoom), interpolation=cv2.INTER_LINEAR)
        if truth is not None:
            draw_boxes(panel, truth[0] * zoom, truth[1], dashed=True)
        draw_boxes(panel, found.boxes * zoom, found.classes, labels)
        drawn.append(panel)
    return np.hstack(drawn)
