"""Reading ahead gives what one by one gives; many bags give what all their frames give, and go on where they ended."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rscmd_model.config import ModelConfig
from rscmd_model.errors import UserError
from rscmd_model.synthetic.writing import write_world
from rscmd_ros.bags import many as many_bags
from rscmd_ros.bags.answers import Answers, ahead, answer_pairs
from rscmd_ros.bags.job import Job
from rscmd_ros.bags.pairs import Pairing, load_pictures, pair_up, read_pairs
from rscmd_ros.bags.reader import open_bag
from rscmd_ros.bags.results import load_result, result_file, save_result
from rscmd_ros.bags.run import run
from rscmd_ros.bags.score import figures
from rscmd_ros.bags.topics import THERMAL_TOPIC, VISIBLE_TOPIC
from rscmd_ros.evaluate_bag import main as evaluate
from rscmd_ros.make_bag import main as make
from rscmd_ros.node.pairing_options import PairingOptions

TOPICS = {"visible": VISIBLE_TOPIC, "thermal": THERMAL_TOPIC}
NAMES = {0: "person", 1: "car", 2: "bicycle"}


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three short recordings; the second as SQLite."""
    folder = tmp_path_factory.mktemp("bags")
    world = write_world(folder / "world", train=1, val=12, size=(96, 64), seed=1)
    for n, storage in enumerate(("mcap", "sqlite3", "mcap")):
        rough = ["--rate-thermal", "20", "--drop", "0.1", "--seed", str(n), "--storage", storage]
        make(["--data", str(world), "--split", "val", "--out", str(folder / f"{n}"), *rough])
    return [folder / str(n) for n in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real model file with the weights it was born with, loud enough to find things everywhere."""
    import torch

    from rscmd_model.imaging.thermal import ThermalContract
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.model_file import ModelHeader, save_model

    torch.manual_seed(0)
    network = RscmdModel(ModelConfig(), NAMES)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.shape == (len(NAMES),):  # the biases of the class scores
                value.fill_(-3.0)
                assert "cv3" in name
    path = tmp_path_factory.mktemp("m") / "model.safetensors"
    save_model(path, network, ModelHeader(ModelConfig(), NAMES, 96, ThermalContract()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield path
    torch.set_num_threads(threads)


def assert_equal(one: Answers, other: Answers, px: float) -> None:
    assert one.pairing == other.pairing
    assert one.by_stamp.keys() == other.by_stamp.keys()
    assert any(len(answer.detections) for answer in one.by_stamp.values())
    for stamp, answer in one.by_stamp.items():
        found = other.by_stamp[stamp]
        assert (answer.dt, answer.latency) == (found.dt, found.latency)
        np.testing.assert_array_equal(answer.detections.classes, found.detections.classes)
        np.testing.assert_allclose(answer.detections.boxes, found.detections.boxes, rtol=0, atol=px)
        np.testing.assert_allclose(answer.detections.scores, found.detections.scores, rtol=0, atol=px)


@pytest.mark.parametrize("which", [0, 1])
def test_reading_ahead_and_batches_change_nothing(bags: list[Path], model: Path, which: int) -> None:
    from rscmd_model.inference.predictor import Predictor

    predictor = Predictor(model, device="cpu", conf=0.01)

    def answers(batch: int, overlap: bool) -> Answers:
        options = PairingOptions(reuse=True)
        with open_bag(bags[which]) as bag:
            return answer_pairs(bag, TOPICS, options, predictor, batch=batch, overlap=overlap, samples=3)

    plain = answers(1, False)
    assert_equal(plain, answers(1, True), 0.0)
    together = answers(4, False)
    assert_equal(together, answers(4, True), 0.0)
    assert_equal(plain, together, 1e-3)  # float32 sums in another order
    with open_bag(bags[which]) as bag:
        pictures = {pair: (v, t) for pair, v, t in load_pictures(bag, TOPICS, plain.pairing.pairs, predictor.thermal)}
    assert len(plain.samples) == 3
    for pair, visible, thermal in plain.samples:
        np.testing.assert_array_equal(visible, pictures[pair][0])
        np.testing.assert_array_equal(thermal, pictures[pair][1])


def test_one_reading_pairs_as_two_do(bags: list[Path]) -> None:
    with open_bag(bags[0]) as bag:
        pairing = Pairing()
        read = list(read_pairs(bag, TOPICS, PairingOptions(), pairing))
        assert pairing == pair_up(bag, TOPICS, PairingOptions())
    assert [pair for pair, _, _ in read] == pairing.pairs
    assert len(read) > 3


def test_the_reader_stays_a_bounded_way_ahead_and_ends_with_its_user() -> None:
    made = 0
    closed = threading.Event()

    def numbers() -> Generator[int, None, None]:
        nonlocal made
        try:
            while True:
                made += 1
                yield made
        finally:
            closed.set()

    source = ahead(numbers(), 4)
    for expected in range(1, 50):
        assert next(source) == expected
        assert made <= expected + 4 + 2  # the queue, one on its way in, one in the making
    source.close()
    assert closed.is_set()

    def broken() -> Generator[int, None, None]:
        yield 1
        raise UserError("the file ends here")

    source = ahead(broken(), 4)
    assert next(source) == 1
    with pytest.raises(UserError, match="the file ends here"):
        next(source)
    assert not [thread for thread in threading.enumerate() if thread.name == "bag reader"]


def test_a_result_comes_back_from_its_file(bags: list[Path], model: Path, tmp_path: Path) -> None:
    job = Job(bags[0], model, device="cpu", samples=2)
    result = run(job)
    path = result_file(tmp_path, job, {})
    assert load_result(path) is None
    save_result(path, result)
    known = load_result(path)
    assert known is not None
    assert figures([known.outcome], NAMES).summary == figures([result.outcome], NAMES).summary
    assert known.outcome.latency_ms == result.outcome.latency_ms
    for a, b in zip(known.samples, result.samples, strict=True):
        assert a.title == b.title
        np.testing.assert_array_equal(a.visible, b.visible)
        np.testing.assert_array_equal(a.thermal, b.thermal)
    path.write_bytes(path.read_bytes()[:-500])
    assert load_result(path) is None


def test_a_result_belongs_to_bag_model_and_settings(bags: list[Path], model: Path, tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    bag.mkdir()
    for part in bags[0].iterdir():
        (bag / part.name).write_bytes(part.read_bytes())
    other = tmp_path / "other.safetensors"
    other.write_bytes(model.read_bytes() + b" ")
    job = Job(bag, model)
    known = {result_file(tmp_path, job, {})}
    for change in (
        replace(job, options=PairingOptions(slop_ms=20)),
        replace(job, batch=1),
        replace(job, model=other),
        replace(job, bag=bags[0]),
    ):
        known.add(result_file(tmp_path, change, {}))
    assert len(known) == 5
    same = tmp_path / "same.safetensors"
    same.write_bytes(model.read_bytes())
    assert result_file(tmp_path, replace(job, model=same), {}) in known
    with (bag / "0.mcap").open("ab") as file:
        file.write(b" ")
    assert result_file(tmp_path, job, {}) not in known


def many(bags: list[Path], model: Path, folder: Path, *more: str) -> dict[str, Any]:
    out = folder / "score.json"
    command = [*map(str, bags), "--model", str(model), "--device", "cpu", "--json", str(out)]
    evaluate([*command, "--results", str(folder / "kept"), *more])
    return dict(json.loads(out.read_text()))


def test_bags_together(bags: list[Path], model: Path, tmp_path: Path) -> None:
    """Rows are what each bag gives alone; counts add up; mAP is that of all frames as one set."""
    whole = many(bags, model, tmp_path, "--report", str(tmp_path / "r.html"))
    alone = []
    for n, bag in enumerate(bags):
        evaluate([str(bag), "--model", str(model), "--device", "cpu", "--json", str(tmp_path / f"{n}.json")])
        alone.append(json.loads((tmp_path / f"{n}.json").read_text()))
    for row, one, bag in zip(whole["bags"], alone, bags, strict=True):
        del one["config"], one["notes"]
        assert row.pop("notes") == []  # of a row: about the recording; these are sound
        assert row == {"bag": str(bag), **one}
    for stream in ("visible", "thermal"):
        assert whole["frames"][stream] == sum(one["frames"][stream] for one in alone)
        assert sum(whole["ledger"][stream].values()) == whole["frames"][stream]
    assert whole["pairs"] == sum(one["pairs"] for one in alone)
    assert whole["frames_scored"] == sum(one["frames_scored"] for one in alone)
    joint = figures([run(Job(bag, model, device="cpu")).outcome for bag in bags], NAMES).summary
    assert whole["mAP50"] == joint["mAP50"]
    page = (tmp_path / "r.html").read_text()
    assert all(str(bag) in page for bag in bags)
    assert page.count("data:image/png;base64,") == 2 * 3
    assert not [path for bag in bags for path in bag.iterdir() if path.suffix not in (".mcap", ".db3", ".yaml")]


def test_joint_map_is_no_mean(bags: list[Path], model: Path) -> None:
    """A bag where all is found and one where nothing is: together that is what one set of both gives."""
    from rscmd_model.detections import Detections

    result = run(Job(bags[0], model, device="cpu")).outcome
    frames = [frame for frame in result.scored or () if len(frame.truth)]
    knows = [replace(f, found=Detections(f.truth.boxes, np.ones(len(f.truth)), f.truth.classes)) for f in frames]
    blind = [replace(f, found=Detections.empty()) for f in frames[:1]]
    both = figures([replace(result, scored=knows), replace(result, scored=blind)], NAMES).summary
    mean = np.mean([figures([replace(result, scored=part)], NAMES).summary["mAP50"] for part in (knows, blind)])
    assert mean == pytest.approx(0.5)
    assert 0.5 < both["mAP50"] < 1


def test_a_failed_bag_is_named_and_only_it_is_tried_again(
    bags: list[Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    with pytest.raises(UserError, match=r"1 of 3 bags failed: .*bad"):
        many([bags[0], bad, bags[1]], model, tmp_path, "--report", str(tmp_path / "r.html"))
    first = json.loads((tmp_path / "score.json").read_text())
    assert "no metadata.yaml" in first["bags"][1]["failed"]
    assert first["pairs"] == first["bags"][0]["pairs"] + first["bags"][2]["pairs"]
    assert "no metadata.yaml" in (tmp_path / "r.html").read_text()
    for part in bags[2].iterdir():
        (bad / part.name).write_bytes(part.read_bytes())
    tried: list[Path] = []
    original = many_bags.run

    def counted(job: Job, **rest: Any) -> Any:
        tried.append(job.bag)
        return original(job, **rest)

    monkeypatch.setattr(many_bags, "run", counted)
    second = many([bags[0], bad, bags[1]], model, tmp_path)
    assert tried == [bad]
    assert "failed" not in second["bags"][1]
    assert [second["bags"][n] for n in (0, 2)] == [first["bags"][n] for n in (0, 2)]
    assert capsys.readouterr().out.count("kept from an earlier run") == 2

    def crash(job: Job, **rest: Any) -> Any:
        raise RuntimeError("out of memory\nat some place")

    monkeypatch.setattr(many_bags, "run", crash)
    with pytest.raises(UserError, match=r"every bag failed.*RuntimeError: out of memory$"):
        many(bags[:2], model, tmp_path, "--batch", "3")


def test_what_does_not_go_together(bags: list[Path], model: Path, tmp_path: Path) -> None:
    for words, message in (
        (["--live"], "--live plays one bag"),
        (["--workers", "2"], "--ray"),
        (["--batch", "0"], "--batch must be within"),
        (["--threads", "0"], "--threads must be within"),
    ):
        with pytest.raises(UserError, match=message):
            many(bags, model, tmp_path, *words)
    with pytest.raises(UserError, match="given twice"):
        many([bags[0], bags[1], bags[0]], model, tmp_path)
    with pytest.raises(UserError, match="given twice"):
        many([bags[0], next(path for path in bags[0].iterdir() if path.suffix != ".yaml")], model, tmp_path)
    with pytest.raises(UserError, match="no model file"):
        many(bags, tmp_path / "nothing", tmp_path)


def test_no_cluster_is_told_at_once(bags: list[Path], model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:9"):
        many(bags, model, tmp_path, "--ray", "127.0.0.1:9")
    with pytest.raises(UserError, match="HOST:PORT"):
        many(bags, model, tmp_path, "--ray", "somewhere")


def test_without_ray_the_message_says_what_to_install(
    bags: list[Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"python -m pip install ray$"):
        many(bags, model, tmp_path, "--ray", "local")


@pytest.mark.timeout(280)
def test_ray_gives_what_one_after_another_gives(bags: list[Path], model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    bad = tmp_path / "bad"
    bad.mkdir()
    results = []
    for name, words in (("here", []), ("ray", ["--ray", "local", "--workers", "2"])):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=r"1 of 4 bags failed: .*bad"):
            many([*bags, bad], model, tmp_path / name, "--threads", "1", *words)
        results.append(json.loads((tmp_path / name / "score.json").read_text()))
    assert results[0] == results[1]
