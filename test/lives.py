"""What every method goes through: it is trained, measured, killed, resumed, exported and loaded."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from test_resume import OPTIONS, assert_same_run
from test_train import two_class_world

from rscmd_model.diagnosis.gradient_recorder import GradientRecorder
from rscmd_model.inference.export_file import export
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import parse_method
from rscmd_model.network.model_file import load_model
from rscmd_model.training.trainer import PairedTrainer


def run(
    data: Path,
    folder: Path,
    method: str,
    kill: bool = False,
    diagnose: bool = False,
    teachers: Mapping[str, Path] | None = None,
) -> None:
    """Train for two epochs, or go on with a run; with `kill` die by SIGKILL amid the second epoch."""
    last = folder / "weights/last.pt"
    go_on = {"resume": str(last), "model": str(last)} if last.is_file() else {}
    place = {"data": str(data), "project": str(folder.parent), "name": folder.name}
    trainer = PairedTrainer(overrides={"model": "rscmd", **OPTIONS, "close_mosaic": 0, "epochs": 2, **place, **go_on})
    if not go_on:
        trainer.start_from(parse_method(method), teachers=teachers)
    GradientRecorder.attach(trainer, every=1 if diagnose else None)
    if kill:
        trainer.add_callback("on_train_batch_end", lambda t: t.epoch == 1 and os.kill(os.getpid(), signal.SIGKILL))
    trainer.train()


def killed(run: Callable[..., None], *words: Any) -> None:
    """Call a `run` with `words` in a process of its own, in which it dies by SIGKILL."""
    process = multiprocessing.get_context("forkserver").Process(target=run, args=words)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def assert_lives(
    method: str,
    root: Path,
    data: Path | None = None,
    teachers: Mapping[str, Path] | None = None,
) -> Path:
    """Train twice: as it is, and with the gradients measured, killed and resumed. Both are one run.

    Args:
        method: as on a command line.
        root: an empty folder.
        data: to train on; None draws some.
        teachers: of a method that learns from them, trained on `data`.

    Returns:
        the folder of the first run.
    """
    data = data or two_class_world(root / "data")
    whole, other = root / "whole", root / "other"
    run(data, whole, method, teachers=teachers)
    killed(run, data, other, method, True, True, teachers)
    run(data, other, method, diagnose=True, teachers=teachers)
    assert (other / "gradients.csv").is_file()
    assert_same_run(other, whole)

    file, onnx = whole / "model.safetensors", root / "model.onnx"
    assert load_model(file)[1].config == parse_method(method)
    export(file, "onnx", onnx, dynamic=True)
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 256, (64, 64, 3), np.uint8), rng.integers(0, 256, (64, 64), np.uint8)
    torch_one, onnx_one = Predictor(file, device="cpu", conf=0.0), Predictor(onnx, conf=0.0)
    for given in (pair, (None, pair[1])) if torch_one.modalities else (pair,):
        ours, theirs = torch_one.predict(*given), onnx_one.predict(*given)
        np.testing.assert_allclose(theirs.scores[:20], ours.scores[:20], atol=1e-3)
    return whole
