"""`instruct` (the idea of RADAR): the fused branch is told which cameras it is reading."""

from __future__ import annotations

import pytest
import torch
from test_objective import gradients, make_batch, make_model, total_norm

from rscmd_model.config import MODALITIES, other_modality
from rscmd_model.errors import UserError
from rscmd_model.methods import method_config, parse_method
from rscmd_model.methods.base import Features
from rscmd_model.methods.instruct import CASES, Instruct
from rscmd_model.network.model import RscmdModel


def instructed(settings: str = "", told: bool = False) -> tuple[RscmdModel, Instruct]:
    """A model; with `told` its biases are 1, 2 and 3 for both, only visible, only thermal."""
    model = make_model(parse_method("+".join(filter(None, ["instruct", settings]))))
    method = model.method
    assert isinstance(method, Instruct)
    for bias in method.biases if told else ():
        bias.data += torch.arange(1.0, 4.0)[:, None]
    return model, method


@pytest.mark.parametrize("fusion", ["sum", "mean", "adapt", "present"])
def test_zero_biases_and_no_dropout_are_sum(fusion: str) -> None:
    """Losses, gradients, running statistics and the random state, bit for bit."""
    plain, batch = make_model(parse_method(f"sum+fusion={fusion.replace('present', 'mean')}")), make_batch()
    model, _ = instructed(f"dropout=0+fusion={fusion}")
    state = torch.random.get_rng_state()
    for one in (plain, model):
        one.loss(batch)[0].sum().backward()
    assert torch.equal(state, torch.random.get_rng_state())
    ours = dict(model.named_parameters())
    for name, theirs in plain.named_parameters():
        assert theirs.grad is None if ours[name].grad is None else torch.equal(theirs.grad, ours[name].grad), name
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("fusion", ["sum", "mean", "adapt", "present"])
def test_a_lost_camera_is_left_out_and_its_case_is_told(fusion: str) -> None:
    """What h reads of each sample is what the answer of its case reads."""
    model, method = instructed(f"dropout=0.7+fusion={fusion}", told=True)
    x = torch.rand(12, 4, 64, 64)
    model.eval()  # where a BatchNorm does not mix samples
    seen: list[Features] = []
    model.branch("fused").register_forward_pre_hook(lambda _, args: seen.append([f.clone() for f in args[0]]))
    features = {m: model.features(x, m) for m in MODALITIES}
    model.answers_to(features, x, ["fused", *MODALITIES])
    method.train()
    for norm in method.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eval()
    torch.manual_seed(2)
    method.split(model, x, features)
    assert method.cases is not None
    cases = method.cases.clone()
    assert set(cases.tolist()) == {0, 1, 2}
    mixed = method.fuse(model, x, features)
    for level, found in enumerate(mixed):
        for n, case in enumerate(cases.tolist()):
            torch.testing.assert_close(found[n], seen[case][level][n], rtol=1e-5, atol=1e-5)


def test_what_is_read_of_a_lone_camera_is_its_features_and_its_bias() -> None:
    for fusion, factor in (("sum", 1.0), ("mean", 0.5)):
        model, method = instructed(f"fusion={fusion}", told=True)
        x = torch.rand(2, 4, 64, 64)
        features = {m: model.features(x, m) for m in MODALITIES}
        seen: list[Features] = []
        model.branch("fused").register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        for m in MODALITIES:
            method.answer(model, m, None, {m: features[m]})
            empty = [torch.zeros_like(f) for f in features[m]]
            pair = super(Instruct, method).fuse(model, x, {m: features[m], other_modality(m): empty})
            for found, f, fused in zip(seen[-1], features[m], pair):
                torch.testing.assert_close(found, factor * f + CASES.index(m) + 1)
                torch.testing.assert_close(found, fused + CASES.index(m) + 1)


