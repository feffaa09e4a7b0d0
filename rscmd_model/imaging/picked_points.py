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
        path: .csv or .txt with rows of four numbers (commas, semicolons or spaces between them; lines that begin with #
            are passed over), or .yaml with a list of such rows. A heading, behind a # or not, tells their order, and
            without one it is that of the result.

    Returns:
        (N, 4) float64: x_thermal, y_thermal, x_visible, y_visible, in px of the pictures.

    Raises:
        UserError: naming the file and the row.
    """
    text = read_text(path, what="points")
    rows = _yaml_rows(text, path) if path.suffix.lower() in (".yaml", ".yml") else _text_rows(text, path)
    points = [_point(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]
    return np.array(points, np.float64).reshape(-1, 4)


def _yaml_rows(text: str, path: Path) -> list[Any]:
    rows = parse_yaml(text, str(path))
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of rows [{', '.join(_WANTED.split())}]")
    return rows


def _text_rows(text: str, path: Path) -> list[list[str]]:
    """The words of each line in the order that is wanted, without comments and the heading that tells their order."""
    wanted = order = _WANTED.split()
    rows: list[list[str]] = []
    for line in filter(str.strip, text.splitlines()):
        words = line.lstrip(" \t#").replace(";", " ").replace(",", " ").replace('"', " ").split()
        is_remark = line.lstrip().startswith("#")
        if not rows and sorted(words) == sorted(wanted):
            order = words
        elif not rows and not is_remark and words and words[0][:1].isalpha():
            raise UserError(f"{path}: the heading {quoted(line.strip())} does not name the columns {_WANTED}")
        elif not is_remark:
            rows.append(words)
    places = [order.index(name) for name in wanted]
    return [[row[place] for place in places] if len(row) == len(places) else row for row in rows]


def _point(row: Any, where: str) -> tuple[float, float, float, float]:
    try:
        x, y, u, v = (float(value) for value in row)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: expected {_WANTED}, got {quoted(row)}") from None
    if not np.isfinite([x, y, u, v]).all():
        raise UserError(f"{where}: {quoted(row)} is not finite")
    return x, y, u, v
