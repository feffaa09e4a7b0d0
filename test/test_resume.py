"""A run is a function of its seed, and one that is killed goes on to the same curve."""

from __future__ import annotations

import csv
import errno
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train import QUICK, two_class_world

from rscmd_model.errors import UserError
from rscmd_model.methods import method_config
from rscmd_model.network.model_file import load_model
from rscmd_model.training.checkpoints import save_aside
from rscmd_model.training.resume import drop_rows_after, is_finished
from rscmd_model.training.run import train
from rscmd_model.training.trainer import PairedTrainer

# Three batches of two pairs, a step for two batches: an epoch ends in the middle of an accumulation. The last epoch
# is without mosaic.
OPTIONS = {**QUICK, "imgsz": 32, "batch": 2, "nbs": 4, "epochs": 3, "close_mosaic": 1, "optimizer": "SGD"}


def run(data: Path, folder: Path, workers: int = 0, kill: str = "", **options: Any) -> None:
    """Train, or go on with a run, and die by SIGKILL at a place: "batch" (amid the second epoch) or "checkpoint"."""
    last = folder / "weights/last.pt"
    go_on = {"resume": str(last), "model": str(last)} if last.is_file() else {}
    place = {"data": str(data), "project": str(folder.parent), "name": folder.name}
    trainer = PairedTrainer(overrides={"model": "rscmd", **OPTIONS, **place, **options, **go_on})
    trainer.args.workers = workers  # the engine gives the CPU none
    if not go_on:
        trainer.start_from(method_config("rscmd"))

    def die(*_: Any) -> None:
        if trainer.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    if kill == "batch":
        trainer.add_callback("on_train_batch_end", die)
    elif kill == "checkpoint":  # between the files of one epoch: best.pt is there, last.pt is not yet
        replace = Path.replace

        def die_or_replace(file: Path, to: Path) -> Path:
            if "last" in file.name:
                die()
            return replace(file, to)

        Path.replace = die_or_replace  # type: ignore  # this process alone, which dies by it
    trainer.train()


def run_alone(*words: Any, **options: Any) -> None:
    """`run`, whose loader forks its workers, as in any command; else they would be processes like this one."""
    multiprocessing.set_start_method("fork", force=True)
    run(*words, **options)


def run_apart(data: Path, folder: Path, workers: int = 0, kill: str = "", **options: Any) -> None:
    """`run` in a process of its own: to be killed, or to fork a loader's workers (not where DDS has threads).

    The process is forked from one that has imported the libraries.
    """
    apart = multiprocessing.get_context("forkserver")
    process = apart.Process(target=run_alone, args=(data, folder, workers, kill), kwargs=options)
    process.start()
    process.join()
    assert process.exitcode == (-signal.SIGKILL if kill else 0)


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def assert_same_run(a: Path, b: Path) -> None:
    assert curve(a) == curve(b)
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert set(first) == set(second)
    assert [k for k in first if not torch.equal(first[k], second[k])] == []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_class_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(world, folder)
    assert [row["epoch"] for row in curve(folder)] == ["1", "2", "3"]
    return folder


