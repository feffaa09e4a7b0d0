"""A training that goes on from a finished model on a second site's pairs, and what it keeps of the first one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from lives import killed
from safetensors.torch import load_file
from test_pairs import write_world
from test_resume import assert_same_run, curve
from test_train import PLAIN, QUICK, two_class_world
from torch import Tensor, nn
from ultralytics.optim import MuSGD

from rscmd_model import train as command_of_training
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs, read_labels, split_hash
from rscmd_model.errors import UserError
from rscmd_model.files import sha256_of
from rscmd_model.methods import method_config
from rscmd_model.network.memory import (
    Memory,
    convolutions,
    read_memory,
    recording,
    save_memory,
    unused_directions,
)
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import ModelHeader, load_model, read_header, save_model
from rscmd_model.training.continuing import hold, keep, read_finished, unused_part
from rscmd_model.training.remembering import remember
from rscmd_model.training.run import train

RECIPE = {**QUICK, **PLAIN, "imgsz": 32, "batch": 3, "nbs": 3, "epochs": 1, "optimizer": "SGD", "close_mosaic": 0}
WORDS = [f"{key}={value}" for key, value in RECIPE.items() if key != "imgsz"]


def other_world(root: Path) -> Path:
    """The pairs of `two_class_world` with other pictures: inverted."""
    data = two_class_world(root)
    for file in sorted((root / "visible/train").iterdir()) + sorted((root / "thermal/train").iterdir()):
        cv2.imwrite(str(file), 255 - cv2.imread(str(file), cv2.IMREAD_UNCHANGED))
    return data


class Sites:
    """Two tiny sites, and a model of each method that is at home on the first one, with its memory.

    The weights are random ones, and BatchNorm has the statistics of the first site's pairs: every layer says something
    about them, which a network after a few steps of training does not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first, self.second = two_class_world(folder / "first"), other_world(folder / "second")

    def model(self, method: str) -> Path:
        file = self.folder / method / "model.safetensors"
        if not file.is_file():
            data = open_data(self.first)
            torch.manual_seed(0)
            model = RscmdModel(method_config(method), data.names).train()
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = 1.0
            with torch.no_grad():
                model.answers(inputs(self.first))
            about = {"name": data.name, "split_hash": split_hash(find_pairs(data, "train"))}
            save_model(file, model, ModelHeader(model.config, data.names, 32, data.thermal_contract, about))
        return file

    def memory(self, method: str) -> Path:
        file = self.model(method).with_name("memory.safetensors")
        if not file.is_file():
            save_memory(file, remember(self.model(method), open_data(self.first)))
        return file


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    return Sites(tmp_path_factory.mktemp("sites"))


def go_on(sites: Sites, method: str, out: Path, *words: str) -> Path:
    """Train on the second site; the run's model.safetensors."""
    line = ["--data", sites.second, "--continue", sites.model(method), *words, *WORDS]
    command_of_training.main([*map(str, line), f"project={out.parent}", f"name={out.name}"])
    return out / "model.safetensors"


def inputs(data: Path, split: str = "train") -> Tensor:
    """The network's inputs (B, 4, 32, 32) for the pairs of a site, as a memory is made of them."""
    config = open_data(data)
    stacks = []
    for pair in find_pairs(config, split):
        visible, thermal = cv2.imread(str(pair.visible)), cv2.imread(str(pair.thermal), 0)
        stack = np.dstack((visible[..., ::-1], thermal))
        stacks.append(cv2.resize(stack, (32, 32), interpolation=cv2.INTER_LINEAR))
    return torch.from_numpy(np.stack(stacks)).permute(0, 3, 1, 2).float() / 255


def answers(file: Path, x: Tensor) -> dict[str, Tensor]:
    """By answer and part what the heads of a model say, before it becomes boxes and scores."""
    model = load_model(file)[0]
    with torch.no_grad():
        found = model.answers(x)
    return {f"{name} {part}": raw[part] for name, (_, raw) in found.items() for part in ("boxes", "scores")}


