"""Late fusion: what must hold for any boxes, and what a predictor makes of it."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_inference import NAMES, assert_same, image, model_file

from rscmd_model.config import ModelConfig
from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.late_fusion import OVERLAP, join, suppress_and_join
from rscmd_model.inference.predictor import Predictor
from rscmd_model.inference.suppression import suppress
from rscmd_model.methods import method_config
from rscmd_model.network.header import ModelHeader, parse_header
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import save_model
from rscmd_model.predict import main as predict

NOTHING = np.zeros((0, 6), np.float32)


def raw(seed: int, count: int = 200, classes: int = 3) -> np.ndarray:
    """A network's answer (1, 4 + classes, N): objects at a few places, each found by many boxes about it."""
    rng = np.random.default_rng(seed)
    places = np.random.default_rng(99).uniform(40, 280, (12, 2))[rng.integers(0, 12, count)]
    centres = places + rng.normal(0, 6, (count, 2))
    sizes = rng.uniform(30, 60, (count, 2))
    return np.hstack((centres, sizes, rng.uniform(0, 1, (count, classes)) ** 3)).T[None].astype(np.float32)


def found(seed: int, iou: float = 0.7) -> np.ndarray:
    return suppress(raw(seed), 0.05, iou, 300)[0]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(float(width), 0.0) * max(float(height), 0.0)
    return shared / (float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) - shared)


def by_the_rule(answers: list[np.ndarray]) -> np.ndarray:
    """`join` as its docstring tells it, one box after another."""
    left = [(row.astype(float), number) for number, rows in enumerate(answers) for row in rows]
    left.sort(key=lambda member: -member[0][4])
    joint = []
    while left:
        seed = left[0]
        near = [m for m in left[1:] if m[0][5] == seed[0][5] and overlap(m[0], seed[0]) > OVERLAP]
        members = [seed[0]]
        for number in {m[1] for m in near} - {seed[1]}:
            members.append(next(m[0] for m in near if m[1] == number))
        scores = np.array([m[4] for m in members])
        box = sum(m[4] * m[:4] for m in members) / scores.sum()
        joint.append([*box, 1 - np.prod(1 - scores), seed[0][5]])
        gone = {id(m) for m in [seed, *near]}
        left = [m for m in left if id(m) not in gone]
    return np.array(sorted(joint, key=lambda row: -row[4]))


@pytest.mark.parametrize("seed", range(5))
def test_the_rule(seed: int) -> None:
    answers = [found(3 * seed + i) for i in range(3)]
    joint = join(answers, 10_000)
    np.testing.assert_allclose(joint, by_the_rule(answers), rtol=1e-5)
    assert joint.dtype == np.float32
    assert 20 < len(joint) < sum(map(len, answers)), "something is joined, and not everything"
    np.testing.assert_array_equal(join(answers, 7), joint[:7])


def test_one_answer_alone_is_left_as_it_is() -> None:
    rows = found(0)
    np.testing.assert_array_equal(join([rows], 300), rows)
    np.testing.assert_array_equal(join([rows], 5), rows[:5])
    apart = found(0, iou=0.4)  # what an answer that finds nothing leaves of boxes that are apart
    np.testing.assert_array_equal(join([NOTHING, apart], 300), apart)


def test_two_equal_answers_agree_on_the_boxes_and_are_surer() -> None:
    rows = found(1, iou=0.4)
    joint = join([rows, rows], 300)
    np.testing.assert_array_equal(joint[:, [0, 1, 2, 3, 5]], rows[:, [0, 1, 2, 3, 5]])
    np.testing.assert_allclose(joint[:, 4], 1 - (1 - rows[:, 4].astype(float)) ** 2, rtol=1e-6)


