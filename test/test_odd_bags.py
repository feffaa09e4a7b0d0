"""Recordings that ended badly, were edited, or hold what nobody asks for: read rightly, or what is missing is named."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import small_bags
import yaml
from small_bags import TOPICS, Message, content, write

from rscmd_model.errors import UserError
from rscmd_ros.bags.pairs import pair_up
from rscmd_ros.bags.reader import open_bag
from rscmd_ros.bags.topics import IMAGE, THERMAL_TOPIC, TRUTH_TOPIC, VISIBLE_TOPIC
from rscmd_ros.node.pairing_options import PairingOptions

INSTANTS = 12
CAMERAS = {"visible": VISIBLE_TOPIC, "thermal": THERMAL_TOPIC}
PLUGINS = pytest.mark.parametrize("plugin", ["MCAP", "SQLITE3"])


@pytest.fixture(scope="module")
def recorded() -> list[Message]:
    return small_bags.messages(INSTANTS)


@pytest.fixture(autouse=True)
def bags_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No reading changes or adds a file; what is copied aside is taken away again."""
    aside = tmp_path.with_name(tmp_path.name + "_aside")
    aside.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(aside))
    yield
    assert not list(aside.iterdir())


def read(bag: Path) -> tuple[dict[str, int], str]:
    """How many messages of each topic can be read and deserialised, and the notes; the bag stays as it was."""
    folder = bag if bag.is_dir() else bag.parent
    before = content(folder)
    with open_bag(bag) as opened:
        for topic in TOPICS[:2]:
            opened.require(topic, IMAGE, "--topic")
        times = []
        found: Counter[str] = Counter()
        for topic, time, message in opened.messages(TOPICS):
            assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == time
            found[topic] += 1
            times.append(time)
        assert times == sorted(times)
        assert {topic: row["read"] for topic, row in opened.counts().items()} == found
        notes = opened.notes()
    assert content(folder) == before
    return dict(found), "\n".join(notes)


WHOLE = dict.fromkeys(TOPICS, INSTANTS)


def change_metadata(bag: Path, change: Callable[[dict[str, Any]], None]) -> None:
    text = yaml.safe_load((bag / "metadata.yaml").read_text())
    change(text["rosbag2_bagfile_information"])
    (bag / "metadata.yaml").write_text(yaml.safe_dump(text))


def with_wal(bag: Path, recorded: list[Message], kept: int) -> Path:
    """As a killed recorder leaves it: `kept` messages in the file, the others in its write-ahead log."""
    file = write(bag / "made", recorded, "SQLITE3")
    base = sqlite3.connect(file)
    rows = base.execute("select topic_id, timestamp, data from messages order by id").fetchall()
    base.execute("delete from messages where id > ?", (kept,))
    base.commit()
    for pragma in ("vacuum", "pragma journal_mode=wal", "pragma wal_autocheckpoint=0"):
        base.execute(pragma)
    base.executemany("insert into messages(topic_id, timestamp, data) values (?, ?, ?)", rows[kept:])
    base.commit()
    shutil.copytree(bag / "made", bag / "crashed")
    base.close()
    return bag / "crashed"


@PLUGINS
def test_a_sound_bag_has_no_notes(recorded: list[Message], tmp_path: Path, plugin: str) -> None:
    file = write(tmp_path / "bag", recorded, plugin)
    assert read(tmp_path / "bag") == (WHOLE, "")
    assert read(file) == (WHOLE, "")


@pytest.mark.parametrize("lone", [False, True])
def test_messages_in_a_write_ahead_log_are_read(recorded: list[Message], tmp_path: Path, lone: bool) -> None:
    bag = with_wal(tmp_path, recorded, 10)
    found, notes = read(next(bag.glob("*.db3")) if lone else bag)
    assert found == WHOLE
    assert f"{len(recorded) - 10} of its {len(recorded)} messages come from made.db3-wal" in notes


def test_an_open_transaction_is_rolled_back(recorded: list[Message], tmp_path: Path) -> None:
    """A journal beside the file means that the file itself is half of one state and half of another."""
    file = write(tmp_path / "bag", recorded, "SQLITE3")
    base = sqlite3.connect(file, isolation_level=None)
    base.execute("pragma cache_size=1"), base.execute("pragma cache_spill=1")
    base.execute("begin"), base.execute("update messages set data = zeroblob(2000)")
    shutil.copytree(tmp_path / "bag", tmp_path / "crashed")
    base.execute("rollback"), base.close()
    assert (tmp_path / "crashed/bag.db3-journal").stat().st_size
    assert read(tmp_path / "crashed")[0] == WHOLE


