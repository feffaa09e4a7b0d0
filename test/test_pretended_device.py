"""What only a GPU would try, without one: nothing is left on the host, and the host seldom waits."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_train import two_class_world
from torch.utils import backend_registration

from rscmd_model.methods import METHODS

PROGRAM = Path(__file__).with_name("pretended_device.py")
OPTIONS = {"imgsz": 64, "epochs": 2, "batch": 4, "workers": 0, "plots": False}
ASSIGNER = 2  # times that ultralytics' assigner waits
MORE = {
    "gmd": 2,  # its losses are computed answer by answer
    "mmpareto": 2,
    "smp": 1,  # which camera is the surer one
    "g2d": 2,  # the same, and the anchors where the teachers are heard
    "rsc+schedule=one": 3,  # which camera's turn it is
}

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices that are written in Python",
)


def run(*words: object) -> str:
    """What it says."""
    done = subprocess.run([sys.executable, PROGRAM, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_step_of_each_method_keeps_to_the_device_and_seldom_waits(tmp_path: Path) -> None:
    methods = ["rscmd", *(name for name in METHODS if name != "rscmd"), "rscmd+md=map", "rsc+schedule=one"]
    run("steps", tmp_path / "waits.json", *methods)
    found = json.loads((tmp_path / "waits.json").read_text())
    assert list(found) == methods
    for method, parts in found.items():
        assert not parts["backward"], (method, parts)
        # and once for the anchors that have been assigned
        assert sum(map(len, parts.values())) <= ASSIGNER + 1 + MORE.get(method, 0), (method, parts)
        assert len([wait for wait in parts["loss"] if "(tal.py:" in wait]) == ASSIGNER, "waits are seen"


def losses(run: Path) -> list[dict[str, float]]:
    """Of each epoch."""
    with (run / "results.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if "loss" in k or "lr" in k} for row in csv.DictReader(file)]


def test_a_training_on_the_device_is_that_on_the_host_and_goes_on(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    options = [f"{k}={v}" for k, v in {**OPTIONS, "project": tmp_path}.items()]
    words = ["--data", two_class_world(tmp_path / "data"), "--method", "rscmd", *options]
    # Where there may be mixed precision ultralytics asks for a model of its own from the net, to try it.
    assert "yolo26n" not in run("train", *words, "name=there")
    done = command("rscmd_model.train", *words, "name=here", "device=cpu")
    assert done.returncode == 0, done.stderr
    there, here = losses(tmp_path / "there"), losses(tmp_path / "here")
    assert len(there) == len(here) == 2
    assert all(of == pytest.approx(to, rel=1e-2) for of, to in zip(there, here))
    assert (tmp_path / "there/model.safetensors").is_file()
