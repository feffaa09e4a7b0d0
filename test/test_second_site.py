"""A training that goes on from a finished model on a second site's pairs, and what it keeps of the first one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lives import killed
from safetensors.torch import load_file
from sites import Sites, answers, change, inputs
from test_resume import assert_same_run, curve
from test_train import PLAIN, QUICK

from rscmd_model import train as command_of_training
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs, read_labels
from rscmd_model.errors import UserError
from rscmd_model.files import sha256_of
from rscmd_model.network.memory import Memory, read_memory, save_memory
from rscmd_model.network.model_file import read_header
from rscmd_model.training.continuing import hold, keep, read_finished
from rscmd_model.training.run import train

RECIPE = {**QUICK, **PLAIN, "imgsz": 32, "batch": 3, "nbs": 3, "epochs": 1, "optimizer": "SGD", "close_mosaic": 0}
WORDS = [f"{key}={value}" for key, value in RECIPE.items() if key != "imgsz"]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    return Sites(tmp_path_factory.mktemp("sites"))


def go_on(sites: Sites, method: str, out: Path, *words: str) -> Path:
    """Train on the second site; the run's model.safetensors."""
    line = ["--data", sites.second, "--continue", sites.model(method), *words, *WORDS]
    command_of_training.main([*map(str, line), f"project={out.parent}", f"name={out.name}"])
    return out / "model.safetensors"


# --- going on ------------------------------------------------------------------------------------------------------


def test_what_the_first_site_used_is_kept(sites: Sites, tmp_path: Path) -> None:
    """With all of the old span kept old pairs are answered as before, and without it they are not."""
    x = inputs(sites.first)
    before = answers(sites.model("rscmd"), x)
    changes = {}
    for name, flags in {"plain": [], "kept": ["--keep", str(sites.memory("rscmd")), "--lam-min", "0"]}.items():
        after = answers(go_on(sites, "rscmd", tmp_path / name, *flags, "lr0=0.02", "warmup_epochs=0"), x)
        assert {"fused scores", "visible boxes", "thermal boxes"} < set(after)
        changes[name] = change(before, after)
    assert changes["kept"] < 1e-4
    assert changes["plain"] > 0.1
    old, new = load_file(sites.model("rscmd")), load_file(tmp_path / "kept/model.safetensors")
    moved = [name for name in old if not torch.equal(old[name], new[name])]
    assert moved, "something is learned"
    assert not [name for name in moved if ".bn." in name or name.endswith("bias")]
    assert read_header(tmp_path / "kept/model.safetensors").image_size == 32, "the first training's, unless given"


