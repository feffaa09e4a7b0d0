"""Methods that learn from the two single-camera controls, and the fusion by light that goes with them."""

from __future__ import annotations

import copy
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from controls import control, controls
from lives import assert_lives
from test_objective import NAMES, make_batch, make_model
from test_resume import OPTIONS
from test_train import two_class_world
from torch import Tensor

from rscmd_model.config import MODALITIES
from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.methods import METHODS, method_config, needs_teachers, parse_method
from rscmd_model.methods.distances import channel_wise, correlation, standardised
from rscmd_model.methods.g2d import answer_distance
from rscmd_model.methods.lif import Lif, brightest
from rscmd_model.methods.m2d import salience
from rscmd_model.methods.smp import Smp
from rscmd_model.network.distillation import OldAnswers
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import read_header, save_model
from rscmd_model.network.objective import TrainingStep
from rscmd_model.network.teachers import Teachers
from rscmd_model.training.run import train
from rscmd_model.training.trainer import PairedTrainer

TAUGHT = [method for method in METHODS if needs_teachers(parse_method(method))]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return controls(tmp_path_factory.mktemp("controls"))


def step(method: str, teachers: Teachers | None, seed: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """The named losses of one step, and every gradient."""
    model = make_model(parse_method(method))
    model.teachers = teachers
    model.method.start(model, lambda: [make_batch()])
    total, losses = model.loss(make_batch(seed))
    total.sum().backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "neutral",
    [
        *("m2d+lambda_m2d=0", "smp+smp_until=0", "g2d+smp_until=0+lambda_feature=0+lambda_logit=0"),
        *("lif+beta=0+lambda_lif=0", "lif+beta=0+net=none", "m2dlif+beta=0+lambda_m2d=0+lambda_lif=0"),
    ],
)
@pytest.mark.parametrize("fusion", ["sum", "mean", "adapt"])
def test_neutral_settings_are_plain_fusion_bit_for_bit(neutral: str, fusion: str, files: dict[str, Path]) -> None:
    losses, gradients = step(f"sum+fusion={fusion}", None)
    theirs, taught = step(
        f"{neutral}+fusion={fusion}", Teachers(files) if needs_teachers(parse_method(neutral)) else None
    )
    assert losses == {name: theirs[name] for name in losses}
    for name, gradient in gradients.items():
        other = taught[name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or torch.equal(gradient, other), name


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 4, 8, 6)
    for distance in (channel_wise, correlation):
        student = maps.clone().requires_grad_()
        loss = distance(standardised(student), standardised(maps))
        (gradient,) = torch.autograd.grad(loss, student)
        assert abs(loss.item()) < 1e-6, distance
        assert gradient.abs().max() < 1e-6, distance
        assert distance(standardised(torch.randn(3, 4, 8, 6)), standardised(maps)) > 0.1, distance


def test_distances_by_hand() -> None:
    student, teacher = torch.tensor([[[[0.0, math.log(3.0)]]]]), torch.zeros(1, 1, 1, 2)
    # softmaxes (1/4, 3/4) and (1/2, 1/2)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert channel_wise(student, teacher).item() == pytest.approx(expected)
    one = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    assert correlation(one, 5 * one - 3).item() == pytest.approx(0, abs=1e-6)
    assert correlation(one, -one).item() == pytest.approx(2)
    assert correlation(one, torch.ones_like(one)).item() == pytest.approx(1), "a constant map is uncorrelated"


def test_salience_is_where_a_value_leaves_its_channels_mean() -> None:
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, 1, 2] = 1.0
    found = salience(maps)
    assert found[0, 0].argmax() == 6
    torch.testing.assert_close(found[0, 1], torch.full((4, 4), torch.sigmoid(torch.tensor(0.5))))
    assert found.min() > 0.62
    assert found.max() < 1


def test_distillation_counts_a_pair_alike_in_any_batch(files: dict[str, Path]) -> None:
    model = make_model(parse_method("m2d"))
    model.teachers = Teachers(files)
    batch = make_batch()
    twice = {
        "img": torch.cat([batch["img"]] * 2),
        "batch_idx": torch.cat([batch["batch_idx"], batch["batch_idx"] + 2]),
        **{key: torch.cat([batch[key]] * 2) for key in ("cls", "bboxes")},
    }
    (_, once), (_, doubled) = copy.deepcopy(model).loss(batch), model.loss(twice)
    for name in ("inner_loss", "cross_loss"):
        torch.testing.assert_close(doubled[name], once[name], rtol=1e-4, atol=1e-6)


