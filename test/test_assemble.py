"""A model assembled from plain detectors: each camera's answer is the detector's own, and a pair gets all of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_families import liven
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from rscmd_model.assemble import main
from rscmd_model.errors import UserError
from rscmd_model.inference.predictor import Predictor
from rscmd_model.network.assembly import assemble
from rscmd_model.network.header import read_header

SHARED = Path(__file__).resolve().parents[2] / "shared"  # photographs and published weights, where they are
COCO = SHARED / "weights/yolov8n_coco.pt"
NAMES = ["person", "bicycle", "car"]


def write_detector(path: Path, yaml: str = "yolov8n.yaml", names: list[str] | None = None, seed: int = 0) -> Path:
    """A plain detector with random weights that finds something everywhere."""
    names = names or [*NAMES, *(f"class {i}" for i in range(77))]
    torch.manual_seed(seed)
    plain = DetectionModel(yaml, nc=len(names), verbose=False)
    liven(plain)
    plain.model[9].cv1.act = torch.nn.SiLU()
    for tower in plain.model[-1].cv3:
        tower[-1].weight.data *= 3
        tower[-1].bias.data.normal_(-2, 1)
    plain.names, plain.args = dict(enumerate(names)), {}
    torch.save({"model": plain, "ema": None, "train_args": {}}, path)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("weights") / "yolov8n.pt")


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (90, 160, 3), np.uint8), rng.integers(0, 256, (90, 160), np.uint8)


@pytest.mark.parametrize("yaml", ["yolov8n.yaml", "yolo11n.yaml"])
def test_each_camera_s_answer_is_the_detector_s(yaml: str, tmp_path: Path) -> None:
    weights = write_detector(tmp_path / "weights.pt", yaml)
    model = assemble(weights, None, None)
    plain = torch.load(weights, weights_only=False)["model"].eval()
    x = torch.rand(1, 4, 64, 96)
    grey = x[:, 3:].expand(-1, 3, -1, -1)
    with torch.no_grad():
        found, visible, thermal = model.answers(x), plain(x[:, :3])[0], plain(grey)[0]
        # To the fused answer, the mean of two equal streams is one of them.
        same = model.answers(torch.cat((grey, x[:, 3:]), 1), ["fused"])["fused"][0]
    assert torch.equal(found["visible"][0], visible)
    torch.testing.assert_close(found["thermal"][0], thermal, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(same, thermal, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(not COCO.is_file(), reason="no COCO weights to compare with")
def test_published_weights_answer_a_street_as_ultralytics_does(tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    main(["--weights", str(COCO), "--out", str(out)])
    predictor, theirs = Predictor(out, device="cpu", conf=0.25), YOLO(COCO)
    for file in sorted((SHARED / "roadscene_flir/visible/train").iterdir())[:3]:
        visible = cv2.imread(str(file))
        thermal = cv2.imread(str(SHARED / "roadscene_flir/thermal/train" / file.name), cv2.IMREAD_GRAYSCALE)
        for image, found in (
            (visible, predictor.predict(visible, None)),
            (np.repeat(thermal[..., None], 3, 2), predictor.predict(None, thermal)),
        ):
            rows = theirs.predict(image, conf=0.25, iou=0.7, device="cpu", verbose=False)[0].boxes.data.numpy()
            ours = np.column_stack((found.boxes, found.scores, found.classes))
            np.testing.assert_allclose(ours, rows, atol=0.05)


def test_a_pair_is_answered_by_all_unless_asked_otherwise(
    detector: Path, tmp_path: Path, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    out = tmp_path / "model.safetensors"
    main(["--weights", str(detector), "--classes", "car,Person", "--out", str(out), "--image-size", "160"])
    header = read_header(out)
    assert (header.answer, header.names) == ("ensemble", {0: "car", 1: "Person"})
    both, fused = Predictor(out, device="cpu", conf=0.1), Predictor(out, device="cpu", conf=0.1, answer="fused")
    assert both.predict(*pair).scores.max() > fused.predict(*pair).scores.max()
    assert len(both.predict(None, pair[1])) > 0


def test_two_detectors_of_other_classes_keep_their_answers(
    detector: Path, tmp_path: Path, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    """The towers for three classes are narrower than those for eighty, and lie in them."""
    other = write_detector(tmp_path / "thermal.pt", names=["car", "person"], seed=1)
    model = assemble(detector, other, ["person", "car"])
    assert (model.config.method, model.config.answers) == ("late", ("visible", "thermal"))
    x = torch.rand(1, 4, 64, 96)
    checkpoints = [torch.load(file, weights_only=False)["model"].eval() for file in (detector, other)]
    with torch.no_grad():
        found = model.answers(x)
        visible, thermal = checkpoints[0](x[:, :3])[0], checkpoints[1](x[:, 3:].expand(-1, 3, -1, -1))[0]
    torch.testing.assert_close(found["visible"][0], visible[:, [0, 1, 2, 3, 4, 6]], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["thermal"][0], thermal[:, [0, 1, 2, 3, 5, 4]], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--classes", "persn"], "does not know the class 'persn'; did you mean person"),
        (["--classes", "person,person"], "two classes have one name"),
        (["--thermal-weights", "yolo11.pt"], "both streams are of one family and scale"),
        (["--out", "model.onnx"], "ends in .safetensors"),
        (["--image-size", "100"], "multiple of 32"),
        (["--thermal-contract", "{source: mono8"], "--thermal-contract is no YAML"),
        (["--thermal-contract", "mono8"], "expected the keys source and scale"),
    ],
)
def test_what_cannot_be_assembled_is_one_line(
    words: list[str], says: str, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "yolo11.pt" in words:
        write_detector(tmp_path / "yolo11.pt", "yolo11n.yaml")
    out = [] if "--out" in words else ["--out", "model.safetensors"]
    with pytest.raises(UserError, match=says):
        main(["--weights", str(detector), *out, *words])
    assert not list(tmp_path.glob("model.*"))
