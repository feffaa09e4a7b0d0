"""The RSC-MD objective: what each loss teaches which backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pretended_device import asks_the_device
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from ultralytics.utils.loss import v8DetectionLoss

from rscmd_model.config import MODALITIES, ModelConfig
from rscmd_model.errors import UserError
from rscmd_model.methods import method_config, parse_method
from rscmd_model.methods.decoupling import GradientMap
from rscmd_model.network.detection_loss import MOST
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.objective import Detection

NAMES = {0: "person", 1: "car"}


def make_model(config: ModelConfig, seed: int = 0) -> RscmdModel:
    torch.manual_seed(seed)
    # BatchNorm in evaluation mode would hide nothing, but training mode is what is trained.
    return RscmdModel(config, NAMES).train()


def make_batch(seed: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "img": torch.rand(2, 4, 64, 64, generator=g),
        "batch_idx": torch.tensor([0.0, 0.0, 1.0]),
        "cls": torch.tensor([[0.0], [1.0], [1.0]]),
        "bboxes": torch.tensor([[0.3, 0.4, 0.3, 0.4], [0.7, 0.6, 0.4, 0.5], [0.5, 0.5, 0.5, 0.6]]),
    }


def branch_losses(model: RscmdModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Unweighted loss of each branch, times the batch size."""
    losses = Detection(model).losses(model.answers(batch["img"]), batch)
    return {name: sum(parts.values(), torch.zeros(())) * len(batch["img"]) for name, parts in losses.items()}


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]


def total_norm(grads: list[Tensor]) -> float:
    return float(torch.stack([g.norm() for g in grads]).norm())


def equal_but_for_rounding(ours: Tensor, theirs: Tensor, within: float = 1e-5, floor: float = 0.0) -> bool:
    """Whether two gradients are the same, though floats were added in another order: `within` this share of the norm,
    and `floor` besides, where the true gradient may be next to nothing."""
    return bool((ours - theirs).norm() <= within * theirs.norm() + floor)


@pytest.mark.parametrize("rsc", ["own", "shared"])
def test_stop_keeps_the_fused_loss_out_of_both_backbones(rsc: str) -> None:
    model = make_model(method_config("rscmd", rsc=rsc, md="stop"))
    losses = branch_losses(model, make_batch())
    for modality in MODALITIES:
        backbone = model.backbones[modality]
        assert total_norm(gradients(losses["fused"], backbone)) == 0.0
        assert total_norm(gradients(losses[modality], backbone)) > 0.0
    assert total_norm(gradients(losses["fused"], model.branch("fused"))) > 0.0