def test_distillation_teaches_each_backbone_and_falls_to_a_tenth(files: dict[str, Path]) -> None:
    model = make_model(parse_method("m2d"))
    model.teachers = Teachers(files)
    features = {m: model.features(make_batch()["img"], m) for m in MODALITIES}
    answers = model.answers_to(features, make_batch()["img"], ("fused",))
    assert model.criterion is None
    scored = {"fused": model.init_criterion().detection(answers["fused"], make_batch())}
    losses = model.method.losses(model, TrainingStep(make_batch(), features, answers, scored))
    for name in ("inner", "cross"):
        for m in MODALITIES:
            weights = [p for p in model.backbones[m].parameters() if p.requires_grad]
            found = torch.autograd.grad(losses[name], weights, retain_graph=True)
            assert any(g.abs().max() > 0 for g in found), (name, m)
    course = []
    for model.method.progress in (0.0, 0.5, 1.0):
        course.append(model.method.weights["inner"])
    assert course == pytest.approx([0.1, 0.055, 0.01])


def test_brightness_decides_within_the_published_bounds() -> None:
    lif = make_model(parse_method("lif")).method
    assert isinstance(lif, Lif)
    weights = lif.weight(torch.tensor([0.0, 0.31, 0.62, 0.93, 5.0]))
    torch.testing.assert_close(weights, torch.tensor([0.3, 0.5, 0.7, 0.7, 0.7]))
    x = torch.rand(2, 4, 64, 96)
    weights = lif.weight(lif.bright(x))
    assert weights.shape == (2, 1, 8, 12)
    assert 0.3 - 1e-6 <= weights.min() <= weights.max() <= 0.7 + 1e-6
    ones = {m: [torch.ones(2, 1, 64 // s, 96 // s) for s in (8, 16, 32)] for m in MODALITIES}
    for fused in lif.fuse(make_model(parse_method("lif")), x, ones):
        torch.testing.assert_close(fused, torch.full_like(fused, 2.0))  # the weights of both streams add up to 2


@pytest.mark.parametrize("net", ["scaled", "none"])
def test_a_black_visible_image_has_one_weight_everywhere(net: str) -> None:
    lif = make_model(parse_method(f"lif+net={net}")).method
    assert isinstance(lif, Lif)
    x = torch.cat([torch.zeros(1, 3, 64, 64), torch.rand(1, 1, 64, 64)], 1)
    inner = lif.weight(lif.bright(x))[..., 1:-1, 1:-1]  # the net pads, and has biases
    assert inner.max() - inner.min() < 1e-6
    if net == "none":
        torch.testing.assert_close(inner, torch.full_like(inner, 0.3))


def test_the_net_learns_the_brightness() -> None:
    torch.manual_seed(0)
    lif = make_model(parse_method("lif")).method
    assert isinstance(lif, Lif)
    optimizer = torch.optim.Adam(lif.parameters(), lr=0.01)
    levels = torch.rand(8, 1, 1, 1)
    x = (levels * torch.rand(8, 4, 32, 32)).clamp(0, 1)
    for _ in range(60):
        loss = (lif.bright(x) - brightest(x)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.08


def test_frozen_takes_the_controls_backbones(files: dict[str, Path]) -> None:
    model, teachers = make_model(parse_method("frozen")), Teachers(files)
    model.teachers = teachers
    model.method.start(model, lambda: [])
    assert model.teachers is None
    for m in MODALITIES:
        theirs = teachers.backbone(m).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in model.backbones[m].state_dict().items())


def steps(model: RscmdModel, count: int) -> None:
    """Steps of SGD with momentum and weight decay."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    for number in range(count):
        optimizer.zero_grad()
        model.loss(make_batch(number))[0].sum().backward()
        optimizer.step()


def moved(model: RscmdModel, before: dict[str, Tensor]) -> set[str]:
    """The modalities whose backbones' weights are not the same any more."""
    return {
        m for m in MODALITIES for n, p in model.backbones[m].named_parameters() if not torch.equal(p, before[m + n])
    }


@pytest.mark.parametrize("stronger", MODALITIES)
def test_the_surer_backbone_waits_and_then_goes_on(stronger: str) -> None:
    """Its weights stay bit for bit, whatever weight decay and momentum; its running statistics go on."""
    model = make_model(parse_method(f"smp+stronger={stronger}"))
    other = MODALITIES[1 - MODALITIES.index(stronger)]

    def weights() -> dict[str, Tensor]:
        return {m + n: p.detach().clone() for m in MODALITIES for n, p in model.backbones[m].named_parameters()}

    before, mean = weights(), model.backbones[stronger].get_buffer("b0.bn.running_mean").clone()
    steps(model, 2)
    assert moved(model, before) == {other}
    assert not torch.equal(model.backbones[stronger].get_buffer("b0.bn.running_mean"), mean)
    before, model.method.progress = weights(), 0.5
    steps(model, 2)
    assert moved(model, before) == set(MODALITIES)


def test_the_controls_scores_decide_who_waits(files: dict[str, Path]) -> None:
    model = make_model(parse_method("smp"))
    model.teachers = teachers = Teachers(files)
    method = model.method
    assert isinstance(method, Smp)
    with torch.no_grad():  # one control is made sure of everything
        for layer in (tower[-1] for tower in teachers._models["thermal"].network.branch("thermal").head.cv3):
            layer.bias.fill_(3.0)
    method.start(model, lambda: [make_batch(1), make_batch(2)])
    assert model.training
    visible, thermal = method.sure.tolist()
    assert 0 < visible < 0.2 < 0.8 < thermal < 1
    assert method.waits == "thermal"
    teachers._models = dict(zip(MODALITIES, [teachers._models[m] for m in reversed(MODALITIES)]))
    method.sure.copy_(method.sure.flip(0))
    assert method.waits == "visible", "with the scores swapped the other one waits"
    method.sure.fill_(0.5)
    assert method.waits is None, "of equals none waits"
    model.eval()
    method.sure.copy_(torch.tensor([0.1, 0.2]))
    assert method.waits is None


def test_a_control_teaches_what_it_sees_alone() -> None:
    torch.manual_seed(0)
    student, teacher = ({"scores": torch.randn(2, 3, 5), "boxes": torch.randn(2, 8, 5)} for _ in range(2))
    student = {name: value.requires_grad_() for name, value in student.items()}
    nowhere = torch.zeros(0, dtype=torch.int64)
    assert answer_distance(student, teacher, (nowhere, nowhere), nowhere, 1.0) == 0
    at, classes = (torch.tensor([0, 1]), torch.tensor([1, 4])), torch.tensor([2, 0])
    seen = answer_distance(student, teacher, at, classes, 1.0)
    by_hand = 0.0
    for pair, anchor, cls in ((0, 1, 2), (1, 4, 0)):
        s, t = student["scores"][pair, :, anchor], teacher["scores"][pair, :, anchor].sigmoid()
        entropy = -(t * s.sigmoid().log() + (1 - t) * (1 - s.sigmoid()).log()).sum()
        log_p, log_q = (of["boxes"][pair, :, anchor].view(4, 2).log_softmax(1) for of in (teacher, student))
        by_hand += t[cls] * (entropy + (log_p.exp() * (log_p - log_q)).sum(1).mean()) / 2
    torch.testing.assert_close(seen, by_hand)
    teacher["scores"][0, 2, 1] = -30.0  # it does not see the object of the first pair at all
    (gradient,) = torch.autograd.grad(answer_distance(student, teacher, at, classes, 1.0), student["scores"])
    assert gradient[0].abs().max() < 1e-10
    assert gradient[1].abs().max() > 1e-3


def test_teachers_are_no_part_of_the_model(files: dict[str, Path]) -> None:
    model = make_model(parse_method("m2d"))
    before = set(model.state_dict())
    model.teachers = Teachers(files)
    assert set(model.state_dict()) == before
    assert copy.deepcopy(model).teachers is model.teachers
    kept = pickle.dumps(model.teachers)
    assert len(kept) < 2000, "a checkpoint names files"
    again = pickle.loads(kept).reopened()
    x = torch.rand(1, 4, 64, 64)
    for m in MODALITIES:
        for ours, theirs in zip(model.teachers.features(x)[m], again.features(x)[m]):
            assert torch.equal(ours, theirs)
            assert not ours.requires_grad


def test_an_epoch_leaves_the_teachers_as_they_are(files: dict[str, Path]) -> None:
    teachers = Teachers(files)
    before = {m: copy.deepcopy(teachers.backbone(m).state_dict()) for m in MODALITIES}
    model = make_model(parse_method("m2d"))
    model.teachers = teachers
    for number in range(2):
        model.loss(make_batch(number))[0].sum().backward()
    for m in MODALITIES:
        assert all(torch.equal(value, before[m][name]) for name, value in teachers.backbone(m).state_dict().items())
        assert all(p.grad is None for p in teachers.backbone(m).parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {"thermal": f["visible"]}, "is no detector of the thermal camera alone but visible"),
        (lambda f: {"visible": f["visible"].with_name("none.safetensors")}, "no model file"),
        (lambda f: {"visible": control(f["visible"].parent / "other", "visible", scale="s")}, "is a YOLOv8s, and the"),
        (
            lambda f: {"thermal": control(f["visible"].parent / "x", "thermal", split_hash="def")},
            "another training spl",
        ),
        (lambda f: {"thermal": control(f["visible"].parent / "y", "thermal", names={0: "dog"})}, "finds dog; the data"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(
    change: Callable[[dict[str, Path]], dict[str, Path]], message: str, files: dict[str, Path]
) -> None:
    with pytest.raises(UserError, match=message):
        Teachers({**files, **change(files)}).check(parse_method("m2d"), NAMES, "abc", ThermalContract())


def test_a_teacher_that_reads_thermal_images_otherwise_is_refused(files: dict[str, Path]) -> None:
    teachers = Teachers(files)
    teachers.check(parse_method("m2d"), NAMES, "abc", ThermalContract(palette_ok=True))
    with pytest.raises(UserError, match=r"thermal.safetensors reads thermal images by .* train it on the same data"):
        teachers.check(parse_method("m2d"), NAMES, "abc", ThermalContract(scale=(0, 60)))


@pytest.mark.parametrize("setting", ["m2d+lambda_m2d", "lif+lambda_lif", "g2d+lambda_feature", "g2d+lambda_logit"])
def test_a_weight_is_not_negative(setting: str) -> None:
    parse_method(f"{setting}=0")
    with pytest.raises(UserError, match=f"{setting.split('+')[1]} -1: give 0 or more"):
        parse_method(f"{setting}=-1")


def test_the_command_line_asks_for_teachers_and_refuses_them(command: Any, tmp_path: Path) -> None:
    data = two_class_world(tmp_path)
    for words, message in (
        (["--method", "m2d"], "learns from the single-camera controls: train --method visible"),
        (["--method", "sum", "--teachers", "a", "b"], "sum learns from no teachers: leave out --teachers"),
        (["--method", "m2d", "--teachers", "a", "b"], "no model file"),
        (["--teachers", "a", "b", "resume=x/last.pt"], "a resumed run keeps its own model: leave out --teachers"),
    ):
        given = [] if "resume=x/last.pt" in words else ["--data", data]
        done = command("rscmd_model.train", *given, *words, "device=cpu", f"project={tmp_path / 'runs'}")
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def taught_world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A drawn set, and the controls trained on it for an epoch."""
    folder = tmp_path_factory.mktemp("taught")
    data = two_class_world(folder)
    place = {**OPTIONS, "epochs": 1, "project": str(folder)}
    return data, {m: train(data, method_config(m), {**place, "name": m}) for m in MODALITIES}


class CutError(Exception):
    """Ends a training amid its second epoch."""


def cut(trainer: PairedTrainer) -> None:
    def end(trainer: PairedTrainer) -> None:
        if trainer.epoch == 1:
            raise CutError

    trainer.add_callback("on_train_batch_end", end)


@pytest.mark.parametrize("method", ["m2dlif", "smp"])
def test_what_has_teachers_lives(method: str, taught_world: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """Those that open them again, and what they were measured to be."""
    data, files = taught_world
    assert_lives(method, tmp_path, data=data, teachers=files)


def test_a_process_that_is_handed_the_model_opens_the_teachers_again(
    taught_world: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    """As with device=0,1, where ultralytics starts a process for each GPU and pickles the model for it."""
    data, teachers = taught_world
    options = {**OPTIONS, "epochs": 1, "val": False, "project": str(tmp_path), "data": str(data), "model": "rscmd"}
    trainer = PairedTrainer(overrides={**options, "name": "parent"})
    trainer.start_from(parse_method("g2d"), teachers=teachers)
    trainer.model.old = OldAnswers(teachers["thermal"])
    child = PairedTrainer(overrides={**options, "name": "child"})
    child.model = cloudpickle.loads(cloudpickle.dumps(trainer.model))
    assert not hasattr(child.model.old, "network")
    child._setup_train()
    assert child.model.old.network.config.method == "thermal"
    child.model.old = None
    batch = child.preprocess_batch(next(iter(child.train_loader)))
    assert child.model.train()(batch)[0].isfinite().all()


def test_a_run_whose_teacher_changed_does_not_go_on(taught_world: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    data, teachers = taught_world
    copies = {m: shutil.copy(file, tmp_path / f"{m}.safetensors") for m, file in teachers.items()}
    options = {**OPTIONS, "close_mosaic": 0, "epochs": 2, "project": str(tmp_path), "name": "cut"}
    with pytest.raises(CutError):
        train(data, parse_method("m2d"), options, teachers=copies, observers=[cut])
    last = {"resume": str(tmp_path / "cut/weights/last.pt")}
    header = read_header(copies["thermal"])
    save_model(copies["thermal"], RscmdModel(header.config, header.names), header)
    with pytest.raises(UserError, match=r"thermal\.safetensors is not the model any more that this training"):
        train(None, None, last)
    copies["thermal"].unlink()
    with pytest.raises(
        UserError, match=r"no .*thermal\.safetensors, the model that this training learns from: put it back"
    ):
        train(None, None, last)
