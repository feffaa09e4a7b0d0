"""Losses of pairs that have lost one camera for good: what is lost reaches nothing, and the rest is as if alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_ddp import assert_gradients_of_one
from test_objective import equal_but_for_rounding, gradients, make_model
from torch import Tensor

from rscmd_model.config import MODALITIES, Augmentation
from rscmd_model.methods import method_config, parse_method
from rscmd_model.network.lost import labels_of, rows_with
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.objective import Detection

METHODS_OF_TWO = ("late", "sum", "sum+fusion=adapt", "aux", "rsc", "rsc+rsc=shared", "rscmd", "rscmd+md=stop")
NONE, VISIBLE, THERMAL = range(3)


def make_batch(lost: list[int] | None = None, seed: int = 1) -> dict[str, Any]:
    """Four samples with one, two, no and one objects."""
    g = torch.Generator().manual_seed(seed)
    batch = {
        "img": torch.rand(4, 4, 64, 64, generator=g),
        "batch_idx": torch.tensor([0.0, 1.0, 1.0, 3.0]),
        "cls": torch.tensor([[0.0], [1.0], [0.0], [1.0]]),
        "bboxes": torch.rand(4, 4, generator=g) * 0.3 + 0.35,
    }
    return batch if lost is None else {**batch, "lost": torch.tensor(lost)}


def batch_of(batch: dict[str, Any], samples: list[int]) -> dict[str, Any]:
    """Some samples as a batch of their own."""
    labels = [(new, row) for new, old in enumerate(samples) for row in (batch["batch_idx"] == old).nonzero().flatten()]
    rows = torch.tensor([int(row) for _, row in labels], dtype=torch.int64)
    out = {key: batch[key][rows] for key in ("cls", "bboxes", "weights") if key in batch}
    return {**out, "img": batch["img"][samples], "batch_idx": torch.tensor([float(new) for new, _ in labels])}


def statistics(model: RscmdModel, camera: str) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.backbones[camera].named_buffers()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("camera", MODALITIES)
def test_a_unimodal_answer_learns_as_from_a_batch_of_those_that_have_the_camera(camera: str) -> None:
    """Statistics, losses and gradients of `late`, and of its control on the two others alone."""
    number = 1 + MODALITIES.index(camera)
    batch = make_batch([NONE, number, number, NONE])
    late, control = make_model(method_config("late")), make_model(method_config(camera))
    items = late.loss(batch)[1]
    late.loss(batch)[0].sum().backward()
    alone = batch_of(batch, [0, 3])
    control.loss(alone)
    total = control.loss(alone)[0].sum()
    total.backward()
    assert_equal(statistics(late, camera), statistics(control, camera))
    for part in ("backbones", "branches"):
        ours, theirs = getattr(late, part)[camera], getattr(control, part)[camera]
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None), name
            if b.grad is not None:  # scored as one batch with the other answer, they round in other places
                assert equal_but_for_rounding(a.grad, b.grad, 1e-4), name
    own = [v for name, v in items.items() if (name == "thermal_loss") == (camera == "thermal")]
    assert float(torch.stack(own).sum()) * 4 == pytest.approx(float(total.detach()), rel=1e-5), (
        "the mean over the batch"
    )


@pytest.mark.parametrize("method", ["rscmd+md=stop", "rscmd+md=stop+rsc=shared", "rscmd+md=stop+branch=full"])
def test_a_backbone_s_own_loss_is_that_of_the_others_alone(method: str) -> None:
    """Under md=stop a backbone is taught by its own loss and nothing else, so its gradients show that loss."""
    batch = make_batch([VISIBLE, NONE, VISIBLE, NONE])
    model, twin = make_model(parse_method(method)), make_model(parse_method(method))
    ours = gradients(model.loss(batch)[0].sum(), model.backbones["visible"])
    alone = batch_of(batch, [1, 3])
    answer = twin.branch("visible")(twin.features(alone["img"], "visible"))
    parts = Detection(twin).losses({"visible": answer}, alone)["visible"]
    theirs = gradients(torch.stack(list(parts.values())).sum() * 2, twin.backbones["visible"])
    assert any(g.any() for g in ours)
    for a, b in zip(ours, theirs):  # scored as one batch with the other answers, they round in other places
        assert equal_but_for_rounding(a, b, 1e-4)
    assert_equal(statistics(model, "visible"), statistics(twin, "visible"))


@pytest.mark.parametrize("method", METHODS_OF_TWO)
def test_what_a_lost_image_shows_does_not_matter(method: str) -> None:
    results = []
    for content in (0.0, 1.0):
        batch = make_batch([VISIBLE, THERMAL, NONE, VISIBLE])
        batch["img"][[0, 3], :3] = content
        batch["img"][1, 3:] = content
        model = make_model(parse_method(method))
        total, items = model.loss(batch)
        total.sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((items, grads, dict(model.named_buffers())))
    for a, b in zip(*results):
        assert_equal(a, b)


def test_the_fusion_reads_the_features_of_a_black_image() -> None:
    batch, model = make_batch([VISIBLE, THERMAL, NONE, THERMAL]), make_model(method_config("rscmd"))
    taught = model.predict(batch["img"], lost=batch["lost"])
    for number, camera in enumerate(MODALITIES, 1):
        lost = batch["lost"] == number
        alone = make_model(method_config("rscmd"))
        theirs = alone.features(batch["img"][~lost], camera)
        black = alone.eval().features(torch.zeros(1, 4, 64, 64), camera)  # as evaluation has it
        for level, those, nothing in zip(taught.features[camera], theirs, black):
            assert torch.equal(level[~lost], those)
            torch.testing.assert_close(level[lost], nothing.expand(int(lost.sum()), -1, -1, -1))
            (reaches,) = torch.autograd.grad(
                level[lost].sum(), model.backbones[camera].b0.conv.weight, retain_graph=True
            )
            assert not reaches.any()
    black_batch = batch["img"].clone()
    black_batch[0, :3] = 0
    black_batch[[1, 3], 3:] = 0
    model.frozen_statistics = True  # so that a sample's features do not depend on the others
    model.train()
    seen = model.predict(batch["img"], lost=batch["lost"]).answers["fused"]["scores"]
    torch.testing.assert_close(seen, model.answers(black_batch)["fused"]["scores"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS_OF_TWO)
def test_a_batch_in_which_no_sample_has_a_camera(method: str) -> None:
    model, batch = make_model(parse_method(method)), make_batch([THERMAL] * 4)
    before = statistics(model, "thermal")
    total, items = model.loss(batch)
    total.sum().backward()
    assert all(value.isfinite() for value in items.values())
    if method.startswith(("late", "rsc")):
        assert items["thermal_loss"] == 0
    assert all(p.grad is None for p in model.backbones["thermal"].parameters())
    assert_equal(before, statistics(model, "thermal"))
    assert any(p.grad is not None and p.grad.any() for p in model.backbones["visible"].parameters())


@pytest.mark.parametrize("method", METHODS_OF_TWO)
def test_where_nothing_is_lost_a_step_is_the_plain_one(method: str) -> None:
    results = []
    for batch in (make_batch(), make_batch([NONE] * 4)):
        model = make_model(parse_method(method))
        total, items = model.loss(batch)
        total.sum().backward()
        results.append((items, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    for a, b in zip(*results):
        assert_equal(a, b)


def test_the_control_of_rsc_has_losses_on_every_sample() -> None:
    """The further branches of `aux` read what is fused, which every sample has."""
    model, batch = make_model(method_config("aux")), make_batch([VISIBLE, VISIBLE, THERMAL, NONE])
    taught = model.predict(batch["img"], lost=batch["lost"])
    assert {len(answer["scores"]) for answer in taught.answers.values()} == {4}


def test_labels_of_some_samples_are_those_of_a_batch_of_them_alone() -> None:
    batch = {**make_batch(), "weights": torch.rand(4, 3)}
    for samples in ([0, 1, 2, 3], [1, 3], [2], [0, 2]):
        found, expected = labels_of(torch.tensor(samples), batch), batch_of(batch, samples)
        for key in ("batch_idx", "cls", "bboxes", "weights"):
            assert torch.equal(found[key], expected[key])
            assert found[key].dtype == batch[key].dtype
    assert rows_with("thermal", torch.tensor([0, 2, 1, 2])).tolist() == [0, 2]


def test_weights_of_labels_go_with_them() -> None:
    batch = make_batch([NONE, VISIBLE, NONE, VISIBLE])
    batch["weights"] = torch.tensor([[1.0, 0.5, 1.0], [1.0, 0.3, 1.0], [1.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    other = {**batch, "weights": batch["weights"].clone()}
    other["weights"][1:, 1] = 0.9  # of samples that have lost the camera
    own, same = (make_model(method_config("rsc")).loss(b)[1] for b in (batch, other))
    assert_equal(own, same)
    other["weights"][0, 1] = 1.0
    assert make_model(method_config("rsc")).loss(other)[1]["visible_loss"] > own["visible_loss"]


def test_modality_dropout_takes_the_complete_samples_alone() -> None:
    batch, model = make_batch([VISIBLE, THERMAL, NONE, NONE]), make_model(method_config("sum"))
    model.augmentation = Augmentation(modality_dropout=1.0)
    features = model.predict(batch["img"], lost=batch["lost"]).features
    for _ in range(8):
        _, out = model._drop_modalities(batch["img"], features, batch["lost"])
        changed = [[not torch.equal(out[m][0][i], features[m][0][i]) for m in MODALITIES] for i in range(4)]
        assert changed[:2] == [[False, False]] * 2
        assert [sum(sample) for sample in changed[2:]] == [1, 1]


def test_losses_in_16_bits_send_gradients_to_every_weight() -> None:
    """The pass of black images, which has none, does not take those of the others."""
    grads = []
    for lost in (None, [NONE, VISIBLE, THERMAL, NONE]):
        model = make_model(method_config("rsc"))
        with torch.autocast("cpu", torch.bfloat16):
            total, _ = model.loss(make_batch(lost))
        total.sum().backward()
        grads.append({n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()})
    assert grads[0] == grads[1]


def test_two_processes_give_the_gradients_of_one_of_which_the_second_has_no_visible_image(tmp_path: Path) -> None:
    assert_gradients_of_one([make_batch([NONE, THERMAL, VISIBLE, NONE], 5), make_batch([VISIBLE] * 4, 6)], tmp_path)