def test_from_weights_a_lone_camera_is_read_at_the_scale_of_both() -> None:
    """Half of its features, in which a branch of a plain detector finds nothing, are not."""
    config = method_config("instruct", head_classes=80)
    assert config.settings == {"fusion": "present"}
    method = make_model(config).method
    features = [torch.rand(2, c, 4, 4) for c in (64, 128, 256)]
    (alone, both) = (method.joined(dict.fromkeys(cameras, features)) for cameras in (["thermal"], MODALITIES))
    for read in (alone, both):
        torch.testing.assert_close(read, features)


@pytest.mark.parametrize("camera", MODALITIES)
def test_a_lone_camera_s_answer_needs_no_other(camera: str) -> None:
    model, _ = instructed(told=True)
    model.eval()
    ran: list[str] = []
    for m in MODALITIES:
        model.backbones[m].register_forward_hook(lambda *_, m=m: ran.append(m))
    x = torch.rand(2, 4, 64, 96)
    y = x.clone()
    y[:, slice(3, 4) if camera == "visible" else slice(0, 3)] = torch.nan
    a, b = (model.answers(z, [camera])[camera][0] for z in (x, y))
    assert torch.equal(a, b)
    assert ran == [camera] * 2


def test_a_black_frame_is_not_a_missing_one() -> None:
    """The case comes from the ledger: black images, even features of nothing, are told as both cameras."""
    model, _ = instructed("dropout=0", told=True)
    seen: list[Features] = []
    model.branch("fused").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for m in MODALITIES:
        model.backbones[m].register_forward_hook(lambda _, args, output: [0 * f for f in output])
    for mode in (True, False):
        model.train(mode).answers(torch.zeros(2, 4, 64, 64), ["fused"])
        assert all(bool((f == 1).all()) for f in seen[-1]), "the bias of both"
    model.answers(torch.zeros(2, 4, 64, 64), ["thermal"])
    assert all(bool((f == 3).all()) for f in seen[-1]), "the bias of the thermal camera alone"


def test_a_lost_camera_teaches_its_backbone_nothing_and_its_image_tells_nothing() -> None:
    model, method = instructed("dropout=1")
    batch = make_batch()
    cases: list[int] = []
    for seed in range(20):  # the first in which both samples lose the same camera
        torch.manual_seed(seed)
        method.split(model, batch["img"], {})
        assert method.cases is not None
        cases = method.cases.tolist()
        if len(set(cases)) == 1:
            break
    place = cases[0]
    assert cases == [place] * 2
    lost = other_modality(CASES[place])
    losses = []
    for changed in (False, True):
        torch.manual_seed(seed)
        if changed:
            batch = make_batch()
            batch["img"][:, slice(0, 3) if lost == "visible" else slice(3, 4)] = 0.5
        losses.append(model.loss(batch)[0].sum())
    assert torch.equal(losses[0], losses[1])
    assert total_norm(gradients(losses[0], model.backbones[lost])) == 0
    assert total_norm(gradients(losses[0], model.backbones[CASES[place]])) > 0
    for bias in gradients(losses[0], method.biases):
        assert [bool(row.abs().sum() > 0) for row in bias] == [case == place for case in range(3)]


@pytest.mark.parametrize("dropout", [0.3, 0.7])
def test_shares_of_the_cases(dropout: float) -> None:
    model, method = instructed(f"dropout={dropout}")
    torch.manual_seed(0)
    method.split(model, torch.zeros(4000, 4, 1, 1), {})
    assert method.cases is not None
    shares = torch.bincount(method.cases, minlength=3) / 4000
    assert shares.tolist() == pytest.approx([1 - dropout, dropout / 2, dropout / 2], abs=0.03)
    model.eval()
    method.split(model, torch.zeros(4000, 4, 1, 1), {})
    assert method.cases is None, "in evaluation nothing is lost"


def test_a_share_is_from_0_to_1() -> None:
    for share in ("-0.1", "1.5"):
        with pytest.raises(UserError, match=r"dropout .*: give 0 to 1"):
            parse_method(f"instruct+dropout={share}")
