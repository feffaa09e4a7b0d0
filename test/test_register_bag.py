"""Registering the cameras of a bag: known registrations are found again, and what cannot be trusted is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from test_register import as_seen, corner_error, known

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import UserError
from rscmd_model.imaging.registration import load_registration, map_points
from rscmd_model.synthetic.world import WorldConfig, generate
from rscmd_ros.bags.pairs import BagPair
from rscmd_ros.bags.reader import open_bag, typestore
from rscmd_ros.bags.registering import Spaced
from rscmd_ros.bags.timing import Timing
from rscmd_ros.bags.topics import CAMERA_INFO, IMAGE, THERMAL_TOPIC, VISIBLE_TOPIC
from rscmd_ros.bags.writing import write_bag
from rscmd_ros.register_bag import main as register

SIZE = (320, 256)
TRUE = known(SIZE, 8, -6, 1.05, 1)
Drawn = Sequence[tuple[np.ndarray, np.ndarray]]


def scenes(count: int, each: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """Aligned pairs, (H, W, 3) and (H, W), of scenes that are shown `each` times."""
    return [(frame.visible, frame.thermal) for _, frame in generate(3, 1, count, *SIZE, WorldConfig(), each)]


def bag_of(folder: Path, drawn: Drawn, timing: Timing | None = None) -> Path:
    """A bag of these pairs, four a second if nothing else is said."""
    (folder / "labels/val").mkdir(parents=True)
    for kind in ("visible", "thermal"):
        (folder / kind / "val").mkdir(parents=True)
        for number, pair in enumerate(drawn):
            cv2.imwrite(str(folder / kind / "val" / f"{number:03d}.png"), pair[kind == "thermal"])
    source = "mono16" if drawn[0][1].dtype == np.uint16 else "mono8"
    (folder / "data.yaml").write_text(
        f"path: .\ntrain: visible/val\nval: visible/val\nthermal: {{train: thermal/val, val: thermal/val}}\n"
        f"names: [person]\nthermal_contract: {{source: {source}, scale: {{percentile: [1, 99]}}}}\n"
    )
    data = open_data(folder / "data.yaml")
    write_bag(data, find_pairs(data, "val"), folder / "bag", timing or Timing(4, 4))
    return folder / "bag"


def with_infos(bag: Path, out: Path) -> Path:
    """The bag once more, with camera_info of both cameras."""
    store = typestore()
    types = store.types
    with open_bag(bag) as opened, Writer(out, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        kinds = {VISIBLE_TOPIC: IMAGE, THERMAL_TOPIC: IMAGE}
        kinds |= {"/visible/camera_info": CAMERA_INFO, "/thermal/camera_info": CAMERA_INFO}
        topics = {topic: writer.add_connection(topic, kind, typestore=store) for topic, kind in kinds.items()}
        for topic, recorded, data in opened.raw([VISIBLE_TOPIC, THERMAL_TOPIC]):
            writer.write(topics[topic], recorded, data)
            k = np.array([300, 0, SIZE[0] / 2 - 0.5, 0, 300, SIZE[1] / 2 - 0.5, 0, 0, 1], np.float64)
            info = types[CAMERA_INFO](
                header=opened.deserialise(topic, data).header,
                height=SIZE[1],
                width=SIZE[0],
                distortion_model="plumb_bob",
                d=np.zeros(5),
                k=k,
                r=np.eye(3).ravel(),
                p=np.insert(k.reshape(3, 3), 3, 0, axis=1).ravel(),
                binning_x=0,
                binning_y=0,
                roi=types["sensor_msgs/msg/RegionOfInterest"](
                    x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
                ),
            )
            name = topic.replace("/image", "/camera_info")
            writer.write(topics[name], recorded, store.serialize_cdr(info, CAMERA_INFO))
    return out


def run(bag: Path, out: Path, *more: str) -> Path:
    register([str(bag), "--out", str(out), *more])
    return out


def test_a_known_registration_is_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = [(visible, as_seen(thermal, TRUE).astype(np.uint16) * 20 + 27000) for visible, thermal in scenes(14)]
    bag = with_infos(bag_of(tmp_path, counts), tmp_path / "calibrated")
    pose = ["--extrinsics", "-0.1", "0", "0", "0", "0", "0", "1", "--depth", "5"]
    out = run(bag, tmp_path / "r.yaml", "--overlay", str(tmp_path / "o.png"), *pose)
    found = load_registration(out)
    assert corner_error(found, TRUE) < 3
    assert (found.thermal_size, found.visible_size) == (SIZE, SIZE)
    said, written = capsys.readouterr().out, out.read_text()
    for line in ("14 of 14 pairs used", "14 of 14 pairs show enough on their own", "rows  patches", "205 to   256"):
        assert line in said
        assert line in written
    assert "scene does not move" not in said
    assert cv2.imread(str(tmp_path / "o.png")) is not None
    # Lenses of one kind, 0.1 m apart at 5 m: 300 px * 0.1 / 5 = 6 px to the left.
    middle = np.array([[SIZE[0] / 2 - 0.5, SIZE[1] / 2 - 0.5]])
    apart = np.hypot(*(middle - (6, 0) - map_points(TRUE, middle)).T)
    (figure,) = re.findall(r"at 5 m put .* and its middle ([\d.]+) px", said)
    assert abs(float(figure) - apart) < 2


def test_a_camera_that_was_knocked_on_the_way_is_refused(tmp_path: Path) -> None:
    """All pairs together still give a registration that looks sound: that of the longer part of the drive."""
    knocked = TRUE @ known(SIZE, 12, -4, 1.0, 0)
    drawn = [(v, as_seen(t, TRUE if number < 9 else knocked)) for number, (v, t) in enumerate(scenes(14))]
    with pytest.raises(UserError, match=r"\(before and from 2 s\) put the corners 1\d px apart \(4 px can pass\)"):
        run(bag_of(tmp_path, drawn), tmp_path / "r.yaml", "--overlay", str(tmp_path / "o.jpg"))
    assert not (tmp_path / "r.yaml").exists()
    assert (tmp_path / "o.jpg").exists()


def test_a_scene_that_does_not_move(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is registered from what there is, and said."""
    scene, rng = scenes(7)[-1], np.random.default_rng(0)
    drawn = []
    for _ in range(5):
        visible, thermal = (np.clip(im + rng.normal(0, 2, im.shape), 0, 255).astype(np.uint8) for im in scene)
        drawn.append((visible, thermal))
    out = run(bag_of(tmp_path, drawn), tmp_path / "r.yaml")
    assert corner_error(load_registration(out), np.eye(3)) < 12  # one scene has edges only in places
    for text in (capsys.readouterr().out, out.read_text()):
        assert "5 of 5 pairs used" in text
        assert "the scene does not move: only 1 of them show" in text


