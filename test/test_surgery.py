"""Surgery at the parameters: what the two rules make of gradients, and that a training takes them as any others."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import assert_lives
from test_objective import branch_losses, equal_but_for_rounding, make_batch, make_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rscmd_model.config import MODALITIES
from rscmd_model.errors import UserError
from rscmd_model.methods import parse_method
from rscmd_model.methods.decoupling import GradientMap
from rscmd_model.methods.gmd import Gmd, GmdSettings, projection
from rscmd_model.methods.mmpareto import MmPareto, MmParetoSettings, integration
from rscmd_model.methods.surgery import reconciled, trained_parts
from rscmd_model.network.model import RscmdModel

METHODS = ("gmd", "mmpareto")
AGREE, CONFLICT, MIXED = 1, 0, 2
"""Seeds of `make_model` and `make_batch`: in mmpareto's untrained model the losses agree about both backbones, about
neither, and about the thermal one alone."""


def taught(method: str, seed: int = 0, factor: float = 1.0, **changes: Any) -> RscmdModel:
    """A model with the gradients of one step, whose loss was multiplied by a factor."""
    model = make_model(parse_method(method), seed)
    for name, value in changes.items():
        setattr(model, name, value)
    (model.train().loss(make_batch(seed + 1))[0].sum() * factor).backward()
    return model


def of(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that there are, by name."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Equal but for the order in which floats were added."""
    assert set(ours) == set(theirs)
    for name, grad in ours.items():
        assert equal_but_for_rounding(grad, theirs[name], 1e-4, 1e-6), name


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    assert [name for name, grad in ours.items() if not torch.equal(grad, theirs[name])] == []


def separate(method: str, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """The gradients of each answer's loss by itself (times the batch size), by the answer and the parameter."""
    model = make_model(parse_method(method), seed)
    losses = branch_losses(model, make_batch(seed + 1))
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad))
    found = {}
    for answer, loss in losses.items():
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        found[answer] = {n: g for n, g in zip(names, grads) if g is not None}
    return found


def within(grads: dict[str, Tensor], part: str) -> Tensor:
    """The gradients of a part as one vector."""
    return torch.cat([g.flatten() for name, g in grads.items() if name.startswith(f"{part}.")])


# The piece that both share.


@pytest.mark.parametrize("method", METHODS)
def test_the_value_is_the_plain_total_and_without_gradients_it_is_no_more(method: str) -> None:
    plain = make_model(parse_method({"gmd": "rsc+rsc=shared", "mmpareto": "rsc"}[method]))
    model, batch = make_model(parse_method(method)), make_batch()
    expected, names = plain.loss(batch)
    with torch.no_grad():
        silent, _ = model.loss(batch)
    total, items = make_model(parse_method(method)).loss(batch)
    assert float(total.detach()) == float(silent) == float(expected.detach().sum())
    assert total.requires_grad
    assert not silent.requires_grad
    assert list(items) == list(names)
    watched, _ = model.eval().loss(batch)
    assert set(model.loss(batch)[1]) == {"box_loss", "cls_loss", "dfl_loss"}, "a validation has the main answer alone"
    assert watched.grad_fn is not None
    assert "Surgery" not in watched.grad_fn.name()


@pytest.mark.parametrize("method", METHODS)
def test_every_part_is_trained_and_a_power_of_two_scales_it_bit_for_bit(method: str) -> None:
    """A gradient scaler multiplies the loss, and divides the gradients again."""
    grads = []
    for factor in (1.0, 2.0**16):
        torch.manual_seed(3)
        model = make_model(parse_method(f"{method}+fusion=adapt"))
        total = model.loss(make_batch())[0].sum() * factor
        torch.manual_seed(3)  # the order in which gmd projects
        total.backward()
        grads.append({name: grad / factor for name, grad in of(model).items()})
    assert_equal(*grads)
    assert [n for n, _ in model.named_parameters() if n not in grads[0] and ".dfl." not in n] == []


