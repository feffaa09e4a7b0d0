"""A method that the package does not know is trained, killed, resumed, exported and loaded like its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_resume import OPTIONS, assert_same_run, curve
from test_train import two_class_world
from torch import Tensor, nn

from rscmd_model.errors import UserError
from rscmd_model.inference.export_file import export
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import METHODS, parse_method
from rscmd_model.methods.base import Features, number
from rscmd_model.methods.rsc import Rsc, RscSettings
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import load_model
from rscmd_model.network.objective import TrainingStep
from rscmd_model.training.trainer import PairedTrainer

ROOT = Path(__file__).resolve().parents[1]
NAME = "balanced"


@dataclass(frozen=True)
class BalancedSettings(RscSettings):
    """How much the surer camera's backbone is held back."""

    alpha: float = number(0.5, above=0)


class Balanced(Rsc):
    """A gain for each camera in the fusion, drawn to 1 by a loss; and the surer camera's backbone learns more slowly.

    The second half is on-the-fly gradient modulation (OGM, arXiv 2203.15332), with running means of the cameras' scores
    at the anchors that the fused answer's assignment made positive.
    """

    Settings = BalancedSettings
    sure: Tensor

    def __init__(self, settings: Any, channels: tuple[int, int, int]) -> None:
        super().__init__(settings, channels)
        self.gain = nn.Parameter(torch.tensor([1.5, 0.5]))
        self.register_buffer("sure", torch.ones(2))

    def fuse(self, model: RscmdModel, x: Tensor, features: dict[str, Features]) -> Features:
        gained = {m: [gain * f for f in features[m]] for m, gain in zip(self.modalities, self.gain)}
        return super().fuse(model, x, gained)

    def losses(self, model: RscmdModel, step: TrainingStep) -> dict[str, Tensor]:
        positives = step.scored["fused"].positives
        best = [step.answers[m]["scores"].detach().sigmoid().amax(1)[positives].sum() for m in self.modalities]
        self.sure.lerp_(torch.stack(best), 0.1)
        return {**super().losses(model, step), "gain": (self.gain - 1).square().sum()}

    @property
    def weights(self) -> dict[str, float]:
        return {**super().weights, "gain": 2.0}

    def before_step(self, model: RscmdModel) -> None:
        for m, ratio in zip(self.modalities, self.sure / self.sure.flip(0)):
            k = 1 - torch.tanh(self.settings.alpha * (ratio - 1).clamp_min(0))
            for p in model.backbones[m].parameters():
                assert p.grad is not None
                p.grad *= k


def run(data: Path, folder: Path, kill: bool = False) -> None:
    """Train, or go on with a run; with `kill` die by SIGKILL amid the second epoch."""
    METHODS[NAME] = "test_seam:Balanced"
    last = folder / "weights/last.pt"
    go_on = {"resume": str(last), "model": str(last)} if last.is_file() else {}
    place = {"data": str(data), "project": str(folder.parent), "name": folder.name}
    trainer = PairedTrainer(overrides={"model": "rscmd", **OPTIONS, "close_mosaic": 0, "epochs": 2, **place, **go_on})
    if not go_on:
        trainer.start_from(parse_method("balanced+alpha=0.7"))
    if kill:
        trainer.add_callback("on_train_batch_end", lambda t: t.epoch == 1 and os.kill(os.getpid(), signal.SIGKILL))
    trainer.train()


def test_a_method_of_ones_own_lives_as_the_package_s_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, NAME, "test_seam:Balanced")  # taken out again afterwards
    data = two_class_world(tmp_path)
    run(data, tmp_path / "whole")
    assert {"train/gain_loss", "train/visible_loss"} < set(curve(tmp_path / "whole")[0])

    folder = tmp_path / "killed"
    program = f"from test_seam import Path, run; run(Path({str(data)!r}), Path({str(folder)!r}), kill=True)"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "test")))}
    killed = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run(data, folder)
    assert_same_run(folder, tmp_path / "whole")

    file = tmp_path / "whole/model.safetensors"
    model, header = load_model(file)
    assert header.config == parse_method("balanced+alpha=0.7")
    assert isinstance(model.method, Balanced)
    moved = model.method.gain.detach()
    assert 1 < moved[0] < 1.5, "the loss of its own draws the gain to 1"
    assert 0.5 < moved[1] < 1
    assert not torch.equal(model.method.sure, torch.ones(2))

    onnx = tmp_path / "model.onnx"
    export(file, "onnx", onnx, dynamic=True)
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 256, (64, 64, 3), np.uint8), rng.integers(0, 256, (64, 64), np.uint8)
    torch_one, onnx_one = Predictor(file, device="cpu", conf=0.0), Predictor(onnx, conf=0.0)
    for given in (pair, (None, pair[1])):
        ours, theirs = torch_one.predict(*given), onnx_one.predict(*given)
        np.testing.assert_allclose(theirs.scores[:20], ours.scores[:20], atol=1e-3)

    monkeypatch.delitem(METHODS, NAME)
    assert Predictor(onnx).config.title == "balanced+alpha=0.7", "an exported model needs no method"
    with pytest.raises(UserError, match="method 'balanced' is not one of"):
        load_model(file)
