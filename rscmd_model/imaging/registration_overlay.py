"""The picture by which a person judges a registration: thermal edges over the visible image, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from rscmd_model.files import whole_file
from rscmd_model.imaging.images import lay_over
from rscmd_model.imaging.patch_matching import GreyPair
from rscmd_model.imaging.registration import Registration

SHOWN = 3
"""Pairs that a person looks at."""

_PANEL = 800  # px, width of each panel
_ORANGE, _BLUE, _WHITE = (0, 140, 255), (233, 180, 86), (255, 255, 255)  # BGR


def save_overlay(path: Path, pairs: Sequence[GreyPair], registration: Registration) -> None:
    """Write `overlay` as a picture, in the format of the path's suffix.

    Raises:
        UserError: the file cannot be written.
    """
    picture = cv2.imencode(path.suffix, overlay(pairs, registration))[1]
    with whole_file(path) as aside:
        aside.write_bytes(picture.tobytes())


def overlay(pairs: Sequence[GreyPair], registration: Registration) -> np.ndarray:
    """Draw thermal edges in orange over the visible image, without (left) and with (right) the registration.

    Args:
        pairs: as for `alignment.from_images`; one row of the picture each.
        registration: of these pairs.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    rows = []
    for visible, thermal in pairs:
        size = (_PANEL, round(visible.shape[0] * _PANEL / visible.shape[1]))
        backdrop = cv2.cvtColor(
            cv2.convertScaleAbs(cv2.resize(visible, size, interpolation=cv2.INTER_AREA), alpha=0.8), cv2.COLOR_GRAY2BGR
        )
        rows.append(np.hstack([_before(backdrop, thermal), _after(backdrop, thermal, registration)]))
    return np.vstack(rows)


def _before(backdrop: np.ndarray, thermal: np.ndarray) -> np.ndarray:
    """A panel with the thermal image stretched over the visible one, (H, W, 3) uint8."""
    panel = backdrop.copy()
    return _finish(panel, _edges(lay_over(thermal, backdrop.shape[1::-1])), "before")


def _after(backdrop: np.ndarray, thermal: np.ndarray, registration: Registration) -> np.ndarray:
    """A panel with the thermal image registered, and the outline of what it covers, (H, W, 3) uint8."""
    panel, size = backdrop.copy(), backdrop.shape[1::-1]
    covered = (registration.warp(np.full_like(thermal, 255), size) == 255).astype(np.uint8)
    outline, _ = cv2.findContours(covered, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(panel, outline, -1, _BLUE, 1)
    # The border of the thermal image is no edge of the scene.
    edges = _edges(lay_over(thermal, size, registration)) & (cv2.erode(covered, np.ones((9, 9))) > 0)
    return _finish(panel, edges, "after")


def _edges(plane: np.ndarray) -> np.ndarray:
    """Where a grey image (H, W) uint8 has edges, (H, W) bool."""
    edges: np.ndarray = cv2.Canny(cv2.GaussianBlur(plane, (0, 0), 1.5), 30, 70) > 0
    return edges


def _finish(panel: np.ndarray, edges: np.ndarray, title: str) -> np.ndarray:
    """Draw edges and title into a panel, and return it."""
    panel[cv2.dilate(edges.astype(np.uint8), np.ones((2, 2))) > 0] = _ORANGE
    cv2.putText(panel, title, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.8, _WHITE, 2, cv2.LINE_AA)
    return panel
