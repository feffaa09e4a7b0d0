"""Bags written and read back."""

from __future__ import annotations

import resource
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import UserError
from rscmd_model.imaging.images import read_thermal, read_visible
from rscmd_model.synthetic.writing import write_world
from rscmd_ros.bags.reader import open_bag, typestore
from rscmd_ros.bags.timing import START, Timing, plan
from rscmd_ros.bags.topics import DETECTIONS, IMAGE, THERMAL_TOPIC, TRUTH_TOPIC, VISIBLE_TOPIC
from rscmd_ros.cameras.conversions import image_to_thermal, image_to_visible, stamp_ns
from rscmd_ros.make_bag import main as make

MS = 1_000_000
TOPICS = (VISIBLE_TOPIC, THERMAL_TOPIC, TRUTH_TOPIC)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("w") / "world", train=1, val=24, size=(96, 64), seed=1)


def write(world: Path, out: Path, *more: str) -> Path:
    make(["--data", str(world), "--split", "val", "--out", str(out), *more])
    return out


def read(bag: Path) -> dict[str, list[tuple[int, Any]]]:
    found: dict[str, list[tuple[int, Any]]] = {topic: [] for topic in TOPICS}
    with open_bag(bag) as opened:
        for topic, recorded, message in opened.messages(TOPICS):
            found[topic].append((recorded, message))
    return found


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_what_was_written_comes_back(world: Path, tmp_path: Path, storage: str) -> None:
    found = read(write(world, tmp_path / "bag", "--storage", storage))
    assert (tmp_path / "bag" / f"bag.{'mcap' if storage == 'mcap' else 'db3'}").is_file()
    pairs = find_pairs(open_data(world), "val")
    assert [len(found[topic]) for topic in TOPICS] == [24, 24, 24]
    for pair, (_, visible), (_, thermal), (_, truth) in zip(pairs, *(found[topic] for topic in TOPICS)):
        assert (visible.encoding, thermal.encoding) == ("bgr8", "mono8")
        np.testing.assert_array_equal(image_to_visible(visible), read_visible(pair.visible))
        np.testing.assert_array_equal(image_to_thermal(thermal), read_thermal(pair.thermal))
        assert truth.header == visible.header
        assert pair.label is not None
        lines = sorted(line.split() for line in pair.label.read_text().splitlines())
        assert len(truth.detections) == len(lines)
        boxes = sorted(
            (d.results[0].hypothesis.class_id, d.bbox.center.position.x, d.bbox.size_y) for d in truth.detections
        )
        names = ("person", "car", "bicycle")
        known = sorted((names[int(c)], float(cx) * 96, float(h) * 64) for c, cx, _, _, h in lines)
        for (name, x, high), (known_name, known_x, known_high) in zip(boxes, known):
            assert name == known_name
            assert (x, high) == pytest.approx((known_x, known_high), abs=1e-3)


def test_sixteen_bit_counts_come_back(tmp_path: Path) -> None:
    """Raw thermal counts above 255 are recorded as mono16, without loss and with the file's own values."""
    data = write_world(tmp_path / "world", train=1, val=2, size=(64, 64), seed=1)
    counts = {}
    for file in sorted((tmp_path / "world/thermal/val").iterdir()):
        counts[file.stem] = read_thermal(file).astype(np.uint16) * 100 + 7
        cv2.imwrite(str(file), counts[file.stem])
    data.write_text(data.read_text().replace("mono8, scale: [0, 255]", "mono16, scale: [0, 30000]"))
    for (_, message), known in zip(read(write(data, tmp_path / "bag"))[THERMAL_TOPIC], counts.values()):
        assert (message.encoding, message.step) == ("mono16", 128)
        np.testing.assert_array_equal(image_to_thermal(message), known)


def test_type_hashes_are_upstreams() -> None:
    """The hashes ROS 2 Jazzy has for these types; a player with other ones would not connect."""
    upstream = {
        DETECTIONS: "214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968",
        "vision_msgs/msg/Detection2D": "0d12b69df5c593b3455b7346fac8205437a7d4bcb09b9e0e0b2dde787ded38ea",
        "vision_msgs/msg/BoundingBox2D": "008eacbb0cf8f26e83795547bed013eec3675485ef386ec056d80eaaf1c1ce2f",
        "vision_msgs/msg/ObjectHypothesisWithPose": "41c12344c0396c48b81df12467c192d99b2a0eb1463c5c37194e4223251c80bc",
        IMAGE: "d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47",
    }
    for name, digest in upstream.items():
        assert typestore().hash_rihs01(name) == f"RIHS01_{digest}"