def test_an_empty_memory_is_plain_fine_tuning_bit_for_bit(
    sites: Sites, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = read_memory(sites.memory("sum"))
    nothing = {name: torch.zeros_like(moment_of) for name, moment_of in known.moments.items()}
    for name, memory in {
        "zeros": Memory(known.model, known.sites, nothing, known.positions),
        "empty": Memory(known.model),
    }.items():
        save_memory(tmp_path / f"{name}.safetensors", memory)
        finished = read_finished(sites.model("sum"))
        kept = keep(finished, tmp_path / f"{name}.safetensors")
        assert "nothing is kept" in hold(finished.model, kept, torch.optim.SGD(finished.model.parameters()))
        assert all(p.requires_grad for n, p in finished.model.named_parameters() if ".dfl." not in n)
    go_on(sites, "sum", tmp_path / "plain")
    assert "goes on with BatchNorm frozen" in capsys.readouterr().out
    go_on(sites, "sum", tmp_path / "kept", "--keep", str(tmp_path / "empty.safetensors"))
    assert_same_run(tmp_path / "kept", tmp_path / "plain")

    old, new = load_file(sites.model("sum")), load_file(tmp_path / "plain/model.safetensors")
    statistics = [name for name in old if "running_" in name]
    assert all(torch.equal(old[name], new[name]) for name in statistics)
    free = load_file(go_on(sites, "sum", tmp_path / "batch", "--batchnorm", "batch"))
    assert "goes on with BatchNorm by batch" in capsys.readouterr().out
    assert not any(torch.equal(old[name], free[name]) for name in statistics)


# --- refusals ------------------------------------------------------------------------------------------------------


def refused(words: list[object]) -> str:
    with pytest.raises(UserError) as caught:
        command_of_training.main([*map(str, words), *WORDS])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_go_together_is_refused(sites: Sites, tmp_path: Path) -> None:
    place = f"project={tmp_path / 'runs'}"
    goes_on = ["--data", sites.second, place, "--continue", sites.model("sum")]
    memory = sites.memory("sum")
    assert "give one" in refused([*goes_on, "--weights", "yolov8n.pt"])
    assert "leave out --distil" in refused([f"resume={tmp_path}/last.pt", "--distil"])
    assert "give --continue MODEL" in refused(["--data", sites.second, "--distil"])
    assert "leave one out" in refused([*goes_on, "--distil", "--incomplete", "0.5"])
    assert "leave out --continue" in refused([f"resume={tmp_path}/last.pt", "--continue", sites.model("sum")])
    assert "leave out --lam-min" in refused([f"resume={tmp_path}/last.pt", "--lam-min", "0.1"])
    assert "give --continue MODEL as well" in refused(["--data", sites.second, "--keep", memory])
    assert "give both" in refused([*goes_on, "--lam-min", "0.1"])
    assert "leave one out" in refused([*goes_on, "--keep", memory, "--batchnorm", "batch"])
    assert "from 0 up to" in refused([*goes_on, "--keep", memory, "--lam-min", "1"])
    for other in (["--method", "rsc"], ["--scale", "s"], ["--family", "yolo11"], ["--method", "sum+fusion=mean"]):
        assert "leave out --method, --family and --scale" in refused([*goes_on, *other])
    assert "no model file" in refused(["--data", sites.second, "--continue", tmp_path / "absent.safetensors"])
    assert "is the memory of another model" in refused([*goes_on, "--keep", sites.memory("rscmd")])
    assert not (tmp_path / "runs").exists(), "nothing is written before"


def test_another_site_has_the_same_classes_and_contract(sites: Sites, tmp_path: Path) -> None:
    for key, value, says in (
        ("names", {0: "car", 1: "person"}, "give the data the same names in the same order"),
        ("names", {0: "person", 1: "car", 2: "dog"}, "give the data the same names in the same order"),
        ("thermal_contract", {"source": "mono8", "scale": [0, 200]}, "one model has one"),
    ):
        description = yaml.safe_load(sites.second.read_text()) | {key: value, "path": str(sites.second.parent)}
        file = tmp_path / "data.yaml"
        file.write_text(yaml.safe_dump(description))
        assert says in refused(["--data", file, f"project={tmp_path / 'runs'}", "--continue", sites.model("sum")])
    assert not (tmp_path / "runs").exists()


def test_cameras_that_lie_otherwise_are_told(sites: Sites, tmp_path: Path) -> None:
    moved = {"homography": [[1, 0, 2], [0, 1, 0], [0, 0, 1]], "thermal_size": [64, 64], "visible_size": [64, 64]}
    description = yaml.safe_load(sites.second.read_text()) | {"registration": moved, "path": str(sites.second.parent)}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(description))
    finished = read_finished(sites.model("sum"))
    assert "registered otherwise" in finished.other_registration(open_data(tmp_path / "data.yaml"))
    assert finished.other_registration(open_data(sites.second)) == ""


# --- resuming ------------------------------------------------------------------------------------------------------


def run(model: Path, memory: Path, data: Path, folder: Path, kill: bool = False) -> None:
    """Train on the second site for two epochs; with `kill` die by SIGKILL amid the second one."""

    def observe(trainer: Any) -> None:
        if kill:
            trainer.add_callback("on_train_batch_end", lambda t: t.epoch == 1 and os.kill(os.getpid(), signal.SIGKILL))

    finished = read_finished(model)
    options = {**RECIPE, "epochs": 2, "project": str(folder.parent), "name": folder.name}
    given: dict[str, Any] = {"frozen_statistics": True, "kept": keep(finished, memory, 0.02), "distil": True}
    train(data, finished.header.config, options, finished, **given, observers=[observe])


def test_a_killed_run_goes_on_to_the_same_curve_and_wants_the_same_files(sites: Sites, tmp_path: Path) -> None:
    memory, model = tmp_path / "memory.safetensors", tmp_path / "model.safetensors"
    memory.write_bytes(sites.memory("sum").read_bytes())
    model.write_bytes(sites.model("sum").read_bytes())
    run(model, memory, sites.second, tmp_path / "whole")
    assert float(curve(tmp_path / "whole")[-1]["train/old_loss"]) > 0
    folder = tmp_path / "killed"
    killed(run, model, memory, sites.second, folder, True)
    assert len(curve(folder)) == 1

    last = str(folder / "weights/last.pt")
    for file, other, gone in (
        (model, sites.model("rscmd"), "that this training learns from: put it back"),
        (memory, sites.memory("rscmd"), "that this training keeps .*: put it back"),
    ):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(UserError, match=gone):
            train(None, None, {"resume": last})
        file.write_bytes(other.read_bytes())
        with pytest.raises(UserError, match="put that one back"):
            train(None, None, {"resume": last})
        file.write_bytes(content)
    command_of_training.main([f"resume={last}", "--remember"])
    assert_same_run(folder, tmp_path / "whole")
    both = read_memory(folder / "memory.safetensors")
    assert [site.name for site in both.sites] == ["first", "second"], "what was kept is still to be kept"
    assert both.model == sha256_of(folder / "model.safetensors")


