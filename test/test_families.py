"""Every family of layers is its authors' own: as large, with the same answers from the same weights, and exported.

`python test/test_families.py` writes golden_families.json anew, for a change that is meant to change results.
"""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_golden import assert_golden, record
from test_inference import NAMES, image
from test_train import two_class_world
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn.tasks import DetectionModel, parse_model, yaml_model_load

from rscmd_model.config import FAMILIES, LINEAR_SPPF, SCALES, ModelConfig
from rscmd_model.datasets.opening import open_data
from rscmd_model.diagnosis.gradient_recorder import ReferenceBranches
from rscmd_model.errors import UserError
from rscmd_model.evaluation.ablation import Ablation, claim
from rscmd_model.imaging.images import stack_pair
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.export_file import export
from rscmd_model.inference.opening import SUFFIXES
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import method_config
from rscmd_model.network.families import find_family
from rscmd_model.network.header import ModelHeader
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import load_model, save_model
from rscmd_model.network.pretrained import load_weights
from rscmd_model.training.freezing import frozen_parts

GOLDEN = Path(__file__).with_name("golden_families.json")
EIGHTY = {i: str(i) for i in range(80)}
NEW = [name for name in FAMILIES if name != "yolov8"]


def build(method: str, family: str, names: dict[int, str] = NAMES, **changes: object) -> RscmdModel:
    torch.manual_seed(0)
    return RscmdModel(method_config(method, family=family, **changes), names)


def liven(module: nn.Module) -> None:
    """Random BatchNorm: as it starts, it lets so little through that layers could be left out unseen."""
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert value is not None
            value.data.copy_(torch.rand(value.shape, generator=generator) + 0.5)