def test_recorded_bytes_are_what_ros_itself_reads(world: Path, tmp_path: Path) -> None:
    """The serialised messages are read by the typesupport of ROS, as a player or a node would."""
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import Image
    from vision_msgs.msg import Detection2DArray

    kinds = {VISIBLE_TOPIC: Image, THERMAL_TOPIC: Image, TRUTH_TOPIC: Detection2DArray}
    seen = dict.fromkeys(kinds, 0)
    with open_bag(write(world, tmp_path / "bag")) as bag:
        for topic, _, data in bag.raw(kinds):
            message, ours = deserialize_message(bytes(data), kinds[topic]), bag.deserialise(topic, data)
            assert stamp_ns(message.header) == stamp_ns(ours.header)
            if topic == TRUTH_TOPIC:
                assert [d.bbox.size_x for d in message.detections] == [d.bbox.size_x for d in ours.detections]
            else:
                assert bytes(message.data) == ours.data.tobytes()
            seen[topic] += 1
    assert list(seen.values()) == [24, 24, 24]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_same_seed_same_bytes(world: Path, tmp_path: Path, storage: str) -> None:
    rough = ["--jitter-ms", "4", "--drop", "0.2", "--storage", storage]
    bags = [write(world, tmp_path / name / "bag", *rough, "--seed", seed) for name, seed in zip("abc", "001")]
    contents = [[path.read_bytes() for path in sorted(bag.iterdir())] for bag in bags]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_offset_jitter_and_rates() -> None:
    """Offset moves thermal stamps and nothing else; jitter stays within its bound; each stream has its own rate."""
    even = plan(60, Timing(rate_visible=30, rate_thermal=9))
    shifted = plan(60, Timing(rate_visible=30, rate_thermal=9, thermal_offset_ms=20))
    visible = [shot.stamp for shot in even if shot.stream == "visible"]
    assert visible == [START + round(k / 30 * 1e9) for k in range(60)]
    thermal = [shot for shot in even if shot.stream == "thermal"]
    assert len(thermal) == 18
    for k, shot in enumerate(thermal):
        assert shot.pair == round(k / 9 * 30)  # the instant nearest in time
    by_pair = {shot.pair: shot.stamp for shot in shifted if shot.stream == "thermal"}
    assert by_pair == {shot.pair: shot.stamp + 20 * MS for shot in thermal}
    assert [shot.stamp for shot in shifted if shot.stream == "visible"] == visible

    rough = [s.stamp for s in plan(60, Timing(30, 9, jitter_ms=5, seed=1)) if s.stream == "visible"]
    moved = np.array(rough) - np.array(visible)
    assert 0 < np.abs(moved).max() <= 5 * MS
    assert np.unique(moved).size > 50
    wild = [s.stamp for s in plan(60, Timing(30, 30, jitter_ms=200)) if s.stream == "thermal"]
    assert all(b > a for a, b in pairwise(wild))  # no camera steps back in time


def test_dropped_frames() -> None:
    full, holed = plan(1000, Timing()), plan(1000, Timing(drop=0.2, seed=2))
    for stream in ("visible", "thermal"):
        kept = [shot for shot in holed if shot.stream == stream]
        assert 0.75 < len(kept) / 1000 < 0.85
        assert set(kept) < {shot for shot in full if shot.stream == stream}
    other = plan(1000, Timing(drop=0.2, seed=3))
    assert other != holed


def test_a_pause_lies_between_sequences_alone() -> None:
    names = ["a"] * 20 + ["b"] * 20
    shots = plan(40, Timing(10, 10, jitter_ms=3, pause=61), names)
    for stream in ("visible", "thermal"):
        mine = [shot for shot in shots if shot.stream == stream]
        steps = np.diff([shot.stamp for shot in mine]) / 1e9
        assert [names[shot.pair] for shot in mine] == names
        assert sorted(steps)[-2] < 0.2
        assert max(steps) == pytest.approx(61.1, abs=0.01)
        assert int(steps.argmax()) == 19
    assert [shot.recorded for shot in shots] == sorted(shot.recorded for shot in shots)


def test_an_existing_bag_is_kept_unless_forced(world: Path, tmp_path: Path) -> None:
    bag = write(world, tmp_path / "bag")
    with pytest.raises(UserError, match="--force"):
        write(world, bag)
    write(world, bag, "--storage", "sqlite3", "--force")
    assert sorted(path.name for path in bag.iterdir()) == ["bag.db3", "metadata.yaml"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="no bag"):
        write(world, tmp_path / "mine", "--force")
    (bag / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        write(world, bag, "--force")
    assert sorted(path.name for path in bag.iterdir()) == ["bag.db3", "metadata.yaml", "notes.txt"]
    (tmp_path / "other.partial").mkdir()
    write(world, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bag", "mine", "other", "other.partial"]


def test_the_folder_one_is_in_is_not_replaced(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(world, tmp_path / "bag"))
    with pytest.raises(UserError, match="the folder that you are in"):
        write(world, Path("."), "--force")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["bag.mcap", "metadata.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate-visible", "0"], "--rate-visible"),
        (["--drop", "1"], "--drop"),
        (["--drop", "0.9999"], "drop fewer"),
        (["--jitter-ms", "-1"], "--jitter-ms"),
        (["--thermal-offset-ms", "nan"], "--thermal-offset-ms"),
        (["--split", "test"], "no split 'test'"),
    ],
)
def test_make_bag_refuses(world: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(world, tmp_path / "bag", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_full_disk_is_one_line_and_leaves_nothing(world: Path, tmp_path: Path, storage: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*bag: .*; nothing of it was kept"):
            write(world, tmp_path / "bag", "--storage", storage)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_names_that_sqlite_would_not_take_as_they_are_are_refused(world: Path, tmp_path: Path) -> None:
    for name in ("drive #1", "50%", "what?"):
        with pytest.raises(UserError, match="choose another --out"):
            write(world, tmp_path / name, "--storage", "sqlite3")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_folder_may_be_called_as_ros_1_files_are(world: Path, tmp_path: Path, storage: str) -> None:
    assert len(read(write(world, tmp_path / "drive.bag", "--storage", storage))[VISIBLE_TOPIC]) == 24
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0\n")
    with pytest.raises(UserError, match="not a rosbag2 bag"), open_bag(tmp_path / "old.bag"):
        pass