def test_off_and_off_is_autograd_of_the_plain_sum() -> None:
    model, batch = make_model(method_config("sum")), make_batch()
    total, _ = model.loss(batch)
    ours = gradients(total.sum(), model.backbones)

    visible = model.backbones["visible"](batch["img"][:, :3])
    thermal = model.backbones["thermal"](batch["img"][:, 3:])
    answer = model.branches["fused"]([v + t for v, t in zip(visible, thermal)])
    plain, _ = Detection(model).criterion(answer, batch)
    assert total_norm(ours) > 0
    for a, b in zip(ours, gradients(plain.sum(), model.backbones)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("apart", "counted"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("classes", [None, [0.5, 1.5]])
@pytest.mark.parametrize("objects", [3, 2, 0])
def test_answers_together_are_scored_as_ultralytics_scores_each(
    objects: int, classes: list[float] | None, apart: bool, counted: bool
) -> None:
    """Losses, assignments and gradients, also of pairs without an object, and where answers are of other pairs."""
    model, batch = make_model(method_config("rscmd")), make_batch()
    batch = {key: of if key == "img" else of[:objects] for key, of in batch.items()}
    if classes:
        model.class_weights = torch.tensor(classes)
    answers = model.answers(batch["img"])
    one = {key: of if key == "img" else of[batch["batch_idx"] == 0] for key, of in batch.items()}
    answers["thermal"] = {key: of if key == "feats" else of[:1] for key, of in answers["thermal"].items()}
    batches = {"fused": batch, "visible": batch, "thermal": one}
    batches = {name: {**of, MOST: 2} for name, of in batches.items()} if counted else batches
    detection = Detection(model)
    scored, theirs = detection.each(answers, batches, apart), v8DetectionLoss(model)
    assert list(scored) == list(answers)
    for name, answer in answers.items():
        (positives, which, *_), parts, _ = theirs.get_assigned_targets_and_loss(answer, batches[name])
        ours, wanted = scored[name], [answer["boxes"], answer["scores"]]
        assert torch.equal(ours.positives, positives.bool())
        assert torch.equal(ours.objects[ours.positives], which[ours.positives].long())
        torch.testing.assert_close(torch.stack(list(ours.parts.values())), parts, rtol=1e-5, atol=1e-6)
        found = torch.autograd.grad(sum(ours.parts.values(), torch.zeros(())), wanted, retain_graph=True)
        expected = torch.autograd.grad(parts.sum(), wanted, retain_graph=True, allow_unused=True)
        for leaf, one_gradient, other in zip(wanted, found, expected):
            other = torch.zeros_like(leaf) if other is None else other
            torch.testing.assert_close(one_gradient, other, rtol=1e-4, atol=1e-7)
        others = [leaf for other, of in answers.items() if other != name for leaf in (of["boxes"], of["scores"])]
        reached = torch.autograd.grad(ours.parts["cls"], others, retain_graph=True, allow_unused=True)
        assert all(g is None if apart else g is None or not g.any() for g in reached)


def test_batches_of_which_one_does_not_say_how_many_objects_a_sample_has_are_counted() -> None:
    model, batch = make_model(method_config("rscmd")), make_batch()
    few = {key: of if key == "img" else of[1:2] for key, of in batch.items()}
    answers, detection = model.answers(batch["img"], ["fused", "visible"]), Detection(model)
    scored, expected = (
        detection.each(answers, {"fused": {**few, **known}, "visible": batch}) for known in ({MOST: 1}, {})
    )
    assert torch.equal(scored["visible"].objects, expected["visible"].objects)


class Waits(TorchDispatchMode):
    """Notes the operations for which the host of a GPU waits, those among them that bring numbers from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if asks_the_device(operation, args) or "lift_fresh" in str(operation):
            self.met.append(str(operation))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["sum", "rscmd"])
def test_host_seldom_waits_for_the_device_while_answers_are_scored(method: str) -> None:
    """Twice in ultralytics' assigner and once for the assigned anchors, however many answers there are."""
    model, batch = make_model(method_config(method)), make_batch()
    preds = model(batch["img"])
    model.loss(batch, preds)  # makes what depends on the size of the images alone
    with Waits() as counted:
        model.loss(batch, preds)
    with Waits() as known:
        model.loss({**batch, MOST: 2}, preds)
    assert len(known.met) <= 3, known.met
    assert len(counted.met) > len(known.met)


@pytest.mark.parametrize("method", ["rscmd", "rsc+rsc=shared"])
def test_normalisation_is_torchs_and_counts_its_batches(method: str) -> None:
    ours, theirs, batch = make_model(parse_method(method)), make_model(parse_method(method)), make_batch()
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.__class__ = nn.BatchNorm2d
    for _ in range(2):
        found, expected = (model(batch["img"]).answers["fused"]["scores"] for model in (ours, theirs))
    assert torch.equal(found, expected)
    state = theirs.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    assert {int(of) for name, of in state.items() if "num_batches" in name} == ({2, 6} if "shared" in method else {2})


@pytest.mark.parametrize("rsc", ["own", "shared"])
def test_total_is_the_weighted_sum_of_the_branches(rsc: str) -> None:
    config = method_config("rsc", rsc=rsc, lambda_visible=0.5, lambda_thermal=3.0)
    model, batch = make_model(config), make_batch()
    total, items = model.loss(batch)
    losses = branch_losses(make_model(config), batch)
    expected = losses["fused"] + 0.5 * losses["visible"] + 3.0 * losses["thermal"]
    torch.testing.assert_close(total.sum(), expected, rtol=1e-4, atol=1e-4)
    assert set(items) == {"box_loss", "cls_loss", "dfl_loss", "visible_loss", "thermal_loss"}


@pytest.mark.parametrize(("method", "coupled"), [("rsc", False), ("aux", True)])
def test_a_unimodal_loss_teaches_one_backbone_and_an_auxiliary_one_both(method: str, coupled: bool) -> None:
    model = make_model(method_config(method))
    loss = branch_losses(model, make_batch())["visible"]
    assert total_norm(gradients(loss, model.backbones["visible"])) > 0
    assert (total_norm(gradients(loss, model.backbones["thermal"])) > 0) == coupled


@pytest.mark.parametrize("method", ["visible", "rscmd"])
def test_the_loss_of_answers_that_are_there_is_that_of_the_batch(method: str) -> None:
    """A caller may ask the network first, and for the loss afterwards."""
    model, batch = make_model(method_config(method)), make_batch()
    at_once, apart = model.loss(batch)[1], model.loss(batch, model.predict(batch["img"]))[1]
    torch.testing.assert_close(apart, at_once)
    assert set(model.eval().loss(batch)[1]) == {"box_loss", "cls_loss", "dfl_loss"}


def test_an_auxiliary_head_is_trained_and_never_answers() -> None:
    model, twin = make_model(method_config("aux")), make_model(method_config("rsc"))
    assert set(model.state_dict()) == set(twin.state_dict()), "the control has the heads of rsc"
    _, items = model.loss(make_batch())
    assert {"visible_loss", "thermal_loss"} < set(items)
    assert list(model.eval().answers(torch.rand(1, 4, 64, 64))) == ["fused"]


@pytest.mark.parametrize(("method", "independent"), [("rscmd+md=stop", True), ("rsc", False), ("sum", False)])
def test_what_a_backbone_receives_under_stop_does_not_depend_on_the_other_modality(
    method: str, independent: bool
) -> None:
    """Modality decoupling itself; the couplings it removes are shown to be there without it."""
    batch, other = make_batch(), make_batch()
    other["img"][:, 3:] = 1 - other["img"][:, 3:]
    grads = []
    for b in (batch, other):
        model = make_model(parse_method(method))
        grads.append(gradients(model.loss(b)[0].sum(), model.backbones["visible"]))
    difference = total_norm([a - b for a, b in zip(*grads)]) / total_norm(grads[0])
    assert difference == 0.0 if independent else difference > 1e-3


def test_map_is_neither_stop_nor_off() -> None:
    """The network sends its gradients through the map; what the map does is held to below."""
    batch = make_batch()
    models = {md: make_model(method_config("rscmd", md=md)) for md in ("off", "stop", "map")}
    grads = {md: gradients(m.loss(batch)[0].sum(), m.backbones) for md, m in models.items()}
    for other in ("off", "stop"):
        assert total_norm([a - b for a, b in zip(grads["map"], grads[other])]) > 1e-3 * total_norm(grads["map"])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_gradient_map_removes_the_conflict_and_matches_the_size(seed: int, scale: float) -> None:
    g = torch.Generator().manual_seed(seed)
    feature = torch.randn(2, 3, 4, 4, generator=g, requires_grad=True)
    fused, unimodal = torch.randn(2, 3, 4, 4, generator=g) * scale, torch.randn(2, 3, 4, 4, generator=g)
    a, b = GradientMap.apply(True, feature)
    assert torch.equal(a, feature)
    assert torch.equal(b, feature)
    torch.autograd.backward([a, b], [fused, unimodal])
    assert feature.grad is not None
    mapped = (feature.grad - unimodal).flatten(1)
    torch.testing.assert_close(mapped.norm(dim=1), unimodal.flatten(1).norm(dim=1), rtol=1e-3, atol=1e-4)
    agreement = (mapped * unimodal.flatten(1)).sum(1) / unimodal.flatten(1).square().sum(1)
    assert bool((agreement > -1e-3).all())


@settings(max_examples=200, deadline=None)
@given(st.floats(-8, 8), st.floats(-8, 8), st.booleans())
def test_a_sum_suppresses_a_backbone_once_the_other_modality_is_right(z_v: float, z_t: float, positive: bool) -> None:
    """Claim 1 of the method: |sigma(z_v + z_t) - y| < |sigma(z_v) - y| exactly where z_t has the sign of y."""
    assume(abs(z_t) > 1e-3)
    y = torch.tensor(float(positive), dtype=torch.float64)
    weight = torch.tensor([0.6, -1.7], dtype=torch.float64)  # a linear head on features of two channels
    bce = nn.functional.binary_cross_entropy_with_logits

    def feature(z: float) -> Tensor:
        return (weight * (z / weight.dot(weight))).requires_grad_()

    v, alone = feature(z_v), feature(z_v)
    bce(weight.dot(v + feature(z_t).detach()), y).backward()
    bce(weight.dot(alone), y).backward()
    assert v.grad is not None
    assert alone.grad is not None
    assert bool(v.grad.norm() < alone.grad.norm()) == ((z_t > 0) == positive)


def test_every_branch_reaches_the_optimizer() -> None:
    """Auxiliary layers that stay random because nobody trains them are a known fault of published code."""
    model = make_model(method_config("rscmd"))
    model.loss(make_batch())[0].sum().backward()
    untrained = [n for n, p in model.named_parameters() if p.grad is None and ".dfl." not in n]
    assert untrained == []


def test_projection_removes_the_conflict_and_leaves_agreement_alone() -> None:
    unimodal = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(2, 2, 1, 1)
    fused = torch.tensor([[-3.0, 2.0], [3.0, 2.0]]).view(2, 2, 1, 1)
    feature = torch.zeros(2, 2, 1, 1, requires_grad=True)
    torch.autograd.backward(list(GradientMap.apply(False, feature)), [fused, unimodal])
    assert feature.grad is not None
    assert (feature.grad - unimodal).flatten(1).tolist() == [[0.0, 2.0], [3.0, 2.0]]


def test_decoupling_holds_in_its_share_of_the_training() -> None:
    model, batch = make_model(method_config("rscmd", md="stop", md_from=0.25, md_until=0.75)), make_batch()
    reached = []
    for progress in (0.0, 0.25, 0.7, 0.75):
        model.method.progress = progress
        reached.append(total_norm(gradients(branch_losses(model, batch)["fused"], model.backbones)) > 0)
    assert reached == [True, False, False, True]


def test_methods_of_one_seed_share_one_initialisation() -> None:
    """What two methods have in common starts with the same weights; another seed starts elsewhere."""
    whole = make_model(method_config("rscmd", fusion="adapt", branch="full")).state_dict()
    for method in ("visible", "thermal", "sum"):
        part = make_model(method_config(method)).state_dict()
        assert all(torch.equal(value, whole[name]) for name, value in part.items()), method
    lean = make_model(method_config("rsc")).state_dict()
    both = [name for name in lean if name in whole and name.startswith(("backbones.", "branches.fused."))]
    assert {name.split(".")[1] for name in both} == {"visible", "thermal", "fused"}
    assert all(torch.equal(lean[name], whole[name]) for name in both)
    other = make_model(method_config("rscmd", fusion="adapt", branch="full"), seed=1).state_dict()
    assert not torch.equal(whole["backbones.visible.b0.conv.weight"], other["backbones.visible.b0.conv.weight"])
    assert not torch.equal(whole["branches.visible.n15.cv1.conv.weight"], whole["branches.thermal.n15.cv1.conv.weight"])


@pytest.mark.parametrize("changes", [{"fusion": "adapt"}, {"branch": "full"}])
def test_variants_train_every_part(changes: dict[str, str]) -> None:
    model = make_model(method_config("rscmd", **changes))
    model.loss(make_batch())[0].sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None and ".dfl." not in n] == []
    answers = model.eval().answers(torch.rand(1, 4, 64, 64))
    assert {name: answer[0].shape for name, answer in answers.items()} == dict.fromkeys(
        ("fused", "visible", "thermal"), torch.Size([1, 6, 84])
    )


VARIANTS = [("sum", {}), ("rsc", {}), ("rsc", {"rsc": "shared"}), ("rscmd", {}), ("rscmd", {"md": "map"})]


@pytest.mark.parametrize(("method", "changes"), [("visible", {}), ("thermal", {}), *VARIANTS])
def test_losses_in_16_bits_are_those_of_32(method: str, changes: dict[str, str]) -> None:
    """Mixed precision as the trainer runs it on a GPU, here as bfloat16 on the CPU: same losses, finite gradients."""
    batch = make_batch()
    exact = make_model(method_config(method, **changes)).loss(batch)[1]
    model = make_model(method_config(method, **changes))
    with torch.autocast("cpu", torch.bfloat16):
        total, items = model.loss(batch)
    total.sum().backward()
    for name, value in exact.items():
        # Some per cent: bfloat16 has three digits, and an anchor that is assigned otherwise counts in so small a batch.
        torch.testing.assert_close(items[name].float(), value, rtol=0.1, atol=0.02, msg=name)
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters() if p.grad is not None
    )


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("bits", [torch.float16, torch.bfloat16])
def test_boxes_are_placed_in_32_bits(bits: torch.dtype, apart: bool) -> None:
    """The loss of answers in 16 bits is that of the same numbers in 32, in the far corner of the image, too."""
    scored = Detection(make_model(method_config("sum"))).criterion
    sides = [640 // stride for stride in (8, 16, 32)]
    count = sum(side**2 for side in sides)
    g = torch.Generator().manual_seed(0)
    answer = {
        "boxes": torch.randn(2, 64, count, generator=g).mul(3).to(bits),
        "scores": torch.randn(2, len(NAMES), count, generator=g).to(bits),
        "feats": [torch.zeros(2, 8, side, side, dtype=bits) for side in sides],
    }
    boxes = torch.tensor([[0.9, 0.9, 0.02, 0.02], [0.95, 0.8, 0.05, 0.05], [0.97, 0.97, 0.03, 0.02]])
    batch = {"batch_idx": torch.tensor([0.0, 0, 1]), "cls": torch.zeros(3, 1), "bboxes": boxes}
    wide = {key: [o.float() for o in value] if key == "feats" else value.float() for key, value in answer.items()}
    ((_, exact),) = scored.of([wide], [batch], apart)
    with torch.autocast("cpu", torch.bfloat16):
        ((_, found),) = scored.of([answer], [batch], apart)
    assert all(value > 0 for value in exact)
    for a, b in zip(found, exact):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("md", ["stop", "map"])
def test_scaling_the_loss_scales_every_gradient(md: str) -> None:
    """What a gradient scaler relies on: it scales the loss up and the gradients down again."""
    grads = []
    for scale in (1.0, 2.0**16):
        model = make_model(method_config("rscmd", md=md))
        (model.loss(make_batch())[0].sum() * scale).backward()
        grads.append([p.grad / scale for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * float(a.abs().max()))


def test_heads_that_teach_themselves_leave_the_fused_answer_as_sum_trains_it() -> None:
    """The same fused loss and the same gradients in everything that a sum has.

    Not bit for bit on every processor: all answers are scored as one batch, and where its vectors end the arithmetic is
    another.
    """
    batch = make_batch()
    plain, model = make_model(method_config("sum")), make_model(method_config("rsc", teach="head"))
    for one in (plain, model):
        one.loss(batch)[0].sum().backward()
    ours = dict(model.named_parameters())
    for name, theirs in plain.named_parameters():
        assert (theirs.grad is None) == (ours[name].grad is None), name
        if theirs.grad is not None:
            near = 1e-5 * float(theirs.grad.abs().max())
            torch.testing.assert_close(ours[name].grad, theirs.grad, rtol=1e-5, atol=near, msg=name)
    for camera in MODALITIES:
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.branches[camera].parameters())
    for method, says in (("rscmd", "use rsc"), ("rsc", "rsc=shared has no other head")):
        with pytest.raises(UserError, match=says):
            method_config(method, teach="head", **({"rsc": "shared"} if method == "rsc" else {}))


def test_the_mean_is_half_of_the_sum() -> None:
    x = make_batch()["img"]
    answers = []
    for fusion in ("sum", "mean"):
        model = make_model(method_config("sum", fusion=fusion)).eval()
        features = {m: model.features(x, m) for m in MODALITIES}
        answers.append(model.method.fuse(model, x, features))
    assert all(torch.equal(whole, 2 * half) for whole, half in zip(*answers))