@PLUGINS
def test_a_file_that_metadata_does_not_list_is_named(recorded: list[Message], tmp_path: Path, plugin: str) -> None:
    half = len(recorded) // 2
    write(tmp_path / "bag", recorded[:half], plugin)
    second = write(tmp_path / "second", recorded[half:], plugin)
    shutil.move(second, tmp_path / "bag" / second.name)
    found, notes = read(tmp_path / "bag")
    assert sum(found.values()) == half
    assert second.name in notes
    assert "does not list it" in notes


@PLUGINS
def test_more_announced_than_read(recorded: list[Message], tmp_path: Path, plugin: str) -> None:
    write(tmp_path / "bag", recorded, plugin)
    meta = tmp_path / "bag/metadata.yaml"
    meta.write_text(meta.read_text().replace("message_count: ", "message_count: 9"))
    found, notes = read(tmp_path / "bag")
    assert found == WHOLE
    assert f"announces 9{len(recorded)} messages, and {len(recorded)} are in the files" in notes
    for topic in TOPICS:
        assert f"{topic}: metadata.yaml announces 9{INSTANTS} messages, and {INSTANTS} were read" in notes


@PLUGINS
def test_a_topic_that_is_only_announced(recorded: list[Message], tmp_path: Path, plugin: str) -> None:
    write(tmp_path / "bag", [message for message in recorded if message[0] != THERMAL_TOPIC], plugin)
    row = {"message_count": 7, "topic_metadata": {"name": THERMAL_TOPIC, "type": IMAGE, "serialization_format": "cdr"}}
    change_metadata(tmp_path / "bag", lambda bag: bag["topics_with_message_count"].append(row))
    with pytest.raises(UserError, match=rf"no topic {THERMAL_TOPIC} .* though metadata.yaml announces 7 messages"):
        read(tmp_path / "bag")


@PLUGINS
@pytest.mark.parametrize("text", ["", "best_effort", "- history: [", None, 5])
def test_qos_in_metadata_does_not_matter(recorded: list[Message], tmp_path: Path, plugin: str, text: Any) -> None:
    write(tmp_path / "bag", recorded, plugin)

    def change(bag: dict[str, Any]) -> None:
        for topic in bag["topics_with_message_count"]:
            topic["topic_metadata"]["offered_qos_profiles"] = text

    change_metadata(tmp_path / "bag", change)
    assert read(tmp_path / "bag") == (WHOLE, "")


@PLUGINS
@pytest.mark.parametrize(
    ("kind", "definition"),
    [
        ("example_interfaces/srv/AddTwoInts_Event", "int64 a\nint64 b\n---\nint64 sum\n"),
        ("my_msgs/msg/State", "my_msgs/Part part\n"),
        ("my_msgs/msg/Text", "wstring text\n"),
        ("my_msgs/msg/Other", "float64 value\n"),
        ("my_msgs/msg/Empty", ""),
        ("my_msgs/msg/Prose", "This is no definition {"),
    ],
)
def test_a_topic_that_nobody_asks_for(
    recorded: list[Message], tmp_path: Path, plugin: str, kind: str, definition: str
) -> None:
    extra = [("/extra", kind, definition, b"\0\1\0\0" + bytes(32))]
    write(tmp_path / "bag", recorded, plugin, extra=extra)
    assert read(tmp_path / "bag") == (WHOLE, "")


@pytest.mark.parametrize("encoding", ["unknown", "", "ros2idl", "jsonschema"])
def test_definitions_of_other_kinds(recorded: list[Message], tmp_path: Path, encoding: str) -> None:
    """rosbag2 writes "unknown" for a type that it cannot find; the types used here are known without."""
    base = sqlite3.connect(write(tmp_path / "bag", recorded, "SQLITE3"))
    base.execute("update message_definitions set encoding = ?, encoded_message_definition = 'module {'", (encoding,))
    base.commit()
    base.close()
    found, notes = read(tmp_path / "bag")
    assert found == WHOLE
    assert ("cannot be parsed" in notes) == (encoding == "ros2idl")


