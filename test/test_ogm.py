"""Gradient modulation, its noise, and prediction modulation: what each does to features and gradients, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objective import make_batch, make_model
from test_pairs import write_world
from test_train import QUICK
from torch import Tensor

from rscmd_model.config import MODALITIES, Augmentation
from rscmd_model.errors import UserError
from rscmd_model.methods import parse_method
from rscmd_model.methods.gradient_scale import scale_gradients
from rscmd_model.methods.ogm import modulation
from rscmd_model.methods.opm import drop_probability
from rscmd_model.network.model import RscmdModel
from rscmd_model.training.run import train


def warm(method: str, visible: float = 3.0, thermal: float = 1.0, progress: float = 0.5) -> RscmdModel:
    """A model in training that has scored its modalities for long, with these means."""
    model = make_model(parse_method(method))
    method_: Any = model.method
    method_.score.means.copy_(torch.tensor([visible, thermal, 20.0]))
    method_.score.counted.fill_(100)
    method_.progress = progress
    return model


Step = tuple[dict[str, Tensor], dict[str, Tensor]]


def step(model: RscmdModel, batch: Any = None) -> Step:
    """Named losses of a batch, and the gradients that the optimizer would be given."""
    total, losses = model.loss(batch or make_batch())
    total.sum().backward()
    model.method.before_step(model)
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_step(ours: Step, theirs: Step) -> None:
    """Bit for bit."""
    for mine, its in zip(ours, theirs):
        assert set(mine) == set(its)
        assert [name for name in mine if not torch.equal(mine[name], its[name])] == []


def test_an_identity_scales_gradients_and_by_one_it_does_nothing() -> None:
    features = {m: [torch.randn(2, 3, 4, 4, requires_grad=True)] for m in MODALITIES}
    weight = torch.randn(2, 3, 4, 4)
    scaled = scale_gradients(features, torch.tensor([0.3, 1.0]))
    for m, k in zip(MODALITIES, (0.3, 1.0)):
        (f,), (out,) = features[m], scaled[m]
        assert torch.equal(f, out)
        (out * weight).sum().backward()
        assert f.grad is not None
        assert torch.equal(f.grad, weight * torch.tensor(k))
    for kind in (torch.bfloat16, torch.float16):
        half = torch.ones(2, dtype=kind, requires_grad=True)
        scale_gradients({"visible": [half]}, torch.tensor([0.5]))["visible"][0].sum().backward()
        assert half.grad is not None
        assert half.grad.dtype == kind
        assert half.grad.tolist() == [0.5, 0.5]


@settings(max_examples=200, deadline=None)
@given(st.floats(1 / 40, 40), st.floats(0, 0.99), st.sampled_from(["text", "code"]))
def test_k_is_within_0_and_1_and_one_of_both_is_1(rho: float, alpha: float, form: str) -> None:
    ratios = torch.tensor([rho, 1 / rho])
    k = modulation(ratios, alpha, form)
    assert ((k > 0) & (k <= 1)).all()
    assert (k[ratios <= 1] == 1).all()
    assert (k < 1).sum() <= 1
    assert torch.equal(modulation(ratios.flip(0), alpha, form), k.flip(0)), "cameras that change places change k"


def test_k_is_that_of_the_text_and_that_of_the_codes() -> None:
    one, above, ten = torch.tensor([1.0, 1.0]), torch.tensor([1 + 1e-6, 1 - 1e-6]), torch.tensor([10.0, 0.1])
    for form in ("text", "code"):
        assert modulation(one, 0.8, form).tolist() == [1.0, 1.0], "the comparison is strict"
    assert modulation(above, 0.8, "text").tolist() == pytest.approx([1, 1], abs=2e-6)
    assert modulation(above, 0.8, "code").tolist() == pytest.approx([0.336, 1], abs=1e-3)
    assert modulation(above, 0.1, "code").tolist() == pytest.approx([0.900, 1], abs=1e-3)
    assert modulation(ten, 0.8, "text").tolist() == pytest.approx([0.2, 1], abs=1e-5), "1 - alpha"
    assert 0 < modulation(ten, 0.8, "code")[0] < 1e-6


@pytest.mark.parametrize("fusion", ["sum", "mean", "adapt"])
def test_backbones_receive_k_times_what_sum_gives_them(fusion: str) -> None:
    plain, model = make_model(parse_method(f"sum+fusion={fusion}")), warm(f"ogm+fusion={fusion}", 2.0, 3.0)
    k = 1 - 0.8 * torch.tanh(torch.tensor(0.5))
    (losses, grads), (expected_losses, expected) = step(model), step(plain)
    assert {n: float(v) for n, v in losses.items()} == {n: float(v) for n, v in expected_losses.items()}
    assert set(grads) == set(expected)
    thermal = [n for n in grads if n.startswith("backbones.thermal")]
    assert len(thermal) > 50, "convolutions and BatchNorm alike"
    for name, grad in grads.items():
        if name in thermal:
            torch.testing.assert_close(
                grad, k * expected[name], rtol=1e-3, atol=1e-5 * float(expected[name].abs().max())
            )
        else:
            assert torch.equal(grad, expected[name]), name


def test_neutral_settings_are_sum() -> None:
    expected = step(make_model(parse_method("sum")))
    for form in ("text", "code"):
        assert_same_step(step(warm(f"ogm+alpha=0+form={form}")), expected)
    assert_same_step(step(warm("ogm+form=code", 2.0, 2.0)), expected)
    assert_same_step(step(make_model(parse_method("ogm+ogm_from=0+ogm_until=1"))), expected)
    for progress in (0.05, 0.6):
        assert_same_step(step(warm("ogm+ge=on", progress=progress)), expected)
    assert_same_step(step(warm("opm+q_base=0")), expected)
    assert_same_step(step(warm("opm+p_exe=1", 2.0, 2.0)), expected)
    assert_same_step(step(warm("opm+opm_until=0.4")), expected)


@pytest.mark.parametrize("fusion", ["mean", "adapt"])
def test_neutral_settings_are_sum_with_its_other_fusions(fusion: str) -> None:
    expected = step(make_model(parse_method(f"sum+fusion={fusion}")))
    assert_same_step(step(warm(f"ogm+alpha=0+fusion={fusion}")), expected)
    assert_same_step(step(warm(f"opm+p_exe=1+fusion={fusion}", 2.0, 2.0)), expected)


@pytest.mark.parametrize("method", ["ogm+ge=on", "opm+ogm=on"])
def test_nothing_is_modulated_in_evaluation(method: str) -> None:
    x = make_batch()["img"]
    model = warm(method).eval()
    plain = make_model(parse_method("sum")).eval()
    with torch.no_grad():
        assert torch.equal(model.answers(x)["fused"][0], plain.answers(x)["fused"][0])
    assert set(model.state_dict()) - set(plain.state_dict()) == {"method.score.means", "method.score.counted"}
    assert dict(model.named_parameters()).keys() == dict(plain.named_parameters()).keys()


def test_scores_are_taken_as_the_interval_says_while_they_are_of_use() -> None:
    model: Any = make_model(parse_method("ogm+score_every=2+ogm_from=0.3"))
    counted = []
    for progress in (0.0, 0.0, 0.0, 0.5, 0.6, 0.6):
        model.method.progress = progress
        model.loss(make_batch())
        counted.append(int(model.method.score.counted))
    assert counted == [1, 1, 2, 3, 3, 3]
    opm: Any = make_model(parse_method("opm+opm_until=0.2+ogm=on"))
    assert [setattr(opm.method, "progress", p) or opm.method.scoring for p in (0.1, 0.4, 0.7)] == [True, True, False]


def noisy(model: RscmdModel, scale: float = 1.0, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbones' gradients before and after generalisation enhancement."""
    generator = torch.Generator().manual_seed(1)
    before = {}
    for number, (name, p) in enumerate(model.backbones.named_parameters()):
        before[name] = scale * 10 ** (number % 5 - 3) * (torch.randn(p.shape, generator=generator) + 0.3)
        p.grad = before[name].clone()
    torch.manual_seed(seed)
    model.method.before_step(model)
    return before, {name: p.grad for name, p in model.backbones.named_parameters() if p.grad is not None}


