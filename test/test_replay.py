"""A bag played to a real detector node, a process of its own, over DDS."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rclpy.context import Context
from rclpy.node import Node
from sensor_msgs.msg import Image

from rscmd_model.config import ModelConfig
from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.predictor import Predictor
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import ModelHeader, save_model
from rscmd_model.synthetic.writing import write_world
from rscmd_ros.bags.answers import answer_pairs
from rscmd_ros.bags.pairs import BagPair, Pairing, pair_up
from rscmd_ros.bags.reader import open_bag
from rscmd_ros.bags.replay import replay
from rscmd_ros.bags.replay_account import account
from rscmd_ros.bags.topics import THERMAL_TOPIC, VISIBLE_TOPIC
from rscmd_ros.evaluate_bag import main as evaluate
from rscmd_ros.make_bag import main as make
from rscmd_ros.node.pairing_options import PairingOptions
from rscmd_ros.pairing.frames import COUNTERS

NAMES = {0: "person", 1: "car", 2: "bicycle"}
TOPICS = {"visible": VISIBLE_TOPIC, "thermal": THERMAL_TOPIC}
NAMESPACE = ["--ros-args", "-r", "__ns:=/front"]
SLOP = 30.0  # not the default, so that asking the node for its own is seen


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    data = write_world(folder / "world", train=1, val=16, size=(96, 64), seed=1)
    make(
        [
            "--data",
            str(data),
            "--out",
            str(folder / "bag"),
            "--rate-visible",
            "8",
            "--rate-thermal",
            "5",
            "--jitter-ms",
            "3",
        ]
    )
    return folder / "bag"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model file with the weights it was born with; its scores are low but not zero."""
    path = tmp_path_factory.mktemp("m") / "model.safetensors"
    save_model(path, RscmdModel(ModelConfig(), NAMES), ModelHeader(ModelConfig(), NAMES, 96, ThermalContract()))
    return path


@pytest.fixture(scope="module")
def node(model: Path) -> Iterator[subprocess.Popen[bytes]]:
    values = {"model": model, "confidence_threshold": 1e-6, "slop_ms": SLOP, "device": "cpu", "backend": "torch"}
    settings = [word for name, value in values.items() for word in ("-p", f"{name}:={value}")]
    process = subprocess.Popen([sys.executable, "-m", "rscmd_ros.detector_node", *NAMESPACE, *settings])
    yield process
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()


def test_the_node_answers_as_the_direct_evaluation_does(
    bag: Path, model: Path, node: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    with open_bag(bag) as opened:
        run = replay(opened, TOPICS, PairingOptions(), NAMES, wait=120, ros_args=NAMESPACE)
        assert run.options == PairingOptions(slop_ms=SLOP)
        pairing = pair_up(opened, TOPICS, run.options)
        direct = answer_pairs(opened, TOPICS, run.options, Predictor(model, device="cpu", conf=1e-6)).by_stamp
    assert run.extra["sent"] == run.extra["received"] == pairing.frames
    assert run.extra["confidence_threshold"] == 1e-6
    for stream in TOPICS:
        assert sum(run.ledger[stream].values()) == pairing.frames[stream]
        assert run.ledger[stream]["paired"] == run.pairs
    assert run.pairs == len(pairing.pairs) > 0
    assert len(run.answers) + run.extra["pairs_replaced"] == run.pairs
    assert run.answers
    for stamp, answer in run.answers.items():
        known = direct[stamp]
        assert answer.dt == known.dt
        assert answer.latency > 0
        np.testing.assert_allclose(answer.detections.scores, known.detections.scores, atol=1e-6)
        np.testing.assert_allclose(answer.detections.boxes, known.detections.boxes, atol=1e-3)
        np.testing.assert_array_equal(answer.detections.classes, known.detections.classes)

    # Again on the same node, as a user would: only what this run added is counted, though time has jumped back.
    out, report = tmp_path / "s.json", tmp_path / "r.html"
    evaluate([str(bag), "--model", str(model), "--live", "--json", str(out), "--report", str(report), *NAMESPACE])
    text = out.read_text()
    for key in ('"mAP50"', '"latency_ms"', '"lost"', '"mode": "live"', '"answer": "fused"'):
        assert key in text
    assert "data:image/png" in report.read_text()


def test_no_node_is_a_clear_error(bag: Path) -> None:
    with (
        open_bag(bag) as opened,
        pytest.raises(UserError, match=r"no detector node .*/nowhere/visible/image.*ROS_DOMAIN_ID"),
    ):
        replay(opened, TOPICS, PairingOptions(), NAMES, wait=0.5, ros_args=["--ros-args", "-r", "__ns:=/nowhere"])


def test_a_second_source_is_refused(bag: Path) -> None:
    context = Context()
    context.init()
    camera = Node("camera", context=context)
    try:
        camera.create_publisher(Image, "/back/thermal/image", 10)
        with open_bag(bag) as opened, pytest.raises(UserError, match="something else publishes on /back/thermal/image"):
            replay(opened, TOPICS, PairingOptions(), NAMES, wait=5, ros_args=["--ros-args", "-r", "__ns:=/back"])
    finally:
        camera.destroy_node()
        context.try_shutdown()


def test_what_is_lost_is_told() -> None:
    """Of three frames sent the node received two of each; one pair was replaced, one answer is of another bag."""
    stamps = {"visible": {10**9: 0, 2 * 10**9: 1, 3 * 10**9: 2}, "thermal": {10**9: 0, 2 * 10**9: 1, 3 * 10**9: 2}}
    pairs = [BagPair(k, k, (k + 1) * 10**9, (k + 1) * 10**9, 0, 0) for k in range(3)]
    sizes = dict.fromkeys(stamps["visible"], (96, 64))
    ledger = {stream: {name: 3 * (name == "paired") for name in COUNTERS} for stream in TOPICS}
    pairing = Pairing(pairs, ledger, {"visible": 3, "thermal": 3}, sizes, stamps)
    before = {f"{stream}.{name}": 5 for stream in TOPICS for name in (*COUNTERS, "received")} | {"pairs": 5}
    grown = {"visible.received": 2, "visible.paired": 2, "thermal.received": 2, "thermal.paired": 2}
    after = before | {key: before[key] + n for key, n in grown.items()} | {"pairs": 7, "pairs_replaced": 1}

    def answer(seconds: int) -> object:
        from vision_msgs.msg import Detection2DArray

        message = Detection2DArray()
        message.header.stamp.sec = seconds
        return message

    sent = {"visible": [1.0, 2.0, 3.0], "thermal": [1.5, 2.25, 3.0]}
    arrived = [(2.5, answer(2)), (9.0, answer(77))]
    run = account(pairing, PairingOptions(), NAMES, sent, arrived, before, after, {"confidence_threshold": 0.25})
    assert run.extra["lost"] == {"visible": 1, "thermal": 1}
    assert (run.pairs, list(run.answers)) == (2, [2 * 10**9])
    assert run.answers[2 * 10**9].latency == 250_000_000  # from sending the thermal frame, the later one
    assert run.ledger["visible"] == {name: 2 * (name == "paired") for name in (*COUNTERS, "pending")}
    told = " ".join(run.notes)
    for text in ("1 of 3 visible images", "1 of 3 thermal images", "1 of 2 pairs gave way", "Left out: 1 answers"):
        assert text in told
