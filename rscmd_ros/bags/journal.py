"""The journal of a labelling: what the model answered to each pair of a recording, one JSON line a pair.

Lines are added in whole batches, and a run that was broken off goes on after the last whole batch: so the network sees
the same batches as in a run that was not, and what comes of them is the same to the last digit. Boxes are kept in
hundredths of a pixel; whoever goes on works with what the journal has, never with more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError, first_line

JOURNAL = "answers.jsonl"


@dataclass(frozen=True)
class Entry:
    """What became of a pair.

    Attributes:
        stamp: header stamp of the visible frame, ns.
        time: since the first pair of the recording, ns.
        size: (width, height) of the visible picture, px.
        answers: by name, rows of x0, y0, x1, y1 (px), score and class, rounded.
        kept: the split that the pair was taken into; None where it was not.
        small: what the next pairs are compared with, if it was taken, in base64.
        copy: whether it was left out as a near-copy.
        fault: why its pictures could not be decoded; then there are no answers.
    """

    stamp: int
    time: int
    size: tuple[int, int] = (0, 0)
    answers: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    kept: str | None = None
    small: str = ""
    copy: bool = False
    fault: str = ""

    def detections(self) -> dict[str, Detections]:
        """The answers by name."""
        return {name: _detections(rows) for name, rows in self.answers.items()}

    def line(self) -> str:
        """As JSON, without what is as ever."""
        plain = {
            name: value for name, value in vars(self).items() if name in ("stamp", "time") or value != _USUAL[name]
        }
        return json.dumps(plain, separators=(",", ":"))

    @staticmethod
    def from_line(line: str) -> Entry:
        """Read `line`'s output. Raises `ValueError` or `TypeError` where it is none."""
        plain = json.loads(line)
        if "size" in plain:
            plain["size"] = tuple(plain["size"])
        return Entry(**plain)


_USUAL: dict[str, Any] = vars(Entry(0, 0))


def rounded(found: Detections) -> list[list[float]]:
    """The rows of an answer as the journal has them."""
    return [
        [*(round(value, 2) for value in box), round(score, 5), cls]
        for box, score, cls in zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist())
    ]


class Journal:
    """The journal in a folder.

    Args:
        folder: of the set in the making.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / JOURNAL

    def entries(self) -> Iterator[Entry]:
        """The entries, in the order of the recording; up to the first line that is damaged or cut short.

        Raises:
            UserError: the file cannot be read.
        """
        for entry, _ in self._read():
            yield entry

    def resume(self, batch: int, total: int) -> tuple[list[Entry], int]:
        """Cut the journal after the last whole batch; a run that was broken off goes on there.

        Args:
            batch: pairs of a batch.
            total: pairs that the journal will have when it is whole; its last batch may be smaller.

        Returns:
            The entries of the pairs that are in the set, and how many pairs the journal has.

        Raises:
            UserError: the file cannot be read or written.
        """
        done, good = 0, 0
        kept: list[Entry] = []
        waiting: list[Entry] = []
        for count, (entry, end) in enumerate(self._read(), 1):
            if entry.kept:
                waiting.append(entry)
            if count % batch == 0 or count == total:
                done, good = count, end
                kept += waiting
                waiting = []
        try:
            with self._file.open("ab") as file:
                file.truncate(good)
        except OSError as error:
            raise UserError(f"cannot write {self._file}: {error.strerror or error}") from None
        return kept, done

    def append(self, entries: Sequence[Entry]) -> None:
        """Add a batch.

        Raises:
            UserError: it cannot be written; what was is cut off by `resume`.
        """
        text = "".join(entry.line() + "\n" for entry in entries)
        try:
            with self._file.open("ab") as file:
                file.write(text.encode())
        except OSError as error:
            raise UserError(f"cannot write {self._file}: {error.strerror or error}") from None

    def _read(self) -> Iterator[tuple[Entry, int]]:
        """Each entry, and where its line ends."""
        end = 0
        try:
            with self._file.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    end += len(line)
                    try:
                        entry = Entry.from_line(line.decode())
                    except (ValueError, TypeError, KeyError):
                        return
                    yield entry, end
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"cannot read {self._file}: {error.strerror or error}") from None


def _detections(rows: Sequence[Sequence[float]]) -> Detections:
    if not rows:
        return Detections.empty()
    try:
        table = np.array(rows, np.float64).reshape(len(rows), 6)
        return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))
    except (ValueError, TypeError) as error:
        raise UserError(f"the journal {JOURNAL} has an answer that is none: {first_line(error)}") from None
