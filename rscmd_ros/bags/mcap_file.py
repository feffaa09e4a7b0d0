"""MCAP files (https://mcap.dev/spec) as rosbag2 records them: by their index, or by a walk where the index is missing.

A recorder that was killed leaves a file without its end, where the index lies. What comes before is read all the same,
up to the last message that is whole.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter
from pathlib import Path
from zlib import crc32

import lz4.frame  # type: ignore[import-untyped]

from rscmd_ros.bags.storage import MOST, DamagedError, Topic, unzstd

MAGIC = b"\x89MCAP0\r\n"
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _CHUNK_INDEX, _STATISTICS, _DATA_END = 2, 3, 4, 5, 6, 8, 11, 15
_HEAD, _MESSAGE_HEAD, _CHUNK_HEAD = struct.Struct("<BQ"), struct.Struct("<HIQQ"), struct.Struct("<QQQI")
_END = _HEAD.size + 20 + len(MAGIC)  # the footer and the magic after it

Entry = tuple[int, int, "bytes | None"]
"""Time of recording, channel and data of a message; without data, the time at which a chunk begins."""


@dataclass(frozen=True)
class _Chunk:
    """Where a chunk lies, when it begins, and its channels where the index tells them. cut: the file ends within it."""

    at: int
    start: int
    channels: frozenset[int] | None = None
    cut: bool = False


class _Fields:
    """The fields of a record, read one after another."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._at = memoryview(data), 0

    def numbers(self, form: str) -> tuple[int, ...]:
        found = struct.unpack_from("<" + form, self._data, self._at)
        self._at += struct.calcsize("<" + form)
        return found

    def block(self) -> bytes:
        (size,) = self.numbers("I")
        if size > len(self._data) - self._at:
            raise DamagedError("a record is shorter than it says")
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def text(self) -> str:
        return self.block().decode(errors="replace")