def test_the_order_of_the_answers_does_not_matter() -> None:
    answers = [found(4), found(5), NOTHING, found(4)[::2]]  # equal boxes, and so equal scores, among them
    joint = join(answers, 300)
    for order in permutations(answers):
        np.testing.assert_allclose(join(list(order), 300), joint, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_no_score_falls_and_no_box_leaves_its_sources(seed: int) -> None:
    answers = [found(10 * seed), found(10 * seed + 1)]
    rows = np.concatenate(answers)
    joint = join(answers, 10_000)
    assert (joint[:-1, 4] >= joint[1:, 4]).all()
    for row in rows:  # each box, or the better one that stands for it, has its score at least
        assert any(j[5] == row[5] and j[4] >= row[4] and overlap(j, row) > 0.2 for j in joint)
    for row in joint:
        same = rows[rows[:, 5] == row[5]]
        near = same[[overlap(other, row) > 0.3 for other in same]]
        assert (near[:, :4].min(0) <= row[:4]).all()
        assert (row[:4] <= near[:, :4].max(0)).all()


def test_another_class_never_joins() -> None:
    a, b = found(0, iou=0.4), found(0, iou=0.4)
    b[:, 5] += 3
    joint = join([a, b], 1000)
    assert sorted(map(tuple, joint)) == sorted(map(tuple, np.concatenate([a, b])))


def test_nothing_found() -> None:
    assert join([NOTHING, NOTHING], 300).shape == (0, 6)
    assert join([NOTHING], 300).shape == (0, 6)


def test_two_that_doubt_are_above_a_threshold_together() -> None:
    one = np.zeros((1, 5, 2), np.float32)
    one[0, :, 0] = 50, 50, 20, 20, 0.2
    one[0, :, 1] = 150, 50, 20, 20, 0.1
    (alone,), (joint,) = suppress_and_join([one], 0.25, 0.7, 300), suppress_and_join([one, one], 0.25, 0.7, 300)
    assert len(alone) == 0
    np.testing.assert_allclose(joint, [[40, 40, 60, 60, 0.36, 0]], rtol=1e-5)


def test_a_threshold_only_cuts() -> None:
    answers = [raw(1), raw(2), raw(3)]
    (every,) = suppress_and_join(answers, 0.05, 0.7, 300)
    for conf in (0.1, 0.25, 0.5, 0.9):
        (cut,) = suppress_and_join(answers, conf, 0.7, 300)
        assert 0 < len(cut) < len(every)
        np.testing.assert_array_equal(cut, every[every[:, 4] > conf])
    (few,) = suppress_and_join(answers, 0.05, 0.7, 3)
    np.testing.assert_array_equal(few, every[:3])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("late") / "model.safetensors")


def test_an_ensemble_is_the_joined_answers(file: Path) -> None:
    fused, joint = Predictor(file, device="cpu", conf=0.05), Predictor(file, device="cpu", conf=0.05, answer="ensemble")
    assert (fused.answer, joint.answer) == ("fused", "ensemble")
    visible, thermal = image(96, 128)
    joint.warm_up()
    stack = joint.backend.take([joint._prepare(visible, thermal, None, "ensemble")])
    names = ("fused", "visible", "thermal")
    together = joint.backend.forward(stack, names)
    for name, answer in zip(names, together):  # the backbones are shared, and the numbers are the same
        np.testing.assert_array_equal(answer, joint.backend.forward(stack, [name])[0])
    got = joint.predict(visible, thermal)
    (rows,) = suppress_and_join(together, 0.05, joint.iou, joint.max_det)
    np.testing.assert_allclose(got.scores, rows[:, 4])
    alone = [fused.predict(v, t) for v, t in ((visible, thermal), (visible, None), (None, thermal))]
    assert got.scores[0] >= max(found.scores[0] for found in alone)
    for v, t in ((visible, None), (None, thermal)):  # a lost camera is no matter of the joint answer
        assert_same(joint.predict(v, t), fused.predict(v, t), 0)
    assert_same(fused.predict(visible, thermal, answer="ensemble"), got, 0)
    assert_same(joint.predict(visible, thermal, answer="fused"), alone[0], 0)
    with pytest.raises(UserError, match="answer 'thermal' is not fused or ensemble"):
        joint.predict(visible, thermal, answer="thermal")
    mixed = joint.predict_batch([visible, None, visible], [thermal, thermal, thermal])
    for one, expected in zip(mixed, (got, alone[2], got)):
        assert_same(one, expected)


