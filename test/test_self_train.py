"""From a drive to a detector: the whole way over a recording, round after round, and what ends it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_assemble import write_detector

from rscmd_model.assemble import main as assemble
from rscmd_model.datasets.sidecars import Found, Sidecar, label_line
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.files import sha256_of, write_json
from rscmd_model.imaging.registration import load_registration
from rscmd_model.labelling.drift import SUREST, share_found, surest
from rscmd_model.network.header import read_header
from rscmd_model.synthetic.writing import write_world
from rscmd_ros.bags import self_training
from rscmd_ros.bags.labelling import RECORD, LabelJob, Labelled, NothingSureError
from rscmd_ros.bags.placing import replaced_of
from rscmd_ros.bags.self_training import STATE, Round, SelfTraining, _label, _training_words, _verdict
from rscmd_ros.bags.self_training import self_train as run_rounds
from rscmd_ros.bags.tracked_labels import Choice
from rscmd_ros.evaluate_bag import main as evaluate
from rscmd_ros.make_bag import main as make
from rscmd_ros.register_bag import main as register
from rscmd_ros.self_train import main as self_train

RECIPE = ["epochs=1", "imgsz=96", "batch=16", "nbs=16", "optimizer=SGD", "lr0=0.000001", "warmup_epochs=0", "mosaic=0"]
RECIPE += ["plots=False", "val=False", "workers=0", "device=cpu"]


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """40 s in the demo's world; a checkpoint that finds something, though nothing of sense; and a model of it."""
    folder = tmp_path_factory.mktemp("drive")
    world = write_world(folder / "world", train=1, val=200, size=(320, 256), seed=3)
    rates = ["--rate-visible", "5", "--rate-thermal", "5"]
    make(["--data", str(world), "--split", "val", "--out", str(folder / "bag"), *rates, "--jitter-ms", "3"])
    weights, model = write_detector(folder / "yolov8n.pt"), folder / "assembled.safetensors"
    words = ["--classes", "person,bicycle,car", "--image-size", "96"]
    assemble(["--weights", str(weights), "--out", str(model), *words])
    return {"bag": folder / "bag", "weights": weights, "model": model, "folder": folder}


