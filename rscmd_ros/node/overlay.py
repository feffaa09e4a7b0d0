"""The picture on `overlay/image`: visible beside thermal, with every detection and what the detector is doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from rscmd_model.detections import Detections
from rscmd_model.imaging.draw import draw_boxes

_BAR = (32, 32, 32)
_INK = (235, 235, 235)


def draw_overlay(
    visible: np.ndarray | None,
    thermal: np.ndarray | None,
    found: Detections,
    names: Mapping[int, str],
    branch: str,
    title: str,
    identities: Sequence[str] = (),
) -> np.ndarray:
    """Both images with the same boxes, under a line of text.

    Args:
        visible: (H, W, 3) uint8 BGR, or None when that camera is lost.
        thermal: (h, w) uint8 as the network sees it, of the same field of view, or None.
        found: boxes in pixels of the visible image, or of the thermal one when it is alone.
        names: class names by index.
        branch: what answered: fused, ensemble, visible or thermal; stands with each box.
        title: the line of text.
        identities: of tracks, one for each detection, or none.

    Returns:
        (H + bar, 2 W, 3) uint8 BGR; a lost camera's half is dark and says so.
    """
    shown = visible if visible is not None else thermal
    assert shown is not None
    height, width = shown.shape[:2]
    labels = [f"{names.get(int(c), c)} {s:.2f} {branch}" for c, s in zip(found.classes, found.scores)]
    if identities:
        labels = [f"#{identity} {label}" if identity else label for identity, label in zip(identities, labels)]
    halves: list[np.ndarray] = []
    for stream, image in (("visible", visible), ("thermal", thermal)):
        if image is None:
            half: np.ndarray = np.full((height, width, 3), 16, np.uint8)
            _write(half, f"no {stream} image", (width // 20, height // 2), 2 * width)
        else:
            colours = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
            half = cv2.resize(colours, (width, height)) if colours.shape[:2] != (height, width) else colours.copy()
            draw_boxes(half, found.boxes, found.classes, labels)
        halves.append(half)
    bar = np.full((max(18, height // 16), 2 * width, 3), _BAR, np.uint8)
    _write(bar, title, (6, round(bar.shape[0] * 0.7)), 2 * width)
    return np.vstack([bar, np.hstack(halves)])


def _write(image: np.ndarray, text: str, at: tuple[int, int], width: int) -> None:
    """A line of text in proportion to the picture's width, smaller where it would not fit."""
    size = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)[0][0]
    scale = min(max(0.4, width / 2300), 0.95 * (width - at[0]) / max(1, size))
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, max(1, round(scale)), cv2.LINE_AA)
