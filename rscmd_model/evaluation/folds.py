"""The folds of an ablation: which pairs are held out together, and which of them belong to one drive.

Pictures of one drive are much alike. So a drive lies in one fold as a whole, and the intervals of `resampling` draw
whole drives.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from rscmd_model.datasets.folds import fold_names, read_rows, rows_of, together
from rscmd_model.datasets.pairs import DataConfig, PairFiles, find_pairs, first, read_labels
from rscmd_model.errors import UserError, quoted
from rscmd_model.files import whole_file

BLOCK = "block"  # the column of the drives where no other is named


@dataclass(frozen=True)
class Drives:
    """Which pairs belong together.

    Attributes:
        of: by the stem of a pair its drive.
        column: of the CSV that says so; None where each pair is a drive of its own.
    """

    of: Mapping[str, str]
    column: str | None

    @property
    def count(self) -> int:
        """How many drives there are."""
        return len(set(self.of.values()))

    def __str__(self) -> str:
        count = self.count
        if self.column is None:
            return f"each of the {count} pairs is drawn by itself, since no column names its drive (--group COLUMN)"
        return f"{count} drives (column {self.column}) are drawn whole"


@dataclass(frozen=True)
class Folds:
    """The folds of a data set.

    Attributes:
        of: by the stem of a pair its fold.
        splits: of the data set, that the pairs are taken from.
    """

    of: Mapping[str, str]
    splits: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The folds in their order."""
        return fold_names(self.of.values())

    def table(self) -> str:
        """A CSV with the columns name and fold, in order of the names."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("name", "fold"), *sorted(self.of.items())])
        return text.getvalue()

    def digest(self) -> str:
        """SHA-256 of `table`: other folds, another digest."""
        return hashlib.sha256(self.table().encode()).hexdigest()

    def write(self, data: DataConfig, folder: Path) -> dict[str, Path]:
        """Write folds.csv, and for each fold a data.yaml that holds it out.

        Args:
            data: the data set.
            folder: gets the files.

        Returns:
            the description of each fold; `open_data` reads it.

        Raises:
            UserError: a file cannot be written.
        """
        table = folder.resolve() / "folds.csv"
        with whole_file(table) as aside:
            aside.write_text(self.table(), encoding="utf-8")
        files = {name: folder / f"fold{name}.yaml" for name in self.names}
        for name, file in files.items():
            fold = {"list": str(table), "held_out": name, "of": list(self.splits)}
            counts = Counter(other == name for other in self.of.values())
            head = f"# Fold {name} held out: {counts[False]} pairs to train on, {counts[True]} to score.\n"
            with whole_file(file) as aside:
                aside.write_text(head + yaml.safe_dump({**data.resolved, "fold": fold}, sort_keys=False))
        return files


def read_folds(
    data: DataConfig, splits: Sequence[str], file: Path, group: str | None = None, count: int | None = None
) -> tuple[Folds, Drives]:
    """The folds that a CSV names, or that are made of the drives it names.

    Args:
        data: the data set.
        splits: of it, whose pairs are folded together.
        file: CSV with the column name, and fold or that of the drives.
        group: the column of the drives; None means `BLOCK` where there is one.
        count: how many folds to make of whole drives; None means to read them.

    Raises:
        UserError: the CSV and the pairs do not go together, a drive lies in two folds, or there are too few folds.
    """
    for split in splits:
        find_pairs(data, split)  # refuses pairs that cannot be used
    pairs = together(data.reader, splits).pairs
    rows = read_rows(file, [*(["fold"] if count is None else []), *([group] if group else [])])
    row_of = rows_of(pairs, rows, file)
    drives = _drives(row_of, group, file)
    if count is None:
        of = {stem: row["fold"] for stem, row in row_of.items()}
        if odd := sorted(fold for fold in set(of.values()) if not re.fullmatch(r"\w[\w.-]*", fold)):
            raise UserError(f"{file}: fold {quoted(odd[0])} becomes part of file names: use letters, digits, _ and -")
        _check_whole(of, drives, file)
    else:
        of = _shared_out(data, pairs, drives, count, file)
    if len(set(of.values())) < 2:
        raise UserError(f"{file} puts all {len(of)} pairs into one fold: two or more are needed")
    return Folds(of, tuple(dict.fromkeys(splits))), drives


def read_drives(data: DataConfig, split: str, file: Path, group: str | None = None) -> Drives:
    """The drives of a split's pairs, by a CSV that may name other pairs as well.

    Args:
        data: the data set.
        split: one of its splits.
        file: CSV with the column name and that of the drives.
        group: the column of the drives; None means `BLOCK` where there is one.

    Raises:
        UserError: the CSV does not name all pairs.
    """
    rows = read_rows(file, [group] if group else [])
    return _drives(rows_of(find_pairs(data, split), rows, file, others=True), group, file)


def _drives(row_of: Mapping[str, Mapping[str, str]], group: str | None, file: Path) -> Drives:
    column = group or BLOCK
    if not any(row.get(column) for row in row_of.values()):
        return Drives({stem: stem for stem in row_of}, None)
    if lacking := [stem for stem, row in row_of.items() if not row.get(column)]:
        raise UserError(f"{file}: no {column} of {len(lacking)} pairs: {first(lacking)}")
    return Drives({stem: row[column] for stem, row in row_of.items()}, column)


def _check_whole(of: Mapping[str, str], drives: Drives, file: Path) -> None:
    """Refuse a drive that lies in two folds: a model would be scored on pictures it nearly knows."""
    folds: dict[str, set[str]] = {}
    for stem, fold in of.items():
        folds.setdefault(drives.of[stem], set()).add(fold)
    if torn := [drive for drive, its in folds.items() if len(its) > 1]:
        where = ", ".join(fold_names(folds[torn[0]]))
        more = f", and {len(torn) - 1} more do" if len(torn) > 1 else ""
        raise UserError(f"{file}: {drives.column} {quoted(torn[0])} lies in the folds {where}{more}: keep it whole")


def _shared_out(data: DataConfig, pairs: Sequence[PairFiles], drives: Drives, count: int, file: Path) -> dict[str, str]:
    """Whole drives shared out: the one with most boxes first, each to the fold that has the fewest so far."""
    boxes: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for pair in pairs:
        boxes[drives.of[pair.stem]] += len(read_labels(data, pair))
        size[drives.of[pair.stem]] += 1
    if not 2 <= count <= len(size):
        raise UserError(f"--fold-count {count}: {file} has {len(size)} drives, so 2 to {len(size)} folds can be made")
    full = [[0, 0, fold] for fold in range(count)]  # boxes, pairs, and the number that decides between equals
    fold_of: dict[str, str] = {}
    for drive in sorted(size, key=lambda drive: (-boxes[drive], -size[drive], drive)):
        least = min(full)
        least[0] += boxes[drive]
        least[1] += size[drive]
        fold_of[drive] = str(least[2])
    return {pair.stem: fold_of[drives.of[pair.stem]] for pair in pairs}
