"""A run is a function of its seed, and one that is killed goes on to the same curve."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train import QUICK, two_class_world

from rscmd_model.config import method_config
from rscmd_model.errors import UserError
from rscmd_model.resume import drop_rows_after, is_finished
from rscmd_model.train import train
from rscmd_model.trainer import PairedTrainer

# Three batches of two pairs, a step for two batches: an epoch ends in the middle of an accumulation. The last epoch
# is without mosaic.
OPTIONS = {**QUICK, "batch": 2, "nbs": 4, "epochs": 4, "close_mosaic": 1, "optimizer": "SGD", "mode": "train"}


def run(data: Path, folder: Path, workers: int = 0, kill: str = "", **options: Any) -> None:
    """Train, or go on with a run, and die by SIGKILL at a place: "batch" (amid the third epoch) or "checkpoint"."""
    last = folder / "weights/last.pt"
    go_on = {"resume": str(last), "model": str(last)} if last.is_file() else {}
    place = {"data": str(data), "project": str(folder.parent), "name": folder.name}
    trainer = PairedTrainer(overrides={"model": "rscmd", **OPTIONS, **place, **options, **go_on})
    trainer.args.workers = workers  # the engine gives the CPU none
    if not go_on:
        trainer.start_from(method_config("rscmd"))

    def die(*_: Any) -> None:
        if trainer.epoch == 2 and kill:
            os.kill(os.getpid(), signal.SIGKILL)

    if kill == "batch":
        trainer.add_callback("on_train_batch_end", die)
    elif kill == "checkpoint":  # between the files of one epoch: best.pt is there, last.pt is not yet
        replace = Path.replace
        Path.replace = lambda file, to: die() if "last" in file.name else None or replace(file, to)  # type: ignore
    trainer.train()


def killed(*args: Any, **options: Any) -> None:
    """`run` in a process of its own, which is killed as by kill -9."""
    process = multiprocessing.get_context("spawn").Process(target=run, args=args, kwargs=options)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def assert_same_run(a: Path, b: Path) -> None:
    assert curve(a) == curve(b)
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert set(first) == set(second)
    assert [k for k in first if not torch.equal(first[k], second[k])] == []


@pytest.mark.parametrize(("workers", "kill"), [(0, "batch"), (2, "batch"), (0, "checkpoint")])
def test_a_killed_run_goes_on_to_the_same_curve(workers: int, kill: str, tmp_path: Path) -> None:
    """Bit for bit: every column of results.csv but the time, and the weights of the model."""
    data = two_class_world(tmp_path / "data")
    killed(data, tmp_path / "killed", workers, kill)
    rows = len(curve(tmp_path / "killed"))
    assert rows == (2 if kill == "batch" else 3), "the row of an epoch without checkpoint stands there"
    run(data, tmp_path / "killed", workers)
    run(data, tmp_path / "whole", workers)
    assert len(curve(tmp_path / "whole")) == 4
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_seed_makes_the_run(tmp_path: Path) -> None:
    data = two_class_world(tmp_path / "data")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(data, tmp_path / name, epochs=2, close_mosaic=0, seed=seed)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert curve(tmp_path / "a") != curve(tmp_path / "c")


def test_resume_by_command(tmp_path: Path) -> None:
    data = two_class_world(tmp_path / "data")
    folder = tmp_path / "run"
    killed(data, folder, 0, "batch")
    last = folder / "weights/last.pt"
    assert not is_finished(last)
    command = [sys.executable, "-m", "rscmd_model.train", f"resume={last}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip().endswith(f"model: {folder / 'model.safetensors'}")
    assert [row["epoch"] for row in curve(folder)] == ["1", "2", "3", "4"]
    before = curve(folder)
    assert is_finished(last)
    assert train(None, None, {"resume": str(last)}) == folder / "model.safetensors"
    assert curve(folder) == before, "a finished run was trained on"
    state = torch.load(last, weights_only=False)
    assert state["optimizer"] is None, "the exact state was not stripped from the finished run"


def test_what_cannot_be_resumed_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        train(None, None, {"resume": str(tmp_path / "absent.pt")})
    (tmp_path / "last.pt").write_bytes(b"cut short")
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        train(None, None, {"resume": str(tmp_path / "last.pt")})


def test_rows_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_text("epoch,time\n1,0.5\n2,0.7\n3,0.9\n4,1.")
    drop_rows_after(file, 2)
    assert file.read_text() == "epoch,time\n1,0.5\n2,0.7\n"
    drop_rows_after(file, 3)
    assert file.read_text() == "epoch,time\n1,0.5\n2,0.7\n"
    drop_rows_after(tmp_path / "absent.csv", 1)


def test_a_step_takes_its_batches_and_none_of_another_epoch(tmp_path: Path) -> None:
    """Six batches and a step for four: steps after 4 and 6, in every epoch."""
    data = two_class_world(tmp_path / "data")
    options = {**OPTIONS, "batch": 1, "nbs": 4, "imgsz": 96, "warmup_epochs": 0, "epochs": 2, "val": False}
    place = {"data": str(data), "project": str(tmp_path), "name": "run", "model": "rscmd"}
    trainer = PairedTrainer(overrides={**options, **place})
    trainer.start_from(method_config("sum"))
    steps: list[list[int]] = []
    trainer.add_callback("on_train_epoch_start", lambda _: steps.append([]))
    trainer.add_callback("on_train_batch_end", lambda t: steps[-1].append(t.ema.updates))
    trainer.train()
    assert steps == [[0, 0, 0, 1, 1, 2], [2, 2, 2, 3, 3, 4]]


def test_training_stops_on_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    """In any epoch, before the step that would spoil the weights; the parts of the loss are named."""
    data = two_class_world(tmp_path / "data")
    place = {"data": str(data), "project": str(tmp_path), "name": "run", "model": "rscmd"}
    trainer = PairedTrainer(overrides={**OPTIONS, **place, "val": False})
    trainer.start_from(method_config("rscmd"))

    def spoil(t: Any) -> None:
        if t.epoch == 2:
            with torch.no_grad():
                t.model.branches["thermal"].head.cv3[0][2].bias.fill_(torch.nan)

    trainer.add_callback("on_train_batch_start", spoil)
    with pytest.raises(UserError, match=r"not finite in epoch 3, batch 1 .*box_loss \d.*thermal_loss nan"):
        trainer.train()
    state = torch.load(tmp_path / "run/weights/last.pt", weights_only=False)
    assert state["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in state["optimizer"]["exact"]["model"].values())