def test_an_answer_that_a_model_does_not_have_is_refused(tmp_path: Path) -> None:
    plain = model_file(tmp_path / "sum.safetensors", "sum")
    control = model_file(tmp_path / "thermal.safetensors", "thermal")
    assert Predictor(plain, device="cpu", answer="fused").answer == "fused"
    assert Predictor(control, device="cpu").answer == "thermal"
    for file, answer, says in (
        (plain, "ensemble", r"joins several answers, and this model has one \(fused\)"),
        (control, "ensemble", r"has one \(thermal\)"),
        (control, "fused", r"has no fused answer \(it has thermal\)"),
        (plain, "both", "'both' is not fused"),
    ):
        for backend in ("torch", "auto"):  # before a trial is made of it
            with pytest.raises(UserError, match=says):
                Predictor(file, device="cpu", answer=answer, backend=backend)


def test_a_model_file_says_what_answers_a_pair(tmp_path: Path) -> None:
    config = method_config("rscmd")
    plain = ModelHeader(config, NAMES, 128, ThermalContract())
    assert plain.answer == "fused"
    assert "answer" not in plain.to_json().replace("answers", "")
    assert ModelHeader(config, NAMES, 128, ThermalContract(), answer="fused") == plain
    header = ModelHeader(config, NAMES, 128, ThermalContract(), answer="ensemble")
    assert ModelHeader.from_json(header.to_json()) == header
    path = tmp_path / "m.safetensors"
    save_model(path, RscmdModel(config, NAMES), header)
    assert Predictor(path, device="cpu").answer == "ensemble"
    assert Predictor(path, device="cpu", answer="fused").answer == "fused"


@pytest.mark.parametrize("answer", ['"mean"', '"visible"', "null", "3", '["ensemble"]'])
def test_an_answer_in_a_header_that_cannot_be(answer: str) -> None:
    text = ModelHeader(method_config("rscmd"), NAMES, 128, ThermalContract(), answer="ensemble").to_json()
    with pytest.raises(UserError, match=r"m.onnx has a damaged header \(answer .* is not fused or ensemble\)"):
        parse_header(Path("m.onnx"), text.replace('"ensemble"', answer))


def test_a_model_of_two_cameras_that_nothing_fuses() -> None:
    config = ModelConfig(method="late", answers=("visible", "thermal"))
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.pair_answers == ("ensemble",)
    assert config.made_of("ensemble") == ("visible", "thermal")
    header = ModelHeader(config, NAMES, 128, ThermalContract())
    assert header.answer == "ensemble"
    assert '"answer"' not in header.to_json()
    assert ModelHeader.from_json(header.to_json()) == header
    with pytest.raises(UserError, match=r"no fused answer \(it has visible, thermal\): ask for ensemble"):
        header.pair_answer("fused")
    for answers in (("thermal", "visible"), ("visible",), ("visible", "fused", "thermal")):
        with pytest.raises(UserError, match="do not begin with fused"):
            ModelConfig(method="late", answers=answers)


def test_the_command_predict_takes_the_answer(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visible, thermal = image(96, 128)
    cv2.imwrite(str(tmp_path / "v.png"), visible)
    cv2.imwrite(str(tmp_path / "t.png"), thermal)
    words = ["--model", str(file), "--conf", "0.05", "--visible", str(tmp_path / "v.png"), "--answer", "ensemble"]
    with pytest.raises(UserError, match="--answer says what answers a whole pair"):
        predict([*words, "--json", str(tmp_path / "o.json")])
    predict([*words, "--thermal", str(tmp_path / "t.png"), "--device", "cpu", "--json", str(tmp_path / "o.json")])
    expected = Predictor(file, device="cpu", conf=0.05, answer="ensemble").predict(visible, thermal)
    objects = json.loads((tmp_path / "o.json").read_text())
    assert capsys.readouterr().out == f"{tmp_path / 'o.json'}: {len(objects)} objects\n"
    np.testing.assert_allclose([found["score"] for found in objects], expected.scores, atol=1e-4)
