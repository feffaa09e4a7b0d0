"""The contact sheet: a grid of random pairs, visible beside thermal, with the boxes and class names a training sees.

A dashed grey box is a region in which a training learns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from rscmd_model.datasets.pairs import DataConfig, PairFiles, pixel_boxes, sound_labels
from rscmd_model.errors import UserError
from rscmd_model.imaging.draw import dashed_boxes, draw_boxes
from rscmd_model.imaging.images import lay_over, read_thermal, read_visible

WIDTH = 384  # px of one image
COLUMNS = 2


def contact_sheet(data: DataConfig, pairs: Mapping[str, Sequence[PairFiles]], count: int, seed: int) -> np.ndarray:
    """Draw random pairs of all splits with their boxes; damaged pairs are passed over.

    Args:
        data: the data set.
        pairs: by split.
        count: pairs to show.
        seed: of the choice.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        UserError: not one pair can be shown.
    """
    rng = np.random.default_rng(seed)
    mixed = [(split, pair) for split, found in pairs.items() for pair in rng.permutation(np.array(found, object))]
    # In turns, so that a small split is seen as well.
    turns = sorted(range(len(mixed)), key=lambda i: sum(mixed[j][0] == mixed[i][0] for j in range(i)))
    tiles: list[np.ndarray] = []
    for i in turns:
        if len(tiles) == count:
            break
        split, pair = mixed[i]
        try:
            tiles.append(_tile(data, split, pair))
        except UserError:
            continue
    if not tiles:
        raise UserError(f"{data.name}: no pair can be shown")
    height = max(tile.shape[0] for tile in tiles)
    blank = np.full((height, 2 * WIDTH + 8, 3), 255, np.uint8)
    rows = []
    for start in range(0, len(tiles), COLUMNS):
        row = []
        for tile in tiles[start : start + COLUMNS]:
            padded = blank.copy()
            padded[: tile.shape[0], : tile.shape[1]] = tile
            row.append(padded)
        rows.append(np.hstack(row + [blank] * (COLUMNS - len(row))))
    return np.vstack(rows)


def _tile(data: DataConfig, split: str, pair: PairFiles) -> np.ndarray:
    """One pair, beside each other at `WIDTH` px, under a line with its name."""
    visible = read_visible(pair.visible)
    thermal = data.thermal_contract.apply(read_thermal(pair.thermal, data.thermal_contract))
    if data.registration is not None:
        thermal = lay_over(thermal, visible.shape[1::-1], data.registration)
    known = sound_labels(data, pair)
    labels, unsure = known.boxes, known.ignore
    shown = []
    for image in (visible, cv2.cvtColor(thermal, cv2.COLOR_GRAY2BGR)):
        height = round(WIDTH * image.shape[0] / image.shape[1])
        panel = cv2.resize(image, (WIDTH, height), interpolation=cv2.INTER_AREA)
        if unsure is not None:
            dashed_boxes(panel, pixel_boxes(unsure, WIDTH, height))
        classes = labels[:, 0].astype(np.int64)
        draw_boxes(panel, pixel_boxes(labels, WIDTH, height), classes, [data.names[int(c)] for c in classes])
        shown.append(panel)
    height = max(panel.shape[0] for panel in shown)
    tile = np.full((height + 28, 2 * WIDTH + 8, 3), 255, np.uint8)
    for column, panel in enumerate(shown):
        tile[22 : 22 + panel.shape[0], column * WIDTH : (column + 1) * WIDTH] = panel
    text = f"{split} {pair.stem}: {visible.shape[1]}x{visible.shape[0]}, boxes: {len(labels)}"
    text += "" if unsure is None else f", unsure: {len(unsure)}"
    cv2.putText(tile, text, (2, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return tile
