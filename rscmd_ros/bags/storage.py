"""What a storage file of a bag gives, whichever format it has: topics, counts, and messages in the order of recording.

The formats are read here (mcap_file.py, sqlite_file.py) and not by `rosbags`, whose readers refuse a whole bag for one
topic that nobody asks for: for its definition, for its QoS text, or for a file without its end. Nothing is ever written
into a bag; a file that must be mended or unpacked first is copied aside.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd  # rosbags brings it, and lz4

MOST = 512 * 2**20
"""Bytes that a message or a chunk of them may have once unpacked; a few damaged bytes can claim any number."""

ZSTD = b"\x28\xb5\x2f\xfd"
"""How zstd data begin. No serialised message does: those of CDR begin with a zero."""


class DamagedError(Exception):
    """Why a storage file cannot be read, without its name."""


@dataclass(frozen=True)
class Topic:
    """A topic of one file.

    Attributes:
        number: of the topic in that file.
        name: of the topic.
        msgtype: as sensor_msgs/msg/Image.
        serialization: as cdr.
        encoding: of `definition`, such as ros2msg.
        definition: the text of the type.
        count: its messages by the file's own index.
    """

    number: int
    name: str
    msgtype: str
    serialization: str
    encoding: str
    definition: str
    count: int


class Storage(Protocol):
    """An open storage file.

    Attributes:
        topics: that it has.
        total: messages by the file's own index, of topics that are not known too.
        start: the first time of recording, ns.
        notes: what had to be done to read the file at all, and what of it could not be read.
    """

    topics: list[Topic]
    total: int
    start: int
    notes: list[str]

    def messages(self, numbers: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """The messages of some topics, by rising time.

        Args:
            numbers: of the topics.

        Yields:
            (number of the topic, time of recording in ns, data).

        Raises:
            DamagedError: the file is damaged.
        """
        ...

    def close(self) -> None:
        """Close the file and take away what was copied aside."""
        ...


def unzstd(data: bytes, most: int = MOST, cut: bool = False) -> bytes:
    """Unpack zstd data.

    Args:
        data: packed.
        most: bytes that they may have once unpacked.
        cut: give what there is where they end too early.

    Raises:
        DamagedError: they are more, or damaged or cut short.
    """
    unpacker = zstd.ZstdDecompressor()
    try:
        unpacked: bytes = unpacker.decompress(data, max_length=most + 1)
    except zstd.ZstdError as error:
        raise DamagedError(f"zstd data are damaged ({error})") from None
    if len(unpacked) > most:
        raise DamagedError(f"zstd data unpack to more than {most} bytes")
    if not (unpacker.eof or cut):
        raise DamagedError("zstd data are cut short")
    return unpacked
