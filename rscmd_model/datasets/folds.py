"""One fold of a data set held out: the pairs of its splits together, shared out between train and val by a CSV.

    fold: {list: folds.csv, held_out: 2, of: [train, val]}

in a data.yaml. The list has a row for each pair, with the columns `name` (the pair's stem, or the last part of it) and
`fold`. `val` is the fold that is held out and `train` all others, whatever the reader; `of` names the splits that the
pairs are taken from, and a pair that stands in two of them is taken once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rscmd_model.datasets.pairs import DataConfig, Labels, Listing, PairFiles, Place, Problem, Reader, first
from rscmd_model.errors import UserError, quoted
from rscmd_model.text import is_path, read_text

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Folded:
    """The pairs of another reader with a fold held out (`Reader`).

    Attributes:
        reader: the layout that the pairs lie in.
        of: its splits, whose pairs are taken.
        list: CSV with the columns name and fold.
        held_out: the fold that is val.
    """

    reader: Reader
    of: tuple[str, ...]
    list: Path
    held_out: str

    def places(self) -> tuple[Place, ...]:
        """The folders of the layout; each may hold pairs of both splits."""
        return tuple(replace(place, split="") for place in self.reader.places())

    def unlisted(self) -> tuple[str, bool]:
        """As the layout has it."""
        return self.reader.unlisted()

    def pairs(self, split: str) -> Listing:
        """The pairs of the fold that is held out (val), or of all others (train).

        Raises:
            UserError: as the layout, or the list and the pairs do not go together, or it has no such fold.
        """
        everything = together(self.reader, self.of)
        rows = read_rows(self.list, ("fold",))
        fold_of = {stem: row["fold"] for stem, row in rows_of(everything.pairs, rows, self.list).items()}
        if self.held_out not in fold_of.values():
            raise UserError(
                f"{self.list} has no fold {quoted(self.held_out)}; it has {', '.join(fold_names(fold_of.values()))}"
            )
        wanted = split == "val"
        found = tuple(pair for pair in everything.pairs if (fold_of[pair.stem] == self.held_out) == wanted)
        return Listing(found, everything.problems)

    def labels(self, pair: PairFiles, names: Mapping[int, str]) -> Labels:
        """As the layout has them."""
        return self.reader.labels(pair, names)


def fold_of(config: DataConfig, given: Any, base: Path, where: str) -> tuple[DataConfig, dict[str, Any]]:
    """Hold a fold of a data set out.

    Args:
        config: the whole data set.
        given: the value of the key `fold`.
        base: what a relative path of the list starts from.
        where: for messages.

    Returns:
        the data set with the splits train and val, and the key's value with an absolute path.

    Raises:
        UserError: the value has another form, or names a split that is not there.
    """
    form = f"{where}: fold has the form {{list: folds.csv, held_out: 2, of: [train, val]}}"
    if not isinstance(given, dict) or set(given) != {"list", "held_out", "of"}:
        raise UserError(form)
    file, held_out, of = given["list"], given["held_out"], given["of"]
    if not isinstance(file, str) or not isinstance(held_out, str) or not isinstance(of, list) or not of:
        raise UserError(form)
    if not is_path(file):
        raise UserError(f"{where}: fold: {quoted(file)} is no path")
    if unknown := [split for split in of if split not in config.splits]:
        raise UserError(f"{where}: fold: no split {quoted(unknown[0])}; there are {', '.join(config.splits)}")
    path = (base / file).resolve()
    reader = Folded(config.reader, tuple(of), path, held_out)
    # What was published of the whole splits does not hold for these.
    folded = replace(config, splits=SPLITS, reader=reader, published=(), old_boxes=())
    return folded, {"list": str(path), "held_out": held_out, "of": of}


def together(reader: Reader, splits: Sequence[str]) -> Listing:
    """The pairs of several splits, each once, in order of their stems.

    Args:
        reader: a layout.
        splits: of it; one may stand there twice.

    Raises:
        UserError: as the layout, or two pairs have the same stem.
    """
    pairs: dict[str, PairFiles] = {}
    problems: dict[Problem, None] = {}
    for split in dict.fromkeys(splits):
        listing = reader.pairs(split)
        problems.update(dict.fromkeys(listing.problems))
        for pair in listing.pairs:
            other = pairs.setdefault(pair.stem, pair)
            if other.visible != pair.visible:
                raise UserError(
                    f"{other.visible} and {pair.visible} are both called {pair.stem}, so that a list of folds cannot "
                    "tell them apart: rename one"
                )
    return Listing(tuple(pairs[stem] for stem in sorted(pairs)), tuple(problems))


def read_rows(file: Path, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """The rows of a CSV of pairs by their column `name`.

    Args:
        file: with a line of titles.
        columns: which others it has to have.

    Raises:
        UserError: it cannot be read, lacks a column or a value of one, or has a name twice.
    """
    table = csv.reader(io.StringIO(read_text(file)), strict=True)
    rows: dict[str, dict[str, str]] = {}
    try:
        titles = [title.strip() for title in next(table, [])]
        if lacking := [column for column in ("name", *columns) if column not in titles]:
            raise UserError(f"{file} has no column {lacking[0]}; its first line is {quoted(','.join(titles))}")
        for values in table:
            if not values:
                continue
            row = dict(zip(titles, map(str.strip, values)))
            for column in ("name", *columns):
                if not row.get(column):
                    raise UserError(f"{file}, line {table.line_num}: no {column}")
            if row["name"] in rows:
                raise UserError(f"{file}, line {table.line_num}: {quoted(row['name'])} stands there twice")
            rows[row["name"]] = row
    except csv.Error as error:
        raise UserError(f"{file}, line {table.line_num}, is no CSV: {error}") from None
    if not rows:
        raise UserError(f"{file} names no pair")
    return rows


def rows_of(
    pairs: Sequence[PairFiles], rows: Mapping[str, dict[str, str]], file: Path, *, others: bool = False
) -> dict[str, dict[str, str]]:
    """The row of each pair, by its stem.

    Args:
        pairs: all of them.
        rows: of `read_rows`.
        file: that they stand in, for messages.
        others: rows that name none of the pairs are passed over.

    Raises:
        UserError: a pair has no row, a row has no pair, or two pairs have the same row.
    """
    named: dict[str, str] = {}
    found: dict[str, dict[str, str]] = {}
    lacking = []
    for pair in pairs:
        name = pair.stem if pair.stem in rows else pair.stem.rpartition("/")[2]
        if name not in rows:
            lacking.append(pair.stem)
        elif name in named:
            raise UserError(f"{file}: {quoted(name)} may be {named[name]} or {pair.stem}: give the whole stems")
        else:
            named[name], found[pair.stem] = pair.stem, rows[name]
    if lacking:
        raise UserError(f"{file} does not name {len(lacking)} of {len(pairs)} pairs: {first(lacking)}")
    if not others and (foreign := [name for name in rows if name not in named]):
        raise UserError(f"{file} names {len(foreign)} that are no pairs of these splits: {first(foreign)}")
    return found


def fold_names(folds: Iterable[str]) -> list[str]:
    """Folds in their order, each once: numbers by size, then words.

    Args:
        folds: their names.
    """
    return sorted(set(folds), key=lambda fold: (not fold.isdecimal(), int(fold) if fold.isdecimal() else 0, fold))
