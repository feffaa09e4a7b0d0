"""The answers of a finished model, taught to the one that goes on from it."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sites import Sites, inputs
from test_objective import make_batch, make_model
from torch import Tensor

from rscmd_model.errors import UserError
from rscmd_model.methods import parse_method
from rscmd_model.network.distillation import OldAnswers, distance
from rscmd_model.network.model_file import load_model

GAINS = SimpleNamespace(cls=0.5, dfl=1.5)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    return Sites(tmp_path_factory.mktemp("sites"))


def answer(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"boxes": (2, 64, 21), "scores": (2, 3, 21)}
    return {part: torch.randn(shape, generator=g).requires_grad_() for part, shape in shapes.items()}


def pull(now: dict[str, Tensor], old: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The distance, and its gradient in each part of the answer."""
    loss = distance(now, old, GAINS)
    return loss.detach(), dict(zip(now, torch.autograd.grad(loss, list(now.values()))))


def test_the_old_answer_itself_is_where_nothing_pulls() -> None:
    old = answer(0)
    least, still = pull({part: value.detach().clone().requires_grad_() for part, value in old.items()}, old)
    further, moved = pull(answer(1), old)
    assert further > least
    for part in old:
        assert float(still[part].abs().max()) < 1e-5 * float(moved[part].abs().max())


def test_a_box_counts_by_how_sure_the_old_model_was() -> None:
    old = {part: value.detach() for part, value in answer(0).items()}
    old["scores"] = torch.full_like(old["scores"], -100.0)
    old["scores"][0, 1, 4] = 100.0
    boxes = pull(answer(1), old)[1]["boxes"]
    assert boxes[0, :, 4].any()
    boxes[0, :, 4] = 0
    assert not boxes.any()


@pytest.mark.parametrize("method", ["sum", "rscmd", "compensate"])
def test_every_answer_that_the_old_model_gives_is_taught(method: str, sites: Sites) -> None:
    old, model = OldAnswers(sites.model(method)), load_model(sites.model(method))[0]
    x = inputs(sites.second)
    with torch.no_grad():
        moved = {n: {k: raw[k] + 0.1 for k in ("boxes", "scores")} for n, (_, raw) in model.answers(x).items()}
        together = old.loss({**moved, "rehearsed": moved["fused"]}, x, GAINS)
        parts = [old.loss({name: of}, x, GAINS) for name, of in moved.items()]
    assert set(moved) == set(model.config.answers)
    torch.testing.assert_close(together, torch.stack(parts).sum())
    assert all(part > 0 for part in parts)


@pytest.mark.parametrize("method", ["late", "rsc+schedule=one", "gmd", "compensate", "aux"])
def test_it_is_a_loss_beside_those_of_the_method(method: str, sites: Sites) -> None:
    model, twin = make_model(parse_method(method)), make_model(parse_method(method))
    twin.old = OldAnswers(sites.model(method))
    torch.manual_seed(0)
    total, items = model.loss(make_batch())
    torch.manual_seed(0)
    more, named = twin.loss(make_batch())
    assert all(torch.equal(named[name], value) for name, value in items.items())
    torch.testing.assert_close(more.sum(), total.sum() + 2 * named["old_loss"])
    more.sum().backward()
    assert all(p.grad.isfinite().all() for p in twin.parameters() if p.grad is not None)


def test_a_checkpoint_has_its_name_and_digest_alone(sites: Sites, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(sites.model("sum").read_bytes())
    kept = pickle.dumps(OldAnswers(file))
    assert len(kept) < 1000
    assert pickle.loads(kept).reopened().file == file
    file.write_bytes(sites.model("rscmd").read_bytes())
    with pytest.raises(UserError, match="put that one back"):
        pickle.loads(kept).reopened()
