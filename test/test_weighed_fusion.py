"""`gate` (after HCT-DMG) and `complement` (after BBFN): features are weighed, or exchanged, before they meet."""

from __future__ import annotations

import math

import pytest
import torch
from test_objective import gradients, make_batch, make_model, total_norm
from torch import nn

from rscmd_model.config import MODALITIES, Augmentation
from rscmd_model.errors import UserError
from rscmd_model.methods import parse_method
from rscmd_model.methods.base import Features
from rscmd_model.methods.complement import Complement
from rscmd_model.methods.gate import Gate
from rscmd_model.methods.pooling import pooled


def drawn_features(batch: int = 3, seed: int = 0) -> dict[str, Features]:
    """Features of scale n, of both cameras."""
    torch.manual_seed(seed)
    return {m: [torch.randn(batch, c, side, side) for c, side in ((64, 8), (128, 4), (256, 2))] for m in MODALITIES}


def moved(module: nn.Module) -> None:
    """Away from the neutral start."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


def gate() -> Gate:
    method = make_model(parse_method("gate")).method
    assert isinstance(method, Gate)
    return method


def complement(settings: str = "") -> Complement:
    method = make_model(parse_method("+".join(filter(None, ["complement", settings])))).method
    assert isinstance(method, Complement)
    return method


@pytest.mark.parametrize("fusion", ["sum", "mean", "adapt"])
@pytest.mark.parametrize("method", ["gate", "complement", "complement+separator=0"])
def test_the_start_is_sum(method: str, fusion: str) -> None:
    """Losses, gradients and running statistics of a step, bit for bit; also with the separator, which is at chance."""
    batch = make_batch()
    plain, model = (make_model(parse_method(f"{name}+fusion={fusion}")) for name in ("sum", method))
    items = []
    for one in (plain, model):
        total, named = one.loss(batch)
        total.sum().backward()
        items.append(named)
    assert all(torch.equal(items[1][name], value) for name, value in items[0].items())
    ours = dict(model.named_parameters())
    for name, theirs in plain.named_parameters():
        assert theirs.grad is None if ours[name].grad is None else torch.equal(theirs.grad, ours[name].grad), name
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_two_weights_add_up_and_differ_between_samples_and_strides() -> None:
    method, features = gate(), drawn_features()
    for shares in method.shares(features):
        assert torch.equal(shares, torch.full((3, 2), 0.5)), "the start"
    moved(method)
    shares = method.shares(features)
    for w in shares:
        torch.testing.assert_close(2 * w.sum(1), torch.full((3,), 2.0))
        assert bool((w > 0).all())
        assert float(w[:, 0].detach().std()) > 1e-3
    weighed = method.fuse(make_model(parse_method("sum")), torch.zeros(3, 4, 64, 64), features)
    for w, found, visible, thermal in zip(shares, weighed, features["visible"], features["thermal"]):
        v, t = w[:, 0].view(-1, 1, 1, 1), w[:, 1].view(-1, 1, 1, 1)
        torch.testing.assert_close(found, 2 * (v * visible + t * thermal))


def test_swapping_the_streams_swaps_the_weights() -> None:
    method, features = gate(), drawn_features()
    moved(method)
    swapped = {"visible": features["thermal"], "thermal": features["visible"]}
    for w, mirrored in zip(method.shares(features), method.shares(swapped)):
        torch.testing.assert_close(w.flip(1), mirrored)


@pytest.mark.parametrize("method", ["gate", "complement"])
def test_a_picture_s_answer_does_not_depend_on_those_beside_it(method: str) -> None:
    model = make_model(parse_method(method)).eval()
    moved(model.method)
    x = torch.rand(3, 4, 64, 64)
    with torch.no_grad():
        together, alone = model.answers(x)["fused"][0], torch.cat([model.answers(one[None])["fused"][0] for one in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)


def test_figures_of_a_gate_show_a_collapse() -> None:
    method, features = gate(), drawn_features()
    assert method.figures(features) == {"gate_visible": 0.5, "gate_spread": 0.0}
    moved(method)
    found = method.figures(features)
    shares = torch.stack([w[:, 0] for w in method.shares(features)])
    assert float(found["gate_visible"]) == pytest.approx(float(shares.detach().mean()))
    assert float(found["gate_spread"]) == pytest.approx(float(shares.detach().std(1, correction=0).mean()))
    one = {m: [f[:1] for f in own] for m, own in features.items()}
    assert float(method.figures(one)["gate_spread"]) == 0, "a batch of one is a number, too"
    assert not any(value.requires_grad for value in found.values())


def test_what_is_exchanged_is_the_formula() -> None:
    method, features = complement(), drawn_features()
    moved(method)
    given = method.exchanged(features)
    for level, exchange in enumerate(method.exchanges):
        for m, other in (("visible", "thermal"), ("thermal", "visible")):
            f, g = features[m][level], features[other][level]
            z = exchange.gates[m](torch.cat([pooled(f), pooled(g)], 1))
            r, a = (gate[..., None, None] for gate in (2 * z.sigmoid()).chunk(2, 1))
            across = torch.einsum("oc,bchw->bohw", exchange.across[m].weight[..., 0, 0], g)
            torch.testing.assert_close(given[m][level], r * f + (a - 1) * across, rtol=1e-4, atol=1e-4)


def test_what_the_separator_sees_are_the_pooled_results() -> None:
    """It gets them from pooled features, without a second pass over the maps."""
    method, features = complement(), drawn_features()
    moved(method)
    given = method.exchanged(features)
    losses = []
    for m, sign in (("visible", -1), ("thermal", 1)):
        for separator, f in zip(method.separators, given[m]):
            losses.append(nn.functional.softplus(sign * separator(f.mean((2, 3)))).mean())
    torch.testing.assert_close(method.separation(features), torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_the_separator_s_loss_is_ln_2_at_chance_and_keeps_streams_apart() -> None:
    method, features = complement(), drawn_features()
    assert float(method.separation(features).detach()) == pytest.approx(math.log(2), rel=1e-6)
    for own in features.values():
        for f in own:
            f.requires_grad_()
    moved(method)
    loss = method.separation(features)
    loss.backward()
    with torch.no_grad():  # a step down the gradient at the features: they are told apart more easily, not less
        for own in features.values():
            for f in own:
                assert f.grad is not None
                f -= 10 * f.grad
        assert float(method.separation(features)) < float(loss.detach())


def test_a_separator_without_weight_is_not_there() -> None:
    """Nothing of it in the gradients, with streams exchanged; with its weight it reaches the backbones."""
    batch, found = make_batch(), {}
    for weight in ("0", "0.1"):
        model = make_model(parse_method(f"complement+separator={weight}"))
        assert isinstance(model.method, Complement)
        moved(model.method.exchanges)
        moved(model.method.separators)
        total, items = model.loss(batch)
        assert ("separator_loss" in items) == (weight != "0")
        named = {name: items[f"{name}_loss"] for name in ("box", "cls", "dfl")}
        plain = total[:3].sum()
        found[weight] = gradients(total.sum(), model.backbones), gradients(plain, model.backbones), named
    assert found["0"][2] == found["0.1"][2]
    assert all(torch.equal(a, b) for a, b in zip(found["0"][0], found["0.1"][1])), "the detection loss's alone"
    assert total_norm([a - b for a, b in zip(found["0"][0], found["0.1"][0])]) > 0


def test_a_dropped_camera_weighs_as_a_black_one() -> None:
    """With modality dropout the fusion by brightness sees the image that the fused answer is to do without as black."""
    torch.manual_seed(0)
    model = make_model(parse_method("lif+net=none"))
    model.augmentation = Augmentation(modality_dropout=1.0)
    x = torch.full((8, 4, 32, 32), 0.9)
    weights = []
    bright = model.method.bright
    model.method.bright = lambda image: weights.append(bright(image)) or weights[-1]
    torch.manual_seed(0)
    model.train()(x)
    dropped = weights[0].flatten(1).amax(1) == 0
    assert 0 < dropped.sum() < 8
    torch.testing.assert_close(weights[0][~dropped], torch.full_like(weights[0][~dropped], 0.9))


def test_senseless_settings() -> None:
    with pytest.raises(UserError, match="separator -1: give 0 or more"):
        parse_method("complement+separator=-1")
    with pytest.raises(UserError, match="method gate has no setting 'separator'"):
        parse_method("gate+separator=0.1")
