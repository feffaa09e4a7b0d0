"""Which camera is lost of which pair: tables for tests and trainings with incomplete pairs.

A table is drawn once for a split, as Lee et al. draw theirs (Multimodal Prompting with Missing Modalities for Visual
Recognition, CVPR 2023, arXiv 2303.03369): a share of the pairs loses one camera, always the same one or half and half.
No pair loses both.

The pairs stand in a row, in order of a hash of the seed and their stems. A table of the visible or of the thermal
camera takes the row's first part; one of either takes as much from its start (visible lost) as from its end (thermal
lost). So a pair that is lost at one rate is lost at each higher one, and of the same camera. And a table does not
depend on the order of the files; a pair more or less moves each end of a part by one place at most.

As a CSV a table has a row for each pair, with the columns `name` (its stem) and `lost` (visible, thermal or none).
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rscmd_model.config import MODALITIES
from rscmd_model.datasets.folds import read_rows, rows_of
from rscmd_model.datasets.pairs import PairFiles
from rscmd_model.errors import UserError, did_you_mean, quoted
from rscmd_model.files import whole_file
from rscmd_model.text import utf_8

EITHER = "either"
WHICH = (*MODALITIES, EITHER)
KEPT = "none"  # what a CSV says of a pair that has both cameras


def lost_cameras(stems: Iterable[str], rate: float, which: str = EITHER, seed: int = 0) -> dict[str, str]:
    """Draw a table.

    Args:
        stems: of all pairs of a split, in any order.
        rate: share of the pairs that lose a camera, 0 to 1; of N pairs round(rate N) lose one.
        which: the camera that they lose: "visible", "thermal", or "either": half of them one, half the other, and of
            an odd number one more the visible camera.
        seed: another one draws other pairs.

    Returns:
        the lost camera, "visible" or "thermal", by the stems of the pairs that lose one, in order of the stems.

    Raises:
        UserError: a rate or a camera that is none.
        ValueError: a stem is there twice.
    """
    if not 0 <= rate <= 1:
        raise UserError(f"rate {rate:g}: give a share of the pairs from 0 to 1")
    if which not in WHICH:
        raise UserError(f"lost camera {quoted(which)} is not {', '.join(WHICH[:-1])} or {WHICH[-1]}")
    stems = list(stems)
    if len(set(stems)) < len(stems):
        raise ValueError("expected each stem once")
    row = sorted(stems, key=lambda stem: (_hash(f"{seed} lost camera {stem}"), stem))
    count = round(rate * len(row))
    if which == EITHER:
        first = (count + 1) // 2
        lost = dict.fromkeys(row[:first], "visible") | dict.fromkeys(row[len(row) - count + first :], "thermal")
    else:
        lost = dict.fromkeys(row[:count], which)
    return {stem: lost[stem] for stem in sorted(lost)}


def table_digest(stems: Iterable[str], lost: Mapping[str, str]) -> str:
    """What tells two tables apart: the first 16 hex digits of the SHA-256 of the file that `write_table` writes.

    Args:
        stems: of all pairs of the split.
        lost: of `lost_cameras` or `read_table`.
    """
    return _hash(_text(stems, lost))[:16]


def write_table(file: Path, stems: Iterable[str], lost: Mapping[str, str]) -> None:
    """Write a table as a CSV, whole.

    Args:
        file: to write.
        stems: of all pairs of the split.
        lost: of `lost_cameras` or `read_table`.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(file) as aside:
        aside.write_bytes(utf_8(_text(stems, lost)))


def read_table(file: Path, pairs: Sequence[PairFiles]) -> dict[str, str]:
    """Read a table of the pairs of a split.

    Args:
        file: a CSV with the columns name (a pair's stem, or the last part of it) and lost.
        pairs: of the split, all of them.

    Returns:
        as `lost_cameras`.

    Raises:
        UserError: it cannot be read, a value is none, or its rows and the pairs do not go together.
    """
    rows = rows_of(pairs, read_rows(file, ("lost",)), file)
    for row in rows.values():
        if row["lost"] not in (*MODALITIES, KEPT):
            hint = did_you_mean(row["lost"], (*MODALITIES, KEPT))
            raise UserError(
                f"{file}: {quoted(row['name'])} has lost {quoted(row['lost'])}: give visible, thermal or none{hint}"
            )
    return {stem: rows[stem]["lost"] for stem in sorted(rows) if rows[stem]["lost"] != KEPT}


def _text(stems: Iterable[str], lost: Mapping[str, str]) -> str:
    """The CSV of a table, in order of the stems."""
    stems = sorted(stems)
    if foreign := set(lost) - set(stems):
        raise ValueError(f"the table names {min(foreign)}, which is no pair of the split")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("name", "lost"))
    rows.writerows((stem, lost.get(stem, KEPT)) for stem in stems)
    return text.getvalue()


def _hash(text: str) -> str:
    return hashlib.sha256(utf_8(text)).hexdigest()
