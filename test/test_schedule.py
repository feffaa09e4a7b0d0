"""`schedule=one`: each batch teaches one of the unimodal answers, drawn evenly and counted twice."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lives import assert_lives
from test_objective import equal_but_for_rounding, gradients, make_batch, make_model
from test_resume import curve
from torch import Tensor
from ultralytics import YOLO

from rscmd_model.config import MODALITIES
from rscmd_model.errors import UserError
from rscmd_model.methods import method_config, parse_method
from rscmd_model.network.model import RscmdModel, Taught
from rscmd_model.network.pretrained import load_weights


def drawn(model: RscmdModel) -> str:
    """The modality whose answer the next batch teaches."""
    return model.method.taught[1]


def step_of(method: str, draw: str = "") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses of a first batch, in which `draw` is drawn, and every parameter's gradient (0 where there is none)."""
    model = make_model(parse_method(method))
    while draw and drawn(model) != draw:
        model.method.draws[1] += 1
    total, items = model.loss(make_batch())
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return items, dict(zip(names, gradients(total.sum(), model)))


@pytest.mark.parametrize("variant", ["rsc", "rsc+rsc=shared", "rsc+teach=head", "rscmd+md=stop", "rscmd+md=off"])
def test_the_mean_over_both_draws_is_the_step_with_all(variant: str) -> None:
    """Of the gradients, and of the losses under their names. Sums of floats, in another order."""
    method = f"{variant}+lambda_visible=0.5+lambda_thermal=3"
    losses, whole = step_of(method)
    steps = [step_of(f"{method}+schedule=one", m) for m in MODALITIES]
    for name, loss in losses.items():
        torch.testing.assert_close((steps[0][0][name] + steps[1][0][name]) / 2, loss)
    for name, grad in whole.items():
        mean = (steps[0][1][name] + steps[1][1][name]) / 2
        assert equal_but_for_rounding(mean, grad, 1e-4, 1e-6), name


def test_what_was_not_drawn_is_not_computed_and_its_loss_is_0_under_its_name() -> None:
    model, seen = make_model(method_config("rsc", schedule="one")), set()
    names = list(make_model(method_config("rsc")).loss(make_batch())[1])
    for _ in range(8):
        draw = drawn(model)
        out = model.predict(make_batch()["img"])
        assert isinstance(out, Taught)
        assert list(out.answers) == ["fused", draw]
        _, items = model.loss(make_batch(), out)
        assert list(items) == names, "results.csv has its columns from the first batch"
        assert {m: float(items[f"{m}_loss"]) > 0 for m in MODALITIES} == {m: m == draw for m in MODALITIES}
        seen.add(draw)
    assert seen == set(MODALITIES)
    assert list(model.eval().answers(make_batch()["img"])) == ["fused", *MODALITIES]


def test_draws_are_even_and_follow_from_what_a_checkpoint_keeps() -> None:
    def draws(model: RscmdModel, count: int) -> list[str]:
        found = []
        for _ in range(count):
            found.append(drawn(model))
            model.method.draws[1] += 1
        return found

    model = make_model(method_config("rsc", schedule="one"))
    found = draws(model, 2000)
    assert abs(found.count("visible") - 1000) < 100  # more than four standard deviations
    changes = sum(a != b for a, b in pairwise(found))
    assert abs(changes - 1000) < 100, "one draw says nothing of the next"
    other = make_model(method_config("rsc", schedule="one"), seed=1)
    assert draws(other, 2000) != found, "another seed draws otherwise"
    other.load_state_dict(model.state_dict())
    torch.manual_seed(5)
    assert draws(other, 50) == draws(model, 50)


def test_a_model_without_a_schedule_is_what_it_was() -> None:
    assert "method.draws" not in make_model(method_config("rsc")).state_dict()
    assert method_config("rsc", schedule="all").settings == {}


def test_a_start_from_weights_leaves_the_draws_alone(tmp_path: Path) -> None:
    YOLO("yolov8n.yaml", verbose=False).save(tmp_path / "plain.pt")
    model = make_model(method_config("rsc", schedule="one", head_classes=80))
    before = model.method.draws.clone()
    loaded = load_weights(model, tmp_path / "plain.pt")
    assert torch.equal(model.method.draws, before)
    assert "method" not in loaded.parts, "the draws are no weights that the file could have"


def test_a_training_that_goes_on_draws_by_its_own_seed() -> None:
    model = make_model(method_config("rsc", schedule="one"))
    model.method.draws.copy_(torch.tensor([1, 99]))  # of the finished model
    torch.manual_seed(7)
    model.method.start(model, list)
    assert model.method.draws.tolist() == [7, 0]
    assert model.method.taught_in_turn == ("fused", *MODALITIES)
    assert len(model.method.taught) == 2


@pytest.mark.parametrize("md", ["project", "map"])
def test_it_is_refused_where_both_gradients_are_compared(md: str) -> None:
    for md_from in (0.0, 0.5):
        with pytest.raises(UserError, match=f"md={md} compares .* give md=stop or md=off, or schedule=all"):
            method_config("rscmd", md=md, md_from=md_from, schedule="one")


def test_it_lives(tmp_path: Path) -> None:
    folder = assert_lives("rsc+schedule=one", tmp_path)
    for m in MODALITIES:
        assert sum(float(row[f"train/{m}_loss"]) for row in curve(folder)) > 0