class McapFile:
    """An open file; see `Storage`.

    Raises:
        DamagedError: nothing of it can be read.
    """

    def __init__(self, path: Path) -> None:
        self.topics: list[Topic] = []
        self.total, self.start = 0, 0
        self.notes: list[str] = []
        self._name = path.name
        self._schemas: dict[int, tuple[str, str, str]] = {}
        self._channels: dict[int, tuple[int, str, str]] = {}
        self._counts: Counter[int] = Counter()
        self._chunks: list[_Chunk] = []
        self._loose: list[tuple[int, int, int, int]] = []  # time, channel, place and size of a message in no chunk
        self._file = path.open("rb")
        try:
            self._size = path.stat().st_size
            if not self._size:
                raise DamagedError("it is empty")
            if self._file.read(len(MAGIC)) != MAGIC:
                raise DamagedError("it does not begin as an MCAP file does")
            if not self._by_index():
                self._by_walk()
        except BaseException:
            self.close()
            raise
        for number, (schema, name, serialization) in self._channels.items():
            kind, encoding, definition = self._schemas.get(schema, ("", "", ""))
            count = self._counts[number]
            self.topics.append(Topic(number, name, kind, serialization, encoding, definition, count))

    def close(self) -> None:
        self._file.close()

    def messages(self, numbers: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        wanted = set(numbers)
        sources: list[Iterator[Entry]] = [
            self._of_chunk(chunk, wanted)
            for chunk in self._chunks
            if chunk.channels is None or not wanted.isdisjoint(chunk.channels)
        ]
        sources.append(self._of_no_chunk(wanted))
        for time, number, data in merge(*sources, key=itemgetter(0)):
            if data is not None:
                yield number, time, data

    def _of_chunk(self, chunk: _Chunk, wanted: set[int]) -> Iterator[Entry]:
        """The chunk's beginning, then its messages by time, so that a chunk is only unpacked when its time has come."""
        yield chunk.start, 0, None
        found: list[tuple[int, int, bytes]] = []
        try:
            for kind, body in self._unpacked(chunk):
                if kind == _MESSAGE:
                    number, _, time, _ = _message_head(body)
                    if number in wanted:
                        found.append((time, number, bytes(body[_MESSAGE_HEAD.size :])))
        except DamagedError as error:
            self._leave_out(error)
            return
        found.sort(key=itemgetter(0))
        yield from found

    def _of_no_chunk(self, wanted: set[int]) -> Iterator[Entry]:
        for time, number, at, size in self._loose:
            if number in wanted:
                yield time, number, self._read(at, size)

    def _by_index(self) -> bool:
        """Take the index at the end of the file; whether it is there, readable and whole."""
        if self._size < len(MAGIC) + _END:
            return False
        end = self._size - _END
        footer = self._read(end, _END)
        if footer[: _HEAD.size] != _HEAD.pack(_FOOTER, 20) or not footer.endswith(MAGIC):
            return False
        (summary,) = struct.unpack_from("<Q", footer, _HEAD.size)
        statistics: tuple[int, ...] = ()
        try:
            for kind, at, size in self._records(summary, end) if summary else ():
                if kind not in (_SCHEMA, _CHANNEL, _CHUNK_INDEX, _STATISTICS):
                    continue
                fields = _Fields(self._read(at, size))
                if kind == _CHUNK_INDEX:
                    start, _, place, _ = fields.numbers("QQQQ")
                    channels = frozenset(number for number, _ in struct.iter_unpack("<HQ", fields.block()))
                    self._chunks.append(_Chunk(place, start, channels or None))
                elif kind == _STATISTICS:
                    statistics = fields.numbers("QHIIIIQQ")
                    self._counts.update(dict(struct.iter_unpack("<HQ", fields.block())))
                else:
                    self._define(kind, fields)
        except (DamagedError, struct.error):
            statistics = ()
        places = {chunk.at for chunk in self._chunks}
        # A writer may leave out of the index what the chunks have: types (rosbag2's noRepeatedSchemas), and counts.
        whole = all(schema in self._schemas for schema, *_ in self._channels.values())
        whole = whole and bool(statistics) and self._counts.total() == statistics[0]
        if whole and len(places) == statistics[5] and (places or not statistics[0]) and self._channels:
            self.total, self.start = statistics[0], statistics[6]
            return True
        self._chunks, self._counts, self._channels, self._schemas = [], Counter(), {}, {}
        return False

    def _by_walk(self) -> None:
        """Take every record from the first to the last that is whole."""
        ended = False
        at = len(MAGIC)
        starts: list[int] = []
        for kind, body, size in self._records(at, self._size, cut=True):
            whole = body + size <= self._size
            if kind in (_DATA_END, _FOOTER):
                ended = True
                break
            if kind == _CHUNK:
                self._walk_chunk(body - _HEAD.size, whole, starts)
            elif not whole:
                break
            elif kind == _MESSAGE:
                number, _, time, _ = _message_head(self._read(body, _MESSAGE_HEAD.size))
                self._loose.append((time, number, body + _MESSAGE_HEAD.size, size - _MESSAGE_HEAD.size))
                self._counts[number] += 1
                starts.append(time)
            elif kind in (_SCHEMA, _CHANNEL):
                self._define(kind, _Fields(self._read(body, size)))
        self._loose.sort(key=itemgetter(0))
        self.total, self.start = self._counts.total(), min(starts, default=0)
        if not ended:
            if not self.total:
                raise DamagedError("it was cut off before its first message: its recorder was killed, or the disk full")
            self.notes.append(
                f"{self._name} was cut off, as when a recorder is killed: read are the {self.total} messages before "
                "that place (`mcap recover` of mcap.dev writes them into a sound file)"
            )

    def _leave_out(self, error: DamagedError) -> None:
        """Note that a chunk is damaged, once for each kind of damage."""
        note = f"{self._name} has a damaged part, which is left out: {error}"
        if note not in self.notes:
            self.notes.append(note)

    def _walk_chunk(self, at: int, whole: bool, starts: list[int]) -> None:
        """Take the chunk that begins at `at`, unless it is damaged."""
        chunk, counts = _Chunk(at, 0, cut=not whole), Counter[int]()
        first = 2**64
        try:
            for kind, body in self._unpacked(chunk):
                if kind == _MESSAGE:
                    number, _, time, _ = _message_head(body)
                    counts[number] += 1
                    first = min(first, time)
                elif kind in (_SCHEMA, _CHANNEL):
                    self._define(kind, _Fields(body))
        except DamagedError as error:
            if whole:
                self._leave_out(error)
            return
        self._chunks.append(_Chunk(at, first, frozenset(counts), not whole))
        self._counts += counts
        starts += [first] if counts else []

    def _define(self, kind: int, fields: _Fields) -> None:
        try:
            if kind == _SCHEMA:
                (number,) = fields.numbers("H")
                self._schemas[number] = (fields.text(), fields.text(), fields.text())
            else:
                number, schema = fields.numbers("HH")
                self._channels[number] = (schema, fields.text(), fields.text())
        except struct.error:
            raise DamagedError("a record is shorter than it must be") from None

    def _records(self, at: int, end: int, cut: bool = False) -> Iterator[tuple[int, int, int]]:
        """(kind, place, size) of the records from `at` to `end`. cut: the last one may reach beyond the end."""
        while at < end:
            head = self._read(at, _HEAD.size, cut)
            kind, size = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
            if kind == 0 and cut:  # zeros, as a file system leaves them where the power failed
                return
            at += _HEAD.size
            if at + size > end and not cut:
                raise DamagedError("a record reaches beyond the end of the file")
            yield kind, at, size
            at += size

    def _unpacked(self, chunk: _Chunk) -> Iterator[tuple[int, memoryview]]:
        """(kind, content) of the records in a chunk."""
        try:
            kind, size = _HEAD.unpack(self._read(chunk.at, _HEAD.size))
            if kind != _CHUNK:
                raise DamagedError("its index leads to a place where no chunk is")
            body = self._read(chunk.at + _HEAD.size, size, chunk.cut)
            _, _, unpacked_size, crc = _CHUNK_HEAD.unpack_from(body)
            fields = _Fields(body[_CHUNK_HEAD.size :])
            compression, (packed_size,) = fields.text(), fields.numbers("Q")
        except struct.error:
            raise DamagedError("a chunk is cut short") from None
        if unpacked_size > MOST:
            raise DamagedError(f"a chunk would unpack to {unpacked_size} bytes; more than {MOST} are not taken")
        begin = _CHUNK_HEAD.size + 4 + len(compression.encode()) + 8
        data = _unpack(compression, body[begin : begin + packed_size], unpacked_size, chunk.cut)
        if not chunk.cut and (len(data) != unpacked_size or (crc and crc32(data) != crc)):
            raise DamagedError("a chunk does not have the size or the checksum that it names")
        view, at = memoryview(data), 0
        while at + _HEAD.size <= len(view):
            kind, size = _HEAD.unpack_from(view, at)
            at += _HEAD.size
            if at + size > len(view):
                at = -1
                break
            yield kind, view[at : at + size]
            at += size
        if at != len(view) and not chunk.cut:
            raise DamagedError("a chunk ends within a record")

    def _read(self, at: int, size: int, cut: bool = False) -> bytes:
        """Bytes of the file. cut: fewer where it ends."""
        if at + size > self._size:
            if not cut:
                raise DamagedError("it names a place beyond its end")
            size = max(self._size - at, 0)
        self._file.seek(at)
        data = self._file.read(size)
        if len(data) != size:
            raise DamagedError("it became shorter while it was read")
        return data


def _message_head(body: bytes | memoryview) -> tuple[int, int, int, int]:
    if len(body) < _MESSAGE_HEAD.size:
        raise DamagedError("a message is shorter than its header")
    return _MESSAGE_HEAD.unpack_from(body)


def _unpack(compression: str, data: bytes, size: int, cut: bool) -> bytes:
    """A chunk's content. size: bytes that it should have."""
    if compression == "zstd":
        return unzstd(data, size, cut)
    if compression == "lz4":
        try:
            return bytes(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=size + 1))
        except RuntimeError as error:
            raise DamagedError(f"lz4 data are damaged ({error})") from None
    if compression:
        raise DamagedError(f"its chunks are compressed as {compression!r}, not as zstd or lz4")
    return data
