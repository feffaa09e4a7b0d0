"""Files that an earlier release wrote go on: see before/README.md for how they were made."""

from __future__ import annotations

import csv
import json
import lzma
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import two_class_world

from rscmd_model.config import LINEAR_SPPF
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import method_config
from rscmd_model.network.model_file import load_model, read_header
from rscmd_model.training.run import train

BEFORE = Path(__file__).parent / "before"
MADE_IN = "/tmp/before"  # where they were made: the checkpoint names it
MODELS = {
    "rscmd": method_config("rscmd", family=LINEAR_SPPF),
    "full": method_config("rscmd", family=LINEAR_SPPF, branch="full"),
    "adapt": method_config("sum", family=LINEAR_SPPF, fusion="adapt"),
}


def pair() -> tuple[np.ndarray, np.ndarray]:
    """One picture of each camera."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (64, 64, 3), np.uint8), rng.integers(0, 256, (64, 64), np.uint8)


def unpack(name: str, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lzma.decompress((BEFORE / f"{name}.xz").read_bytes()))
    return file


def move(checkpoint: Path, run: Path, data: Path) -> None:
    """Put other folders in the place of those that a checkpoint names, and leave everything else as it is pickled."""
    places = {f"{MADE_IN}/data/data.yaml": data, MADE_IN: run.parent, f"{MADE_IN}/run": run}

    def text(value: object) -> bytes:  # as pickle writes it
        return b"X" + struct.pack("<I", len(str(value))) + str(value).encode()

    aside = checkpoint.with_suffix(".aside")
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(aside, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/data.pkl"):
                for before, after in places.items():
                    assert text(before) in content
                    content = content.replace(text(before), text(after))
                assert MADE_IN.encode() not in content
            new.writestr(name, content)
    aside.replace(checkpoint)


def test_a_run_that_was_stopped_goes_on_to_its_last_epoch(tmp_path: Path) -> None:
    data = two_class_world(tmp_path / "data")
    run = tmp_path / "run"
    last = unpack("rscmd.pt", run / "weights/last.pt")
    shutil.copy(BEFORE / "rscmd.csv", run / "results.csv")
    move(last, run, data)
    file = train(None, None, {"resume": str(last)})
    assert file == run / "model.safetensors"
    with (run / "results.csv").open() as rows:
        assert [row["epoch"] for row in csv.DictReader(rows)] == ["1", "2", "3"]
    model, header = load_model(file)
    assert header.config == MODELS["rscmd"]
    assert all(torch.isfinite(p).all() for p in model.parameters())


def assert_answers(file: Path, name: str) -> None:
    """The answers to one pair, and to each camera alone, are those of the release that made the file."""
    predictor = Predictor(file, device="cpu", conf=0.1)
    visible, thermal = pair()
    pairs = {"both": (visible, thermal), "visible": (visible, None), "thermal": (None, thermal)}
    for kind, expected in json.loads((BEFORE / f"{name}.json").read_text()).items():
        found = predictor.predict(*pairs[kind])
        assert len(found) == expected["count"]
        np.testing.assert_allclose(found.boxes[:5], expected["boxes"], atol=0.05)
        np.testing.assert_allclose(found.scores[:5], expected["scores"], atol=1e-3)
        assert found.classes[:5].tolist() == expected["classes"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_file_is_read_and_answers_as_it_did(name: str, tmp_path: Path) -> None:
    file = unpack(f"{name}.safetensors", tmp_path / "model.safetensors")
    header = read_header(file)
    assert header.names == {0: "person", 1: "car"}
    assert header.image_size == 64
    assert header.config == MODELS[name]
    model, loaded = load_model(file)
    assert loaded == header
    assert not model.training
    assert_answers(file, name)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_an_exported_model_is_read_and_answers_as_it_did(form: str, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[form])
    file = unpack(f"rscmd.{form}", tmp_path / f"model.{form}")
    header = Predictor(file, device="cpu").header
    assert (header.names, header.config) == ({0: "person", 1: "car"}, MODELS["rscmd"])
    assert_answers(file, "rscmd")