FLAT = [(np.full((60, 80, 3), 9, np.uint8), np.full((60, 80), 90, np.uint8))] * 8
STRIPES = [(np.tile(np.arange(80, dtype=np.uint8)[:, None] * 3, (60, 1, 3)), thermal) for _, thermal in FLAT]
RNG = np.random.default_rng(0)
NOISE = [(RNG.integers(0, 255, (60, 80, 3), np.uint8), RNG.integers(0, 255, (60, 80), np.uint8)) for _ in FLAT]
LARGER = [(np.tile(v, (2, 2, 1)), t) for v, t in NOISE]


@pytest.mark.parametrize(
    ("drawn", "timing", "says"),
    [
        (FLAT, Timing(4, 4), "nothing to see on /visible/image .* of one grey all over"),
        (STRIPES, Timing(4, 4), "nothing to see on /thermal/image"),
        (NOISE, Timing(4, 4), "found nothing that the 8 pairs show|not good enough"),
        (NOISE[:2], Timing(4, 4), "has 2 pairs, of which 2 can be used"),
        (NOISE[:4] + LARGER[4:], Timing(4, 4), "visible images change their size on the way, from 80x60 to 160x120"),
        (NOISE, Timing(4, 4, thermal_offset_ms=120), r"are \+120.0 ms from .*, and --slop-ms is 50; .*--slop-ms 121 "),
        (NOISE * 4, Timing(4, 4, thermal_offset_ms=-9500), "they are -9500 ms late, so try --thermal-offset-ms -9500"),
    ],
)
def test_bags_that_tell_nothing_are_refused(tmp_path: Path, drawn: Drawn, timing: Timing, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        run(bag_of(tmp_path, drawn, timing), tmp_path / "r.yaml")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "r.yaml").exists()


def test_what_is_not_in_the_bag_or_not_asked_rightly(tmp_path: Path) -> None:
    bag, out = bag_of(tmp_path, NOISE), tmp_path / "r.yaml"
    for more, says in (
        (["--thermal-topic", "/ir"], r"no topic /ir .*choose with --thermal-topic"),
        (["--pairs", "2"], "--pairs 2: give 3 or more"),
        (["--depth", "5"], "--extrinsics and --depth go together"),
        (["--extrinsics", *"0000001", "--depth", "-1"], "--depth -1: give the distance"),
        (["--extrinsics", *"0000001", "--depth", "5"], "no topic /visible/camera_info .*--visible-info-topic"),
        (["--slop-ms", "-1"], "slop_ms"),
        (["--overlay", "o.gif"], "give a .png or .jpg file"),
    ):
        with pytest.raises(UserError, match=says):
            run(bag, out, *more)
    with pytest.raises(UserError, match="give --out"):
        register([str(bag)])
    assert not out.exists()


def test_few_are_kept_evenly_of_however_many() -> None:
    few = Spaced(10)
    for k in range(5000):
        few.offer(BagPair(k, k, k, k, 0, 0), (np.zeros(0), np.zeros(0)))
    kept = [pair.visible for pair, _ in few.kept]
    assert len(kept) == 10
    assert kept[0] == 0
    assert kept[-1] == 4999
    gaps = np.diff(kept)
    assert gaps.max() < 4 * gaps[:-1].min()