def test_the_whole_way(drive: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    out, registration = drive["folder"] / "out", drive["folder"] / "registration.yaml"
    register([str(drive["bag"]), "--out", str(registration), "--pairs", "20"])
    words = [str(drive["bag"]), "--model", str(drive["model"]), "--registration", str(registration)]
    # A training this gentle leaves the checkpoint nearly as it was, so that the next round finds something, too.
    words += [
        "--sure",
        "0.35",
        "--pairs",
        "40",
        "--rate",
        "2",
        "--weights",
        str(drive["weights"]),
        "--out",
        str(out),
        *RECIPE,
    ]
    self_train([*words, "--rounds", "1"])
    (first,) = json.loads((out / STATE).read_text())["rounds"]
    assert first["labels"] > 0
    assert (out / "model.safetensors").read_bytes() == (out / "round1/model.safetensors").read_bytes()

    label = next(file for file in sorted((out / "data/labels/val").iterdir()) if file.read_text())
    label.write_text("1 0.500000 0.500000 0.250000 0.250000\n")  # a person says
    capfd.readouterr()
    self_train([*words, "--rounds", "2"])
    told = capfd.readouterr().out
    rounds = json.loads((out / STATE).read_text())["rounds"]
    assert [done["number"] for done in rounds] == [1, 2]
    assert rounds[0] == first, "a finished round is not done again"
    assert label.read_text() == "1 0.500000 0.500000 0.250000 0.250000\n"
    assert rounds[1]["person"] is not None
    kept = [done for done in rounds if done["kept"]][-1]["number"]
    assert (out / "model.safetensors").read_bytes() == (out / f"round{kept}/model.safetensors").read_bytes()
    assert "== round 1" not in told
    assert "round 2: " in told

    evaluate([str(drive["bag"]), "--model", str(out / "model.safetensors"), "--json", str(out / "score.json")])
    assert json.loads((out / "score.json").read_text())["pairs"] == 200
    assert read_header(out / "model.safetensors").registration == load_registration(registration)
    with pytest.raises(UserError, match="was begun with method"):
        self_train([*words, "--rounds", "2", "--method", "sum"])


def test_options_that_it_sets_itself_are_refused(tmp_path: Path) -> None:
    for wrong, why in (("project=x", "is set by self_train"), ("epochs=x", "epochs"), ("epoch=1", "did you mean")):
        with pytest.raises(UserError, match=why):
            self_train(["bag", "--model", "m.safetensors", "--out", str(tmp_path / "out"), wrong])
    with pytest.raises(UserError, match="--rounds"):
        self_train(["bag", "--model", "m.safetensors", "--out", str(tmp_path / "out"), "--rounds", "0"])
    assert not (tmp_path / "out").exists()


def given(out: Path, model: Path, **more: Any) -> SelfTraining:
    return SelfTraining(LabelJob(out.parent / "bag", model, out / "data"), None, out, **more)


def test_a_set_whose_replacement_was_broken_off_is_found_again(tmp_path: Path) -> None:
    """Stopped between the two renames, when a set of this very round has its other name."""
    out, model = tmp_path / "out", tmp_path / "m.safetensors"
    model.write_bytes(b"a model")
    write_json(replaced_of(out / "data") / RECORD, {"settings": {"model": sha256_of(model)}})
    told: list[str] = []
    assert _label(given(out, model), 1, None, told.append) == out / "data/data.yaml"
    assert told == [f"{out / 'data'} is labelled already"]
    assert [path.name for path in out.iterdir()] == ["data"]


def test_a_later_round_without_labels_is_the_last_and_a_first_one_may_be_asked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(job: LabelJob, **_: object) -> Labelled:
        job.partial.mkdir(parents=True, exist_ok=True)
        raise NothingSureError("nothing to learn")

    monkeypatch.setattr(self_training, "label_bag", nothing)
    out, model = tmp_path / "out", tmp_path / "m.safetensors"
    model.write_bytes(b"a teacher")
    for sure in (0.9, 0.5):  # the advice that comes with it can be followed
        job = LabelJob(tmp_path / "bag", model, out / "data", choice=Choice(sure={"": sure}))
        with pytest.raises(NothingSureError):
            run_rounds(SelfTraining(job, None, out), threads=None, progress=print)
    assert (out / "data.partial").exists(), "there it goes on"

    begun = given(out, model)
    first = Round(1, 10, 0.5, 1.0, math.nan).written()
    write_json(out / STATE, {"settings": begun.settings(), "rounds": [first]})
    write_json(out / "round1" / "model.safetensors", "a student")
    told: list[str] = []
    for _ in range(2):  # and again, which does nothing more
        result = run_rounds(begun, threads=None, progress=told.append)
        assert result.read_bytes() == (out / "round1/model.safetensors").read_bytes()
    assert told[0] == "== round 2: labelling"
    assert len(told) == 2
    assert told[1].endswith("the model of round 1 is sure of nothing, so there is nothing to train on")
    assert not (out / "data.partial").exists()


def test_a_round_is_trained_where_it_is_labelled(tmp_path: Path) -> None:
    run = tmp_path / "out/round1"
    for device, options, trained in (
        ("auto", (), []),
        ("cuda:1", (), ["device=cuda:1"]),
        ("cpu", ("device=0",), ["device=0"]),
    ):
        job = LabelJob(tmp_path / "bag", tmp_path / "m.safetensors", tmp_path / "out/data", device=device)
        words = _training_words(SelfTraining(job, None, tmp_path / "out", options=options), run, tmp_path)
        assert [word for word in words if word.startswith("device=")] == trained


def found(score: float, x: float = 0.5, label: int = 0) -> Found:
    return Found(label_line(label, (x, 0.5, 0.2, 0.2)), score)


def test_the_surest_labels_are_held() -> None:
    sidecars = {"a": Sidecar((found(0.95), found(0.5))), "b": Sidecar((found(0.6),)), "c": Sidecar((found(SUREST),))}
    assert surest(sidecars) == {"a": (found(0.95),), "c": (found(SUREST),)}
    many = {str(i): Sidecar((found(0.9 + i / 1e5),)) for i in range(800)}
    kept = surest(many)
    assert len(kept) == 500
    assert set(kept) == {str(i) for i in range(300, 800)}


def test_the_share_of_held_labels_that_is_found() -> None:
    box = np.array([[40.0, 40, 60, 60]])  # in 100 x 100 px where the first label is
    there = Detections(np.vstack((box, box + 1)), np.array([0.9, 0.8]), np.array([0, 0]))
    assert share_found([[found(1)]], [there], [(100, 100)]) == 1
    assert share_found([[found(1), found(1, 0.51)]], [there], [(100, 100)]) == 1
    assert share_found([[found(1), found(1, 0.51)]], [there.take(np.array([0]))], [(100, 100)]) == 0.5, (
        "one box, one object"
    )
    assert share_found([[found(1, label=1)]], [there], [(100, 100)]) == 0
    assert share_found([[found(1)], [found(1)]], [there, Detections.empty()], [(100, 100)] * 2) == 0.5
    assert math.isnan(share_found([], [], []))


@pytest.mark.parametrize(
    ("agreement", "held", "person", "before", "says"),
    [
        (0.6, 0.95, math.nan, math.nan, ""),
        (0.6, math.nan, math.nan, math.nan, ""),
        (0.5, 0.95, math.nan, math.nan, "no longer rises"),
        (0.9, 0.85, math.nan, math.nan, "drifted"),
        (0.9, 0.95, 0.4, 0.5, "a person's pairs"),
        (0.9, 0.95, 0.5, 0.5, ""),
    ],
)
def test_what_ends_it(agreement: float, held: float, person: float, before: float, says: str) -> None:
    verdict, kept = _verdict([Round(1, 10, 0.5, 1.0, math.nan)], agreement, held, person, before)
    assert says in verdict
    assert kept == (not verdict)
    assert Round.read(Round(2, 10, agreement, held, person, verdict, kept).written()).line()