class HalfLayers(nn.Module):
    """A weight for each backbone, whose losses run in 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.backbones = nn.ModuleDict({m: nn.Linear(2, 1, bias=False) for m in MODALITIES})

    def losses(self) -> dict[str, Tensor]:
        own = {m: (layer.weight.half() * 1e-4 * 1e-4).float().sum() for m, layer in self.backbones.items()}
        return {"fused": own["visible"] + own["thermal"], **own}


def added(part: str, gradients: dict[str, list[Tensor]]) -> list[Tensor]:
    """The rule that changes nothing."""
    return [torch.stack(grads).sum(0) for grads in zip(*gradients.values())]


def test_16_bits_underflow_no_earlier_than_without_surgery() -> None:
    """The gradient of 1e-8 is 0 in 16 bits; with the scaler's factor it is there."""
    for factor, there in ((1.0, False), (2.0**15, True)):
        model = HalfLayers()
        losses = model.losses()
        (reconciled(model, torch.stack(list(losses.values())), losses, added) * factor).backward()
        for grad in of(model).values():
            torch.testing.assert_close(grad / factor, torch.full_like(grad, 2e-8 * there), rtol=0.01, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_not_finite_stays_so(method: str) -> None:
    """A scaler then skips the step; and nothing else is spoilt."""
    for answer in ("fused", "visible"):
        model = make_model(parse_method(method))
        losses = {n: loss * (torch.inf if n == answer else 1) for n, loss in branch_losses(model, make_batch()).items()}
        model.method.total(model, losses).sum().backward()
        for part, parameters in trained_parts(model).items():
            reached = answer == "fused" or "thermal" not in part
            reached &= not (part.startswith("branches.") and answer not in part and method == "mmpareto")
            finite = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).isfinite().all()
            assert bool(finite) != reached, (answer, part)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_frozen_has_no_gradient_and_the_rest_is_taught_as_before(method: str) -> None:
    whole = of(taught(method, CONFLICT))
    for part in ("backbones.visible", "branches.fused"):
        model = make_model(parse_method(method), CONFLICT)
        model.get_submodule(part).requires_grad_(False)
        model.loss(make_batch(CONFLICT + 1))[0].sum().backward()
        assert_equal(of(model), {name: grad for name, grad in whole.items() if not name.startswith(f"{part}.")})
    model = make_model(parse_method(method), CONFLICT)
    layer = "backbones.thermal.b0"  # of a part whose other layers are trained
    model.get_submodule(layer).requires_grad_(False)
    model.loss(make_batch(CONFLICT + 1))[0].sum().backward()
    assert set(of(model)) == {name for name in whole if not name.startswith(f"{layer}.")}
    still = taught(method, CONFLICT, frozen_statistics=True)
    assert set(of(still)) == set(whole)
    assert all(grad.isfinite().all() for grad in of(still).values())


@pytest.mark.parametrize("method", METHODS)
def test_batches_add_up_and_each_has_one_backward_pass(method: str) -> None:
    once = of(taught(method))
    model = make_model(parse_method(method))
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    for _ in range(2):
        total = model.loss(make_batch(1))[0].sum()
        total.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="one backward pass"):
            total.backward()
        model.load_state_dict(statistics, strict=False)
    assert_close(of(model), {name: 2 * grad for name, grad in once.items()})


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_trains_every_part(method: str) -> None:
    """As the trainer runs it on a GPU, here as bfloat16 on the CPU."""
    exact, model = taught(method), make_model(parse_method(method))
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = model.loss(make_batch())
    total.sum().backward()
    assert {name: grad.dtype for name, grad in of(model).items()} == dict.fromkeys(of(exact), torch.float32)
    assert all(grad.isfinite().all() for grad in of(model).values())


@pytest.mark.parametrize("method", METHODS)
def test_what_the_forward_pass_kept_is_freed_by_the_backward_pass(method: str) -> None:
    """Though the trainer keeps the loss until the next one is there."""
    model, batch = make_model(parse_method(method)), make_batch()
    taught_now = model.predict(batch["img"])
    kept = weakref.ref(taught_now.features["visible"][0])
    total, _ = model.loss(batch, taught_now)
    del taught_now
    assert kept() is not None
    total.sum().backward()
    gc.collect()
    assert kept() is None


# GMD.


