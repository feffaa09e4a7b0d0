"""SQLite files as rosbag2 records them, of every version of its tables, read through SQLite itself.

A recorder that was killed leaves messages in a write-ahead log beside the file, an open transaction in a journal, or a
file that ends too early. SQLite mends the first two, and it would do so in the bag's own folder; here it gets a copy.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from rscmd_ros.bags.storage import MOST, DamagedError, Topic

_LEFT_BEHIND = ("-wal", "-journal")
_BEFORE_VERSION_4 = ("", "")
_TABLES = (
    "CREATE TABLE topics(id INTEGER PRIMARY KEY, name, type, serialization_format)",
    "CREATE TABLE message_definitions(topic_type, encoding, encoded_message_definition)",
    "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id, timestamp, data)",
    "CREATE INDEX timestamp_idx ON messages (timestamp)",
)

_ROWS: tuple[tuple[str, str, tuple[type, ...]], ...] = (
    ("topics", "id, name, type, serialization_format", (int, str, str, str)),
    ("message_definitions", "topic_type, encoding, encoded_message_definition", (str, str, str)),
    ("messages", "id, topic_id, timestamp, data", (int, int, int, bytes)),
)


class SqliteFile:
    """An open file; see `Storage`.

    Raises:
        DamagedError: nothing of it can be read.
    """

    def __init__(self, path: Path) -> None:
        self.topics: list[Topic] = []
        self.total, self.start = 0, 0
        self.notes: list[str] = []
        self._aside: TemporaryDirectory[str] | None = None
        self._base: sqlite3.Connection | None = None
        try:
            left = [suffix for suffix in _LEFT_BEHIND if _size(path.with_name(path.name + suffix))]
            if not _size(path):
                raise DamagedError("it is empty")
            if left:
                self._open_copy(path, left)
            else:
                self._base = _open(path)
            try:
                self._take_index()
            except sqlite3.Error:
                self._salvage(path)
                self._take_index()
        except sqlite3.Error as error:
            self.close()
            raise DamagedError(str(error)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._base is not None:
            with suppress(sqlite3.Error):
                self._base.close()
        if self._aside is not None:
            self._aside.cleanup()
        self._base = self._aside = None

    def messages(self, numbers: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        marks = ",".join("?" * len(numbers))
        query = f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({marks}) ORDER BY timestamp, id"
        try:
            for number, time, data in self._ask(query, *numbers):
                if not (isinstance(time, int) and isinstance(data, bytes)):
                    raise DamagedError("a message has no time or no data")
                yield number, time, data
        except sqlite3.Error as error:
            raise DamagedError(str(error)) from None

    def _ask(self, query: str, *values: Any) -> sqlite3.Cursor:
        assert self._base is not None
        return self._base.execute(query, values)

    def _take_index(self) -> None:
        tables = {name for (name,) in self._ask("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"topics", "messages"} <= tables:
            raise DamagedError("it is no file of rosbag2: it has no tables of topics and messages")
        definitions: dict[str, tuple[str, str]] = {}
        if "message_definitions" in tables:
            for kind, *text in self._ask(
                "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
            ):
                definitions[str(kind)] = (str(text[0]), str(text[1]))
        counts = dict(self._ask("SELECT topic_id, count(*) FROM messages GROUP BY topic_id").fetchall())
        for number, name, kind, serialization in self._ask("SELECT id, name, type, serialization_format FROM topics"):
            definition = definitions.get(str(kind), _BEFORE_VERSION_4)
            self.topics.append(
                Topic(number, str(name), str(kind), str(serialization), *definition, counts.get(number, 0))
            )
        self.total = sum(counts.values())
        (start,) = self._ask("SELECT min(timestamp) FROM messages").fetchone()
        self.start = start if isinstance(start, int) else 0

    def _open_copy(self, path: Path, left: list[str]) -> None:
        """Open a copy into which SQLite has worked what was left beside the file."""
        copy = self._room() / path.name
        for suffix in ("", *left):
            shutil.copyfile(path.with_name(path.name + suffix), copy.with_name(copy.name + suffix))
        before: int | None = None
        with suppress(sqlite3.Error), closing(_open(path)) as base:
            (before,) = base.execute("SELECT count(*) FROM messages").fetchone()
        self._base = _open(copy, "rw")
        (after,) = self._ask("SELECT count(*) FROM messages").fetchone()
        names = " and ".join(path.name + suffix for suffix in left)
        if before != after:
            more = f"{after - before} of its {after} messages" if before is not None else f"its {after} messages"
            self.notes.append(
                f"{more} come from {names}, which a recorder that was killed left there: read from a copy (opened and "
                f"closed once with the program sqlite3, {path.name} holds them itself)"
            )

    def _salvage(self, path: Path) -> None:
        """Copy what can be read, row by row from the first, into a sound file, and open that."""
        assert self._base is not None
        damaged, fault = self._base, "it is cut short"
        self.topics.clear()
        sound = sqlite3.connect(self._room() / "salvaged.db3", check_same_thread=False)
        self._base = sound
        for table in _TABLES:
            sound.execute(table)
        # Otherwise SQLite does not even look into a file that is shorter than its header says.
        damaged.execute("PRAGMA writable_schema = ON")
        with closing(damaged):
            for table, columns, sound_row in _ROWS:
                order = "" if table == "message_definitions" else " ORDER BY id"
                marks = ",".join("?" * (columns.count(",") + 1))
                try:
                    for row in damaged.execute(f"SELECT {columns} FROM {table} NOT INDEXED{order}"):
                        # Pages that are not there any more read as zeros.
                        if not all(isinstance(value, kind) for value, kind in zip(row, sound_row, strict=True)):
                            break
                        sound.execute(f"INSERT INTO {table} VALUES ({marks})", row)
                except sqlite3.Error as error:
                    if table != "message_definitions":  # files before version 4 have none
                        fault = str(error)
        sound.commit()
        (count,) = sound.execute("SELECT count(*) FROM messages WHERE topic_id IN (SELECT id FROM topics)").fetchone()
        if not count:
            raise DamagedError(f"{fault}; `sqlite3 {path.name} .recover` may still find messages")
        self.notes.append(f"{path.name} is damaged or cut short ({fault}): read are the {count} messages before that")

    def _room(self) -> Path:
        if self._aside is None:
            self._aside = TemporaryDirectory(prefix="rscmd_bag_")
        return Path(self._aside.name)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _open(path: Path, mode: str = "ro&immutable=1") -> sqlite3.Connection:
    """Open the file alone, without touching anything beside it, unless it is a copy (mode "rw").

    The thread that reads is not always the one that opened; no two do so at once.
    """
    base = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode={mode}", uri=True, check_same_thread=False)
    base.text_factory = lambda text: text.decode(errors="replace")
    if hasattr(base, "setlimit"):  # from Python 3.11 on
        base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST)
    base.execute("PRAGMA trusted_schema = OFF")
    return base