def test_another_version_of_a_needed_type_is_named(recorded: list[Message], tmp_path: Path) -> None:
    base = sqlite3.connect(write(tmp_path / "bag", recorded, "SQLITE3"))
    base.execute(
        "update message_definitions set encoded_message_definition = 'uint32 height\nuint32 width\n' "
        "where topic_type = ?",
        (IMAGE,),
    )
    base.commit()
    base.close()
    with pytest.raises(UserError, match=r"another version of sensor_msgs/msg/Image .* height, width"):
        read(tmp_path / "bag")


@pytest.mark.parametrize("plugin", ["MCAP", "STORAGE", "SQLITE3"])
@pytest.mark.parametrize("metadata", [True, False])
def test_a_recording_that_was_cut_off(tmp_path: Path, plugin: str, metadata: bool) -> None:
    """Read is what comes before; the more of the file, the more of the messages, each whole and in its order."""
    # More than a chunk of MCAP. In SQLite the way to the first pages of a larger file lies behind them.
    recorded = small_bags.messages(100 if plugin == "SQLITE3" else 400, 48)
    file = write(
        tmp_path / "bag",
        recorded,
        "SQLITE3" if plugin == "SQLITE3" else "MCAP",
        "STORAGE" if plugin == "STORAGE" else None,
    )
    whole = file.read_bytes()
    if not metadata:
        (tmp_path / "bag/metadata.yaml").unlink()
    counts = []
    for share in (0.3, 0.6, 0.9):
        file.write_bytes(whole[: int(len(whole) * share)])
        found, notes = read(tmp_path / "bag")
        counts.append(sum(found.values()))
        assert f"{file.name} {'is damaged or cut short' if plugin == 'SQLITE3' else 'was cut off'}" in notes
        assert f"{counts[-1]} messages before that" in notes
        assert ("no metadata.yaml" in notes) != metadata
        assert (f"announces {len(recorded)} messages" in notes) == metadata
    assert counts == sorted(set(counts))
    assert 0.2 * len(recorded) < counts[0] < 0.4 * len(recorded)
    file.write_bytes(b"")
    with pytest.raises(UserError, match=rf"{file.name} cannot be read.*it is empty"):
        read(tmp_path / "bag")


@pytest.mark.parametrize("without", ["schemas", "counts"])
def test_what_an_index_leaves_out_is_read_from_the_chunks(
    recorded: list[Message], tmp_path: Path, without: str
) -> None:
    """As rosbag2 writes it with noRepeatedSchemas, and as the format allows of the counts of channels."""
    file = write(tmp_path / "bag", recorded)
    whole, head, footer = file.read_bytes(), struct.Struct("<BQ"), 37  # a footer and the magic after it
    (summary,) = struct.unpack_from("<Q", whole, len(whole) - footer + head.size)
    records, at = [], summary
    while at < len(whole) - footer:
        kind, size = head.unpack_from(whole, at)
        body, at = whole[at + head.size : at + head.size + size], at + head.size + size
        if without == "counts" and kind == 11:
            body = body[:42] + bytes(4)
        if not (without == "schemas" and kind == 3) and kind != 14:  # offsets of what is in the summary
            records.append(head.pack(kind, len(body)) + body)
    end = head.pack(2, 20) + struct.pack("<QQI", summary, 0, 0) + whole[-8:]
    file.write_bytes(whole[:summary] + b"".join(records) + end)
    assert read(tmp_path / "bag") == (WHOLE, "")


