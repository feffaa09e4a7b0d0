"""Measuring gradients at the features: the figures are right, and measuring changes nothing."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from test_objective import make_batch, make_model
from test_pairs import write_world
from test_train import QUICK
from torch import Tensor, nn

from rscmd_model.config import Augmentation
from rscmd_model.diagnose import main
from rscmd_model.diagnosis import gradient_recorder
from rscmd_model.diagnosis.files import gradients_of_model, short_names
from rscmd_model.diagnosis.gradient_recorder import FixedPairs, GradientRecorder
from rscmd_model.diagnosis.gradient_table import common_reference, describe, plot, read_rows, write_rows
from rscmd_model.diagnosis.gradients import GradientRow, OpenModel, measure
from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.methods import method_config
from rscmd_model.network.model_file import ModelHeader, save_model
from rscmd_model.network.objective import Detection
from rscmd_model.train import main as train_main
from rscmd_model.training.run import train


def by_place(rows: list[GradientRow], reference: str, part: str = "all") -> dict[tuple[str, str], GradientRow]:
    return {(r.modality, r.stride): r for r in rows if r.reference == reference and r.part == part}


class Given(nn.Module):
    """A backbone whose features are its one parameter, times the mean of the image."""

    def __init__(self, z: float, weights: list[Tensor]) -> None:
        super().__init__()
        scale = z / sum(float(w.square().sum()) for w in weights)
        self.values = nn.ParameterList([scale * w.clone() for w in weights])

    def forward(self, x: Tensor) -> list[Tensor]:
        return [v.view(1, -1, 1, 1) * x.mean() for v in self.values]


class Linear(nn.Module):
    """A head whose answer is one logit, the same linear function of the features wherever it is used."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, features: list[Tensor]) -> Tensor:
        return torch.stack([(f.flatten() * w).sum() for f, w in zip(features, self.weights)]).sum()


def toy_model(z_v: float, z_t: float) -> OpenModel:
    """Both modalities' features give these logits, in one linear head that every branch shares."""
    model = OpenModel(make_model(method_config("rscmd")))
    weights = [torch.tensor([0.6, -1.7]), torch.tensor([1.1]), torch.tensor([-0.4, 0.2, 0.9])]
    model.backbones = nn.ModuleDict({"visible": Given(z_v, weights), "thermal": Given(z_t, weights)})
    model.branches = nn.ModuleDict({name: Linear(weights) for name in ("fused", "visible", "thermal")})
    return model


@pytest.mark.parametrize(("z_v", "z_t"), [(0.5, 2.0), (0.5, -2.0), (-3.0, 1.0), (2.0, 6.0)])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_a_linear_head_on_a_sum_gives_the_equations_of_the_claim(z_v: float, z_t: float, y: float) -> None:
    """The gradient at either feature is sigma(z_v + z_t) - y, the unimodal one sigma(z_m) - y."""

    def losses(answers: dict[str, Tensor], batch: Any) -> dict[str, dict[str, Tensor]]:
        bce = nn.functional.binary_cross_entropy_with_logits
        return {name: {"cls": bce(z, torch.tensor(y))} for name, z in answers.items()}

    rows = measure(toy_model(z_v, z_t), [{"img": torch.ones(1, 4, 32, 32)}], losses=losses)
    for reference in ("own", "alone"):
        for (modality, _), row in by_place(rows, reference).items():
            fused = torch.sigmoid(torch.tensor(z_v + z_t)) - y
            unimodal = torch.sigmoid(torch.tensor(z_v if modality == "visible" else z_t)) - y
            assert row.ratio == pytest.approx(float((fused / unimodal).abs()), rel=1e-4)
            assert row.cosine == pytest.approx(float((fused * unimodal).sign()), abs=1e-4)
    at_8 = by_place(rows, "own")["visible", "8"]
    assert at_8.norm_fused == pytest.approx(abs(float(torch.sigmoid(torch.tensor(z_v + z_t))) - y) * 1.803, rel=1e-3)


def test_a_gradient_of_zero_is_no_number_and_no_crash(tmp_path: Path) -> None:
    def losses(answers: dict[str, Tensor], batch: Any) -> dict[str, dict[str, Tensor]]:
        return {name: {"cls": z * (0 if name == "own visible" else 1)} for name, z in answers.items()}

    rows = measure(toy_model(1.0, 2.0), [{"img": torch.ones(1, 4, 32, 32)}] * 2, losses=losses)
    write_rows(tmp_path / "g.csv", rows)
    back = by_place(read_rows(tmp_path / "g.csv"), "own")
    assert math.isnan(back["visible", "8"].ratio)
    assert math.isnan(back["visible", "8"].cosine_sd)
    assert back["thermal", "8"].ratio == pytest.approx(1)


