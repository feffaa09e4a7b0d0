"""Every benchmark runs to its end at the smallest size. What it measures there means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_assemble import write_detector
from test_inference import model_file
from test_pairs import write_world

from rscmd_model.detections import Detections
from rscmd_model.evaluation.answers import Answers
from rscmd_model.evaluation.scoring import Truth
from rscmd_model.synthetic.writing import write_world as paint

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"
SHARED = {"running_node"}  # a part of others
Bench = Callable[..., str]


@pytest.fixture
def bench(command: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """`python benchmarks/NAME.py WORDS` in this process; what it prints."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def run(name: str, *words: object) -> str:
        done = command(name, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data.yaml of a handful of tiny pairs."""
    return paint(tmp_path_factory.mktemp("world"), train=4, val=4, size=(64, 64), seed=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of random weights, for images of 64 px."""
    return model_file(tmp_path_factory.mktemp("model") / "model.safetensors")


def rows(said: str) -> int:
    """Lines of tables, without their heads."""
    return sum(line.startswith("| ") for line in said.splitlines())


def test_every_benchmark_has_a_test() -> None:
    source = Path(__file__).read_text()
    missing = [f.stem for f in FOLDER.glob("*.py") if f.stem not in SHARED and f'"{f.stem}"' not in source]
    assert missing == []


def test_pseudo_labels(bench: Bench, world: Path, tmp_path: Path) -> None:
    """With a checkpoint that finds something everywhere; of three classes, as the world has them."""
    stems = sorted(file.stem for file in (world.parent / "visible/train").iterdir())
    folds = tmp_path / "folds.csv"
    folds.write_text("name,fold,block\n" + "".join(f"{stem},{i % 2},{i % 2}\n" for i, stem in enumerate(stems)))
    weights = write_detector(tmp_path / "yolov8n.pt")
    words = ["--data", world, "--folds", folds, "--weights", weights, "--variants", "looser", "--methods", "sum"]
    recipe = ["--imgsz", "64", "--label-size", "64", "epochs=1", "batch=2", "plots=False"]
    said = bench("pseudo_labels", *words, *recipe, "--out", tmp_path / "out")
    assert "| assembled, ensemble |" in said
    assert "| looser, sum, fused |" in said
    assert "| labels | number | precision | recall |" in said


def test_pairing(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    said = bench("pairing", "--rates", "30/9", "--seconds", "2", "--recordings", "1", "--json", out)
    assert "most processor time per frame" in said
    results = json.loads(out.read_text())["results"]
    assert len(results) == 6
    assert all(result["ours"]["pairs"] > 0 for result in results)


def test_train_step(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    small = ["--size", "64", "--batch", "2", "--rounds", "2", "--warmup", "0", "--threads", "1", "--no-memory"]
    said = bench("train_step", "sum", "rscmd", "rscmd+md=map", "g2d", *small, "--distil", "--json", out)
    assert rows(said) == 9
    methods = {"sum", "rscmd", "rscmd+md=map", "g2d"}
    results = json.loads(out.read_text())["results"]
    assert set(results) == methods | {f"{method}, distil" for method in methods}
    operations = {method: sum(of["operations"].values()) for method, of in results.items()}
    assert operations["rscmd"] <= 1.3 * operations["sum"], "the goal on a GPU that is faster than its host"


def test_feeding(bench: Bench, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    out = tmp_path / "f.json"
    small = ["--pairs", "6", "--imgsz", "64", "--batch", "2", "--epochs", "1", "--workers", "0", "1", "--json", out]
    said = bench("feeding", *small)
    assert rows(said) == 7
    assert "| 0 | disk |  | " in said
    results = json.loads(out.read_text())["results"]
    assert all(of["living"] > 0 for caches in results.values() for of in caches.values())
    done = command("feeding", "--workers", "10000")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_bags(bench: Bench, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.json"
    small = ["--pairs", "6", "--size", "64", "64", "--rounds", "1", "--batch", "2"]
    said = bench("bags", "--model", model, *small, "--json", out)
    assert "| one by one |" in said
    assert json.loads(out.read_text())["one_bag"]["one by one, read ahead_px"] == 0


def test_robustness(bench: Bench, model: Path, tmp_path: Path) -> None:
    world = write_world(tmp_path / "data", tuple(f"01_{n:02}" for n in range(6)))
    said = bench("robustness", "--data", world, "--out", tmp_path / "out", f"plain={model}")
    assert "| lost camera | plain |" in said
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")


def test_registration(bench: Bench) -> None:
    said = bench("registration", "--pairs", "6", "--size", "320", "256", "--painted")
    assert rows(said) == 6
    assert "| painted, of other scenes | 6 | refused" in said


def test_registration_over_a_drive(bench: Bench) -> None:
    said = bench("registration", "--drive", "--pairs", "6", "--size", "320", "256")
    assert rows(said) == 8
    assert "| not knocked | 6 | " in said
    assert "bent, 12 px at the lower rim:" in said


def test_inference(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "i.json"
    said = bench("inference", "--scales", "n", "--rounds", "2", "--size", "64", "64", "--json", out, "--formats")
    assert "| ours, torch |" in said
    assert "| two-stream sum, plain eager forward |" in said
    assert all(row["p50"] > 0 for row in json.loads(out.read_text())["n"].values())
    words = ["--ensemble", "--scales", "n", "--rounds", "2", "--size", "64", "64", "--json", out, "--formats"]
    assert "| torch |" in bench("inference", *words)
    assert json.loads(out.read_text())["n"]["torch"]["ratio, median"] > 0


def test_gpu(bench: Bench, command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Where there is none: that is said, and a processor goes through the checks."""
    said = bench("gpu", "--device", "cpu", "--only", "answers", "memory", "feeding")
    assert "| feeding, cache ram, " in said
    assert "| CPU against cpu, 32 bits | scores 0, boxes 0 px apart |" in said
    assert "1 hold, 0 do not" in said
    if not torch.cuda.is_available():
        done = command("gpu")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_ablation(bench: Bench, tmp_path: Path) -> None:
    """The world is painted, and an ablation whose one run is finished goes on; test_real_pairs trains."""
    run = tmp_path / "balanced/visible-seed0"
    run.mkdir(parents=True)
    (run / "scores.json").write_text(json.dumps({"branches": {"visible": {"mAP50": 0.5, "mAP50_95": 0.25}}}))
    cost = {"parameters": 3_000_000, "gflops": 1.25, "step_ms": 10, "teachers_ms": None, "memory_mb": 100}
    (run / "cost.json").write_text(json.dumps(cost))
    box = np.array([[8, 8, 40, 40]], np.float32), np.zeros(1, np.int64)
    found = [Detections(box[0], np.array([0.9], np.float32), box[1])] * 4
    stems = tuple(f"{scene:06d}_00" for scene in range(4))
    Answers(stems, ((128, 128),) * 4, (Truth(*box),) * 4, {"visible": found}).save(run / "answers.npz")
    small = ["--only", "balanced", "--methods", "visible", "--seeds", "1", "--train", "4", "--val", "4"]
    bench("ablation", *small, "--out", tmp_path, "epochs=1", "imgsz=64")
    assert "| visible | 50.0 [100.0, 100.0] | 25.0 [100.0, 100.0] |" in (tmp_path / "balanced/table.md").read_text()
    recipe = json.loads((tmp_path / "balanced/recipe.json").read_text())["options"]
    assert (recipe["epochs"], recipe["imgsz"], recipe["batch"]) == (1, 64, 16)


def test_second_site(bench: Bench, tmp_path: Path) -> None:
    """Two steps of the ladder; called again, it takes what is finished as it lies there."""
    small = ["--moves", "night", "--methods", "sum", "--seeds", "1", "--train", "4", "--val", "4", "--size", "64"]
    small += ["--first-epochs", "1"]
    recipe = ["epochs=1", "imgsz=64", "batch=2", "nbs=2"]
    words = [*small, "--steps", "projection", "distillation", "--lam-min", "0.01", "--out", tmp_path, *recipe]
    said = bench("second_site", *words)
    assert "| first site alone | fused | " in said
    assert "| projection 0.01 | fused | " in said
    assert rows(said) == 5
    scores = tmp_path / "night/sum-seed0/second/scores.json"
    scores.write_text(json.dumps({site: {"fused": 0.25} for site in ("first", "second")}))
    again = bench("second_site", *words)
    assert "| second site alone | fused | 25.0 | " in again


def test_real_pairs(bench: Bench, world: Path, tmp_path: Path) -> None:
    small = ["epochs=1", "imgsz=64", "batch=4", "close_mosaic=0", "cache=False"]
    bench("real_pairs", "--data", world, "--out", tmp_path / "out", "--methods", "rscmd", *small)
    assert json.loads((tmp_path / "out/bag.json").read_text())["pairs"] > 0
    assert (tmp_path / "out/report.html").is_file()


def test_m3fd_splits(bench: Bench, tmp_path: Path) -> None:
    from rscmd_model.datasets import published

    splits = published.read_split_file(Path(published.__file__).parent / "splits" / "m3fd_damsdet.txt")
    for split in ("train", "val"):
        images, boxes = [], []
        for number in map(int, splits[split]):
            size = {"width": 1000 + number % 9, "height": 768}  # pictures of different sizes are not compared
            images.append({"id": number, "file_name": f"{number:05d}.png", **size})
            box = [number % 40 * 20, 9, 15, 15]
            boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": box})
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "People"}]}
        (tmp_path / f"m3fd_{split}_new.json").write_text(json.dumps(content))
    said = bench("m3fd_splits", tmp_path)
    assert "| a random fifth | 3359 | 840 | " in said


OVERHEAD = ["--seconds", "1", "--warmup", "0.5", "--rounds", "1", "--transports", "shipped profile"]


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("node_overhead", [*OVERHEAD, "--subjects", "node"], "| shipped profile | node |"),
        ("soak", ["--minutes", "0.05", "--flood-seconds", "0"], "soak: "),
    ],
    ids=["node_overhead", "soak"],
)
def test_those_of_the_running_node(name: str, words: list[str], says: str, tmp_path: Path) -> None:
    """Processes of their own; figures may miss their goals on a busy machine."""
    out = tmp_path / "figures.json"
    line = [sys.executable, FOLDER / f"{name}.py", *words, "--json", out]
    done = subprocess.run(
        list(map(str, line)), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert "Traceback" not in done.stderr
    assert out.is_file(), done.stderr
    assert says in done.stdout