def test_gmd_without_a_conflict_is_the_plain_sum_or_mean() -> None:
    """The mean acts in the branch, which all three losses reach; a backbone has the sum of its two."""
    shared = of(taught("rsc+rsc=shared"))
    assert_close(of(taught("gmd+reduce=sum")), shared)
    assert_close(of(taught("gmd")), {n: g / 3 if n.startswith("branches.") else g for n, g in shared.items()})


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_gmd_s_rule_leaves_agreement_alone_bit_for_bit(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    grads = {name: [torch.rand(2, 3, generator=g), torch.rand(4, generator=g)] for name in ("fused", *MODALITIES)}
    plain = [torch.stack(tensors).sum(0) for tensors in zip(*grads.values())]
    summed, mean = (gmd(reduce).combine("branches.fused", grads) for reduce in ("sum", "mean"))
    assert all(torch.equal(a, b) for a, b in zip(summed, plain))
    assert all(torch.equal(a, b / 3) for a, b in zip(mean, plain))


def gmd(reduce: str) -> Gmd:
    return Gmd(GmdSettings(reduce=reduce), (64, 128, 256))


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
@settings(max_examples=100, deadline=None)
def test_two_losses_in_conflict_no_longer_harm_each_other_in_either_order(seed: int, scale: float) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(40, generator=g) * scale, torch.randn(40, generator=g)
    if torch.dot(a, b) > 0:
        b = -b
    for one, other in ((a, b), (b, a)):
        rest = projection(one, [other])
        assert abs(float(torch.dot(rest, other))) < 1e-4 * float(one.norm() * other.norm())
        removed = torch.dot(one, other) / other.square().sum() * other
        torch.testing.assert_close(rest + removed, one, rtol=1e-4, atol=1e-5 * scale)
    summed = gmd("sum").combine("backbones.visible", {"fused": [a], "visible": [b]})
    assert torch.equal(gmd("sum").combine("backbones.visible", {"visible": [b], "fused": [a]})[0], summed[0])


def test_the_order_of_three_losses_is_drawn_and_follows_torch_s_seed() -> None:
    grads = {"fused": [torch.tensor([1.0, 0.0])], "visible": [torch.tensor([-1.0, 1.0])]}
    grads["thermal"] = [torch.tensor([-1.0, -1.5])]
    results = []
    for seed in (0, 0, *range(20)):
        torch.manual_seed(seed)
        results.append(tuple(gmd("sum").combine("branches.fused", grads)[0].tolist()))
    assert results[0] == results[1]
    assert len(set(results)) > 1


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_projecting_the_fused_gradient_alone_is_md_project_of_one_sample_and_tensor(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    fused, own = torch.randn(2, 1, 3, 4, 4, generator=g)
    feature = torch.zeros(1, 3, 4, 4, requires_grad=True)
    torch.autograd.backward(list(GradientMap.apply(False, feature)), [fused, own])
    assert feature.grad is not None
    ours = projection(fused.flatten(), [own.flatten()]) + own.flatten()
    torch.testing.assert_close(ours, feature.grad.flatten())


def test_gmd_judges_each_part_of_the_network_by_itself() -> None:
    """The visible loss is turned round, so that it runs against the fused one in the branch and in its own backbone."""
    grads = separate("gmd")
    turned = make_model(parse_method("gmd"))
    losses = branch_losses(turned, make_batch())
    turned.method.total(turned, {**losses, "visible": -losses["visible"]}).sum().backward()
    f, v = (within(grads[name], "backbones.visible") for name in ("fused", "visible"))
    assert torch.dot(f, v) > 0
    found = within(of(turned), "backbones.visible")
    for one in (f, -v):
        assert torch.dot(found, one) > -1e-5 * found.norm() * one.norm()
    expected = f - torch.dot(f, v) / torch.dot(v, v) * v - (v - torch.dot(f, v) / torch.dot(f, f) * f)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    f, t = (within(grads[name], "backbones.thermal") for name in ("fused", "thermal"))
    torch.testing.assert_close(within(of(turned), "backbones.thermal"), f + t, rtol=1e-3, atol=1e-5)
    f, v, t = (within(grads[name], "branches.fused") for name in ("fused", "visible", "thermal"))
    plain = (f - v + t) / 3
    assert float((within(of(turned), "branches.fused") - plain).norm()) > 0.01 * float(plain.norm())


def test_gmd_answers_a_lost_camera_from_the_one_branch() -> None:
    model, x = make_model(parse_method("gmd")).eval(), make_batch()["img"]
    assert list(model.branches) == ["fused"]
    lost = torch.cat([x[:, :3], torch.zeros_like(x[:, 3:])], 1)
    with torch.no_grad():
        whole, alone = model.answers(x), model.answers(lost, ["visible"])["visible"]
    assert list(whole) == ["fused", *MODALITIES]
    assert torch.equal(alone[0], whole["visible"][0])


# MMPareto.


def test_mmpareto_without_a_conflict_is_rsc_and_gamma_stretches_the_backbones_alone() -> None:
    """`rsc` adds two gradients of a backbone at the features and surgery at the parameters, and scores the answers as
    one batch, so that floats are added in another order."""
    rsc, one = of(taught("rsc", AGREE)), of(taught("mmpareto+gamma=1", AGREE))
    assert_close(one, rsc)
    branches = [name for name in rsc if name.startswith("branches.")]
    assert_equal(of(taught("mmpareto", AGREE)), {n: g if n in branches else 1.5 * g for n, g in one.items()})


@pytest.mark.parametrize(("seed", "conflict"), [(CONFLICT, MODALITIES), (MIXED, ("visible",))])
def test_mmpareto_in_conflict_follows_the_published_rule(seed: int, conflict: tuple[str, ...]) -> None:
    """Written down once more, tensor by tensor, with the weight found by trying."""
    grads = separate("mmpareto", seed)
    found = of(taught("mmpareto", seed))
    for m in MODALITIES:
        f, u = (within(grads[name], f"backbones.{m}") for name in ("fused", m))
        assert (torch.dot(f, u) < 0) == (m in conflict)
        best = min((i / 200 for i in range(201)), key=lambda share: float((share * f + (1 - share) * u).norm()))
        a, b = (2 * best, 2 * (1 - best)) if m in conflict else (1.0, 1.0)
        for name in [n for n in grads[m] if n.startswith(f"backbones.{m}.")]:
            plain, new = grads["fused"][name] + grads[m][name], a * grads["fused"][name] + b * grads[m][name]
            expected = 1.5 * new * max(float(plain.norm() / new.norm()), 1.0)
            assert float((found[name] - expected).norm()) < 0.01 * float(expected.norm()), name
            assert float(found[name].norm()) > 1.4999 * float(plain.norm()), "as long as the plain sum's, times gamma"


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
@settings(max_examples=100, deadline=None)
def test_the_weights_are_those_of_least_norm_and_harm_neither_loss(seed: int, scale: float) -> None:
    g = torch.Generator().manual_seed(seed)
    fused, own = torch.randn(30, generator=g) * scale, torch.randn(30, generator=g)
    of_fused, of_own = integration(fused, own)
    if torch.dot(fused, own) > 0:
        assert (of_fused, of_own) == (1, 1)
        fused = -fused
        of_fused, of_own = integration(fused, own)
    assert 0 <= of_fused <= 2
    assert float(of_fused + of_own) == pytest.approx(2)
    common = of_fused * fused + of_own * own
    for share in torch.linspace(0, 1, 101):
        assert float(common.norm()) <= float((2 * share * fused + 2 * (1 - share) * own).norm()) * (1 + 1e-5)
    for one in (fused, own):
        assert float(torch.dot(common, one)) >= -1e-5 * float(one.norm()) * float(fused.norm() + own.norm())


def test_gradients_that_cancel_or_are_not_there_are_no_division_by_zero() -> None:
    rule = MmPareto(MmParetoSettings(gamma=1), (64, 128, 256)).combine
    a, none = torch.tensor([3.0, -4.0]), torch.zeros(2)
    for fused, own, expected in ((a, none, a), (none, a, a), (a, -a, none), (none, none, none)):
        assert torch.equal(rule("backbones.visible", {"fused": [fused], "visible": [own]})[0], expected)
    # Least norm leaves nothing of the first tensor, and the plain sum does.
    fused, own = [torch.tensor([1.0]), torch.tensor([0.0])], [torch.tensor([-2.0]), torch.tensor([0.5])]
    found = rule("backbones.visible", {"fused": fused, "visible": own})
    assert all(tensor.isfinite().all() for tensor in found)
    assert float(found[0].norm()) == pytest.approx(1.0)


def test_settings() -> None:
    assert make_model(parse_method("mmpareto")).method.settings.gamma == 1.5
    assert make_model(parse_method("gmd")).method.settings == GmdSettings(reduce="mean")
    for word in ("mmpareto+gamma=0", "gmd+reduce=max", "gmd+rsc=own", "mmpareto+teach=head"):
        with pytest.raises(UserError):
            parse_method(word)


# A training.


def worker(rank: int, folder: str) -> None:
    """One process of two: a step as the trainer makes it, of each method."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for method in (*METHODS, "rsc+schedule=one", "dgl"):
        # Each process draws a model of its own; the first one's is taken.
        model = DistributedDataParallel(make_model(parse_method(method), rank), find_unused_parameters=True)
        steps = []
        for step in range(4 if "schedule" in method else 1):
            torch.manual_seed(step)
            model.zero_grad()
            loss, items = model(make_batch(seed=10 * step + rank))
            (loss.sum() * 2).backward()
            steps.append((of(model.module), float(items["visible_loss"]) > 0))
        found[method] = steps
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """They end each step with the same gradients: the sum of what the rule makes of each one's. They draw alike."""
    mp.start_processes(worker, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for method, steps in first.items():
        for (ours, draw), (theirs, other) in zip(steps, second[method]):
            assert_equal(ours, theirs)
            assert draw == other
        expected: dict[str, Tensor] = {}
        for rank in range(2):
            model = make_model(parse_method(method))
            torch.manual_seed(0)
            model.loss(make_batch(seed=rank))[0].sum().backward()
            expected = {name: grad + expected.get(name, 0) for name, grad in of(model).items()}
        assert_close({name: grad for name, grad in steps[0][0].items() if name in expected}, expected)
    assert len({draw for _, draw in first["rsc+schedule=one"]}) == 2, "both cameras were drawn"


def test_it_lives(tmp_path: Path) -> None:
    """The order of a projection is drawn: a resumed run goes on with the same draws. `mmpareto` draws nothing."""
    assert_lives("gmd", tmp_path)
