"""The methods that change what is fused (compensate, instruct, gate, complement): each lives as the others do.

What each of them promises besides is in test_compensate.py, test_instruct.py and test_weighed_fusion.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lives import killed, run
from test_inference import NAMES, image
from test_objective import make_batch, make_model
from test_resume import OPTIONS, assert_same_run, curve
from test_train import two_class_world

from rscmd_model.config import Augmentation
from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.export_file import export
from rscmd_model.inference.graphs import to_onnx
from rscmd_model.inference.opening import SUFFIXES
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import method_config
from rscmd_model.network.model_file import ModelHeader, load_model, save_model
from rscmd_model.training.trainer import PairedTrainer

LONE = ("compensate", "instruct")
FUSING = (*LONE, "gate", "complement")


@pytest.mark.parametrize("method", [*LONE, "gate"])
def test_a_killed_run_goes_on_and_a_watched_one_notices_nothing(method: str, tmp_path: Path) -> None:
    """Both to the same curve and the same weights, bit for bit."""
    data = two_class_world(tmp_path / "data")
    run(data, tmp_path / "watched", method, diagnose=True)
    assert (tmp_path / "watched/gradients.csv").is_file()
    named = {"compensate": {"compensated_loss", "kd_loss", "div_loss"}, "gate": {"gate_visible", "gate_spread"}}
    assert {f"train/{name}" for name in named.get(method, ())} < set(curve(tmp_path / "watched")[0])

    folder = tmp_path / "killed"
    killed(run, data, folder, method, True)
    assert len(curve(folder)) == 1
    run(data, folder, method)
    assert_same_run(folder, tmp_path / "watched")
    model, header = load_model(folder / "model.safetensors")
    assert header.config == method_config(method)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("method", "form"), [*((method, "onnx") for method in FUSING), ("gate", "openvino"), ("complement", "openvino")]
)
def test_an_exported_model_answers_as_the_model(method: str, form: str, tmp_path: Path) -> None:
    """Pairs of several sizes, batches, and lone cameras; nothing of the method is at its neutral start."""
    for package in ("onnx", "onnxruntime") if form == "onnx" else ("onnx", "openvino"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    model = make_model(method_config(method))
    for parameter in model.method.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    for classifier in model.branch("fused").head.cv3:  # so that something is found
        torch.nn.init.normal_(classifier[-1].weight, std=0.3)
        torch.nn.init.constant_(classifier[-1].bias, -1.0)
    file, out = tmp_path / "model.safetensors", tmp_path / f"model{SUFFIXES[form]}"
    save_model(file, model.eval(), ModelHeader(model.config, NAMES, 64, ThermalContract()))
    export(file, form, out, dynamic=True, half=False)
    eager, made = (Predictor(path, device="cpu", conf=0.05) for path in (file, out))
    assert made.modalities == eager.modalities == (("visible", "thermal") if method in LONE else ())
    rng = np.random.default_rng(0)
    for shape in ((1, 64, 96, 4), (3, 96, 64, 4)):
        stack = rng.integers(0, 256, shape, np.uint8)
        for answer in model.config.answers:
            np.testing.assert_allclose(
                made.backend.forward(stack, [answer])[0], eager.backend.forward(stack, [answer])[0], atol=1e-2
            )
    visible, thermal = image(48, 64)
    found = {"both": made.predict(visible, thermal)}
    assert len(found["both"]) > 0
    if method in LONE:
        found |= {"visible": made.predict(visible, None), "thermal": made.predict(None, thermal)}
        assert all(len(one) > 0 for one in found.values())
        assert len({one.scores.tobytes() for one in found.values()}) == 3
    else:
        with pytest.raises(UserError, match="only the thermal image was given"):
            made.predict(None, thermal)


@pytest.mark.parametrize("method", FUSING)
def test_losses_in_16_bits_are_those_of_32(method: str) -> None:
    """As bfloat16 on the CPU: same losses, finite gradients in 32 bits."""
    found = []
    for precise in (True, False):
        model, batch = make_model(method_config(method)), make_batch()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            total, items = model.loss(batch)
        found.append(items)
    total.sum().backward()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name].float(), value, rtol=0.1, atol=0.02, msg=name)
    for parameter in model.parameters():
        assert parameter.grad is None or (parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all())


@pytest.mark.parametrize("method", FUSING)
def test_all_that_a_method_adds_is_trained(method: str) -> None:
    model = make_model(method_config(method))
    model.loss(make_batch())[0].sum().backward()
    added = dict(model.method.named_parameters())
    assert added
    assert [name for name, p in added.items() if p.grad is None] == []


@pytest.mark.parametrize("method", ["gate", "complement"])
def test_half_precision_adds_up_in_32_bits(method: str) -> None:
    """Sixteen bits end at 65504, which 6400 positions of 11 exceed: a runtime may add up in what it is given."""
    onnx = pytest.importorskip("onnx")
    model = make_model(method_config(method)).eval().half()
    header = ModelHeader(model.config, NAMES, 64, ThermalContract())
    graph = onnx.load_model_from_string(to_onnx(model.fuse(), header)).graph
    cast = {node.output[0]: node.attribute[0].i for node in graph.node if node.op_type == "Cast"}
    means = [node for node in graph.node if node.op_type == "ReduceMean"]
    assert len(means) == 6, "of two cameras at three strides"
    assert [cast.get(node.input[0]) for node in means] == [onnx.TensorProto.FLOAT] * 6


def test_two_ways_of_losing_a_camera_are_refused(tmp_path: Path) -> None:
    data = two_class_world(tmp_path / "data")
    place = {"data": str(data), "project": str(tmp_path), "name": "run"}
    trainer = PairedTrainer(overrides={"model": "rscmd", **OPTIONS, **place})
    with pytest.raises(UserError, match=r"instruct loses cameras itself \(dropout=0\.3\): leave modality dropout out"):
        trainer.start_from(method_config("instruct"), augmentation=Augmentation(modality_dropout=0.3))
    trainer.start_from(method_config("instruct", dropout=0.0), augmentation=Augmentation(modality_dropout=0.3))
    trainer.start_from(method_config("compensate"), augmentation=Augmentation(modality_dropout=0.3))
