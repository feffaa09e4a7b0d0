"""`dgl`: the fused loss teaches neck and head alone, and each modality's loss its backbone alone."""

from __future__ import annotations

import pytest
import torch
from test_objective import branch_losses, equal_but_for_rounding, gradients, make_batch, make_model, total_norm

from rscmd_model.config import MODALITIES
from rscmd_model.errors import UserError
from rscmd_model.methods import parse_method
from rscmd_model.network.model import RscmdModel


def taught(method: str) -> RscmdModel:
    """A model with the gradients of one step."""
    model = make_model(parse_method(method))
    model.loss(make_batch())[0].sum().backward()
    return model


def test_each_loss_teaches_its_own() -> None:
    model = make_model(parse_method("dgl"))
    losses = branch_losses(model, make_batch())
    branch = model.branch("fused")
    assert total_norm(gradients(losses["fused"], branch)) > 0
    for m in MODALITIES:
        assert total_norm(gradients(losses[m], branch)) == 0
        reached = {of: total_norm(gradients(losses[of], model.backbones[m])) > 0 for of in losses}
        assert reached == {"fused": False, "visible": m == "visible", "thermal": m == "thermal"}


def test_neck_and_head_are_taught_as_sum_s_and_backbones_by_four_times_their_own_loss() -> None:
    """In the first step, in which the running statistics have no part. Scored with other answers, they round in other
    places."""
    model, plain = taught("dgl"), taught("sum")
    for (name, ours), theirs in zip(model.branches.named_parameters(), plain.branches.parameters()):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or equal_but_for_rounding(ours.grad, theirs.grad), name
    shared = taught("rscmd+rsc=shared+md=stop+lambda_visible=4+lambda_thermal=4")
    for (name, ours), theirs in zip(model.backbones.named_parameters(), shared.backbones.parameters()):
        assert equal_but_for_rounding(ours.grad, theirs.grad), name


@pytest.mark.parametrize("fusion", ["mean", "adapt"])
def test_every_part_is_trained_with_other_fusions(fusion: str) -> None:
    model = taught(f"dgl+fusion={fusion}")
    assert [n for n, p in model.named_parameters() if p.grad is None and ".dfl." not in n] == []


def test_one_branch_answers_all_and_a_finished_model_is_one_of_a_shared_branch() -> None:
    model, twin = make_model(parse_method("dgl")), make_model(parse_method("rsc+rsc=shared"))
    assert set(model.state_dict()) == set(twin.state_dict())
    twin.load_state_dict(model.state_dict())
    x = make_batch()["img"]
    lost = torch.cat([x[:, :3], torch.zeros_like(x[:, 3:])], 1)
    with torch.no_grad():
        ours, theirs = model.eval().answers(x), twin.eval().answers(x)
        alone = model.answers(lost, ["visible"])["visible"]
    assert list(ours) == ["fused", *MODALITIES]
    assert all(torch.equal(ours[name][0], theirs[name][0]) for name in ours)
    assert torch.equal(alone[0], ours["visible"][0]), "the visible answer needs no thermal image"


def test_outside_of_training_nothing_is_cut() -> None:
    model = make_model(parse_method("dgl")).eval()
    answers = model.answers(make_batch()["img"])
    for m in MODALITIES:
        assert total_norm(gradients(answers["fused"][0].sum(), model.backbones[m])) > 0
        assert total_norm(gradients(answers[m][0].sum(), model.branch(m))) > 0


def test_settings() -> None:
    settings = make_model(parse_method("dgl")).method.settings
    assert (settings.lambda_visible, settings.lambda_thermal) == (4, 4)
    with pytest.raises(UserError, match="must be more than 0"):
        parse_method("dgl+lambda_visible=0")
