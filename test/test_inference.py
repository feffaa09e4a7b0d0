"""Predictor: invariants that hold for any weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.imaging.registration import Registration
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import method_config
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import ModelHeader, save_model

NAMES = {0: "person", 1: "car"}


def model_file(path: Path, method: str = "rscmd", contract: ThermalContract | None = None) -> Path:
    """Random weights, with class biases high enough that something is found."""
    torch.manual_seed(0)
    model = RscmdModel(method_config(method), NAMES)
    for head in model.heads():
        for classifier in head.cv3:
            torch.nn.init.normal_(classifier[-1].weight, std=0.3)
            torch.nn.init.constant_(classifier[-1].bias, -1.0)
    save_model(path, model, ModelHeader(model.config, NAMES, 128, contract or ThermalContract()))
    return path


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(model_file(tmp_path_factory.mktemp("model") / "model.safetensors"), device="cpu", conf=0.05)


def image(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(0, 256, (height, width), np.uint8)


def assert_same(a: Detections, b: Detections, tolerance: float = 0.05) -> None:
    assert len(a) == len(b) > 0
    np.testing.assert_allclose(a.boxes, b.boxes, atol=tolerance)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
    assert (a.classes == b.classes).all()


def test_a_batch_is_its_single_answers(predictor: Predictor) -> None:
    pairs = [image(96, 128, 0), image(128, 96, 1), image(96, 128, 2), image(60, 200, 3)]
    visibles: list[np.ndarray | None] = [p[0] for p in pairs]
    thermals: list[np.ndarray | None] = [p[1] for p in pairs]
    visibles[2] = thermals[3] = None
    for got, v, t in zip(predictor.predict_batch(visibles, thermals), visibles, thermals):
        assert_same(got, predictor.predict(v, t))


def test_a_lone_camera_is_answered_by_its_own_branch(predictor: Predictor) -> None:
    visible, thermal = image(96, 128)
    both = predictor.predict(visible, thermal)
    for lone in (predictor.predict(visible, None), predictor.predict(None, thermal)):
        assert len(lone) > 0
        assert len(lone) != len(both) or not np.allclose(lone.boxes, both.boxes)
    # The answer of one branch cannot depend on the other camera's picture, which is what makes it a fallback.
    x = torch.rand(1, 4, 96, 128)
    y = x.clone()
    y[:, 3] = 0
    with torch.no_grad():
        a, b = (predictor.backend.network.answers(z, ["visible"])["visible"][0] for z in (x, y))
    assert torch.equal(a, b)


def test_boxes_are_in_pixels_of_the_visible_image(predictor: Predictor) -> None:
    visible, thermal = image(96, 128)
    small = predictor.predict(visible, thermal)
    assert (small.boxes >= 0).all()
    assert (small.boxes <= [128, 96, 128, 96]).all()
    double = predictor.predict(visible, thermal, size=(256, 288))
    np.testing.assert_allclose(double.boxes, small.boxes * [2, 3, 2, 3], rtol=1e-5)
    alone = predictor.predict(None, thermal)
    np.testing.assert_allclose(predictor.predict(None, thermal, size=(128, 96)).boxes, alone.boxes, rtol=1e-5)


def test_thermal_of_another_size_covers_the_same_view(predictor: Predictor) -> None:
    visible, thermal = image(96, 128)
    larger = np.repeat(np.repeat(thermal, 2, 0), 2, 1)
    a, b = predictor.predict(visible, thermal), predictor.predict(visible, larger)
    assert (b.boxes <= [128, 96, 128, 96]).all()
    assert abs(len(a) - len(b)) <= max(3, len(a) // 5)


def test_thresholds(predictor: Predictor) -> None:
    visible, thermal = image(96, 128)
    everything = predictor.predict(visible, thermal, conf=0.01, max_det=300)
    assert (everything.scores[:-1] >= everything.scores[1:]).all()
    middle = float(np.median(everything.scores))
    assert (predictor.predict(visible, thermal, conf=middle).scores >= middle).all()
    assert len(predictor.predict(visible, thermal, conf=0.01, max_det=3)) == 3
    assert len(predictor.predict(visible, thermal, conf=0.01, iou=0.1)) < len(everything)


def test_bad_images_are_told_by_type_and_shape(predictor: Predictor) -> None:
    visible, thermal = image(96, 128)
    with pytest.raises(UserError, match="float32"):
        predictor.predict(visible.astype(np.float32), thermal)
    with pytest.raises(UserError, match=r"shape \(96, 128\)"):
        predictor.predict(thermal, thermal)
    with pytest.raises(UserError, match="thermal contract is mono8"):
        predictor.predict(visible, thermal.astype(np.uint16))
    with pytest.raises(UserError, match="neither"):
        predictor.predict(None, None)
    with pytest.raises(ValueError, match="as many"):
        predictor.predict_batch([visible], [])


def test_mono16_goes_through_the_contract(tmp_path: Path) -> None:
    """Counts scaled by a fixed contract give what their 8-bit image gives."""
    visible, thermal = image(96, 128)
    eight = Predictor(model_file(tmp_path / "a.safetensors"), device="cpu", conf=0.05)
    sixteen = model_file(tmp_path / "b.safetensors", contract=ThermalContract("mono16", (1000.0, 1000.0 + 255 * 16)))
    predictor16 = Predictor(sixteen, device="cpu", conf=0.05)
    assert_same(
        predictor16.predict(visible, thermal.astype(np.uint16) * 16 + 1000), eight.predict(visible, thermal), 1e-3
    )


def test_sum_has_no_branch_for_a_lone_camera(tmp_path: Path) -> None:
    predictor = Predictor(model_file(tmp_path / "m.safetensors", "sum"), device="cpu")
    assert predictor.modalities == ()
    with pytest.raises(UserError, match="no thermal branch of its own"):
        predictor.predict(None, image(96, 128)[1])


def test_control_answers_a_pair_by_its_own_modality(tmp_path: Path) -> None:
    predictor = Predictor(model_file(tmp_path / "m.safetensors", "thermal"), device="cpu", conf=0.05)
    visible, thermal = image(96, 128)
    assert_same(predictor.predict(visible, thermal), predictor.predict(None, thermal))


def test_absent_device_and_half_on_the_cpu(tmp_path: Path) -> None:
    file = model_file(tmp_path / "m.safetensors")
    for device, problem in (("cuda:99", "is not there"), ("mps", "is not there"), ("gpu", "is not one of: auto, cpu")):
        with pytest.raises(UserError, match=problem):
            Predictor(file, device=device)
    with pytest.raises(UserError, match="CUDA"):
        Predictor(file, device="cpu", half=True)


def test_warm_up_runs_every_branch(predictor: Predictor) -> None:
    predictor.warm_up()


def test_one_call_s_registration_is_not_the_next_one_s(predictor: Predictor) -> None:
    visible, thermal = image(96, 128)
    before = predictor.predict(visible, thermal)
    aside = Registration(((1, 0, 20), (0, 1, 14), (0, 0, 1)), (128, 96), (128, 96))
    expected = predictor.predict(visible, aside.warp(thermal, (128, 96)))
    assert_same(predictor.predict(visible, thermal, registration=aside), expected, 1e-3)
    (moved,) = predictor.predict_batch([None], [thermal], registration=aside)
    assert_same(moved, predictor.predict(None, aside.warp(thermal, (128, 96))), 1e-3)
    view = predictor.thermal_view(visible, thermal, registration=aside)
    assert (view == aside.warp(thermal, (128, 96))).all()
    assert predictor.registration is None
    assert (predictor.thermal_view(visible, thermal) == thermal).all()
    assert_same(predictor.predict(visible, thermal), before, 1e-3)


def test_a_timed_answer_is_the_untimed_one(predictor: Predictor) -> None:
    visible, thermal = image(96, 128)
    found, times = predictor.predict_timed([visible, None], [thermal, thermal])
    for got, expected in zip(found, predictor.predict_batch([visible, None], [thermal, thermal]), strict=True):
        assert_same(got, expected, 1e-3)
    assert min(times.preprocess, times.inference, times.postprocess) > 0


@pytest.mark.parametrize(("backend", "packages"), [("torch", ()), ("onnxruntime", ("onnx",)), ("openvino", ("onnx",))])
def test_threads_share_a_predictor(
    backend: str, packages: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes and answers at once, none of them asked for before, against one after the other."""
    for package in (backend, *packages):
        pytest.importorskip(package)
    shared = Predictor(model_file(tmp_path / "model.safetensors"), device="cpu", backend=backend, conf=0.05)
    forward = shared.backend.forward
    inside, most = [], []

    def watched(batch: np.ndarray, answer: str) -> np.ndarray:
        inside.append(answer)
        most.append(len(inside))
        try:
            return forward(batch, answer)
        finally:
            inside.pop()

    monkeypatch.setattr(shared.backend, "forward", watched)
    asked: list[tuple[np.ndarray | None, np.ndarray | None]] = []
    for seed, (height, width) in enumerate([(96, 128), (128, 64)] * 6):
        visible, thermal = image(height, width, seed)
        asked += [(visible, thermal), (None, thermal)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda pair: shared.predict(*pair), asked))
    assert max(most) == 1  # two in a network at once may well go right, which proves nothing
    for got, pair in zip(together, asked, strict=True):
        assert_same(got, shared.predict(*pair), 1e-3)
