"""Linear probing: the backbone does not move, what is put on it does."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from test_objective import make_model
from test_pairs import write_world
from test_train import QUICK

from rscmd_model.diagnose import main
from rscmd_model.diagnosis.probe import ProbeScore, format_table, train_probe
from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.methods import method_config
from rscmd_model.network.model_file import ModelHeader, load_model, save_model


def save(folder: Path, method: str, seed: int) -> Path:
    model = make_model(method_config(method), seed)
    for module in model.modules():  # running statistics that a forward pass in training mode would move
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    save_model(folder / "model.safetensors", model, ModelHeader(model.config, model.names, 64, ThermalContract()))
    return folder / "model.safetensors"


def test_the_backbone_stays_bit_for_bit_and_neck_and_head_learn(tmp_path: Path) -> None:
    data = write_world(tmp_path / "data", ("a", "b", "c", "d"))
    source = save(tmp_path / "fused", "rscmd", 1)
    options = {**QUICK, "val": False, "project": str(tmp_path)}
    found = {}
    for epochs in (1, 2):
        file = train_probe(source, "thermal", data, {**options, "epochs": epochs, "name": f"probe{epochs}"})
        found[epochs], header = load_model(file)
    assert header.config == method_config("thermal")
    before = load_model(source)[0].backbones["thermal"].state_dict()
    assert all(torch.equal(v, before[k]) for k, v in found[2].backbones["thermal"].state_dict().items())
    assert any("running_mean" in k for k in before)
    # No object of this world is so large that a box at stride 32 would be taught.
    fresh = {k for k, _ in found[2].branches.named_parameters() if not re.search(r"\.dfl\.|\.cv2\.2\.", k)}
    states = [found[epochs].branches.state_dict() for epochs in (1, 2)]
    assert [k for k in fresh if torch.equal(states[0][k], states[1][k])] == []


def test_the_command_probes_every_backbone_and_writes_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_world(tmp_path / "data", ("a", "b"))
    models = [str(save(tmp_path / m, m, i)) for i, m in enumerate(("sum", "visible"))]
    options = [f"{k}={v}" for k, v in QUICK.items()] + ["epochs=1", f"project={tmp_path / 'probes'}"]
    outputs = ["--json", str(tmp_path / "p.json"), "--csv", str(tmp_path / "p.csv")]
    main(["probe", "--model", *models, "--data", str(data), *outputs, *options])
    results = json.loads((tmp_path / "p.json").read_text())["results"]
    places = [("sum", "visible", "sum"), ("sum", "thermal", "sum"), ("visible", "visible", "solo")]
    assert [(r["model"], r["modality"], r["kind"]) for r in results] == places
    assert [r["model"] for r in csv.DictReader((tmp_path / "p.csv").open())] == ["sum", "sum", "visible"]
    assert all(Path(r["file"]).is_file() for r in results)
    assert "against solo" in capsys.readouterr().out
    with pytest.raises(UserError, match="none of these models has a thermal backbone"):
        main(["probe", "--model", models[1], "--data", str(data), "--modality", "thermal", *options])
    with pytest.raises(UserError, match="no model file"):
        main(["probe", "--model", models[0], "absent.safetensors", "--data", str(data)])


def test_what_is_no_probe_or_cannot_be_written_is_told_before_the_training(tmp_path: Path) -> None:
    data = write_world(tmp_path / "data", ("a", "b"))
    models = [str(save(tmp_path / method, method, 0)) for method in ("sum", "rsc")]
    for words, says in (
        (["resume=last.pt"], "a probe begins with a fresh neck and head"),
        (["name=x", "exist_ok=True"], "puts the probes of all models into the same folders"),
        (["--json", "/proc/x/p.json"], "cannot write /proc/x/p.json"),
        (["--csv", str(tmp_path)], "is a folder: give the name of a file"),
    ):
        with pytest.raises(UserError, match=says):
            main(["probe", "--model", *models, "--data", str(data), "device=cpu", *words])


def test_the_table_sets_each_backbone_against_the_solo_one() -> None:
    scores = [
        ProbeScore("rscmd", "rscmd+md=stop", "visible", 0.5, 0.25, "f"),
        ProbeScore("v", "solo", "visible", 0.5, 0.30, "f"),
        ProbeScore("rscmd", "rscmd+md=stop", "thermal", 0.5, 0.40, "f"),
    ]
    lines = format_table(scores).splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["visible", "visible", "thermal"]
    assert lines[1].endswith("-5.0")
    assert lines[3].endswith("40.0" + " " * 14)  # no solo thermal detector to set it against
    for order in (scores, scores[::-1]):  # of two the mean counts, whichever comes last
        lines = format_table([ProbeScore("v2", "solo", "visible", 0.5, 0.20, "f"), *order]).splitlines()
        assert next(line for line in lines if line.startswith("rscmd ")).endswith("+0.0")
        assert lines[-1] == "against solo: the mean of 2 visible ones"
