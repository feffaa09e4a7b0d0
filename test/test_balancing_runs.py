"""Trainings with ogm, opm and mwam: killed and resumed, watched, exported, and by several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lives
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_objective import make_batch, make_model
from test_resume import assert_same_run
from test_train import two_class_world
from torch.nn.parallel import DistributedDataParallel

from rscmd_model.inference.export_file import export
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import parse_method, unimodal_score
from rscmd_model.network.model_file import load_model

# All that decides anything: the score's means, k with its noise, and the draws of what is lost.
MODULATED = "opm+ogm=on+ge=on+ogm_from=0+ogm_until=1+opm_from=0+score_every=2"
METHODS = (MODULATED, "mwam")


def run(data: Path, folder: Path, method: str, kill: bool = False, diagnose: bool = False) -> None:
    """As `lives.run`, with ratios from the first batches on: else so short a training would be over before."""
    unimodal_score.WARM_UP = 1
    lives.run(data, folder, method, kill, diagnose)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_class_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", params=METHODS, ids=("opm+ogm+ge", "mwam"))
def whole(request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A method, and the folder of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    kept = unimodal_score.WARM_UP
    run(world, folder, request.param)
    unimodal_score.WARM_UP = kept
    return request.param, folder


@pytest.fixture(autouse=True)
def warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unimodal_score, "WARM_UP", unimodal_score.WARM_UP)  # put back after each test


def test_a_watched_run_that_is_killed_goes_on_to_the_same_curve(
    whole: tuple[str, Path], world: Path, tmp_path: Path
) -> None:
    method, folder = whole
    killed = tmp_path / "killed"
    lives.killed(run, world, killed, method, True, True)
    run(world, killed, method, diagnose=True)
    assert (killed / "gradients.csv").is_file()
    assert_same_run(killed, folder)
    decided: Any = load_model(folder / "model.safetensors")[0].method
    state = decided.bank if method == "mwam" else decided.score.means
    assert state.all(), "there was something to be resumed"


def test_an_exported_model_gives_the_same_answers(whole: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = whole
    onnx = tmp_path / "model.onnx"
    export(folder / "model.safetensors", "onnx", onnx, dynamic=True)
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 256, (64, 64, 3), np.uint8), rng.integers(0, 256, (64, 64), np.uint8)
    ours = Predictor(folder / "model.safetensors", device="cpu", conf=0.0).predict(*pair)
    theirs = Predictor(onnx, conf=0.0).predict(*pair)
    np.testing.assert_allclose(theirs.scores[:20], ours.scores[:20], atol=1e-3)


def worker(rank: int, method: str, folder: str) -> None:
    """Two batches of one rank; what is random is another's in each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    unimodal_score.WARM_UP = 1
    model = DistributedDataParallel(make_model(parse_method(method)), find_unused_parameters=True)
    torch.manual_seed(rank)
    decided: Any = model.module.method
    for number in range(2):
        decided.progress = number / 4
        model.zero_grad()
        model(make_batch(seed=1 + rank + 2 * number))[0].sum().backward()
        decided.before_step(model.module)
    grads = {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}
    torch.save({"k": decided.k, **decided.state_dict(), **grads}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("method", METHODS, ids=("opm+ogm+ge", "mwam"))
def test_several_processes_decide_alike(method: str, tmp_path: Path) -> None:
    """The score, k and the noise are the same in both, though each has pairs and a random state of its own."""
    mp.start_processes(worker, args=(method, str(tmp_path)), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert set(first) == set(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert first["k"].min() < 1
    if method == "mwam":  # one process that sees the pairs of both
        alone: Any = make_model(parse_method(method)).method
        for number in range(2):
            alone._count(alone.ratio(torch.cat([make_batch(seed=1 + rank + 2 * number)["img"] for rank in range(2)])))
        torch.testing.assert_close(first["bank"], alone.bank)