def test_without_the_other_modality_nothing_is_suppressed() -> None:
    model = OpenModel(make_model(method_config("rscmd", rsc="shared")))
    thermal = model.backbones["thermal"]
    thermal.register_forward_hook(lambda module, args, output: [f * 0 for f in output])
    rows = measure(model, [make_batch()])
    for reference in ("own", "alone"):
        for part in ("all", "cls"):
            for (modality, _), row in by_place(rows, reference, part).items():
                if modality == "visible":
                    assert row.ratio == pytest.approx(1, abs=1e-4)
                    assert row.cosine == pytest.approx(1, abs=1e-4)


def test_a_scaled_loss_scales_its_norms_alone() -> None:
    model = OpenModel(make_model(method_config("rsc")))
    plain = measure(model, [make_batch()])
    objective = Detection(make_model(method_config("rsc")))

    def losses(answers: dict[str, Any], batch: Any) -> dict[str, dict[str, Tensor]]:
        found = objective.losses(answers, batch)
        return {n: {k: v * (3 if n.startswith("own") else 1) for k, v in parts.items()} for n, parts in found.items()}

    for row, scaled in zip(plain, measure(model, [make_batch()], losses=losses)):
        factor = 3 if row.reference == "own" else 1
        assert scaled.norm_fused == pytest.approx(row.norm_fused, rel=1e-5)
        assert scaled.norm_unimodal == pytest.approx(factor * row.norm_unimodal, rel=1e-4)
        assert scaled.ratio == pytest.approx(row.ratio / factor, rel=1e-4)
        assert scaled.cosine == pytest.approx(row.cosine, abs=1e-4)


@pytest.mark.parametrize("md", ["stop", "map"])
def test_the_fused_gradient_is_what_it_would_be_without_decoupling(md: str) -> None:
    decoupled, plain = make_model(method_config("rscmd", md=md)), make_model(method_config("rsc"))
    decoupled.load_state_dict(plain.state_dict())
    assert measure(OpenModel(decoupled), [make_batch()]) == measure(OpenModel(plain), [make_batch()])


def test_the_gradient_at_the_features_is_autograd_s_own() -> None:
    model, batch = make_model(method_config("rsc")), make_batch()
    at = {m: [f.detach().requires_grad_() for f in model.features(batch["img"], m)] for m in ("visible", "thermal")}
    answer = model.branch("fused")([v + t for v, t in zip(at["visible"], at["thermal"])])
    loss = torch.stack(list(Detection(model)(answer, batch).parts.values())).sum()
    expected = torch.autograd.grad(loss, at["thermal"][1])[0].norm()
    rows = by_place(measure(OpenModel(model), [batch]), "own")
    assert rows["thermal", "16"].norm_fused == pytest.approx(float(expected), rel=1e-4)
    # Over a sum the same gradient reaches both features.
    assert rows["visible", "16"].norm_fused == pytest.approx(float(expected), rel=1e-4)


