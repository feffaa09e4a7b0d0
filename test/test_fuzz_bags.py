"""Damaged bags: read, with a note wherever less was read than announced, or refused in a line that names the file.

Whatever the bytes: no other exception, no more memory than a small multiple of the bag, and no file of it is changed.
"""

from __future__ import annotations

import functools
import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest
import small_bags
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mutations import examples, mutated, odd_json
from small_bags import TOPICS, content

from rscmd_model.errors import UserError
from rscmd_ros.bags.reader import open_bag
from rscmd_ros.bags.storage import DamagedError, unzstd, zstd
from rscmd_ros.bags.topics import DETECTIONS, IMAGE, THERMAL_TOPIC, VISIBLE_TOPIC
from rscmd_ros.bags.truth import truth_from_topic

KINDS = {
    "mcap": ("MCAP", None),
    "zstd": ("MCAP", "STORAGE"),
    "by message": ("MCAP", "MESSAGE"),
    "db3": ("SQLITE3", None),
}
MOST = 200 * 2**20
"""Bytes by which reading a bag of some 20 kB may let the process grow."""


@functools.cache
def sound(kind: str) -> dict[str, bytes]:
    """The files of a small bag."""
    with tempfile.TemporaryDirectory() as room:
        small_bags.write(Path(room, "bag"), small_bags.messages(3, 12), *KINDS[kind])
        return {file.name: file.read_bytes() for file in Path(room, "bag").iterdir()}


def check(files: dict[str, bytes], lone: str | None = None) -> None:
    """The invariant, for a bag of these files. lone: read this file alone."""
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room, "bag")
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        before, grown = content(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read, refused = dict.fromkeys(TOPICS, 0), ""
        try:
            with open_bag(folder / lone if lone else folder) as bag:
                bag.require(VISIBLE_TOPIC, IMAGE, "--visible-topic")
                bag.require(THERMAL_TOPIC, IMAGE, "--thermal-topic")
                for topic, time, _ in bag.messages(TOPICS[:2]):
                    assert isinstance(time, int)
                    read[topic] += 1
                if bag.has(TOPICS[2]):
                    bag.require(TOPICS[2], DETECTIONS, "--truth-topic")
                    truth_from_topic(bag, TOPICS[2])
                notes, counts = bag.notes(), bag.counts()
        except UserError as error:
            refused = str(error)
        if refused:
            assert str(folder) in refused
            assert "\n" not in refused
        else:
            for topic in TOPICS[:2]:
                assert counts[topic]["read"] == read[topic]
                assert counts[topic]["announced"] == read[topic] or any(topic in note for note in notes)
            if read[VISIBLE_TOPIC] + read[THERMAL_TOPIC] < 6 and not lone:
                assert notes
        assert content(folder) == before
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown) * 1024 < MOST
        assert [file.name for file in Path(room).iterdir()] == ["bag"]


@examples(30)
@given(st.data())
def test_damaged_storage_files(data: st.DataObject) -> None:
    files = dict(sound(data.draw(st.sampled_from(sorted(KINDS)))))
    name = next(name for name in files if name != "metadata.yaml")
    files[name] = data.draw(mutated(files[name]))
    match data.draw(st.sampled_from(("folder", "lone", "without metadata"))):
        case "lone":
            check(files, name)
        case "folder":
            check(files)
        case _:
            del files["metadata.yaml"]
            check(files)


@examples(30)
@given(st.data())
def test_damaged_metadata(data: st.DataObject) -> None:
    files = dict(sound("mcap"))
    files["metadata.yaml"] = data.draw(mutated(files["metadata.yaml"]))
    check(files)


@examples(30)
@given(st.data())
def test_odd_values_in_metadata(data: st.DataObject) -> None:
    """One value at any depth is another; the text stays YAML."""
    files = dict(sound("mcap"))
    tree: Any = yaml.safe_load(files["metadata.yaml"])
    place: Any = tree
    while True:
        key = data.draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(odd_json())
        break
    files["metadata.yaml"] = yaml.safe_dump(tree).encode()
    check(files)


@examples(30)
@given(st.sampled_from(("-wal", "-journal")), st.data())
def test_something_beside_a_database(suffix: str, data: st.DataObject) -> None:
    """A log or journal of any content: SQLite takes it for what a killed recorder left."""
    files = dict(sound("db3"))
    begin = {"-wal": b"\x37\x7f\x06\x82\x00\x2d\xe2\x18", "-journal": b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"}[suffix]
    files[f"bag.db3{suffix}"] = data.draw(mutated(begin + bytes(24) + files["bag.db3"][:8192]))
    check(files)


def test_zstd_that_unpacks_to_a_mountain() -> None:
    """Millions of zeros in a few kB are given up at the limit, in a chunk as in a message."""
    bomb = zstd.compress(bytes(2**28))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamagedError, match="more than 1000000 bytes"):
        unzstd(bomb, 1_000_000)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown) * 1024 < 20 * 2**20
