"""Training on the ultralytics engine: it learns, it resumes, it treats both images alike, and it refuses bad input."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from controls import controls
from test_pairs import write_world
from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs, split_hash
from rscmd_model.devices import check_device
from rscmd_model.errors import UserError
from rscmd_model.evaluation.sweep import evaluate
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import METHODS, method_config, needs_teachers
from rscmd_model.network.model_file import load_model, read_header
from rscmd_model.options import parse_options
from rscmd_model.training import checkpoints
from rscmd_model.training.mixed_precision import is_good_at_amp
from rscmd_model.training.paired_dataset import PairedDataset
from rscmd_model.training.run import train
from rscmd_model.training.trainer import PairedTrainer

QUICK = {"imgsz": 64, "batch": 4, "nbs": 4, "plots": False, "device": "cpu", "exist_ok": True, "verbose": False}
PLAIN = {"mosaic": 0.0, "scale": 0.0, "translate": 0.0, "fliplr": 0.0, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}


def two_class_world(root: Path) -> Path:
    """Six pairs that neither camera sees whole: class 0 is bright in the visible image, class 1 in the thermal one."""
    data = write_world(root, tuple("abcdef"))
    rng = np.random.default_rng(0)
    for stem in "abcdef":
        visible = rng.integers(0, 60, (64, 64, 3), np.uint8)
        thermal = rng.integers(0, 60, (64, 64), np.uint8)
        lines = []
        for cls, image in enumerate((visible, thermal)):
            w, h = (int(side) for side in rng.integers(20, 30, 2))
            x, y = int(rng.integers(0, 64 - w)), int(rng.integers(32 * cls, 32 * cls + 33 - h))
            image[y : y + h, x : x + w] = 220
            lines.append(f"{cls} {(x + w / 2) / 64} {(y + h / 2) / 64} {w / 64} {h / 64}")
        (root / f"thermal/train/{stem}.jpg").unlink()
        cv2.imwrite(str(root / f"visible/train/{stem}.png"), visible)
        cv2.imwrite(str(root / f"thermal/train/{stem}.png"), thermal)
        (root / f"labels/train/{stem}.txt").write_text("\n".join(lines))
    return data


def test_overfits_a_handful_of_pairs(tmp_path: Path) -> None:
    file_of_data = two_class_world(tmp_path / "data")
    recipe = {"epochs": 60, "batch": 3, "nbs": 3, "optimizer": "AdamW", "lr0": 0.003, "warmup_epochs": 5.0}
    options = {**QUICK, **PLAIN, **recipe, "val": False, "save": False, "project": str(tmp_path), "name": "run"}
    file = train(file_of_data, method_config("rscmd"), options)
    data = open_data(file_of_data)
    pairs = find_pairs(data, "train")
    predictor = Predictor(file, device="cpu", conf=0.001, max_det=100)
    assert evaluate(predictor, data, pairs)["mAP50"] > 0.9
    header = read_header(file)
    assert header.image_size == 64
    assert header.data == {"name": "data", "split_hash": split_hash(pairs)}
    assert header.metrics["metrics/mAP50(B)"] >= 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_writes_its_files(method: str, tmp_path: Path) -> None:
    data = write_world(tmp_path / "data", ("a", "b", "c", "d"))
    before = sorted(p.name for p in (tmp_path / "data").rglob("*"))
    config = method_config(method)
    train_hash = split_hash(find_pairs(open_data(data), "train"))
    teachers = controls(tmp_path, split_hash=train_hash) if needs_teachers(config) else None
    options = {**QUICK, "epochs": 1, "project": str(tmp_path), "name": "run"}
    file = train(data, config, options, teachers=teachers)
    model, header = load_model(file)
    assert header.config == config
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(count for name, count in model.method.named_buffers() if name.endswith("counted"))
    assert (tmp_path / "run" / "weights" / "last.pt").is_file()
    assert before == sorted(p.name for p in (tmp_path / "data").rglob("*")), "training wrote into the data folder"


def dataset(data: Path, augment: bool, **hyp: float) -> PairedDataset:
    config = open_data(data)
    options = get_cfg(overrides={"imgsz": 64, **hyp})
    mapping = {"config": config, "names": config.names, "nc": len(config.names), "channels": 4}
    return PairedDataset(img_path="train", imgsz=64, augment=augment, hyp=options, data=mapping, batch_size=4)


def grey_world(root: Path) -> Path:
    """Pairs whose thermal image is the grey visible one, so that any difference in geometry shows."""
    data = write_world(root, ("a", "b", "c", "d"))
    rng = np.random.default_rng(1)
    for file in sorted((root / "visible/train").iterdir()):
        plane = cv2.GaussianBlur(rng.integers(0, 256, (48, 64), np.uint8), (7, 7), 3)
        cv2.imwrite(str(file), np.dstack([plane] * 3))
        (root / f"thermal/train/{file.stem}.jpg").unlink()
        cv2.imwrite(str(root / f"thermal/train/{file.stem}.png"), plane)
    return data


def test_geometry_is_the_same_for_both_images(tmp_path: Path) -> None:
    pairs = dataset(
        grey_world(tmp_path), True, mosaic=0.7, degrees=10, mixup=0.3, flipud=0.5, hsv_h=0, hsv_s=0, hsv_v=0
    )
    for _ in range(5):
        for i in range(len(pairs)):
            stack = pairs[i]["img"]
            assert stack.shape == (4, 64, 64)
            assert torch.equal(stack[0], stack[3])


def test_photometric_changes_are_each_image_s_own(tmp_path: Path) -> None:
    pairs = dataset(grey_world(tmp_path), True, mosaic=0, scale=0, translate=0, fliplr=0, hsv_v=0.6)
    plain = dataset(tmp_path / "data.yaml", False)
    shifts = []
    for _ in range(8):
        stack, before = pairs[0]["img"].float(), plain[0]["img"].float()
        inside = before[0] != 114  # not the letterbox's padding
        shifts.append([(stack[c] - before[c])[inside].mean() for c in (0, 3)])
    visible, thermal = np.array(shifts).T
    assert visible.std() > 2
    assert thermal.std() > 2
    assert abs(np.corrcoef(visible, thermal)[0, 1]) < 0.99


def test_rectangular_batches_keep_images_and_labels_together(tmp_path: Path) -> None:
    data = write_world(tmp_path, ("a", "b", "c"))
    cv2.imwrite(str(tmp_path / "visible/train/a.png"), np.full((60, 20, 3), 9, np.uint8))
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    config = open_data(data)
    mapping = {"config": config, "names": config.names, "nc": 2, "channels": 4}
    pairs = PairedDataset(
        img_path="train",
        imgsz=64,
        augment=False,
        hyp=get_cfg(),
        data=mapping,
        batch_size=1,
        rect=True,
        stride=32,
        pad=0.5,
    )
    for i in range(3):
        sample = pairs[i]
        assert (Path(sample["im_file"]).stem == "a") == (sample["cls"][0, 0] == 1) == (sample["ori_shape"] == (60, 20))


def test_bad_pairs_stop_a_training_before_it_starts(tmp_path: Path) -> None:
    data = write_world(tmp_path / "data")
    (tmp_path / "data/thermal/train/a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="1 of 2 pairs cannot be used"):
        train(data, method_config("sum"), {**QUICK, "epochs": 1, "project": str(tmp_path), "name": "run"})


def test_a_run_that_fails_before_its_first_epoch_keeps_no_name(tmp_path: Path) -> None:
    def broken(_: PairedTrainer) -> None:
        raise UserError("broken before the first epoch")

    data = write_world(tmp_path / "data")
    options = {**QUICK, "epochs": 1, "project": str(tmp_path / "runs"), "name": "run"}
    with pytest.raises(UserError, match="broken before"):
        train(data, method_config("sum"), options, observers=[broken])
    (tmp_path / "data/thermal/train/a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be used"):
        train(data, method_config("sum"), options)
    assert not any((tmp_path / "runs").iterdir())
    (tmp_path / "runs/run").mkdir()
    (tmp_path / "runs/run/note.txt").write_text("of an earlier run")
    with pytest.raises(UserError, match="cannot be used"):
        train(data, method_config("sum"), options)
    assert (tmp_path / "runs/run/note.txt").exists()


def test_the_columns_of_the_progress_stand_apart() -> None:
    losses = ("box_loss", "dfl_loss", "visible_loss", "thermal_loss")
    head = PairedTrainer.progress_string(SimpleNamespace(loss_names=losses))  # type: ignore[arg-type]
    assert head.split() == ["Epoch", "GPU_mem", "box", "dfl", "visible", "thermal", "Instances", "Size"]
    assert len(head) == 1 + 8 * 11  # as the parent's figures below


def test_closing_checkpoints_names_no_file_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def strip(file: Path, aside: str) -> dict[str, Any]:
        LOGGER.info(f"stripped from {file}, saved as {aside}")
        Path(aside).write_bytes(b"stripped")
        return {"model": torch.nn.Linear(1, 1)}

    said: list[str] = []
    monkeypatch.setattr(checkpoints, "strip_optimizer", strip)
    monkeypatch.setattr(LOGGER, "level", logging.INFO)
    monkeypatch.setattr(LOGGER, "handlers", [handler := logging.Handler()])
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    for name in ("best.pt", "last.pt"):
        (tmp_path / name).write_bytes(name.encode())
    trainer: Any = SimpleNamespace(best=tmp_path / "best.pt", last=tmp_path / "last.pt")
    assert set(checkpoints.close_checkpoints(trainer)) == {"weight", "bias"}
    assert said == ["the checkpoints are closed: what only a resumed run needs is left out of them"]


def test_options_are_ultralytics_own() -> None:
    assert parse_options(["epochs=3", "lr0=1e-3", "amp=False", "device=0,1", "cache=ram"]) == {
        "epochs": 3,
        "lr0": 1e-3,
        "amp": False,
        "device": "0,1",
        "cache": "ram",
    }
    with pytest.raises(UserError, match="did you mean epochs"):
        parse_options(["epoch=3"])
    with pytest.raises(UserError, match="key=value"):
        parse_options(["epochs"])


def test_absent_device_is_named() -> None:
    check_device(None)
    check_device("cpu")
    with pytest.raises(UserError, match="'99' is not there"):
        check_device("99")


def test_cli_mistakes_are_one_line(command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    def error(*words: str) -> str:
        done = command("rscmd_model.train", *words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr.strip().splitlines()[-1]

    assert "give --data" in error()
    assert "cannot read" in error("--data", str(tmp_path / "absent.yaml"))
    data = write_world(tmp_path / "data")
    assert "no weights file" in error(
        "--data", str(data), "--weights", "yolov8n.pt", f"project={tmp_path}", "plots=False"
    )


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("NVIDIA GeForce GTX 1660 Ti", False),
        ("Quadro T1000", False),
        ("NVIDIA GeForce RTX 3060", True),
        ("NVIDIA T4", True),
    ],
)
def test_gpus_that_train_badly_in_mixed_precision_are_known_by_name(
    name: str, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ultralytics knows them; what more it asks would be fetched from the net."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    there: Any = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda"))]))
    assert is_good_at_amp(there) == good
    assert not is_good_at_amp(torch.nn.Linear(1, 1))