def test_a_killed_run_goes_on_to_the_same_curve(
    command: Callable[..., subprocess.CompletedProcess[str]], world: Path, whole: Path, tmp_path: Path
) -> None:
    """Bit for bit: every column of results.csv but the time, and the weights of the model."""
    folder = tmp_path / "run"
    run_apart(world, folder, kill="batch")
    assert len(curve(folder)) == 1
    last = folder / "weights/last.pt"
    assert not is_finished(last)
    done = command("rscmd_model.train", f"resume={last}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"model: {folder / 'model.safetensors'}")
    assert_same_run(folder, whole)

    assert is_finished(last)
    assert train(None, None, {"resume": str(last)}) == folder / "model.safetensors"
    assert_same_run(folder, whole)
    for file in (last, last.with_name("best.pt")):
        assert torch.load(file, weights_only=False)["optimizer"] is None, "the exact state outlived the run"


def test_a_run_killed_between_two_files_goes_on_to_the_same_curve(world: Path, whole: Path, tmp_path: Path) -> None:
    run_apart(world, tmp_path / "run", kill="checkpoint")
    assert len(curve(tmp_path / "run")) == 2, "the row of an epoch that has no checkpoint"
    assert not is_finished(tmp_path / "run/weights/last.pt"), "the checkpoint of the epoch before"
    run(world, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_run_killed_with_its_loader_s_workers_goes_on_to_the_same_curve(world: Path, tmp_path: Path) -> None:
    run_apart(world, tmp_path / "killed", 2, "batch")
    run_apart(world, tmp_path / "killed", 2)
    run_apart(world, tmp_path / "whole", 2)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_killed_run_with_its_pairs_on_disk_goes_on_to_the_same_curve(
    command: Callable[..., subprocess.CompletedProcess[str]], world: Path, whole: Path, tmp_path: Path
) -> None:
    """It uses the files of before again, and its curve is that of a run without them, which are gone in the end."""
    folder, before = tmp_path / "run", sorted(world.parent.rglob("*"))
    run_apart(world, folder, kill="batch", cache="disk")
    files = {file: file.stat().st_mtime_ns for file in (folder / "cache").iterdir()}
    assert {file.suffix for file in files} == {".npy"}
    done = command("rscmd_model.train", f"resume={folder / 'weights/last.pt'}")
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, whole)
    assert not (folder / "cache").exists()
    assert sorted(world.parent.rglob("*")) == before


def test_another_seed_makes_another_run(world: Path, whole: Path, tmp_path: Path) -> None:
    run(world, tmp_path / "run", seed=1)
    assert curve(tmp_path / "run") != curve(whole)


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


def test_a_step_takes_its_batches_and_none_of_another_epoch(world: Path, tmp_path: Path) -> None:
    """Six batches and a step for four: steps after 4 and 6, in every epoch."""
    options = {**OPTIONS, "batch": 1, "nbs": 4, "imgsz": 64, "warmup_epochs": 0, "epochs": 2, "val": False}
    place = {"data": str(world), "project": str(tmp_path), "name": "run", "model": "rscmd"}
    trainer = PairedTrainer(overrides={**options, **place})
    trainer.start_from(method_config("sum"))
    steps: list[list[int]] = []
    trainer.add_callback("on_train_epoch_start", lambda _: steps.append([]))
    trainer.add_callback("on_train_batch_end", lambda t: steps[-1].append(t.ema.updates))
    trainer.train()
    assert steps == [[0, 0, 0, 1, 1, 2], [2, 2, 2, 3, 3, 4]]


def test_training_stops_on_a_loss_that_is_not_finite(world: Path, tmp_path: Path) -> None:
    """In any epoch, before weights that it spoilt are kept; the parts of the loss are named."""
    place = {"data": str(world), "project": str(tmp_path), "name": "run", "model": "rscmd"}
    trainer = PairedTrainer(overrides={**OPTIONS, **place, "val": False})
    trainer.start_from(method_config("rscmd"))

    def spoil(t: Any) -> None:
        if t.epoch == 1:
            with torch.no_grad():
                t.model.branches["thermal"].head.cv3[0][2].bias.fill_(torch.nan)

    trainer.add_callback("on_train_batch_start", spoil)
    with pytest.raises(UserError, match=r"not finite in epoch 2, batch 1 .*box_loss \d.*thermal_loss nan"):
        trainer.train()
    state = torch.load(tmp_path / "run/weights/last.pt", weights_only=False)
    assert state["epoch"] == 0
    assert all(torch.isfinite(v).all() for v in state["optimizer"]["exact"]["model"].values())


@pytest.mark.parametrize("names", [True, False])
def test_best_is_the_checkpoint_of_the_best_epoch(names: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same file as last.pt where that is of the same epoch, or a copy where a file has one name alone."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not names:
        monkeypatch.setattr(os, "link", refuse)
    trainer: Any = SimpleNamespace(best=tmp_path / "best.pt", last=tmp_path / "last.pt", wdir=tmp_path, epoch=0)
    trainer.args = SimpleNamespace(save_period=2)

    def save() -> bool:
        trainer.last.write_text(str(trainer.epoch))
        if trainer.best_fitness == trainer.fitness:
            trainer.best.write_text(str(trainer.epoch))
        return True

    for trainer.epoch, (trainer.fitness, best) in enumerate([(0.5, 0), (0.4, 0), (0.6, 2), (0.1, 2)]):
        trainer.best_fitness = max(trainer.fitness, (0.5, 0.5, 0.6, 0.6)[trainer.epoch])
        assert save_aside(trainer, save)
        assert trainer.last.read_text() == str(trainer.epoch)
        assert trainer.best.read_text() == str(best)
        assert trainer.last.samefile(trainer.best) == (names and best == trainer.epoch)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "epoch0.pt", "epoch2.pt", "last.pt"]


def test_a_run_that_goes_on_without_validation_keeps_its_last_epoch(tmp_path: Path) -> None:
    """Whatever was scored before."""
    data = two_class_world(tmp_path / "data")

    def score(trainer: PairedTrainer, end_in: int | None, value: float) -> None:
        def scored() -> tuple[dict[str, float], float]:
            trainer.best_fitness = max(value, trainer.best_fitness or 0)
            return {}, value

        def stop(trainer: PairedTrainer) -> None:
            if trainer.epoch == end_in:
                raise KeyboardInterrupt

        trainer.validate = scored  # type: ignore[method-assign]
        trainer.add_callback("on_train_batch_end", stop)

    place = {"project": str(tmp_path), "name": "run"}
    first = [lambda trainer: score(trainer, 1, 0.9)]
    with pytest.raises(KeyboardInterrupt):
        train(data, method_config("sum"), {**OPTIONS, "epochs": 2, **place}, observers=first)
    model = tmp_path / "run/model.safetensors"
    before = model.read_bytes()
    last = str(tmp_path / "run/weights/last.pt")
    train(None, None, {"resume": last, "val": False}, observers=[lambda trainer: score(trainer, None, 0.2)])
    assert model.read_bytes() != before


def test_a_run_in_an_earlier_one_s_folder_takes_nothing_of_it_for_its_own(tmp_path: Path) -> None:
    data = two_class_world(tmp_path / "data")
    place = {**OPTIONS, "epochs": 1, "project": str(tmp_path), "name": "run", "exist_ok": True}
    train(data, method_config("rscmd"), {**place, "save_period": 1})
    for name in ("scores.json", "answers.npz"):
        (tmp_path / "run" / name).write_text("of an earlier run")
    train(data, method_config("sum"), {**place, "epochs": 2, "save": False})
    left = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not left & {"scores.json", "answers.npz", "weights/epoch0.pt"}
    assert load_model(tmp_path / "run/model.safetensors")[1].config.method == "sum"