def change(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """The largest change of what is answered, as a share of the largest number in it."""
    assert set(before) == set(after)
    parts = [(before[name], after[name]) for name in before if name != "feats"]
    return max(float((new - old).abs().max() / old.abs().max()) for old, new in parts)


# --- the projector -------------------------------------------------------------------------------------------------


def moment(groups: int, channels: int, rank: int) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(groups, channels, rank) @ torch.randn(groups, rank, 100)
    return x @ x.mT / 100


@pytest.mark.parametrize(("groups", "channels", "rank"), [(1, 16, 5), (1, 16, 16), (4, 8, 3), (6, 1, 1)])
def test_p_is_a_projector(groups: int, channels: int, rank: int) -> None:
    z = moment(groups, channels, rank)
    for lam_min in (0.0, 0.01, 0.3):
        p = torch.eye(channels, dtype=torch.float64) - unused_directions(z, lam_min)
        torch.testing.assert_close(p, p.mT)
        torch.testing.assert_close(p @ p, p, atol=1e-12, rtol=0)
        values = torch.linalg.eigvalsh(z.double())
        used = (values > max(lam_min, 1e-6) * values[:, -1:]).sum(1)
        assert p.diagonal(dim1=1, dim2=2).sum(1).round().long().equal(used)
        if lam_min == 0:
            assert (used == rank).all(), "noise of rounding counts for no direction"
            assert float(((torch.eye(channels) - p) @ z.double()).abs().max()) < 1e-4 * float(z.abs().max())


def test_with_all_used_nothing_is_left_of_an_update() -> None:
    free = unused_directions(moment(1, 16, 16), 0)
    assert not free.any()
    assert not unused_part(torch.randn(8, 16, 3, 3), free.float()).any()


def test_with_nothing_used_all_is_left() -> None:
    assert unused_directions(torch.zeros(2, 4, 4), 0).allclose(torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_an_update_is_zero_at_every_tap_for_what_was_read(groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3, 2, 1, groups=groups, bias=False)
    x = (torch.randn(8, 3) @ torch.randn(3, 2 * 9 * 9)).view(8, 2, 9, 9).transpose(0, 1).contiguous()
    sums: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    with recording(nn.ModuleDict({"conv": conv}), sums, count):
        before = conv(x)
        conv(x[:0])
    assert count == {"conv": 2 * 81}
    torch.testing.assert_close(sums["conv"][0, 0, 0].float(), x[:, 0].square().sum())
    free = unused_directions(sums["conv"], 0).float()
    assert bool(free.any()) == (groups == 1 or 8 // groups > 3), "a group has no more than its channels"
    conv.weight.data += unused_part(torch.randn_like(conv.weight), free)
    torch.testing.assert_close(conv(x), before, atol=1e-5, rtol=1e-4)


# --- the memory ----------------------------------------------------------------------------------------------------


def test_the_memory_is_of_every_convolution_and_of_the_model(sites: Sites) -> None:
    memory = read_memory(sites.memory("rscmd"))
    model = load_model(sites.model("rscmd"))[0]
    assert list(memory.moments) == sorted(convolutions(model)), "several processes meet them in one order"
    assert memory.model == sha256_of(sites.model("rscmd"))
    (site,) = memory.sites
    assert (site.name, site.pairs) == ("first", 6)
    assert str(memory).endswith("read in 6 pairs of first")
    x = inputs(sites.first)
    stem = memory.moments["backbones.visible.b0.conv"]
    torch.testing.assert_close(stem[0], torch.einsum("bihw,bjhw->ij", x[:, :3], x[:, :3]) / x[:, 0].numel())
    assert memory.positions["backbones.visible.b0.conv"] == x[:, 0].numel()
    lean = memory.moments["branches.visible.head.cv3.0.0.0.conv"]
    assert lean.shape[1:] == (1, 1), "a depthwise convolution has a number for each channel"


def test_a_branch_that_was_taught_and_is_not_shipped_is_remembered(sites: Sites) -> None:
    memory = remember(sites.model("aux"), open_data(sites.first))
    assert any(name.startswith("branches.visible.") for name in memory.moments)


def test_memories_of_two_sites_add_up(sites: Sites) -> None:
    first, second = (remember(sites.model("sum"), open_data(site)) for site in (sites.first, sites.second))
    both = second.with_earlier(first)
    assert [site.name for site in both.sites] == ["first", "second"]
    for name, moment_of in both.moments.items():
        torch.testing.assert_close(moment_of, (first.moments[name] + second.moments[name]) / 2)
    assert both.positions == {name: 2 * count for name, count in first.positions.items()}


def test_a_memory_of_a_model_from_before(
    sites: Sites, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    words = ["--model", sites.model("sum"), "--data", sites.first, "--out", tmp_path / "m.safetensors"]
    done = command("rscmd_model.remember", *words, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    made, written = read_memory(tmp_path / "m.safetensors"), read_memory(sites.memory("sum"))
    assert (made.model, made.sites, made.positions) == (written.model, written.sites, written.positions)
    assert all(torch.equal(made.moments[name], written.moments[name]) for name in written.moments)
    others = write_world(tmp_path / "others", ("p", "q"))
    other = command("rscmd_model.remember", *words[:3], others, *words[4:], "--device", "cpu")
    assert "was trained on other pairs than these, of first" in other.stdout


def test_damage_and_other_files_are_told_in_one_line(sites: Sites, tmp_path: Path) -> None:
    whole = sites.memory("sum").read_bytes()
    bad = tmp_path / "memory.safetensors"
    for content in (whole[:200], whole[:-100], whole[:9] + b"\xff" * 40 + whole[49:], b"", b"{}"):
        bad.write_bytes(content)
        with pytest.raises(UserError, match="memory"):
            read_memory(bad)
    bad.write_bytes(sites.model("sum").read_bytes())
    with pytest.raises(UserError, match="is no memory of a model"):
        read_memory(bad)
    with pytest.raises(UserError, match="no memory"):
        read_memory(tmp_path / "absent.safetensors")


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


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, MuSGD])
def test_no_optimizer_s_step_leaves_the_free_space(kind: Any, sites: Sites) -> None:
    """Momentum, scaling, weight decay: the step itself is projected."""
    finished = read_finished(sites.model("sum"))
    model, x, other = finished.model, inputs(sites.first), inputs(sites.second)
    with torch.no_grad():
        before, before_there = (model.answers(site)["fused"][1] for site in (x, other))
    groups = [{"params": list(model.parameters()), **({"use_muon": False} if kind is MuSGD else {})}]
    optimizer = kind(groups, lr=1e-3, weight_decay=0.05)
    hold(model, keep(finished, sites.memory("sum"), 0), optimizer)
    model.frozen_statistics = True
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model.answers(other)["fused"]["scores"].sigmoid().mean().backward()
        optimizer.step()
    with torch.no_grad():
        model.eval()
        after, after_there = (model.answers(site)["fused"][1] for site in (x, other))
    assert change(before, after) < 1e-4
    assert change(before_there, after_there) > 1e-3


def test_the_moving_average_is_kept_as_well(sites: Sites) -> None:
    finished = read_finished(sites.model("sum"))
    kept = keep(finished, sites.memory("sum"))
    model = finished.model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    line = hold(model, kept, optimizer)
    assert "of the directions of" in line
    assert not model.branches["fused"].head.cv2[0][2].bias.requires_grad
    weight = model.backbones["visible"].b4.cv2.conv.weight
    assert weight.requires_grad
    start = weight.detach().clone()
    free = kept.projectors(model, kept.read())["backbones.visible.b4.cv2.conv"]
    average = start.clone()
    for _ in range(5):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        average.lerp_(weight.detach(), 0.3)
    for moved in (weight.detach() - start, average - start):
        assert float(moved.norm()) > 0.01
        used = moved - unused_part(moved, free)
        assert float(used.norm()) < 1e-5 * float(moved.norm()) * 10


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


def test_a_memory_that_leaves_nothing_free_is_refused(sites: Sites, tmp_path: Path) -> None:
    known = read_memory(sites.memory("sum"))
    full = {name: torch.eye(m.shape[1]).expand_as(m).contiguous() for name, m in known.moments.items()}
    save_memory(tmp_path / "full.safetensors", Memory(known.model, known.sites, full, known.positions))
    with pytest.raises(UserError, match="leaves no direction free to learn in: raise --lam-min"):
        keep(read_finished(sites.model("sum")), tmp_path / "full.safetensors")
    wrong = {"backbones.visible.b0.conv": torch.eye(5)[None]}
    save_memory(
        tmp_path / "wrong.safetensors", Memory(known.model, known.sites, wrong, {"backbones.visible.b0.conv": 1})
    )
    with pytest.raises(UserError, match="memory of another network"):
        keep(read_finished(sites.model("sum")), tmp_path / "wrong.safetensors")


# --- resuming ------------------------------------------------------------------------------------------------------


def run(model: Path, memory: Path, data: Path, folder: Path, kill: bool = False) -> None:
    """Train on the second site for two epochs; with `kill` die by SIGKILL amid the second one."""

    def observe(trainer: Any) -> None:
        if kill:
            trainer.add_callback("on_train_batch_end", lambda t: t.epoch == 1 and os.kill(os.getpid(), signal.SIGKILL))

    finished = read_finished(model)
    options = {**RECIPE, "epochs": 2, "project": str(folder.parent), "name": folder.name}
    kept = keep(finished, memory, 0.02)
    train(data, finished.header.config, options, finished, frozen_statistics=True, kept=kept, observers=[observe])


def test_a_killed_run_goes_on_to_the_same_curve_and_wants_the_same_memory(sites: Sites, tmp_path: Path) -> None:
    memory = tmp_path / "memory.safetensors"
    memory.write_bytes(sites.memory("sum").read_bytes())
    run(sites.model("sum"), memory, sites.second, tmp_path / "whole")
    folder = tmp_path / "killed"
    killed(run, sites.model("sum"), memory, sites.second, folder, True)
    assert len(curve(folder)) == 1

    last = str(folder / "weights/last.pt")
    content = memory.read_bytes()
    memory.unlink()
    with pytest.raises(UserError, match="put it back"):
        train(None, None, {"resume": last})
    memory.write_bytes(sites.memory("rscmd").read_bytes())
    with pytest.raises(UserError, match="put that one back"):
        train(None, None, {"resume": last})
    memory.write_bytes(content)
    command_of_training.main([f"resume={last}", "--remember"])
    assert_same_run(folder, tmp_path / "whole")
    both = read_memory(folder / "memory.safetensors")
    assert [site.name for site in both.sites] == ["first", "second"], "what was kept is still to be kept"
    assert both.model == sha256_of(folder / "model.safetensors")


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
    for form in ({"data": "x"}, "x", {"data": "x", "pairs": "none"}, {"data": "x", "pairs": 0}):
        description = yaml.safe_load(sites.first.read_text()) | {"replay": form}
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(description))
        with pytest.raises(UserError, match="replay has the form"):
            open_data(tmp_path / "data.yaml")
    assert "give both" in refused(["--data", sites.second, "--replay-pairs", "3"])
    assert "give both" in refused(["--data", sites.second, "--replay", sites.first, "--replay-pairs", "0"])
