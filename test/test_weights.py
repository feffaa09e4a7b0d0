"""A start from the weights of a plain detector: what is read, what is refused, and what of it a model gets."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import types
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_families import build, plain_detector
from test_pairs import write_world
from torch import nn
from ultralytics.nn import tasks
from ultralytics.utils import checks

from rscmd_model.config import FAMILIES, MODALITIES, SCALES
from rscmd_model.datasets.opening import open_data
from rscmd_model.errors import UserError
from rscmd_model.evaluation.ablation import Ablation, claim
from rscmd_model.evaluation.ablation_runs import RECIPE
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.export_file import export
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import METHODS, method_config, parse_method
from rscmd_model.network.checkpoint import read_detector
from rscmd_model.network.families import find_family
from rscmd_model.network.header import ModelHeader
from rscmd_model.network.model_file import load_model, save_model
from rscmd_model.network.pretrained import load_weights
from rscmd_model.options import parse_options
from rscmd_model.training.trainer import PairedTrainer

Command = Callable[..., "subprocess.CompletedProcess[str]"]
WORDS = ["imgsz=32", "batch=4", "nbs=4", "plots=False", "device=cpu", "epochs=2", "optimizer=SGD"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, nn.Module]:
    """By family, the plain detector that is saved as FAMILYn.pt, of 80 classes "0" to "79"."""
    return {family: plain_detector(family, folder / f"{family}n.pt") for family in FAMILIES}


@pytest.fixture(scope="module")
def world(folder: Path) -> Path:
    return write_world(folder / "data", ("a", "b", "c", "d"))


def write(path: Path, model: nn.Module | dict[str, Any]) -> Path:
    torch.save({"model": model, "ema": None, "train_args": {}}, path)
    return path


def refusal(path: Path) -> str:
    """What is said of a file that is no plain detector: one line, which names it."""
    with pytest.raises(UserError) as refused:
        read_detector(path)
    said = str(refused.value)
    assert str(path) in said
    assert "\n" not in said
    return said.replace(str(path), path.name)


WANTED = "give a yolov8*.pt or yolo11*.pt"


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("yolov8n-seg", f"m.pt is a model for segmentation, not a plain detector: {WANTED}"),
        ("yolo26n-seg", f"m.pt is a model for segmentation, not a plain detector: {WANTED}"),
        ("yolov8n-pose", f"m.pt is a model for pose, not a plain detector: {WANTED}"),
        ("yolov8n-obb", f"m.pt is a model for oriented boxes, not a plain detector: {WANTED}"),
        ("yolov8n-cls", f"m.pt is a model for classification, not a plain detector: {WANTED}"),
        ("yolov9t", f"m.pt is no plain detector of YOLOv8 or YOLO11 but of yolov9t.yaml: {WANTED}"),
        ("yolov5n", f"m.pt is no plain detector of YOLOv8 or YOLO11 but of yolov5n.yaml: {WANTED}"),
        ("yolov10n", f"m.pt is no plain detector of YOLOv8 or YOLO11 but of yolov10n.yaml: {WANTED}"),
        ("yolo26n", f"m.pt is no plain detector of YOLOv8 or YOLO11 but of yolo26n.yaml: {WANTED}"),
    ],
)
def test_another_kind_of_model_is_refused(plan: str, said: str, tmp_path: Path) -> None:
    model_of = {
        "seg": tasks.SegmentationModel,
        "pose": tasks.PoseModel,
        "obb": tasks.OBBModel,
        "cls": tasks.ClassificationModel,
    }
    model = model_of.get(plan.partition("-")[2], tasks.DetectionModel)(f"{plan}.yaml", verbose=False)
    assert refusal(write(tmp_path / "m.pt", model)) == said


def test_a_detector_that_was_changed_is_refused(plain: dict[str, nn.Module], folder: Path, tmp_path: Path) -> None:
    def changed(change: Callable[[Any], object]) -> str:
        model: Any = torch.load(folder / "yolov8n.pt", weights_only=False)["model"]
        change(model)
        return refusal(write(tmp_path / "m.pt", model))

    def four_channels(model: Any) -> None:
        model.model[0].conv = nn.Conv2d(4, 16, 3, 2, 1, bias=False)

    def nan(model: Any) -> None:
        model.model[5].bn.running_var[7] = torch.nan

    assert changed(four_channels) == (
        "m.pt takes images of 4 channels: give a yolov8*.pt or yolo11*.pt of colour images"
    )
    assert changed(nan) == "m.pt: weight 'model.5.bn.running_var' is not finite; download or copy it again"
    assert "m.pt is a fused checkpoint (its BatchNorm is folded away)" in changed(
        lambda model: model.fuse(verbose=False)
    )
    assert "m.pt: names: a model has 1 to" in changed(lambda model: setattr(model, "names", {}))
    assert "m.pt does not name its classes" in changed(lambda model: delattr(model, "names"))
    detector = read_detector(folder / "yolov8n.pt")
    assert (str(detector), detector.names[79]) == ("YOLOv8n, 80 classes", "79")


def test_a_file_without_a_detector_is_refused(plain: dict[str, nn.Module], folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "yolov8n.pt"
    whole = (folder / "yolov8n.pt").read_bytes()

    def written(content: bytes) -> str:
        path.write_bytes(content)
        return refusal(path)

    state = plain["yolov8"].state_dict()
    for bare in (state, {"model": state}, {"ema": state}):
        torch.save(bare, path)
        assert refusal(path) == "yolov8n.pt holds weights without their model (a state dict): give the whole checkpoint"
    torch.jit.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8)).save(path)
    assert refusal(path) == "yolov8n.pt is a TorchScript export: give the checkpoint it was made from"
    write(path, nn.Conv2d(3, 4, 1))
    assert refusal(path) == f"yolov8n.pt is no detector of ultralytics but a Conv2d: {WANTED}"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 6549796\n"
    assert "is a Git LFS pointer, not the weights: run git lfs pull" in written(pointer)
    for page in (b"<!DOCTYPE html><html>", b"\n <html lang=en>", b"\xef\xbb\xbf<HTML>"):
        assert written(page) == "yolov8n.pt is an HTML page, not weights: download the file itself"
    assert written(b"") == "yolov8n.pt is empty: download or copy it again"
    assert "is no ultralytics checkpoint: give the path of a yolov8*.pt or yolo11*.pt" in written(b"junk")
    for end in (3, 1000, len(whole) // 2, len(whole) - 1):
        assert "is cut short or damaged" in written(whole[:end])
    middle = len(whole) // 2
    flipped = written(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert flipped.startswith("yolov8n.pt is damaged (")
    assert flipped.endswith("): download or copy it again")
    path.unlink()
    assert refusal(path) == (
        "no weights file yolov8n.pt (weights are never downloaded: give the path of a yolov8*.pt or yolo11*.pt)"
    )
    path.mkdir()
    assert "no weights file" in refusal(path)


def test_whatever_byte_is_wrong_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "small.pt"
    torch.save({"model": torch.zeros(1)}, path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        for bit in (1, 0x88):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            refusal(path)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Each connection to the web from here on: a server of our own is the proxy of every request, and hangs up."""
    found: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def count() -> None:
            while True:
                try:
                    connection, address = server.accept()
                except OSError:
                    return
                found.append(address)
                connection.close()

        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setattr(checks, "AUTOINSTALL", True)  # what a user may have set
        with pytest.raises(OSError):  # noqa: PT011
            urllib.request.urlopen("https://github.com", timeout=5)
        assert len(found) == 1, "it counts"
        found.clear()
        yield found
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def foreign(path: Path) -> Path:
    """A checkpoint whose model is of a package that is not installed here."""
    module = types.ModuleType("rscmd_no_such_package")
    layer = type("Layer", (nn.Module,), {"__module__": module.__name__})
    module.Layer = layer  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        return write(path, layer())
    finally:
        del sys.modules[module.__name__]


