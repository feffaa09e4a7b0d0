"""Bags recorded from compressed topics give what the same bag of raw topics gives."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")

from rosbags.rosbag2 import StoragePlugin, Writer

from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.synthetic.writing import write_world
from rscmd_ros.bags.pairs import Pairing, load_pictures, pair_up, read_pairs
from rscmd_ros.bags.reader import open_bag, typestore
from rscmd_ros.bags.topics import COMPRESSED_IMAGE, IMAGE, THERMAL_TOPIC, VISIBLE_TOPIC
from rscmd_ros.make_bag import main as make
from rscmd_ros.node.pairing_options import PairingOptions

RAW = {"visible": VISIBLE_TOPIC, "thermal": THERMAL_TOPIC}
COMPRESSED = {stream: f"{topic}/compressed" for stream, topic in RAW.items()}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bags")
    world = write_world(folder / "world", train=1, val=4, size=(96, 64), seed=1)
    make(["--data", str(world), "--split", "val", "--out", str(folder / "raw")])
    return folder / "raw"


def compress(raw: Path, out: Path, codec: str, damaged: int = -1) -> Path:
    """What `ros2 bag record` of the compressed topics would have kept; one thermal image damaged."""
    store, count = typestore(), 0
    kind = store.types[COMPRESSED_IMAGE]
    with open_bag(raw) as bag, Writer(out, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        places = {RAW[s]: writer.add_connection(COMPRESSED[s], COMPRESSED_IMAGE, typestore=store) for s in RAW}
        for topic, recorded, msg in bag.messages(places):
            channels = msg.step // msg.width
            image = msg.data.reshape((msg.height, msg.width, channels) if channels > 1 else (msg.height, msg.width))
            data = cv2.imencode(f".{codec}", image)[1].reshape(-1)
            if topic == THERMAL_TOPIC:
                if count == damaged:
                    data[60:90] ^= 0x55
                count += 1
            target = msg.encoding if channels > 1 else ""
            sent = kind(header=msg.header, format=f"{msg.encoding}; {codec} compressed {target}", data=data)
            writer.write(places[topic], recorded, store.serialize_cdr(sent, COMPRESSED_IMAGE))
    return out


def test_png_topics_give_the_pairs_and_the_pictures_of_the_raw_ones(raw: Path, tmp_path: Path) -> None:
    found = []
    for path, topics in ((raw, RAW), (compress(raw, tmp_path / "png", "png"), COMPRESSED)):
        with open_bag(path) as bag:
            for stream, topic in topics.items():
                bag.require(topic, IMAGE, f"--{stream}-topic")
            pairing = pair_up(bag, topics, PairingOptions(), ThermalContract())
            found.append((pairing, list(load_pictures(bag, topics, pairing.pairs, ThermalContract()))))
    assert found[0][0] == found[1][0]
    assert len(found[0][1]) == 4
    for one, other in zip(*(pictures for _, pictures in found)):
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(one[2], other[2])


def test_a_damaged_image_is_counted_and_the_rest_goes_on(raw: Path, tmp_path: Path) -> None:
    with open_bag(compress(raw, tmp_path / "damaged", "png", damaged=1)) as bag:
        pairing = Pairing()
        read = list(read_pairs(bag, COMPRESSED, PairingOptions(), pairing, ThermalContract()))
        assert pairing.ledger["thermal"]["invalid"] == 1
        assert len(read) == len(pairing.pairs) == 3
        assert len(list(load_pictures(bag, COMPRESSED, pairing.pairs, ThermalContract()))) == 3


@pytest.mark.parametrize("topics", [RAW, COMPRESSED])
def test_no_picture_is_decoded_to_learn_which_stamps_pair(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topics: dict[str, str]
) -> None:
    """As in the node, whose callback looks at headers alone."""
    with open_bag(raw if topics is RAW else compress(raw, tmp_path / "png", "png")) as bag:
        expected = Pairing()
        assert len(list(read_pairs(bag, topics, PairingOptions(), expected))) == 4
        monkeypatch.setattr("rscmd_ros.cameras.camera.Camera.decode", lambda *_: pytest.fail("a picture was decoded"))
        assert pair_up(bag, topics, PairingOptions()) == expected


def test_a_model_of_16_bits_refuses_a_bag_of_8(raw: Path, tmp_path: Path) -> None:
    counts = ThermalContract("mono16", (0, 65535))
    with (
        open_bag(compress(raw, tmp_path / "jpg", "jpg")) as bag,
        pytest.raises(
            UserError, match=r"no frame of /thermal/image/compressed .* the model was trained on mono16; JPEG"
        ),
    ):
        pair_up(bag, COMPRESSED, PairingOptions(), counts)