def plain_detector(family: str, path: Path) -> DetectionModel:
    """A plain detector of scale n, with random weights and 80 classes, saved as ultralytics saves it."""
    torch.manual_seed(0)
    plain = DetectionModel(f"{family}n.yaml", nc=80, verbose=False)
    liven(plain)
    # The published weights of either family have this activation. Some releases of ultralytics build YOLOv8 without.
    plain.model[9].cv1.act = nn.SiLU()
    plain.args = {}
    torch.save({"model": plain, "ema": None, "train_args": {}}, path)
    return plain.eval()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_plain_detector(family: str, scale: str) -> None:
    """At every scale the same tensors, by the yaml's layer numbers. Nothing is computed, so nothing takes memory."""
    found = find_family(family)
    with torch.device("meta"):
        plain, _ = parse_model(yaml_model_load(f"{family}{scale}.yaml"), ch=3, verbose=False)
        ours = nn.ModuleList([found.Backbone(3, scale), found.Branch(found.channels(scale), scale, 80)])
    theirs = {name: value.shape for name, value in plain.state_dict().items()}
    shapes = {}
    for name, value in ours.state_dict().items():
        _, part, rest = name.split(".", 2)
        shapes[f"{found.coco_layers[part]}.{rest}"] = value.shape
    assert shapes == theirs
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_checkpoint_answers_as_it_does_there(family: str, tmp_path: Path) -> None:
    plain = plain_detector(family, tmp_path / "plain.pt")
    visible = build("visible", family, EIGHTY).eval()
    count = load_weights(visible, tmp_path / "plain.pt")
    assert (count.kept, count.other) == ((), ())
    x = torch.rand(1, 4, 64, 96)
    with torch.no_grad():
        expected = plain(x[:, :3])[0]
        assert torch.equal(visible(x)[0], expected)
        plain.model[9].cv1.act = nn.ReLU()  # the comparison sees each layer
        assert not torch.equal(plain(x[:, :3])[0], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lean_answer_takes_less_than_two_fifths_of_a_full_one(family: str) -> None:
    found = find_family(family)
    for scale in ("n", "x"):
        sizes = []
        with torch.device("meta"):
            channels = found.channels(scale)
            features = [torch.zeros(1, c, 64 // n, 64 // n) for c, n in zip(channels, (1, 2, 4))]
            for kind in (found.LeanBranch, found.Branch):
                branch = kind(channels, scale, 2).train()
                with FlopCounterMode(display=False) as counter:
                    branch(features)
                sizes.append(counter.get_total_flops())
        assert sizes[0] < 0.4 * sizes[1], (scale, sizes)


@pytest.mark.parametrize("family", NEW)
def test_freezing_by_the_family_s_own_numbers(family: str) -> None:
    model = build("rsc", family)
    assert frozen_parts(model, [10]) == ["backbones.visible.b10", "backbones.thermal.b10"]
    assert frozen_parts(model, [13, "22"]) == ["branches.fused.n13", "branches.fused.n22"]
    assert frozen_parts(model, ["23.cv2"]) == [f"branches.{name}.head.cv2" for name in ("fused", "visible", "thermal")]
    assert len(frozen_parts(model, 11)) == 22
    with pytest.raises(UserError, match=rf"freeze=12: .* of {family}\.yaml \(0, 1, 2, .*, 22, 23\)"):
        frozen_parts(model, [12])
    with pytest.raises(UserError, match="nothing to train"):
        frozen_parts(build("sum", family), 24)


def test_a_header_names_the_family_unless_it_is_that_of_before() -> None:
    def settings(family: str) -> dict[str, object]:
        config = ModelConfig(family=family)
        text = ModelHeader(config, NAMES, 64, ThermalContract()).to_json()
        assert ModelHeader.from_json(text).config == config
        found: dict[str, object] = json.loads(text)["config"]
        return found

    assert "family" not in settings(LINEAR_SPPF)
    assert [settings(family)["family"] for family in FAMILIES] == list(FAMILIES)
    with pytest.raises(UserError, match="family 'yolo3' is not one of yolov8, yolo11"):
        ModelConfig(family="yolo3")


@pytest.mark.parametrize("name", ["Backbone", "Branch", "LeanBranch", "Head", "LeanHead", "Adapter"])
def test_checkpoints_of_before_find_their_layers(name: str) -> None:
    """They name the classes as those of rscmd_model.network.model."""
    layer = pickle.load(io.BytesIO(f"crscmd_model.model\n{name}\n.".encode()))
    assert issubclass(layer, nn.Module)


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_branches_are_of_the_model_s_family(family: str) -> None:
    model = build("rscmd", family)
    features = model.features(torch.rand(1, 4, 64, 64), "visible")
    branches = ReferenceBranches(model, 0)
    assert {type(branch) for branch in branches.values()} == {find_family(family).Branch}
    assert branches["visible"](features)["scores"].shape == (1, len(NAMES), 64 + 16 + 4)


def test_yolov8_from_before_format_4_has_no_activation_in_its_sppf() -> None:
    """Files and checkpoints of then go on with the layers that they were trained with."""
    kinds = {family: type(build("sum", family).backbones["thermal"].b9.cv1.act) for family in ("yolov8", LINEAR_SPPF)}
    assert kinds == {"yolov8": nn.SiLU, LINEAR_SPPF: nn.Identity}
    old = build("sum", LINEAR_SPPF)
    old.config = replace(old.config, family="yolov8")  # as a checkpoint of format 3 has it
    assert pickle.loads(pickle.dumps(old)).config.family == LINEAR_SPPF
    assert pickle.loads(pickle.dumps(build("sum", "yolov8"))).config.family == "yolov8"


def test_an_ablation_from_before_families_goes_on_with_the_one_of_then(tmp_path: Path) -> None:
    data = open_data(two_class_world(tmp_path))
    ablation = Ablation(tmp_path, data, "val", "n", LINEAR_SPPF, {})
    claim(ablation)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    of_then = ("data", "split", "model", "options")
    (tmp_path / "recipe.json").write_text(json.dumps({k: recipe[k] for k in of_then}))
    claim(ablation)
    with pytest.raises(UserError, match="holds an ablation with another family"):
        claim(replace(ablation, family="yolo11"))


def write_model(path: Path, family: str) -> Path:
    model = build("rscmd", family)
    liven(model)
    save_model(path, model, ModelHeader(model.config, NAMES, 128, ThermalContract()))
    return path


@pytest.mark.parametrize("family", NEW)
def test_a_two_stream_model_is_saved_and_exported(family: str, tmp_path: Path) -> None:
    file = write_model(tmp_path / "model.safetensors", family)
    model, header = load_model(file)
    assert header.config.family == family
    stack = stack_pair(*image(96, 128))[None]
    with torch.no_grad():
        eager = model.answers(torch.from_numpy(stack).permute(0, 3, 1, 2) / 255)
    for form, package in (("onnx", "onnxruntime"), ("openvino", "openvino")):
        pytest.importorskip(package)
        out = tmp_path / f"m{SUFFIXES[form]}"
        export(file, form, out, size=(128, 96))
        backend = Predictor(out, device="cpu").backend
        for branch in ("fused", "visible", "thermal"):
            np.testing.assert_allclose(backend.forward(stack, [branch])[0], eager[branch][0], atol=1e-2, err_msg=form)


CASES = [(family, method) for family in FAMILIES for method in ("visible", "rscmd")]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_three_steps_are_those_written_down(family: str, method: str) -> None:
    assert_golden(record(method, family=family), json.loads(GOLDEN.read_text())[f"{family} {method}"])


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({f"{f} {m}": record(m, family=f) for f, m in CASES}, indent=1) + "\n")
