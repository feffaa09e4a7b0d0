"""Points picked by hand in a thermal picture and in the visible one beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rscmd_model.errors import UserError, quoted
from rscmd_model.text import parse_yaml, read_text

_WANTED = "x_thermal y_thermal x_visible y_visible"


def read_points(path: Path) -> np.ndarray:
    """Read points picked by hand.

    Args:
        path: .csv or .txt with rows of four numbers (commas, semicolons or spaces between them; a heading and lines
            that begin with # are passed over), or .yaml with a list of such rows.

    Returns:
        (N, 4) float64: x_thermal, y_thermal, x_visible, y_visible, in px of the pictures.

    Raises:
        UserError: naming the file and the row.
    """
    text = read_text(path, what="points")
    rows = _yaml_rows(text, path) if path.suffix.lower() in (".yaml", ".yml") else _text_rows(text)
    points = [_point(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]
    return np.array(points, np.float64).reshape(-1, 4)


def _yaml_rows(text: str, path: Path) -> list[Any]:
    rows = parse_yaml(text, str(path))
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of rows [{', '.join(_WANTED.split())}]")
    return rows


def _text_rows(text: str) -> list[list[str]]:
    """The words of each line, without comments and a heading."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    rows = [line.replace(";", " ").replace(",", " ").split() for line in lines]
    has_heading = rows and rows[0] and rows[0][0][:1].isalpha()
    return rows[1:] if has_heading else rows


def _point(row: Any, where: str) -> tuple[float, float, float, float]:
    try:
        x, y, u, v = (float(value) for value in row)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: expected {_WANTED}, got {quoted(row)}") from None
    if not np.isfinite([x, y, u, v]).all():
        raise UserError(f"{where}: {quoted(row)} is not finite")
    return x, y, u, v
