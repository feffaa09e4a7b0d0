"""`compensate` (after DIS2): what a lost camera would have given is made from the other one's features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_objective import equal_but_for_rounding, gradients, make_batch, make_model, total_norm
from torch import Tensor, nn

from rscmd_model.config import MODALITIES, Augmentation, other_modality
from rscmd_model.errors import UserError
from rscmd_model.methods import parse_method
from rscmd_model.methods.base import Features
from rscmd_model.methods.compensate import REHEARSED, Compensate
from rscmd_model.network.model import RscmdModel


def compensating(settings: str = "") -> tuple[RscmdModel, Compensate]:
    model = make_model(parse_method("+".join(filter(None, ["compensate", settings]))))
    assert isinstance(model.method, Compensate)
    return model, model.method


class Reads(nn.Module):
    """In the place of the fused branch: answers with the features that it is given."""

    def forward(self, features: Features) -> dict[str, Any]:
        return {"read": features}


@pytest.mark.parametrize("fusion", ["sum", "mean", "adapt"])
def test_with_both_cameras_it_answers_as_the_same_weights_without_translators(fusion: str) -> None:
    model, _ = compensating(f"fusion={fusion}")
    plain = make_model(parse_method(f"sum+fusion={fusion}"), seed=1)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "translators" not in k})
    x = torch.rand(2, 4, 64, 96)
    ours, theirs = model.eval().answers(x, ["fused"]), plain.eval().answers(x)
    assert torch.equal(ours["fused"][0], theirs["fused"][0])


@pytest.mark.parametrize("settings", ["kd=0+div=0", ""])
def test_backbones_learn_as_those_of_sum(settings: str) -> None:
    """Whatever the weights: the gradient is cut. Let through, it reaches them.

    Not bit for bit on every processor: all answers are scored as one batch, and where its vectors end the arithmetic is
    another.
    """
    batch, plain = make_batch(), make_model(parse_method("sum"))
    expected = gradients(plain.loss(batch)[0].sum(), plain.backbones)
    torch.manual_seed(3)
    model, method = compensating(settings)
    method.progress = 1.0
    total, items = model.loss(batch)
    for a, b in zip(gradients(total.sum(), model.backbones), expected):
        assert equal_but_for_rounding(a, b)
    for name, value in plain.loss(batch)[1].items():
        assert torch.equal(items[name], value), name
    assert total_norm(gradients(total.sum(), method.translators)) > 0
    open_one, _ = compensating("stop_gradient=off+" + (settings or "kd=5"))
    reached = gradients(open_one.loss(batch)[0].sum(), open_one.backbones)
    assert total_norm([a - b for a, b in zip(reached, expected)]) > 1e-3 * total_norm(expected)


@pytest.mark.parametrize("camera", MODALITIES)
def test_a_lone_camera_s_answer_needs_no_other(camera: str) -> None:
    """Neither its image nor its backbone."""
    model, _ = compensating()
    model.eval()
    ran: list[str] = []
    for m in MODALITIES:
        model.backbones[m].register_forward_hook(lambda *_, m=m: ran.append(m))
    x, y = torch.rand(2, 4, 64, 96), torch.rand(2, 4, 64, 96)
    own = slice(0, 3) if camera == "visible" else slice(3, 4)
    y[:, own] = x[:, own]
    y[:, slice(3, 4) if camera == "visible" else slice(0, 3)] = torch.nan
    a, b = (model.answers(z, [camera])[camera][0] for z in (x, y))
    assert torch.equal(a, b)
    assert ran == [camera] * 2


@pytest.mark.parametrize("fusion", ["sum", "mean", "adapt"])
def test_what_is_rehearsed_is_what_a_lone_camera_s_answer_reads(fusion: str) -> None:
    """Each sample with the camera that was drawn for it, at the scale of the fusion."""
    model, method = compensating(f"fusion={fusion}")
    model.eval()  # where a BatchNorm does not mix samples
    x = torch.rand(8, 4, 64, 64)
    features = {m: model.features(x, m) for m in MODALITIES}
    model.branches["fused"] = Reads()
    torch.manual_seed(5)
    lost = torch.rand(8) < 0.5
    assert 0 < int(lost.sum()) < 8
    torch.manual_seed(5)
    answers = model.answers_to(features, x, ["fused", *MODALITIES, REHEARSED])
    _, visible, thermal, rehearsed = (answer["read"] for answer in answers.values())
    for level in range(3):
        expected = torch.where(lost.view(-1, 1, 1, 1), thermal[level], visible[level])
        torch.testing.assert_close(rehearsed[level], expected, rtol=1e-5, atol=1e-5)
    if fusion != "adapt":
        factor = 0.5 if fusion == "mean" else 1.0
        for level, f in enumerate(features["visible"]):
            made = method.translators["visible"](features["visible"])[level]
            torch.testing.assert_close(visible[level], factor * (f + made), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("settings", "share"), [("", 0.5), ("visible_lost=0.6", 0.6)])
def test_the_shares_of_what_is_lost_add_up(settings: str, share: float) -> None:
    """Over many batches each sample loses one camera, the visible one in its share."""
    model, method = compensating(settings)
    counted = torch.zeros(2)
    # One backbone says 1 and the other 2, and translators ten times that, so what h reads tells who was there.
    alone = {m: [torch.full((50, 1, 1, 1), float(n))] for n, m in enumerate(MODALITIES, 1)}
    for m in MODALITIES:
        method.translators[m] = TenTimes()
    model.branches["fused"] = Reads()
    torch.manual_seed(0)
    for _ in range(40):
        read = method.answer(model, REHEARSED, [torch.ones(50, 1, 1, 1)], alone)["read"][0].flatten()
        here = torch.stack([(read == 22).sum(), (read == 11).sum()])  # thermal alone, visible alone
        assert int(here.sum()) == 50
        counted += here
    assert float(counted[0] / counted.sum()) == pytest.approx(share, abs=0.03)  # 2000 draws: three deviations


class TenTimes(nn.Module):
    def forward(self, features: Features) -> Features:
        return [10 * f for f in features]


def test_the_losses_between_features_are_what_they_are_called() -> None:
    model, method = compensating("visible_lost=0.999999")  # so the thermal camera is there, and c_t is read
    batch = make_batch()
    features = {m: model.features(batch["img"], m) for m in MODALITIES}
    model.branches["fused"] = Reads()
    rehearsed = model.answers_to(features, batch["img"], ["fused", REHEARSED])[REHEARSED]
    made = method.translators["thermal"](features["thermal"])
    cos = torch.nn.functional.cosine_similarity
    kd = [
        1 - cos(v + t, t + c, dim=1).mean()
        for v, t, c in zip(features["visible"], features["thermal"], made, strict=True)
    ]
    div = [cos(c.mean((2, 3)), t.mean((2, 3))).square().mean() for c, t in zip(made, features["thermal"])]
    torch.testing.assert_close(rehearsed["kd"], torch.stack(kd).mean())
    torch.testing.assert_close(rehearsed["div"], torch.stack(div).mean())


@pytest.mark.parametrize("name", ["kd", "div"])
def test_a_perfect_compensation_costs_nothing(name: str) -> None:
    """kd is 0 where c_m is what the other camera gave; div where it shares nothing with what is there."""
    model, method = compensating()
    x = torch.rand(2, 4, 64, 64)
    features = {m: model.features(x, m) for m in MODALITIES}
    if name == "div":  # channels that one camera uses alone
        for place, own in enumerate(features.values()):
            for f in own:
                f.data[:, place :: len(MODALITIES)] = 0
    for m in MODALITIES:
        method.translators[m] = Answers(features[other_modality(m)])
    model.branches["fused"] = Reads()
    rehearsed = method.answer(model, REHEARSED, method.fuse(model, x, features), features)
    assert float(rehearsed[name].detach()) == pytest.approx(0, abs=1e-6)


class Answers(nn.Module):
    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features

    def forward(self, features: Features) -> Features:
        return self.features


def test_the_full_path_is_no_pupil_and_kd_begins_after_its_warm_up() -> None:
    """The two losses between features teach the translators alone."""
    model, method = compensating()
    assert method.weights == {"kd": 0.0, "div": 1.0}
    method.progress = 0.05
    assert method.weights == {"kd": 5.0, "div": 1.0}
    batch = make_batch()
    answers = model.answers(batch["img"])
    for name in ("kd", "div"):
        assert total_norm(gradients(answers[REHEARSED][name], model.backbones)) == 0
        assert total_norm(gradients(answers[REHEARSED][name], model.branches)) == 0
        assert total_norm(gradients(answers[REHEARSED][name], method.translators)) > 0


def test_with_modality_dropout_the_full_path_is_still_both_images() -> None:
    """What is striven for is never the features of a black image."""
    kd: dict[float, Tensor] = {}
    for dropout in (0.0, 1.0):
        model, _ = compensating()
        model.augmentation = Augmentation(modality_dropout=dropout)
        model.branches["fused"] = Reads()
        x = make_batch()["img"]
        features = {m: model.features(x, m) for m in MODALITIES}
        model.method.settings.__dict__["visible_lost"] = 2.0  # so the draws that dropout takes before do not matter
        kd[dropout] = model.answers_to(features, x, ["fused", REHEARSED])[REHEARSED]["kd"]
    torch.testing.assert_close(kd[0.0], kd[1.0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("kd=-1", "kd -1: give 0 or more"),
        ("div=-0.5", "div -0.5: give 0 or more"),
        ("kd_from=2", "kd_from 2: give 0 to 1"),
        ("visible_lost=0", "must be more than 0"),
        ("visible_lost=1", "must be less than 1"),
        ("stop_gradient=half", "is not one of on, off"),
    ],
)
def test_senseless_settings(settings: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        parse_method(f"compensate+{settings}")
    assert "\n" not in str(refused.value)