def test_frozen_backbones_go_on_as_they_are(sites: Sites, tmp_path: Path) -> None:
    """They came from the first site's controls; those of the second site are not asked for."""
    after = load_file(go_on(sites, "frozen", tmp_path / "on"))
    before = load_file(sites.model("frozen"))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("backbones."))
    assert not all(torch.equal(before[name], after[name]) for name in before)
    teachers = [str(sites.model(camera)) for camera in ("visible", "thermal")]
    with pytest.raises(UserError, match="frozen learns from no teachers any more, once it is finished"):
        go_on(sites, "frozen", tmp_path / "again", "--teachers", *teachers)


def test_answers_that_distillation_does_not_reach_are_named(sites: Sites, tmp_path: Path, log: list[str]) -> None:
    go_on(sites, "instruct", tmp_path / "on", "--distil")
    assert any("does not compute the answers of thermal and visible while it trains" in line for line in log)


# --- replay --------------------------------------------------------------------------------------------------------


def test_a_few_pairs_of_the_first_site_are_among_the_second_s(sites: Sites, tmp_path: Path) -> None:
    def mixed(count: int) -> list[str]:
        data = open_data(sites.second, replay=(str(sites.first), count))
        again = open_data(data.spec)
        pairs = find_pairs(data, "train")
        assert [p.visible for p in find_pairs(again, "train")] == [p.visible for p in pairs]
        assert find_pairs(data, "val") == find_pairs(open_data(sites.second), "val")
        old = {pair.stem: pair for pair in find_pairs(open_data(sites.first), "train")}
        for pair in pairs:
            if first := pair.stem.startswith("replay:"):
                plain = old[pair.stem.removeprefix("replay:")]
                assert (read_labels(data, pair) == read_labels(open_data(sites.first), plain)).all()
            assert first == pair.visible.is_relative_to(sites.first.parent)
        return [pair.stem for pair in pairs if pair.stem.startswith("replay:")]

    two, four = mixed(2), mixed(4)
    assert (len(two), len(four)) == (2, 4)
    assert set(two) < set(four)
    file = go_on(sites, "sum", tmp_path / "run", "--replay", str(sites.first), "--replay-pairs", "3")
    assert "# train: 9 pairs" in (file.parent / "data.yaml").read_text()
    assert len(find_pairs(open_data(file.parent / "data.yaml"), "train")) == 9


def test_replay_is_refused_where_one_reading_does_not_do_for_both(sites: Sites, tmp_path: Path) -> None:
    def refusal(count: int = 2, **changes: Any) -> str:
        description = yaml.safe_load(sites.first.read_text()) | {"path": str(sites.first.parent)} | changes
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(description))
        with pytest.raises(UserError) as caught:
            find_pairs(open_data(sites.second, replay=(str(tmp_path), count)), "train")
        return str(caught.value)

    assert "another names" in refusal(names={0: "car", 1: "person"})
    assert "another thermal_contract" in refusal(thermal_contract={"source": "mono8", "scale": [0, 200]})
    assert "has 6 whole pairs in train, and 7 are wanted" in refusal(7)
    around = refusal(replay={"data": str(tmp_path), "pairs": 2})
    assert "leads back to the same data" in around or "nested too deep" in around
    with pytest.raises(UserError, match="is in the data already"):
        find_pairs(open_data(sites.second, replay=(str(sites.second), 2)), "train")
    val = {"train": "visible/val", "thermal": {"train": "thermal/val"}, "labels": {"train": "labels/val"}}
    description = yaml.safe_load(sites.second.read_text()) | {"path": str(sites.second.parent)} | val
    (tmp_path / "val.yaml").write_text(yaml.safe_dump({k: v for k, v in description.items() if k != "val"}))
    with pytest.raises(UserError, match=r"is in the data already \(val\): give those of another site"):
        find_pairs(open_data(sites.second, replay=(str(tmp_path / "val.yaml"), 2)), "train")
    for form in ({"data": "x"}, "x", {"data": "x", "pairs": "none"}, {"data": "x", "pairs": 0}):
        description = yaml.safe_load(sites.first.read_text()) | {"replay": form}
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(description))
        with pytest.raises(UserError, match="replay has the form"):
            open_data(tmp_path / "data.yaml")
    assert "give both" in refused(["--data", sites.second, "--replay-pairs", "3"])
    assert "give both" in refused(["--data", sites.second, "--replay", sites.first, "--replay-pairs", "0"])
