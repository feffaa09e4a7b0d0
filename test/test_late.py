"""`late`: two detectors of one camera each in one model, trained side by side and answered together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_objective import make_batch, make_model
from test_train import two_class_world

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.diagnosis.gradients import OpenModel
from rscmd_model.errors import UserError
from rscmd_model.evaluation.faults import Fault
from rscmd_model.evaluation.sweep import sweep
from rscmd_model.inference.export_file import export
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import method_config
from rscmd_model.training.run import score_answers, train


def test_each_stream_is_taught_as_the_control_of_its_camera() -> None:
    late, batch = make_model(method_config("late")), make_batch()
    total, items = late.loss(batch)
    total.sum().backward()
    for camera in ("visible", "thermal"):
        alone = make_model(method_config(camera))
        alone.loss(batch)[0].sum().backward()
        pairs = zip(alone.backbones[camera].parameters(), late.backbones[camera].parameters())
        for theirs, ours in pairs:
            assert (theirs.grad is None) == (ours.grad is None)
            if theirs.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad)
    assert list(items) == ["box_loss", "cls_loss", "dfl_loss", "thermal_loss"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data and the model of one epoch."""
    root = tmp_path_factory.mktemp("late")
    data = two_class_world(root / "data")
    options = {"epochs": 1, "imgsz": 64, "batch": 4, "plots": False, "project": str(root), "name": "run"}
    return data, train(data, method_config("late"), {**options, "device": "cpu"})


def test_it_trains_and_is_scored_joined_and_alone(trained: tuple[Path, Path]) -> None:
    data, file = trained
    score_answers(file, "val")
    predictor = Predictor(file, device="cpu", conf=0.001)
    assert (predictor.answer, predictor.modalities) == ("ensemble", ("visible", "thermal"))
    opened = open_data(data)
    with pytest.raises(UserError, match="fused"):
        sweep(predictor, opened, find_pairs(opened, "val"), [Fault(answer="fused")])


def test_its_exports_answer_as_it_does(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    _, file = trained
    out = tmp_path / "late.onnx"
    export(file, "onnx", out, size=(64, 64))
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 256, (64, 64, 3), np.uint8), rng.integers(0, 256, (64, 64), np.uint8)
    answers = [Predictor(model, device="cpu", conf=0.001).predict(*pair) for model in (file, out)]
    assert len(answers[0]) == len(answers[1]) > 0
    np.testing.assert_allclose(answers[0].scores, answers[1].scores, atol=1e-3)


def test_what_needs_a_fused_answer_says_so(trained: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="method late has no fused loss"):
        OpenModel(make_model(method_config("late")))
    with pytest.raises(UserError, match="fused"):
        Predictor(trained[1], device="cpu", answer="fused")
