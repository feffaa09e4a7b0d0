"""How sure a modality alone is: the right classes at the right anchors, and scoring changes nothing but its means."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from test_objective import make_batch, make_model
from torch import Tensor, nn

from rscmd_model.config import MODALITIES
from rscmd_model.errors import UserError
from rscmd_model.methods import method_config, parse_method
from rscmd_model.methods.unimodal_score import MOMENTUM, WARM_UP, UnimodalScore, alone, assigned_classes
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.objective import Detection, Scored, TrainingStep, seen_by


def scoring(method: str = "sum", batch: Any = None) -> tuple[RscmdModel, TrainingStep]:
    """A model in training, and the forward pass of a batch."""
    model = make_model(parse_method(method))
    return model, forward(model, batch or make_batch())


def forward(model: RscmdModel, batch: dict[str, Any]) -> TrainingStep:
    features, answers = model.predict(batch["img"])
    scored = {"fused": Detection(model)(answers["fused"], seen_by("fused", batch))}
    return TrainingStep(batch, features, answers, scored)


def by_hand(model: RscmdModel, step: TrainingStep, modality: str) -> Tensor:
    """The sum of the scores, anchor by anchor, from a copy of the model that is run as any other answer."""
    batch, scored = step.batch, step.scored["fused"]
    own = [f.detach() for f in step.features[modality]]
    other = own if model.method.settings.fusion == "mean" else [torch.zeros_like(f) for f in own]
    given = {m: own if m == modality else other for m in step.features}
    logits = deepcopy(model).answers_to(given, batch["img"], ["fused"])["fused"]["scores"].detach()
    total = torch.zeros(())
    for pair, anchor in scored.positives.nonzero().tolist():
        of_pair = batch["cls"].view(-1)[batch["batch_idx"] == pair].long().tolist()
        total += logits[pair, of_pair[int(scored.objects[pair, anchor])], anchor].sigmoid()
    return total


@pytest.mark.parametrize("method", ["sum", "sum+fusion=mean", "sum+fusion=adapt"])
def test_a_score_is_that_of_the_assigned_classes(method: str) -> None:
    model, step = scoring(method)
    expected = torch.stack([by_hand(model, step, m) for m in MODALITIES])
    score = UnimodalScore(1)
    score.update(model, step)
    number = int(step.scored["fused"].positives.sum())
    assert number > 10
    torch.testing.assert_close(score.scores, expected / number)
    torch.testing.assert_close(score.means[:2], MOMENTUM * expected / 2)
    assert expected[0] != expected[1]


def test_objects_are_counted_within_their_pair_and_regions_to_ignore_are_none() -> None:
    batch = {
        "batch_idx": torch.tensor([0.0, 0.0, 2.0, 2.0, 2.0]),
        "cls": torch.tensor([[5.0], [6.0], [7.0], [8.0], [9.0]]),
    }
    positives = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    objects = torch.tensor([[1, 0, 99], [99, -1, 0], [0, 2, 1]])
    scored = Scored({}, positives, objects)
    assert assigned_classes(scored, batch).tolist() == [[6, 5, 0], [0, 0, 0], [7, 9, 8]]
    weights = torch.tensor([[0.0, 1, 1], [1, 0, 0], [0.0, 0, 0], [0.5, 0, 0], [1, 1, 1]])
    fewer = Scored({}, positives & (objects != 1), torch.tensor([[99, 0, 99], [99, -1, 0], [1, 0, 99]]))
    assert assigned_classes(fewer, {**batch, "weights": weights}).tolist() == [[0, 6, 0], [0, 0, 0], [9, 8, 0]]


def test_a_pair_s_classes_are_those_of_the_boxes_that_the_assigner_gave() -> None:
    """The assigner's own classes, which the criterion hands to the class loss as targets, say the same."""
    batch = make_batch()
    batch["weights"] = torch.tensor([[0.0, 1, 1], [1, 1, 1], [0.7, 0, 0]])
    model, step = scoring(batch=batch)
    detection = Detection(model)
    kept = detection.criterion.assigner.forward
    labels = []

    def assign(*args: Any, **kwargs: Any) -> Any:
        labels.append(kept(*args, **kwargs))
        return labels[-1]

    detection.criterion.assigner.forward = assign
    answer = deepcopy(model).answers_to(step.features, batch["img"], ["fused"])["fused"]
    detection(answer, seen_by("fused", batch))
    positives = step.scored["fused"].positives
    assert torch.equal(labels[0][3].bool(), positives)
    assert torch.equal(assigned_classes(step.scored["fused"], batch)[positives], labels[0][0].long()[positives])