def test_a_damaged_chunk_is_left_out_and_named(tmp_path: Path) -> None:
    """In a file whose index is whole, as in one without."""
    recorded = small_bags.messages(400, 48)
    file = write(tmp_path / "bag", recorded)
    content, at, chunks = bytearray(file.read_bytes()), 8, []
    while content[at] != 15:  # the end of the data
        (size,) = struct.unpack_from("<Q", content, at + 1)
        if content[at] == 6:
            chunks.append(at + 9)
        at += 9 + size
    body = chunks[1] + 28 + 4 + 8  # after times, sizes and the checksum, which this writer leaves out: no compression
    (size,) = struct.unpack_from("<Q", content, chunks[1] + 16)
    struct.pack_into("<I", content, chunks[1] + 24, crc32(content[body : body + size]))
    file.write_bytes(content)
    assert sum(read(tmp_path / "bag")[0].values()) == len(recorded)
    content[body + size // 2] ^= 1
    file.write_bytes(content)
    found, notes = read(tmp_path / "bag")
    assert 0 < sum(found.values()) < len(recorded)
    assert f"{file.name} has a damaged part, which is left out" in notes


def test_a_message_that_is_cut_short_is_invalid_and_no_more(recorded: list[Message], tmp_path: Path) -> None:
    spoilt = [
        (topic, time, data[: len(data) // 2 if k == 3 else None]) for k, (topic, time, data) in enumerate(recorded)
    ]
    write(tmp_path / "bag", spoilt)
    with open_bag(tmp_path / "bag") as bag:
        pairing = pair_up(bag, CAMERAS, PairingOptions())
    topic = recorded[3][0]
    stream = next(stream for stream, name in CAMERAS.items() if name == topic)
    assert pairing.ledger[stream]["invalid"] == 1
    assert len(pairing.pairs) == INSTANTS - 1


def test_frames_without_a_stamp_are_told(tmp_path: Path) -> None:
    recorded = [(topic, time, data[:4] + bytes(8) + data[12:]) for topic, time, data in small_bags.messages(3)]
    write(tmp_path / "bag", recorded)
    with open_bag(tmp_path / "bag") as bag, pytest.raises(UserError, match=r"can be used: visible image has no stamp"):
        pair_up(bag, CAMERAS, PairingOptions())


def test_one_topic_for_both_cameras_is_refused(recorded: list[Message], tmp_path: Path) -> None:
    write(tmp_path / "bag", recorded)
    with open_bag(tmp_path / "bag") as bag, pytest.raises(UserError, match="both cameras are to be read from"):
        pair_up(bag, dict.fromkeys(CAMERAS, THERMAL_TOPIC), PairingOptions())


@PLUGINS
def test_an_empty_last_part_is_left_out_and_named(recorded: list[Message], tmp_path: Path, plugin: str) -> None:
    file = write(tmp_path / "bag", recorded, plugin)
    last = file.with_name("bag_1" + file.suffix)
    last.touch()
    change_metadata(tmp_path / "bag", lambda bag: bag["relative_file_paths"].append(last.name))
    found, notes = read(tmp_path / "bag")
    assert found == WHOLE
    assert notes == f"{last.name} cannot be read and is left out: it is empty."


@PLUGINS
@pytest.mark.parametrize("listed", [True, False])
def test_parts_are_read_by_time_whatever_their_order(
    recorded: list[Message], tmp_path: Path, plugin: str, listed: bool
) -> None:
    half = len(recorded) // 2
    parts = [write(tmp_path / "bag_0", recorded[half:], plugin), write(tmp_path / "bag_1", recorded[:half], plugin)]
    shutil.copy(parts[1], tmp_path / "bag_0")
    change_metadata(
        tmp_path / "bag_0", lambda bag: bag.update(relative_file_paths=[f"old/{part.name}" for part in parts])
    )
    if not listed:
        (tmp_path / "bag_0/metadata.yaml").unlink()
    assert read(tmp_path / "bag_0")[0] == WHOLE


@PLUGINS
@pytest.mark.parametrize("compression", ["MESSAGE", "FILE"])
@pytest.mark.parametrize("lone", [True, False])
def test_compressed_bags_with_and_without_their_folder(
    recorded: list[Message], tmp_path: Path, plugin: str, compression: str, lone: bool
) -> None:
    file = write(tmp_path / "bag", recorded, plugin, compression)
    assert (file.suffix == ".zstd") == (compression == "FILE")
    assert read(file if lone else tmp_path / "bag") == (WHOLE, "")


@pytest.mark.parametrize("name", ["drive #1", "50%", "what?", "a b", "bag&mode=rw"])
def test_a_folder_of_any_name(recorded: list[Message], tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "bag", recorded, "SQLITE3")
    file.rename(file.with_name(f"{name}.db3"))
    change_metadata(tmp_path / "bag", lambda bag: bag.update(relative_file_paths=[f"{name}.db3"], files=[]))
    (tmp_path / "bag").rename(tmp_path / name)
    assert read(tmp_path / name) == (WHOLE, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "metadata.yaml is not as rosbag2 writes it"),
        ("- a\n- b\n", "metadata.yaml is not as rosbag2 writes it"),
        ("a: [", "metadata.yaml is not YAML: line 1.*; `ros2 bag reindex` writes it anew"),
        ("[" * 100_000, "metadata.yaml is not read: it is nested too deep; `ros2 bag reindex`"),
        ("a: 1\na: 2\n", "the key 'a' stands there twice; `ros2 bag reindex`"),
        ("rosbag2_bagfile_information: {relative_file_paths: []}", "lists no file"),
        ("rosbag2_bagfile_information: {relative_file_paths: [../../etc/passwd]}", "lacks passwd"),
    ],
)
def test_metadata_that_cannot_be_used(recorded: list[Message], tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "bag", recorded)
    (tmp_path / "bag/metadata.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "bag")


def test_files_of_several_recordings_are_not_mixed(recorded: list[Message], tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(write(tmp_path / name, recorded), tmp_path)
    with pytest.raises(UserError, match="several recordings"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("names", "one"),
    [
        (["bag_0", "bag_1", "bag_2"], True),
        (["bag_9", "bag_10"], True),  # the first parts were removed
        (["2024_01_01_10_00", "2024_01_01_10_30"], False),
        (["drive_15", "drive_30"], False),
        (["bag", "bag_0"], False),
    ],
)
def test_parts_are_known_by_their_numbers(recorded: list[Message], tmp_path: Path, names: list[str], one: bool) -> None:
    (tmp_path / "parts").mkdir()
    for name in names:
        shutil.copy(write(tmp_path / name, recorded), tmp_path / "parts" / f"{name}.mcap")
    if one:
        found, _ = read(tmp_path / "parts")
        assert found == {topic: len(names) * count for topic, count in WHOLE.items()}
    else:
        with pytest.raises(UserError, match="several recordings"):
            read(tmp_path / "parts")


def test_a_wrong_type_is_told_with_the_topics_that_would_do(recorded: list[Message], tmp_path: Path) -> None:
    write(tmp_path / "bag", recorded)
    with open_bag(tmp_path / "bag") as bag, pytest.raises(UserError, match=rf"is vision_msgs.*: .*{THERMAL_TOPIC}"):
        bag.require(TRUTH_TOPIC, IMAGE, "--thermal-topic")


def test_notes_are_in_output_json_and_report(
    recorded: list[Message], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rscmd_model.config import ModelConfig
    from rscmd_model.imaging.thermal import ThermalContract
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.model_file import ModelHeader, save_model
    from rscmd_ros.evaluate_bag import main as evaluate

    names = {0: "person"}
    model, bag = tmp_path / "model.safetensors", tmp_path / "bag"
    save_model(model, RscmdModel(ModelConfig(), names), ModelHeader(ModelConfig(), names, 64, ThermalContract()))
    images = [message for message in recorded if message[0] != TRUTH_TOPIC]
    file = write(bag, images)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    words = ["--model", str(model), "--device", "cpu", "--json", str(tmp_path / "a.json")]
    evaluate([str(bag), *words, "--report", str(tmp_path / "a.html")])
    summary = json.loads((tmp_path / "a.json").read_text())
    read = summary["frames"]["visible"]
    assert 0 < read < INSTANTS
    assert summary["messages"][VISIBLE_TOPIC] == {"announced": INSTANTS, "read": read}
    told = [
        f"{file.name} was cut off",
        f"{VISIBLE_TOPIC}: metadata.yaml announces {INSTANTS} messages, and {read} were",
    ]
    for text in ("\n".join(summary["notes"]), capsys.readouterr().out, (tmp_path / "a.html").read_text()):
        assert all(part in text for part in told)

    write(tmp_path / "sound", images)
    for _ in range(2):  # the second time from what was kept
        evaluate([str(bag), str(tmp_path / "sound"), *words, "--results", str(tmp_path / "kept")])
        summary = json.loads((tmp_path / "a.json").read_text())
        assert any(note.startswith(f"{bag}: {file.name} was cut off") for note in summary["notes"])
        assert [bool(row["notes"]) for row in summary["bags"]] == [True, False]
        assert summary["bags"][0]["messages"][VISIBLE_TOPIC]["read"] == read
