"""Trainings on pairs of which some have lost one camera for good, and ablations of them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from lives import killed
from test_ddp import free_port
from test_pairs import write_world
from test_resume import assert_same_run
from test_train import QUICK, two_class_world

from rscmd_model.config import Augmentation, Incomplete
from rscmd_model.datasets.incomplete import lost_cameras
from rscmd_model.diagnosis.gradient_recorder import GradientRecorder
from rscmd_model.errors import UserError
from rscmd_model.methods import METHODS, method_config, parse_method
from rscmd_model.methods.sum import Sum
from rscmd_model.training.run import train
from rscmd_model.training.trainer import PairedTrainer

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {
    **QUICK,
    "batch": 2,
    "nbs": 4,
    "epochs": 2,
    "optimizer": "SGD",
    "mixup": 0.5,
    "close_mosaic": 1,
    "val": False,
}
HALF = Incomplete(0.5)


def run(data: Path, folder: Path, kill: bool = False) -> None:
    """Train, or go on with a run; with `kill` die by SIGKILL amid the second epoch."""
    last = folder / "weights/last.pt"
    go_on = {"resume": str(last), "model": str(last)} if last.is_file() else {}
    place = {"data": str(data), "project": str(folder.parent), "name": folder.name}
    trainer = PairedTrainer(overrides={"model": "rscmd", **OPTIONS, **place, **go_on})
    if not go_on:
        trainer.start_from(method_config("rscmd"), None, Augmentation(incomplete=HALF))
    if kill:
        trainer.add_callback("on_train_batch_end", lambda t: t.epoch == 1 and os.kill(os.getpid(), signal.SIGKILL))
    trainer.train()


def table(folder: Path) -> dict[str, str]:
    with (folder / "incomplete.csv").open() as file:
        return {row["name"]: row["lost"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_class_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody killed, half of whose pairs have lost a camera."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(world, folder)
    return folder


def test_the_files_of_lost_images_do_not_matter(world: Path, whole: Path, tmp_path: Path) -> None:
    """Another picture in their place, and the run is the same bit for bit."""
    lost = table(whole)
    assert sorted(lost.values()) == ["none"] * 3 + ["thermal"] + ["visible"] * 2
    assert {k: v for k, v in lost.items() if v != "none"} == lost_cameras("abcdef", 0.5)
    data = two_class_world(tmp_path / "data")
    rng = np.random.default_rng(9)
    for stem, camera in lost.items():
        if camera != "none":
            shape = (64, 64, 3) if camera == "visible" else (64, 64)
            cv2.imwrite(str(tmp_path / f"data/{camera}/train/{stem}.png"), rng.integers(0, 256, shape, np.uint8))
    run(data, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_killed_run_goes_on_to_the_same_curve_with_its_table(world: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed(run, world, folder, True)
    kept = (folder / "incomplete.csv").read_bytes()
    with pytest.raises(UserError, match="keeps its own modality dropout, thermal shift and lost cameras"):
        train(None, None, {"resume": str(folder / "weights/last.pt")}, None, Augmentation(incomplete=HALF))
    watch = partial(GradientRecorder.attach, every=1)
    with pytest.raises(UserError, match="--incomplete has others: leave one out"):
        train(None, None, {"resume": str(folder / "weights/last.pt")}, observers=[watch])
    (folder / "incomplete.csv").write_text("name,lost\na,none\n")
    with pytest.raises(UserError, match="is of other pairs than"):
        run(world, folder)
    (folder / "incomplete.csv").write_bytes(kept)
    run(world, folder)
    assert_same_run(folder, whole)
    assert (folder / "incomplete.csv").read_bytes() == kept


def test_a_rate_of_0_is_plain_training_bit_for_bit(
    command: Callable[..., subprocess.CompletedProcess[str]], world: Path, tmp_path: Path
) -> None:
    options = [f"{key}={value}" for key, value in {**OPTIONS, "epochs": 1, "project": tmp_path}.items()]
    words = ["--data", world, "--method", "rsc", *options]
    assert command("rscmd_model.train", *words, "name=plain").returncode == 0
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero/incomplete.csv").write_text("of an earlier run")
    done = command("rscmd_model.train", *words, "name=zero", "--incomplete", "0,visible")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "plain", tmp_path / "zero")
    assert not (tmp_path / "zero/incomplete.csv").exists()


def test_the_methods_of_one_seed_are_trained_with_one_table(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, log: list[str]
) -> None:
    data = write_world(tmp_path / "data", tuple("abcd"))
    options = [f"{k}={v}" for k, v in {**OPTIONS, "epochs": 1, "project": tmp_path, "verbose": True}.items()]
    tables = []
    for method in ("thermal", "late", "aux"):
        words = ["--data", data, "--method", method, "--incomplete", "0.7", *options]
        done = command("rscmd_model.train", *words, f"name={method}", "seed=3")
        assert done.returncode == 0, done.stderr
        tables.append(table(tmp_path / method))
    told = "of 4 pairs 2 have lost the visible image for good, 1 the thermal one (incomplete.csv, "
    assert sum(told in line for line in log) == 3
    assert tables == [tables[0]] * 3
    assert {k: v for k, v in tables[0].items() if v != "none"} == lost_cameras("abcd", 0.7, seed=3)


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    data, port = two_class_world(tmp_path / "data"), free_port()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    launch += [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test", "--local-addr=127.0.0.1"]
    options = {**OPTIONS, "epochs": 1, "batch": 4, "project": tmp_path, "name": "run"}
    words = ["-m", "rscmd_model.train", "--data", data, "--incomplete", "0.7", "--method", "rscmd"]
    words += [f"{k}={v}" for k, v in options.items()]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *map(str, words)], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model.safetensors").is_file()
    assert {k: v for k, v in table(tmp_path / "run").items() if v != "none"} == lost_cameras("abcdef", 0.7)


# What does not go with it


class Unheard(Sum):
    """A method that says nothing of lost cameras; what `Sum` says is not taken for it."""


def test_what_does_not_go_with_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_world(tmp_path / "data")
    monkeypatch.setitem(METHODS, "unheard", "test_incomplete_training:Unheard")

    def refused(says: str, method: str = "rsc", **options: Any) -> None:
        place = {"project": str(tmp_path), "name": "run"}
        with pytest.raises(UserError, match=says):
            train(data, parse_method(method), {**OPTIONS, **place, **options}, None, Augmentation(incomplete=HALF))
        assert not (tmp_path / "run/incomplete.csv").exists()

    refused(
        "method unheard is not made for pairs .* these are: visible, thermal, late, sum, aux, rsc, rscmd", "unheard"
    )
    refused("batches of 64 px or more", imgsz=32)
    refused("batches of 64 px or more", multi_scale=0.5)
    for text, says in (("1.5", "share of the pairs"), ("half", "give RATE"), ("0.5,radar", "'radar' is not visible")):
        with pytest.raises(UserError, match=says):
            Incomplete.parse(text)
    before = object.__new__(Augmentation)  # as a checkpoint of before there was such a thing has it
    before.__dict__.update(modality_dropout=0.0, thermal_shift=0)
    assert before == Augmentation()
    assert Incomplete.parse("0.7") == Incomplete(0.7, "either")
    assert Incomplete.parse(str(Incomplete(0.3, "thermal"))) == Incomplete(0.3, "thermal")


def test_gradients_of_lost_cameras_are_not_recorded(world: Path, whole: Path, tmp_path: Path) -> None:
    place = {"data": str(world), "project": str(tmp_path), "name": "run"}
    trainer = PairedTrainer(overrides={"model": "rscmd", **OPTIONS, **place})
    trainer.start_from(method_config("rscmd"), None, Augmentation(incomplete=HALF))
    with pytest.raises(UserError, match="--incomplete has others: leave one out"):
        GradientRecorder(trainer, 1)


# Ablations


def test_an_ablation_hands_it_to_every_training(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    data, out = write_world(tmp_path / "data", tuple("abcd")), tmp_path / "out"
    words = ["--data", data, "--out", out, "--methods", "sum", "--seeds", "1"]
    words += ["epochs=1", "batch=4", "device=cpu", "workers=0", "--resamples", "0"]
    refused = command("rscmd_model.ablate", *words, "imgsz=32", "--incomplete", "0.5,visible")
    assert (refused.returncode, "needs batches of 64 px" in refused.stderr) == (2, True)
    assert not out.exists()
    words += ["imgsz=64"]
    done = command("rscmd_model.ablate", *words, "--incomplete", "0.5,visible")
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "recipe.json").read_text())["incomplete"] == "0.5,visible"
    assert sorted(table(out / "sum-seed0").values()) == ["none", "none", "visible", "visible"]
    other = command("rscmd_model.ablate", *words)
    assert "holds an ablation with another incomplete" in other.stderr
    recipe = json.loads((out / "recipe.json").read_text())
    del recipe["incomplete"]  # as of before there was a choice
    (out / "recipe.json").write_text(json.dumps(recipe))
    assert command("rscmd_model.ablate", *words).returncode == 0
