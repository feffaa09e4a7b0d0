"""Which files a bag consists of, what its metadata.yaml announces, and what of it is left aside.

metadata.yaml tells the files and their counts, and nothing else is taken from it: types, definitions and QoS stand in
the files themselves, and where the two differ (edited by hand, written by another tool) the files are right.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path, PurePath
from typing import Any

from rscmd_model.errors import UserError, first_line
from rscmd_model.text import parse_yaml, read_text
from rscmd_ros.bags.mcap_file import McapFile
from rscmd_ros.bags.sqlite_file import SqliteFile
from rscmd_ros.bags.storage import DamagedError, Storage, zstd

KINDS: dict[str, type[McapFile] | type[SqliteFile]] = {".mcap": McapFile, ".db3": SqliteFile}
PACKED = ".zstd"
_LARGEST_METADATA = 16 * 2**20


@dataclass(frozen=True)
class Announced:
    """What metadata.yaml says of numbers of messages.

    Attributes:
        messages: altogether; None where it does not say.
        by_topic: by the topic's name.
        by_file: by the file's name.
    """

    messages: int | None = None
    by_topic: dict[str, int] = field(default_factory=dict)
    by_file: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BagFiles:
    """The storage files of a bag.

    Attributes:
        paths: of the files.
        announced: of them; None without metadata.yaml.
        notes: on the choice of files.
    """

    paths: Sequence[Path]
    announced: Announced | None
    notes: list[str]


def find_files(path: Path) -> BagFiles:
    """The files of a bag folder, or a lone file.

    Raises:
        UserError: it is no bag, or its metadata cannot be used.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a rosbag2 folder, or a .mcap or .db3 file")
    if path.is_file():
        if not _is_storage(path):
            raise UserError(f"{path} is not a rosbag2 bag; give its folder, or a .mcap or .db3 file")
        return BagFiles([path], None, [])
    there = sorted((file for file in path.iterdir() if _is_storage(file) and file.is_file()), key=_natural)
    if not (path / "metadata.yaml").is_file():
        return _without_metadata(path, there)
    names, announced = read_metadata(path / "metadata.yaml")
    notes: list[str] = []
    listed: list[Path] = []
    for name in names:
        # Older versions name a file with its folder. Some name it as it was called before it was compressed.
        file = path / PurePath(name).name
        if not file.exists() and file.with_name(file.name + PACKED).exists():
            file = file.with_name(file.name + PACKED)
        if not file.is_file():
            raise UserError(
                f"{path} lacks {file.name}, which its metadata.yaml lists; put it there, or reindex the bag"
            )
        if not _is_storage(file):
            raise UserError(f"{file} is of a kind that is not read; .mcap and .db3 are, and the same with {PACKED}")
        if file in listed:
            notes.append(f"metadata.yaml lists {file.name} twice; it is read once.")
        else:
            listed.append(file)
    if not listed:
        raise UserError(f"{path}: its metadata.yaml lists no file; `ros2 bag reindex` writes it anew")
    known = {file.name.removesuffix(PACKED) for file in listed}
    for file in there:
        if file.name.removesuffix(PACKED) not in known:
            notes.append(
                f"{file.name} is in the folder, and metadata.yaml does not list it: it is not read "
                "(`ros2 bag reindex` lists every file)."
            )
    return BagFiles(listed, announced, notes)


def _without_metadata(path: Path, there: Sequence[Path]) -> BagFiles:
    """A recording that did not end cleanly: its files as they are."""
    if not there:
        raise UserError(f"{path} is not a rosbag2 bag: it has no metadata.yaml, and no .mcap or .db3 file")
    files = [file for file in there if file.suffix != PACKED or file.with_suffix("") not in there]
    if not _one_recording(files):
        raise UserError(
            f"{path} has no metadata.yaml and files of several recordings ({', '.join(file.name for file in files)}); "
            "give one file, or a folder of its own to each recording"
        )
    names = ", ".join(file.name for file in files)
    return BagFiles(files, None, [f"There is no metadata.yaml (the recording did not end cleanly): {names} was read."])


def _one_recording(files: Sequence[Path]) -> bool:
    """Whether files are the parts of one, which are called NAME_0, NAME_1, ...; the first ones may be gone."""
    if len(files) == 1:
        return True
    parts = [re.fullmatch(r"(.*)_(0|[1-9]\d*)", _plain(file).stem) for file in files]
    found = [(part[1], int(part[2])) for part in parts if part]
    numbers = sorted(number for _, number in found)
    return (
        len(found) == len(files)
        and len({name for name, _ in found}) == len({_plain(file).suffix for file in files}) == 1
        and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    )


def open_file(file: Path, room: Path) -> Storage:
    """Open a storage file; one that is compressed as a whole is unpacked into `room`.

    Raises:
        DamagedError: nothing of it can be read.
        UserError: the system does not let it be read or unpacked.
    """
    unpacked = file
    try:
        if file.suffix == PACKED:
            unpacked = room / _plain(file).name
            with zstd.open(file, "rb") as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
        return KINDS[unpacked.suffix](unpacked)
    except (EOFError, zstd.ZstdError) as error:
        raise DamagedError(f"zstd data are damaged or cut short ({first_line(error)})") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None


def stamp_of(bag: Path) -> list[tuple[str, int, int]]:
    """Name, size in bytes and time of the last change in ns of every file of a bag: other ones, another recording."""
    beside = bag.iterdir() if bag.is_dir() else bag.parent.glob(f"{escape(bag.name)}*")  # with a log of SQLite
    parts = sorted(part for part in beside if part.is_file())
    return [(part.name, part.stat().st_size, part.stat().st_mtime_ns) for part in parts]


def read_metadata(path: Path) -> tuple[list[str], Announced]:
    """The files that metadata.yaml lists, and what it announces.

    Raises:
        UserError: it cannot be read, or is not as rosbag2 writes it.
    """
    again = "`ros2 bag reindex` writes it anew; without it the files are read as they are"
    try:
        content: Any = parse_yaml(read_text(path, _LARGEST_METADATA), str(path), most=_LARGEST_METADATA)
    except UserError as error:
        raise UserError(f"{error}; {again}") from None
    try:
        bag = content["rosbag2_bagfile_information"]
        names = [_text(name) for name in bag["relative_file_paths"]]
        by_topic: dict[str, int] = {}
        for topic in bag.get("topics_with_message_count") or ():
            name = _text(topic["topic_metadata"]["name"])
            by_topic[name] = by_topic.get(name, 0) + int(topic["message_count"])
        by_file = {PurePath(_text(file["path"])).name: int(file["message_count"]) for file in bag.get("files") or ()}
        messages = bag.get("message_count")
        announced = Announced(None if messages is None else int(messages), by_topic, by_file)
        mode, codec = (str(bag.get(key) or "") for key in ("compression_mode", "compression_format"))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is not as rosbag2 writes it ({type(error).__name__} {error}); {again}") from None
    if mode.lower() not in ("", "none") and codec != "zstd":
        raise UserError(
            f"{path}: the bag is compressed as {codec!r}, and only zstd is read; `ros2 bag convert` unpacks it"
        )
    return names, announced


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def _plain(file: Path) -> Path:
    """The file as it is called once unpacked."""
    return file.with_suffix("") if file.suffix == PACKED else file


def _is_storage(file: Path) -> bool:
    return _plain(file).suffix in KINDS


def _natural(file: Path) -> list[Any]:
    """bag_10 after bag_9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)]