@pytest.mark.parametrize("method", ["sum", "sum+fusion=adapt"])
def test_scoring_leaves_no_trace_in_the_model(method: str) -> None:
    model, step = scoring(method)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    UnimodalScore(1).update(model, step)
    assert [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])] == []
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert all(n.training and n.track_running_stats for n in model.modules() if isinstance(n, nn.BatchNorm2d))
    answer = alone(model, "visible", step.batch["img"], step.features)
    assert not answer["scores"].requires_grad
    statistics = [b for n, b in model.named_buffers() if n.endswith("running_mean") and "backbones" not in n]
    assert len(statistics) > 10
    for value in statistics:
        value.fill_(7.0)
    assert torch.equal(alone(model, "visible", step.batch["img"], step.features)["scores"], answer["scores"])
    model.frozen_statistics = True
    held = alone(model.train(), "visible", step.batch["img"], step.features)["scores"]
    assert not torch.equal(held, answer["scores"]), "a training that normalises by its statistics scores by them"


def test_a_batch_without_a_positive_anchor_is_left_out() -> None:
    empty = {**make_batch(), "batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    score = UnimodalScore(1)
    model, step = scoring()
    score.update(model, step)
    kept = score.means.clone()
    model, step = scoring(batch=empty)
    assert not step.scored["fused"].positives.any()
    score.update(model, step)
    assert torch.equal(score.means, kept)
    assert score.counted == 1


def test_with_one_class_the_modalities_still_differ() -> None:
    """A softmax over one class is 1, whatever a camera sees."""
    torch.manual_seed(0)
    model = RscmdModel(method_config("sum"), {0: "person"}).train()
    score = UnimodalScore(1)
    score.update(model, forward(model, {**make_batch(), "cls": torch.zeros(3, 1)}))
    visible, thermal = score.scores.tolist()
    assert 0 < visible < 1
    assert 0 < thermal < 1
    assert visible != thermal


def test_ratios_are_told_after_the_warm_up_and_owe_nothing_to_the_start() -> None:
    score = UnimodalScore(1)
    model, step = scoring()
    for _ in range(WARM_UP):
        assert score.ratios.tolist() == [1.0, 1.0]
        score.update(model, step)
    sums = [by_hand(model, step, m) for m in MODALITIES]
    expected = float(sums[0] / sums[1])
    assert score.ratios.tolist() == pytest.approx([expected, 1 / expected])
    score.means[:2] = 0.125
    assert score.ratios.tolist() == [1.0, 1.0], "equal scores"
    score.means[:2] = torch.tensor([0.5, 0.0])
    assert score.ratios[0] > 1e30
    assert score.ratios[1] == 0
    assert score.ratios.isfinite().all()


def test_batches_are_scored_at_an_epoch_s_start_and_every_so_many_after() -> None:
    score = UnimodalScore(3)
    due = [score._due(progress) for progress in (0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5)]
    assert due == [True, False, False, True, False, True, False, False, True]


def test_bad_intervals_are_told() -> None:
    for value in (0, -1, 1.5):
        with pytest.raises(UserError, match="score_every"):
            method_config("ogm", score_every=value)


def test_scores_in_16_bits_are_those_of_32_and_no_weight_loses_its_gradient() -> None:
    """Mixed precision keeps 16-bit copies of the weights, and scoring asks for some of them without a gradient."""
    exact: Any = make_model(parse_method("ogm"))
    exact.loss(make_batch())
    model: Any = make_model(parse_method("ogm"))
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = model.loss(make_batch())
    total.sum().backward()
    torch.testing.assert_close(model.method.score.scores, exact.method.score.scores, rtol=0.1, atol=1e-3)
    assert model.method.score.means.dtype == torch.float32
    assert [n for n, p in model.named_parameters() if p.grad is None and ".dfl." not in n] == []