def test_the_noise_has_mean_0_and_the_deviation_of_the_gradient_before_it_is_scaled() -> None:
    model = warm("ogm+ge=on", 3.0, 1.0)
    k = {"visible": float(modulation(torch.tensor([3.0, 1 / 3]), 0.8, "text")[0]), "thermal": 1.0}
    before, after = noisy(model)
    drawn = {m: [] for m in MODALITIES}  # type: dict[str, list[Tensor]]
    for name, p in model.backbones.named_parameters():
        camera = name.split(".")[0]
        noise = after[name] - before[name] * torch.tensor(k[camera])
        if p.dim() != 4:
            assert torch.equal(noise, torch.zeros_like(noise)), f"{name} is no convolution's weight"
            continue
        noise /= before[name].std()
        number = noise.numel()
        assert abs(float(noise.mean())) < 5 / number**0.5, name
        assert abs(float(noise.std()) - 1) < 5 / (2 * number) ** 0.5, name
        drawn[camera].append(noise.flatten())
    for camera, noises in drawn.items():
        assert abs(float(torch.cat(noises).mean())) < 5e-3, camera
        assert abs(float(torch.cat(noises).std()) - 1) < 5e-3, camera
    assert not torch.equal(drawn["visible"][1], drawn["thermal"][1])