def test_measuring_changes_nothing_and_reads_no_running_statistics() -> None:
    model = make_model(method_config("rscmd"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    rows = measure(OpenModel(model), [make_batch(), make_batch(2)])
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(7.0)
    assert measure(OpenModel(model), [make_batch(), make_batch(2)]) == rows
    assert {r.batches for r in rows} == {2}
    assert all(r.ratio_sd > 0 and -1 <= r.cosine <= 1 for r in rows)


@pytest.mark.parametrize(("method", "held"), [("rsc", True), ("rsc", False), ("frozen", False)])
def test_batch_norm_is_that_of_the_training(method: str, held: bool) -> None:
    model = make_model(method_config(method))
    model.frozen_statistics = held
    model.train()
    for part in model.method.frozen:  # as the trainer does
        model.get_submodule(part).eval()
    copied = OpenModel(model)

    def modes(of: nn.Module) -> dict[str, bool]:
        return {name: norm.training for name, norm in of.named_modules() if isinstance(norm, nn.BatchNorm2d)}

    assert modes(copied) == modes(model)
    assert modes(copied.follow(model)) == modes(model)


def test_one_camera_or_no_pairs_is_refused() -> None:
    with pytest.raises(UserError, match="method visible has no fused loss"):
        OpenModel(make_model(method_config("visible")))
    with pytest.raises(UserError, match="no pairs"):
        measure(OpenModel(make_model(method_config("sum"))), [])


def test_probe_pairs_are_spread_over_the_split(tmp_path: Path) -> None:
    data = write_world(tmp_path, tuple("abcdefg"))
    from ultralytics.cfg import get_cfg

    from rscmd_model.datasets.opening import open_data

    config = open_data(data)
    mapping = {"config": config, "names": config.names, "nc": 2, "channels": 4}
    pairs = FixedPairs(4, img_path="train", imgsz=64, hyp=get_cfg(), data=mapping)
    assert [Path(f).stem for f in pairs.im_files] == ["a", "c", "e", "g"]
    batches = pairs.batches(2, torch.device("cpu"))
    assert [[Path(f).stem for f in b["im_file"]] for b in batches] == [["a", "e"], ["c", "g"]]
    assert batches[0]["img"].shape == (2, 4, 64, 64)
    assert 0 <= float(batches[0]["img"].min()) < float(batches[0]["img"].max()) <= 1


def recording(every: int | None) -> Callable[[Any], None]:
    """What the command gives to `train` for --diagnose-every."""
    return partial(GradientRecorder.attach, every=every)


def test_a_training_does_not_notice_that_it_is_watched(tmp_path: Path) -> None:
    data = write_world(tmp_path / "data", ("a", "b", "c", "d"))
    options = {**QUICK, "epochs": 2, "project": str(tmp_path)}
    plain = train(data, method_config("rscmd"), {**options, "name": "plain"})
    watched = train(data, method_config("rscmd"), {**options, "name": "watched"}, observers=[recording(2)])
    assert plain.read_bytes() == watched.read_bytes()
    rows = read_rows(tmp_path / "watched" / "gradients.csv")
    assert {r.epoch for r in rows} == {2}
    assert {r.reference for r in rows} == {"probe", "own", "alone"}
    assert (tmp_path / "watched" / "gradients.png").stat().st_size > 1000
    assert sorted(p.name for p in (tmp_path / "watched" / "weights").iterdir()) == ["best.pt", "last.pt"]


def test_the_reference_branches_see_no_black_image_of_modality_dropout(tmp_path: Path) -> None:
    data = write_world(tmp_path / "data", ("a", "b", "c", "d"))
    options = {**QUICK, "epochs": 1, "val": False, "project": str(tmp_path), "name": "run"}
    train(data, method_config("rscmd"), options, None, Augmentation(0.5), observers=[recording(1)])
    assert {r.epoch for r in read_rows(tmp_path / "run" / "gradients.csv")} == {1}


def test_a_resumed_run_goes_on_recording_and_records_no_epoch_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_world(tmp_path / "data", ("a", "b", "c", "d"))
    measured = GradientRecorder._measure

    def stop_in_the_third(self: GradientRecorder, trainer: Any) -> None:
        measured(self, trainer)  # recorded, but the epoch's checkpoint is never written
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(GradientRecorder, "_measure", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(
            data,
            method_config("sum"),
            {**QUICK, "epochs": 4, "project": str(tmp_path), "name": "run"},
            observers=[recording(1)],
        )
    csv = tmp_path / "run" / "gradients.csv"
    assert [r.epoch for r in read_rows(csv)][-1] == 3
    state = torch.load(tmp_path / "run" / "weights" / "gradient_probes.pt", weights_only=True)
    assert state["epoch"] == 1
    restored, momenta = {}, {}
    starting = GradientRecorder._start

    def start(self: GradientRecorder, trainer: Any) -> None:
        starting(self, trainer)
        restored.update({k: v.clone() for k, v in self.references.state_dict().items()})
        momenta.update(copy.deepcopy(self.optimizer.state_dict()["state"]))
        assert [r.epoch for r in read_rows(csv)][-1] == 2

    monkeypatch.setattr(GradientRecorder, "_measure", measured)
    monkeypatch.setattr(GradientRecorder, "_start", start)
    train(None, None, {"resume": str(tmp_path / "run" / "weights" / "last.pt")}, observers=[recording(None)])
    assert all(torch.equal(v, restored[k]) for k, v in state["probes"].items())
    assert all(
        torch.equal(v, momenta[k][name]) for k, of in state["optimizer"]["state"].items() for name, v in of.items()
    )
    assert momenta
    epochs = [r.epoch for r in read_rows(csv)]
    assert [epochs.count(e) for e in (1, 2, 3, 4)] == [len(epochs) // 4] * 4


def test_the_last_epoch_is_measured_before_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    monkeypatch.setattr(GradientRecorder, "_measure", lambda self, trainer: measured.append(trainer.epoch + 1))
    recorder = GradientRecorder.__new__(GradientRecorder)
    recorder.every = 5
    for epoch in range(7):
        recorder._epoch_end(SimpleNamespace(epoch=epoch, epochs=7))  # type: ignore[arg-type]
    assert measured == [5, 7]


@pytest.mark.parametrize("epochs", [2, 0])
def test_what_a_killed_run_recorded_is_drawn_when_it_is_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, epochs: int
) -> None:
    run, last = tmp_path / "run", tmp_path / "run" / "weights" / "last.pt"
    last.parent.mkdir(parents=True)
    torch.save({"train_args": {"epochs": 2, "patience": 0}, "epoch": 1}, last)
    (run / "model.safetensors").touch()
    write_rows(run / "gradients.csv", rows_of(epochs, {"visible": 0.25, "thermal": 0.5}))
    (last.parent / "gradient_probes.pt").touch()
    train_main([f"resume={last}"])
    assert (run / "gradients.png").exists() == bool(epochs)
    assert not (last.parent / "gradient_probes.pt").exists()
    assert ("run, epoch 2, 4 batches" if epochs else "gradients.csv has no rows") in caplog.text


def test_what_a_run_cannot_record_is_told_before_it_starts(tmp_path: Path) -> None:
    data = write_world(tmp_path / "data")
    options = {**QUICK, "epochs": 1, "project": str(tmp_path), "name": "run"}
    with pytest.raises(UserError, match="give 1 or more"):
        train(data, method_config("sum"), options, observers=[recording(0)])
    with pytest.raises(UserError, match="method thermal has no fused loss"):
        train(data, method_config("thermal"), options, observers=[recording(1)])
    with pytest.raises(UserError, match="leave out freeze"):
        train(data, method_config("sum"), {**options, "freeze": [0]}, observers=[recording(1)])


def rows_of(
    epochs: int, ratio: dict[str, float], references: tuple[str, ...] = ("probe", "alone")
) -> list[GradientRow]:
    return [
        GradientRow(e, m, s, r, p, 1.0, 2.0, ratio[m], 0.1, 0.5, 0.1, 3.0, 4.0 if m == "visible" else 3.5, 4)
        for e in range(1, epochs + 1)
        for m in ("visible", "thermal")
        for s in ("8", "16", "32", "backbone")
        for r in references
        for p in ("all", "cls")
    ]


def test_rows_come_back_from_disk(tmp_path: Path) -> None:
    rows = rows_of(2, {"visible": 0.25, "thermal": 0.5})
    write_rows(tmp_path / "g.csv", rows)
    assert read_rows(tmp_path / "g.csv") == rows
    (tmp_path / "bad.csv").write_text("epoch,modality\n1,visible\n")
    with pytest.raises(UserError, match=r"bad\.csv is not a gradients\.csv"):
        read_rows(tmp_path / "bad.csv")
    with pytest.raises(UserError, match="cannot read"):
        read_rows(tmp_path / "absent.csv")


def test_the_sentences_say_what_the_figures_say() -> None:
    suppressed = describe("a", rows_of(3, {"visible": 0.25, "thermal": 0.5}), "probe")
    assert "epoch 3, 4 batches" in suppressed
    assert "smaller one at 6 of 6 places; its size is 0.25 (visible) and 0.50 (thermal)" in suppressed
    assert "visible is the weaker modality (unimodal loss 4.00 against 3.50); its ratio is the lower" in suppressed
    other = describe("b", rows_of(1, {"visible": 1.5, "thermal": 0.5}), "alone")
    assert "smaller one at 3 of 6 places" in other
    assert "its ratio is the higher one (1.50 against 0.50)" in other


def test_courses_are_compared_by_a_reference_that_all_have(tmp_path: Path) -> None:
    with_probe, without = rows_of(2, {"visible": 1, "thermal": 1}), rows_of(1, {"visible": 1, "thermal": 1}, ("alone",))
    assert common_reference({"a": with_probe}) == "probe"
    assert common_reference({"a": with_probe, "b": without}) == "alone"
    for name, courses in {"time": {"a": with_probe, "b": with_probe}, "bars": {"b": without}}.items():
        plot(courses, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="cannot draw"):
        plot({"a": with_probe}, tmp_path / "a.nonsense")


def test_any_name_stands_in_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    legends: list[list[str]] = []
    drawn = Figure.legend

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> Any:
        legend = drawn(figure, *args, **kwargs)
        legends.append([text.get_text() for text in legend.get_texts()])
        return legend

    monkeypatch.setattr(Figure, "legend", keep)
    names = ("_old", "a$b_$", "$")
    for epochs in (1, 2):
        plot({name: rows_of(epochs, {"visible": 1, "thermal": 1}) for name in names}, tmp_path / "g.png")
        said = [text.strip().replace(r"\$", "$") for text in legends.pop()]
        assert sorted(said) == sorted(f"{name}, {modality}" for name in names for modality in ("visible", "thermal"))


def test_a_finished_model_is_measured_from_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_world(tmp_path / "data", ("a", "b", "c"))
    model = make_model(method_config("rscmd"))
    header = ModelHeader(model.config, model.names, 64, ThermalContract())
    save_model(tmp_path / "run" / "model.safetensors", model, header)
    words = ["--model", str(tmp_path / "run" / "model.safetensors"), "--data", str(data), "--batch", "2"]
    main([*words, "--csv", str(tmp_path / "g.csv"), "--plot", str(tmp_path / "g.png")])
    printed = capsys.readouterr().out
    assert "run, finished model, 2 batches; unimodal loss: own" in printed
    rows = read_rows(tmp_path / "g.csv")
    assert {(r.epoch, r.batches) for r in rows} == {(0, 2)}
    assert all(math.isfinite(r.ratio) and r.ratio > 0 for r in rows)
    with pytest.raises(UserError, match="has no split 'test'"):
        main([*words, "--split", "test"])
    with pytest.raises(UserError, match=r"has no gradients\.csv"):
        main(["gradients", "--run", str(tmp_path / "run")])
    with pytest.raises(UserError, match="'grad' is not one of"):
        main(["grad"])


def test_a_finished_model_has_its_own_thermal_contract_and_the_gains_of_its_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = write_world(tmp_path / "data", ("a", "b")), tmp_path / "run" / "model.safetensors"
    model = make_model(method_config("sum"))
    save_model(file, model, ModelHeader(model.config, model.names, 64, ThermalContract(scale=(10, 200))))
    described = data.read_text()

    def measured(gains: str = "", contract: str = "") -> tuple[dict[tuple[str, str], GradientRow], str]:
        data.write_text(described + contract)
        if gains:
            (file.parent / "args.yaml").write_text(gains)
        rows = gradients_of_model(file, str(data), "train", 2, 2, "cpu", print)
        return by_place(rows, "alone", "cls"), capsys.readouterr().out

    plain, said = measured()
    assert "thermal contract: of the model, {'source': 'mono8', 'scale': [10.0, 200.0]}; that of the data, " in said
    assert "gains of the loss: box 7.5, cls 0.5, dfl 1.5 (ultralytics' defaults, since there is no " in said
    gained, said = measured(
        "box: 3\ncls: 1.5\ndfl: 1\nmodel: rscmd\n", "thermal_contract: {source: mono8, scale: [10, 200]}\n"
    )
    assert said == f"gains of the loss: box 3, cls 1.5, dfl 1 (those of {file.parent / 'args.yaml'})\n"
    for place, row in plain.items():
        assert gained[place].norm_fused == pytest.approx(3 * row.norm_fused, rel=1e-4)
    with pytest.raises(UserError, match=r"args\.yaml has no gains box, cls, dfl"):
        measured("box: 3\ncls: much\ndfl: 1\n")


def test_what_does_not_go_with_runs_or_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    for words, says in (
        (["--data", "d.yaml"], "--data is for measuring on --model"),
        (["--pairs", "8"], "--pairs is for measuring"),
        (["--palette-ok"], "--palette-ok is for measuring"),
        (["--plot", str(tmp_path / "x.foo")], "give a file that ends in .png"),
        (["--csv", "/proc/x/g.csv"], "cannot write /proc/x/g.csv"),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            main(["gradients", "--run", str(tmp_path / "absent"), *words])


def test_two_of_one_name_are_refused() -> None:
    assert list(short_names([Path("runs/a/model.safetensors"), Path("b.safetensors"), Path("runs/c")])) == [
        "a",
        "b",
        "c",
    ]
    lambdas = [Path(f"runs/rsc+lambda_visible={value}") for value in ("0.5", "0.25")]
    assert list(short_names(lambdas)) == [path.name for path in lambdas]
    with pytest.raises(UserError, match="'a'"):
        short_names([Path("runs/a/model.safetensors"), Path("other/a")])


def test_probe_branches_start_the_same_for_every_method() -> None:
    one, two = (
        gradient_recorder.ReferenceBranches(make_model(method_config(m), seed), 0)
        for m, seed in (("sum", 1), ("rscmd", 2))
    )
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