def test_nothing_is_deleted_downloaded_or_installed(
    plain: dict[str, nn.Module],
    folder: Path,
    world: Path,
    command: Command,
    connections: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under a bare official name, too: ultralytics' own loader removes such a file and fetches another."""
    monkeypatch.chdir(tmp_path)
    whole = (folder / "yolov8n.pt").read_bytes()
    file = Path("yolov8n.pt")
    words = ("--data", world, "--weights", file, *WORDS)
    for content in (whole[: len(whole) // 2], b"", b"PK\x03\x04 junk", None):
        file.unlink(missing_ok=True) if content is None else file.write_bytes(content)
        with pytest.raises(UserError):
            load_weights(build("visible", "yolov8"), file)
        done = command("rscmd_model.train", *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert (file.read_bytes() if file.exists() else None) == content
        assert [path.name for path in Path().iterdir()] == ([] if content is None else ["yolov8n.pt"])

    # ultralytics would look for these under another name, not find them, and fetch them.
    for name in ("yolov5n.pt", "o'brien/yolov8n.pt", "yolov8n.weights"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(whole)
        assert read_detector(name).family == "yolov8"

    assert "needs 'rscmd_no_such_package.Layer'): give a yolov8*.pt" in refusal(foreign(tmp_path / "foreign.pt"))
    # torch before 2.6, which cannot load safely
    monkeypatch.setattr(tasks._SafeLoad, "SUPPORTED", False)
    assert "No module named 'rscmd_no_such_package'" in refusal(tmp_path / "foreign.pt")
    assert read_detector(folder / "yolov8n.pt").family == "yolov8"
    assert connections == []


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    write(tmp_path / "trap.pt", {"trap": Trap()})
    assert "is no ultralytics checkpoint (it needs 'posix.mkdir')" in refusal(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_another_size_is_refused_before_anything_is_written(
    plain: dict[str, nn.Module], folder: Path, world: Path, command: Command, tmp_path: Path
) -> None:
    file = folder / "yolov8n.pt"
    told = f"error: {file} is YOLOv8n and the model is %s: give --family yolov8 --scale n, or leave both out\n"
    runs = tmp_path / "runs"
    for wrong, model in (
        (["--scale", "s"], "YOLOv8s"),
        (["--family", "yolo11"], "YOLO11n"),
        (["--family", "yolo11", "--scale", "x"], "YOLO11x"),
    ):
        done = command("rscmd_model.train", "--data", world, "--weights", file, *wrong, *WORDS, f"project={runs}")
        assert (done.returncode, done.stderr) == (2, told % model)
        assert not runs.exists()
    done = command("rscmd_model.ablate", "--data", world, "--weights", file, *wrong, "--out", runs, *WORDS)
    assert (done.returncode, done.stderr) == (2, told % model)
    assert not runs.exists()
    with pytest.raises(UserError, match="is YOLOv8n and the model is YOLO11n"):
        load_weights(build("visible", "yolo11"), file)


def test_an_ablation_is_of_the_file_s_layers(
    plain: dict[str, nn.Module], folder: Path, world: Path, command: Command, tmp_path: Path
) -> None:
    """Told by what it says of a folder that holds one of other weights."""
    words = ["epochs=1", "device=cpu"]
    options = {**RECIPE, **parse_options(words)}
    claim(
        Ablation(
            tmp_path, open_data(world), "val", "n", "yolov8", options, folder / "yolov8n.pt", frozen_statistics=True
        )
    )
    done = command("rscmd_model.ablate", "--data", world, "--weights", folder / "yolo11n.pt", "--out", tmp_path, *words)
    assert "holds an ablation with another family and weights: choose another --out" in done.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_one_checkpoint_starts_both_streams(family: str, plain: dict[str, Any], folder: Path) -> None:
    """The thermal stem sums the colours. Only the outputs for unknown classes keep their start."""
    both = build("rscmd", family, {0: "5", 1: "deer"}, branch="full", head_classes=80)
    loaded = load_weights(both, folder / f"{family}n.pt")
    last = [
        f"branches.{b}.head.cv3.{i}.2.{k}"
        for b in ("fused", "visible", "thermal")
        for i in range(3)
        for k in ("weight", "bias")
    ]
    assert sorted(loaded.kept) == sorted(last)
    assert (loaded.classes, loaded.unknown, loaded.other) == (("5",), ("deer",), ())
    short = {part: there - came for part, (came, there) in loaded.parts.items()}
    assert short == {part: 3 * 81 if part.endswith("class head") else 0 for part in short}
    assert sum(there for _, there in loaded.parts.values()) == sum(
        value.numel() for name, value in both.state_dict().items() if "num_batches" not in name
    )
    assert str(loaded).splitlines()[0] == "visible backbone: {0:,} of {0:,} numbers".format(
        loaded.parts["visible backbone"][0]
    )
    assert str(loaded).endswith("\n  outputs by name for '5'\n  random outputs for 'deer'")
    for stream in both.backbones.values():
        assert torch.equal(stream.b3.conv.weight, plain[family].model[3].conv.weight)
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        a = both.backbones["visible"].b0.conv(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(both.backbones["thermal"].b0.conv(grey), a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_by_class_name_are_the_plain_detector_s(family: str, plain: dict[str, nn.Module], folder: Path) -> None:
    """Of all three heads, for a grey image: by the mean, two equal features are fused into one of them."""
    names = {0: "41", 1: "deer", 2: "7", 3: "0"}
    there = [41, 7, 0]
    model = build("rscmd", family, names, head_classes=80).eval()
    assert model.config.settings == {"fusion": "mean", "branch": "full"}
    before = model.branches["visible"].head.cv3[0][-1].weight[1].clone()
    load_weights(model, folder / f"{family}n.pt")
    assert torch.equal(model.branches["visible"].head.cv3[0][-1].weight[1], before)
    grey = torch.rand(1, 1, 64, 96).expand(-1, 4, -1, -1)
    colour = torch.rand(1, 4, 64, 96)
    with torch.no_grad():
        answers = {**model.answers(grey), "colour": model.answers(colour, ["visible"])["visible"]}
        for name, (found, _) in answers.items():
            expected, _ = plain[family]((colour if name == "colour" else grey)[:, :3])
            assert expected[:, :4].std() > 1, "boxes of several sizes"
            assert found.shape[1] == 4 + len(names)
            torch.testing.assert_close(found[:, :4], expected[:, :4], rtol=1e-3, atol=1e-2)
            rows = found[:, 4:][:, [0, 2, 3]]
            torch.testing.assert_close(rows, expected[:, 4:][:, there], rtol=1e-3, atol=1e-5)
            assert not torch.allclose(rows, expected[:, 4:][:, [0, 1, 2]], rtol=1e-3, atol=1e-5)


def test_names_are_compared_whatever_their_case(folder: Path, tmp_path: Path) -> None:
    plain_detector("yolov8", tmp_path / "m.pt")
    checkpoint = torch.load(tmp_path / "m.pt", weights_only=False)
    checkpoint["model"].names = {i: f"Class {i}" for i in range(80)}
    torch.save(checkpoint, tmp_path / "m.pt")
    model = build("visible", "yolov8", {0: "other", 1: "CLASS 3"}, head_classes=80)
    assert load_weights(model, tmp_path / "m.pt").classes == ("CLASS 3",)
    assert torch.equal(
        model.branches["visible"].head.cv3[1][-1].weight[1], checkpoint["model"].model[-1].cv3[1][-1].weight[3]
    )


def test_a_narrower_tower_gets_nothing(plain: dict[str, nn.Module], folder: Path) -> None:
    """The outputs neither, which would read other channels; and it is told."""
    model = build("visible", "yolov8", {0: "5", 1: "7"})
    before = [tower[-1].bias.clone() for tower in model.branches["visible"].head.cv3]
    loaded = load_weights(model, folder / "yolov8n.pt")
    assert (loaded.classes, loaded.unknown) == ((), ("5", "7"))
    assert loaded.parts["visible class head"][0] == 0
    assert all(torch.equal(a, b[-1].bias) for a, b in zip(before, model.branches["visible"].head.cv3))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lean_branch_gets_what_fits(family: str, plain: dict[str, Any], folder: Path) -> None:
    model = build("rsc", family, {0: "5", 1: "7"}, branch="lean", head_classes=80)
    loaded = load_weights(model, folder / f"{family}n.pt")
    theirs, ours = plain[family].model[-1], model.branches["thermal"].head
    for mine, its in zip(ours.cv2, theirs.cv2):
        assert torch.equal(mine[0].conv.weight, its[0].conv.weight)
        assert torch.equal(mine[1].weight, its[2].weight)
    assert torch.equal(ours.cv3[0][2].weight, theirs.cv3[0][2].weight[[5, 7]])
    came, there = loaded.parts["thermal box head"]
    assert came == there
    came, there = loaded.parts["thermal class head"]
    # YOLOv8's towers for the classes are of other layers than a lean branch's, which are YOLO11's.
    assert came == (there if family == "yolo11" else 3 * 2 * 81)
    assert loaded.parts["thermal neck"][0] == 0 < loaded.parts["thermal neck"][1]
    assert loaded.parts["fused neck"][0] == loaded.parts["fused neck"][1]


def test_another_activation_is_told(plain: dict[str, nn.Module], folder: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(folder / "yolov8n.pt", weights_only=False)
    checkpoint["model"].model[9].cv1.act = nn.Identity()
    torch.save(checkpoint, tmp_path / "m.pt")
    said = str(load_weights(build("visible", "yolov8"), tmp_path / "m.pt"))
    assert said.endswith("\n  the activation is not the file's after 'backbones.visible.b9.cv1'")


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_are_of_one_width_above_scale_n(family: str) -> None:
    """So that `head_classes` says something at scale n alone, and is 0 elsewhere."""
    found = find_family(family)

    def widths(scale: str, classes: int) -> list[int]:
        branch = found.LeanBranch(found.channels(scale), scale, classes)
        return [tower[-1].in_channels for tower in branch.head.cv3]  # type: ignore[union-attr]

    assert widths("n", 80) != widths("n", 2)
    for scale in SCALES[1:]:
        assert widths(scale, 1) == widths(scale, 80) == widths(scale, 10_000)
    for scale in SCALES:
        config = method_config("rsc", scale=scale, family=family, head_classes=80)
        assert (config.head_classes, config.settings["branch"]) == (80 if scale == "n" else 0, "full")
    branch = found.Branch(found.channels("s"), "s", 2)
    assert [tower[-1].in_channels for tower in branch.head.cv3] == widths("s", 2)  # type: ignore[union-attr]


def test_models_drawn_at_random_do_not_name_head_classes() -> None:
    for method in METHODS:
        config = method_config(method)
        assert config.head_classes == 0
        text = ModelHeader(config, {0: "a"}, 64, ThermalContract()).to_json()
        assert "head_classes" not in json.loads(text)["config"]
    for wrong in (-1, 10_001, True, "80", 80.0):
        with pytest.raises(UserError, match="head_classes"):
            method_config("sum", head_classes=wrong)  # type: ignore[arg-type]


def test_the_width_of_the_towers_travels_with_the_model(
    plain: dict[str, nn.Module], folder: Path, tmp_path: Path
) -> None:
    model = build("visible", "yolov8", {0: "5"}, head_classes=80)
    load_weights(model, folder / "yolov8n.pt")
    file = tmp_path / "model.safetensors"
    save_model(file, model, ModelHeader(model.config, model.names, 64, ThermalContract()))
    again, header = load_model(file)
    assert header.config == model.config
    assert again.branches["visible"].head.cv3[0][-1].weight.shape == (1, 80, 1, 1)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert pickle.loads(pickle.dumps(model.config)) == model.config
    pytest.importorskip("onnxruntime")
    export(file, "onnx", tmp_path / "model.onnx", size=(64, 64))
    assert Predictor(tmp_path / "model.onnx", device="cpu").config == model.config


def test_a_start_from_weights_is_told_and_resumed(
    plain: dict[str, nn.Module],
    folder: Path,
    world: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: list[str],
) -> None:
    file = folder / "yolov8n.pt"
    step = PairedTrainer.optimizer_step

    def interrupted(trainer: PairedTrainer) -> None:
        if trainer.epoch == 1:
            raise KeyboardInterrupt
        step(trainer)

    words = ("--data", world, "--weights", file, "--method", "rsc+fusion=sum", *WORDS, f"project={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(PairedTrainer, "optimizer_step", interrupted)
        done = command("rscmd_model.train", *words, "name=run", "val=False")
    assert done.returncode == 130, done.stderr
    told = f"{file}: YOLOv8n, 80 classes; trained is rsc+branch=full, where a start from weights has the defaults "
    assert f"{told}branch=full; BatchNorm frozen\n" in done.stdout
    assert f"{file}: visible backbone: " in "\n".join(log)
    assert "\n  random outputs for 'person', 'car'" in "\n".join(log)
    last = tmp_path / "run/weights/last.pt"
    assert refusal(last) == f"last.pt is of a training of rscmd_model: go on with it by resume=last.pt, or {WANTED}"
    done = command("rscmd_model.train", f"resume={last}")
    assert done.returncode == 0, done.stderr
    model, header = load_model(tmp_path / "run/model.safetensors")
    assert header.config == parse_method("rsc+fusion=sum", head_classes=80)
    assert (header.config.head_classes, header.config.settings) == (80, {"branch": "full"})
    assert {branch.head.cv3[0][-1].in_channels for branch in model.branches.values()} == {80}
    # BatchNorm's statistics are the file's to the last epoch, also after the run was resumed.
    theirs, ours = plain["yolov8"].model[8].cv1, model.backbones["thermal"].b8.cv1
    assert torch.equal(ours.bn.running_var, theirs.bn.running_var.float())


def test_batchnorm_is_frozen_unless_asked_otherwise(
    folder: Path, plain: dict[str, nn.Module], world: Path, command: Command, tmp_path: Path
) -> None:
    words = ("--data", world, *WORDS, f"project={tmp_path}", "name=run", "val=False", "--method", "visible")
    done = command("rscmd_model.train", *words, "--batchnorm", "frozen")
    assert done.returncode == 2
    assert done.stderr == "error: --batchnorm frozen keeps the statistics of --weights: give these as well\n"
    done = command("rscmd_model.train", *words, "--weights", folder / "yolov8n.pt", "--batchnorm", "batch")
    assert done.returncode == 0, done.stderr
    assert "BatchNorm by batch" in done.stdout
    model, _ = load_model(tmp_path / "run/model.safetensors")
    statistics = model.backbones["visible"].b8.cv1.bn.running_var
    assert not torch.equal(statistics, plain["yolov8"].model[8].cv1.bn.running_var.float())


def test_layers_without_statistics_in_the_file_take_those_of_the_batches(
    folder: Path, plain: dict[str, nn.Module], world: Path, tmp_path: Path
) -> None:
    """At mean 0 and variance 1, which are no data's, they would not normalise at all."""
    place = {"data": str(world), "project": str(tmp_path), "name": "run", "imgsz": 64}
    trainer = PairedTrainer(overrides={"model": "rscmd", **place})
    trainer.start_from(method_config("sum", fusion="adapt", head_classes=80), folder / "yolov8n.pt")
    model = trainer.model
    model.frozen_statistics = True
    model.train()
    learn = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}
    assert learn == {f"method.adapters.{m}.{level}.bn" for m in MODALITIES for level in range(3)}
    again = trainer.get_model(weights=model)  # as from a checkpoint
    assert (again.frozen_statistics, again.new_norms) == (True, model.new_norms)