def test_the_noise_follows_the_seed_and_a_gradient_scaler_s_factor() -> None:
    once, again, other, scaled = (
        noisy(warm("ogm+ge=on"), *words)[1] for words in ((1.0, 0), (1.0, 0), (1.0, 1), (2.0**16, 0))
    )
    name = "visible.b0.conv.weight"
    assert torch.equal(once[name], again[name])
    assert not torch.equal(once[name], other[name])
    assert torch.equal(once[name] * 2.0**16, scaled[name])
    frozen = warm("ogm+ge=on")
    frozen.backbones["visible"].requires_grad_(False)
    assert not any(name.startswith("backbones.visible") for name in step(frozen)[1])


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(0, 0.5), st.floats(0, 1))
def test_only_the_surer_camera_is_lost_and_within_its_rate(rho: float, q_base: float, lam: float) -> None:
    ratios = torch.tensor([rho, 1 / rho])
    q = drop_probability(ratios, q_base, lam)
    assert (q[ratios <= 1] == 0).all()
    assert (q >= 0).all()
    assert (q <= q_base * (1 + lam) * (1 + 1e-6)).all()
    assert (q[ratios > 1] >= q_base * (1 - 1e-6)).all()
    assert torch.equal(drop_probability(ratios.flip(0), q_base, lam), q.flip(0))


@pytest.mark.parametrize(("visible", "thermal"), [(50.0, 1.0), (1.0, 50.0)])
def test_the_surer_camera_is_lost_as_often_as_its_rate_says(visible: float, thermal: float) -> None:
    model = warm("opm", visible, thermal)
    features = {m: [torch.full((64, 1, 1, 1), 7.0)] for m in MODALITIES}
    model.features = lambda x, m: [torch.zeros(1, 1, 1, 1)]  # type: ignore[method-assign]
    torch.manual_seed(0)
    surer, weaker = MODALITIES if visible > thermal else MODALITIES[::-1]
    lost = []
    for _ in range(200):
        to_fuse, _own = model.split(features, torch.zeros(64, 4, 1, 1))
        assert (to_fuse[weaker][0] == 7).all()
        lost.append(float((to_fuse[surer][0] == 0).float().mean()))
    taking_part = [share for share in lost if share]
    assert len(taking_part) / 200 == pytest.approx(0.7, abs=0.1)
    assert sum(taking_part) / len(taking_part) == pytest.approx(0.5 * 1.5, abs=0.02)


def test_a_lost_camera_is_black_and_learns_nothing() -> None:
    """Its features are those of evaluation, and what is kept is kept as it is: nothing is divided by 1 - theta."""
    model = warm("opm+p_exe=1+q_base=1+lam=0")
    x = make_batch()["img"]
    features = {m: model.features(x, m) for m in MODALITIES}
    statistics = {n: b.clone() for n, b in model.named_buffers()}
    to_fuse, own = model.split(features, x)
    assert all(a is b for m in MODALITIES for a, b in zip(own[m], features[m]))
    assert all(torch.equal(a, b) for a, b in zip(to_fuse["thermal"], features["thermal"]))
    model.method.fuse(model, x, to_fuse)[0].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.backbones["visible"].parameters())
    assert all(torch.equal(b, statistics[n]) for n, b in model.named_buffers())
    with torch.no_grad():
        black = model.eval().features(torch.zeros(1, 4, 64, 64), "visible")
    for level, expected in zip(to_fuse["visible"], black):
        assert all(torch.equal(one, expected[0]) for one in level)


def test_both_modulations_go_together() -> None:
    """What is not lost of the surer camera is held back as well."""
    model, plain = warm("opm+ogm=on+p_exe=0", 3.0, 1.0), warm("ogm", 3.0, 1.0)
    assert_same_step(step(model), step(plain))
    model = warm("opm+ogm=on+p_exe=1+q_base=1+lam=0", 3.0, 1.0)
    grads = step(model)[1]
    assert not any(grads[n].any() for n in grads if n.startswith("backbones.visible"))
    assert any(grads[n].any() for n in grads if n.startswith("backbones.thermal"))


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    for words, says in {
        "ogm+alpha=1.1": "alpha 1.1 is not within 0 and 1",
        "ogm+ogm_from=0.6": "ogm_from 0.6 and ogm_until 0.6 are shares",
        "opm+opm_until=2": "opm_from 0.06 and opm_until 2 are shares",
        "opm+q_base=0.8": "q_base 0.8 and lam 0.5 make a probability",
        "opm+lam=-0.1": "lam -0.1: give 0 or more",
        "opm+p_exe=1.5": "p_exe 1.5: give 0 to 1",
        "opm+ge=on": "ge is a setting of gradient modulation: give ogm=on too",
        "opm+alpha=0.1": "alpha is a setting of gradient modulation",
    }.items():
        with pytest.raises(UserError, match=says):
            parse_method(words)
    options = {**QUICK, "project": str(tmp_path), "name": "run"}
    with pytest.raises(UserError, match="opm takes cameras away by itself: leave out modality dropout"):
        train(write_world(tmp_path / "data"), parse_method("opm"), options, None, Augmentation(modality_dropout=0.3))
