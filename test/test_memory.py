"""The memory of a site: what a model's convolutions read there, and a training that keeps what was used."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sites import Sites, change, inputs
from test_pairs import write_world
from torch import Tensor, nn
from ultralytics.optim import MuSGD

from rscmd_model.datasets.opening import open_data
from rscmd_model.errors import UserError
from rscmd_model.files import sha256_of
from rscmd_model.methods import METHODS, method_config
from rscmd_model.network.memory import (
    Memory,
    convolutions,
    read_memory,
    recording,
    save_memory,
    unused_directions,
)
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import ModelHeader, load_model, save_model
from rscmd_model.training.continuing import hold, keep, read_finished, unused_part
from rscmd_model.training.remembering import remember


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    return Sites(tmp_path_factory.mktemp("sites"))


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


@pytest.mark.parametrize("method", METHODS)
def test_every_method_s_model_is_remembered(method: str, tmp_path: Path, sites: Sites) -> None:
    file, data = tmp_path / "model.safetensors", open_data(sites.first)
    model = RscmdModel(method_config(method), data.names)
    save_model(file, model, ModelHeader(model.config, data.names, 32, data.thermal_contract))
    assert remember(file, data).moments.keys() <= convolutions(model).keys()


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


# --- what it keeps ---------------------------------------------------------------------------------------------------


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
