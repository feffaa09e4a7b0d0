"""Every option of ultralytics is honoured, which a test here shows by its effect, or refused with the reason."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from test_pairs import write_world
from test_train import PLAIN
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT

from rscmd_model.datasets.opening import open_data
from rscmd_model.devices import check_device, inference_device, read_device, scoring_device
from rscmd_model.errors import UserError
from rscmd_model.methods import method_config
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import load_model
from rscmd_model.options import FEW_PAIRS, OPTIONS, check_options, defaults, parse_options, to_markdown, word
from rscmd_model.training.freezing import frozen_parts
from rscmd_model.training.paired_dataset import PairedDataset
from rscmd_model.training.run import score_answers, train
from rscmd_model.training.trainer import PairedTrainer

ROOT = Path(__file__).resolve().parents[1]
HONOURED = [name for name, option in OPTIONS.items() if option.read]
REFUSED = [name for name, option in OPTIONS.items() if not option.read]
# Which test shows the effect of which option.
SHOWN = {
    "test_one_training_shows_what_acts_while_it_runs": "epochs imgsz save_period verbose close_mosaic multi_scale "
    "warmup_epochs warmup_momentum warmup_bias_lr fraction classes project name save_txt save_conf val split",
    "test_a_model_of_one_class_with_frozen_backbones": "freeze single_cls save time exist_ok",
    "test_what_a_training_is_set_up_with": "optimizer lr0 lrf momentum weight_decay cos_lr nbs batch patience seed "
    "deterministic channels_last cls_pw amp device plots",
    "test_what_a_scored_split_is_judged_by": "conf iou max_det agnostic_nms",
    "test_augmentation": "degrees translate scale shear perspective flipud fliplr mosaic mixup cutmix "
    "hsv_h hsv_s hsv_v",
    "test_the_parts_of_the_loss_are_weighted": "box cls dfl",
    "test_the_pairs_that_are_read": "rect cache",
    "test_workers_on_the_cpu_are_told_of": "workers",
    "test_a_resumed_run_keeps_its_options": "resume",
}


def test_every_option_has_its_row_and_every_honoured_one_its_proof() -> None:
    assert set(OPTIONS) == set(DEFAULT_CFG_DICT)
    assert sorted(" ".join(SHOWN.values()).split()) == sorted(HONOURED)
    assert [name for name in SHOWN if name not in globals()] == []
    assert defaults() == DEFAULT_CFG_DICT


def test_the_page_shows_the_table() -> None:
    """If it does not: `python -m rscmd_model.options` writes the table."""
    assert to_markdown() in (ROOT / "docs/training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_implemented_is_refused_with_the_reason(name: str) -> None:
    for value in ("17", "/nowhere/else.pt", "True" if defaults()[name] is False else "False"):
        if value.lower() != str(defaults()[name]).lower():
            with pytest.raises(UserError, match=f"^{name}={value} is refused: ") as caught:
                parse_options([f"{name}={value}"])
            assert "\n" not in str(caught.value)
    if OPTIONS[name].harmless:
        assert parse_options([f"{name}={defaults()[name]}"]) == {}


def test_defaults_and_their_words_are_read() -> None:
    for name in HONOURED:
        value = defaults()[name]
        assert check_options({name: value}) == {name: value}
        if name not in ("project", "name"):  # letter for letter, so None is a name
            assert parse_options([word(name, value)]) == {name: "" if name == "device" else value} | (
                {name: None} if name == "device" else {}
            )


@pytest.mark.parametrize(
    "name", ["007", "run #3", "on", "1e3", "2026-11-26", "@night", "0x10", "null", "~", "a: b", "[a", "'q'", "model"]
)
def test_a_name_is_a_string(name: str) -> None:
    assert parse_options([f"name={name}", f"project=/tmp/{name}"]) == {"name": name, "project": f"/tmp/{name}"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["classes=[0,", "1]"], r"classes=\[0,: classes takes numbers of classes.*one word"),
        (["imgsz=[64,96]"], r"imgsz=\[64,96\]: imgsz takes a whole number"),
        (["resume=True"], "resume takes the weights/last.pt"),
        (["name="], "name='': name takes a name"),
        (["epochs=010x"], "epochs takes a whole number from 1"),
        (["epochs=0"], "epochs takes"),
        (["epochs=2026-11-26"], "epochs takes"),
        (["lr0=nan"], "lr0 takes a number from 0 to 1"),
        (["device=gpu"], "device takes auto, cpu"),
        (["device=0,0"], "device takes auto, cpu"),
        (["epochs=1", "epochs=2"], "'epochs' is given twice"),
        (["save_conf=True"], "no effect without save_txt"),
        (["optimiser=SGD"], "did you mean optimizer"),
        (["name=a\nb"], "name takes a name"),
        (["name=" + "x" * 300], "name takes a name"),
        (["freeze=25"], "freeze takes"),
    ],
)
def test_odd_words_are_one_line(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse_options(words)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pairs of coloured noise; seven with an object of class 0, six with one of class 1."""
    root = tmp_path_factory.mktemp("world")
    stems = tuple("abcdefgh")
    data = write_world(root, stems)
    rng = np.random.default_rng(0)
    for stem in stems:
        cv2.imwrite(str(root / f"visible/train/{stem}.png"), rng.integers(0, 256, (48, 64, 3), np.uint8))
        lines = ["0 0.3 0.3 0.4 0.4\n"] * (stem > "a") + ["1 0.7 0.6 0.4 0.5\n"] * (stem < "g")
        (root / f"labels/train/{stem}.txt").write_text("".join(lines))
    return data


def trainer(world: Path, folder: Path, **options: Any) -> PairedTrainer:
    plain: dict[str, Any] = {"model": "rscmd", "data": str(world), "imgsz": 32, "batch": 4, "plots": False}
    place = {"project": str(folder), "name": "run", "device": "cpu"}
    made = PairedTrainer(overrides={**plain, **place, **options})
    made.start_from(method_config("sum"))
    return made


def test_one_training_shows_what_acts_while_it_runs(world: Path, tmp_path: Path) -> None:
    options = {
        **{"epochs": 2, "imgsz": 64, "batch": 2, "nbs": 2, "optimizer": "SGD", "multi_scale": 0.5, "close_mosaic": 1},
        **{"warmup_epochs": 1, "warmup_momentum": 0.5, "warmup_bias_lr": 0.2, "fraction": [4, 3], "classes": [1]},
        **{"save_period": 1, "save_txt": True, "save_conf": True, "split": "train", "verbose": False},
        **{"name": "007", "val": False, "conf": 1e-6},
    }
    run = trainer(world, tmp_path, **options)
    seen: list[dict[str, Any]] = []

    def look(run: PairedTrainer) -> None:
        bias = next(group for group in run.optimizer.param_groups if group["param_group"] == "bias")
        mosaic = run.train_loader.dataset.transforms.transforms[0].transforms[0].p
        seen.append({"epoch": run.epoch, "lr": bias["lr"], "momentum": bias["momentum"], "mosaic": mosaic})

    sizes: list[int] = []
    run.add_callback("on_train_batch_end", look)
    unchanged = run.preprocess_batch
    run.preprocess_batch = lambda batch: sizes.append((b := unchanged(batch))["img"].shape[-1]) or b  # type: ignore
    run.train()
    assert (run.save_dir, run.model_file.is_file()) == (tmp_path / "007", True)
    assert [s["epoch"] for s in seen] == [0, 0, 1, 1]
    assert [s["mosaic"] for s in seen] == [1, 1, 0, 0]
    assert (seen[0]["lr"], seen[0]["momentum"]) == (0.2, 0.5)
    assert seen[-1]["lr"] < 0.02
    assert len(set(sizes)) > 1
    assert set(sizes) <= {32, 64, 96}
    assert load_model(run.model_file)[1].image_size == 64
    assert (len(run.train_loader.dataset), len(run.test_loader.dataset)) == (4, 3)
    assert {int(c) for label in run.train_loader.dataset.labels for c in label["cls"].ravel()} == {1}
    assert sorted(f.name for f in run.wdir.iterdir()) == ["best.pt", "epoch0.pt", "epoch1.pt", "last.pt"]
    boxes = [line.split() for f in (run.save_dir / "labels").iterdir() for line in f.read_text().splitlines()]
    assert {len(box) for box in boxes} == {6}, "class, box and score"
    with run.csv.open() as file:
        scored = [row["metrics/mAP50(B)"] for row in csv.DictReader(file)]
    assert len(scored) == 2
    assert run.fitness is not None


def test_a_model_of_one_class_with_frozen_backbones(world: Path, tmp_path: Path) -> None:
    """Its file names the one class, its backbones keep every bit, and the clock ends its training."""
    (tmp_path / "run").mkdir()
    options = {"epochs": 500, "time": 0.0003, "imgsz": 32, "batch": 8, "plots": False, "save": False, "device": "cpu"}
    options |= {"single_cls": True, "freeze": 10, "optimizer": "SGD", "lr0": 0.1, "warmup_epochs": 0, "exist_ok": True}
    file = train(world, method_config("rsc"), {**options, "project": str(tmp_path), "name": "run"})
    assert file == tmp_path / "run/model.safetensors"
    model, header = load_model(file)
    assert header.names == {0: "item"}
    fresh = trainer(world, tmp_path / "other", single_cls=True)
    fresh.start_from(method_config("rsc"))
    for name, weight in fresh.model.state_dict().items():
        if name.startswith("backbones"):
            assert torch.equal(model.state_dict()[name], weight), name
    assert not torch.equal(
        model.branches["fused"].n12.cv1.conv.weight, fresh.model.branches["fused"].n12.cv1.conv.weight
    )
    assert len((file.parent / "results.csv").read_text().splitlines()) < 400
    with pytest.raises(UserError, match="the model finds item; world"):
        score_answers(file, "train")


def test_what_freeze_means() -> None:
    model = RscmdModel(method_config("rsc"), {0: "person"})
    assert frozen_parts(model, None) == frozen_parts(model, 0) == []
    assert frozen_parts(model, 1) == frozen_parts(model, [0]) == ["backbones.visible.b0", "backbones.thermal.b0"]
    assert frozen_parts(model, [12, "backbones.thermal"]) == ["branches.fused.n12", "backbones.thermal"]
    assert frozen_parts(model, ["22.cv2"]) == [f"branches.{name}.head.cv2" for name in ("fused", "visible", "thermal")]
    for freeze in ([10], [22, "backbones.infrared"], ["model.3"]):
        with pytest.raises(UserError, match="has no such weights"):
            frozen_parts(model, freeze)
    with pytest.raises(UserError, match="nothing to train"):
        frozen_parts(RscmdModel(method_config("sum"), {0: "person"}), 23)


def test_what_a_training_is_set_up_with(world: Path, tmp_path: Path) -> None:
    chosen = {"optimizer": "SGD", "lr0": 0.02, "lrf": 0.5, "momentum": 0.7, "weight_decay": 0.25, "cos_lr": True}
    run = trainer(world, tmp_path, **chosen, nbs=8, batch=2, patience=7, epochs=10, cls_pw=0.9, seed=5)
    run._setup_train()
    groups = {group["param_group"]: group for group in run.optimizer.param_groups}
    assert type(run.optimizer) is torch.optim.SGD
    assert {group["initial_lr"] for group in groups.values()} == {0.02}
    assert {group["momentum"] for group in groups.values()} == {0.7}
    assert groups["weight"]["weight_decay"] == pytest.approx(0.25)
    assert run.lf(10) == pytest.approx(0.5)
    assert run.lf(2) > 0.9, "a cosine starts flat"
    assert (run.batches_per_step, run.train_loader.batch_size, run.stopper.patience) == (4, 2, 7)
    weights = run.model.class_weights
    assert weights[1] > weights[0], "class 1 is the rarer one"
    assert run.args.amp is False
    assert run.device.type == "cpu"
    assert torch.are_deterministic_algorithms_enabled()
    first = run.model.backbones["visible"].b1.conv.weight
    assert not first.is_contiguous(), "channels last"
    assert not (run.save_dir / "labels.jpg").exists()
    other = trainer(world, tmp_path, seed=6, deterministic=False, channels_last=False, plots=True)
    assert not torch.are_deterministic_algorithms_enabled()
    other._setup_train()
    assert (other.save_dir / "labels.jpg").is_file()
    second = other.model.backbones["visible"].b1.conv.weight
    assert second.is_contiguous()
    assert not torch.equal(first, second), "another seed"
    with pytest.raises(UserError, match="amp=bf16 needs a CUDA GPU"):
        train(world, method_config("sum"), {"amp": "bf16", "device": "cpu", "project": str(tmp_path), "epochs": 1})


@pytest.mark.parametrize("name", ["MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp", "auto"])
def test_every_optimizer_makes_a_step(name: str, world: Path, tmp_path: Path) -> None:
    run = trainer(world, tmp_path)
    before = [weight.clone() for weight in run.model.parameters()]
    optimizer = run.build_optimizer(run.model, name=name, lr=0.1)
    assert name == "auto" or type(optimizer).__name__.lower() == name.lower()
    for weight in run.model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, run.model.parameters()))


def test_what_a_scored_split_is_judged_by(world: Path, tmp_path: Path) -> None:
    """Three boxes: two that overlap by 0.6, of two classes, and a faint one far away."""
    boxes = torch.tensor([[20, 20, 16, 16, 0.9, 0], [24, 20, 16, 16, 0, 0.8], [60, 60, 8, 8, 0.02, 0]]).float()
    run = trainer(world, tmp_path)
    run.test_loader = None

    def left(**options: Any) -> int:
        for key, value in options.items():
            setattr(run.args, key, value)
        judge = run.get_validator()
        judge.nc, judge.end2end = 2, False
        return len(judge.postprocess(boxes.T[None].clone())[0]["conf"])

    assert left() == 3
    assert left(conf=0.1) == 2
    assert left(agnostic_nms=True, iou=0.7) == 2
    assert left(iou=0.5) == 1
    assert left(agnostic_nms=False, conf=0.001, max_det=1) == 1


def paired(
    world: Path, augment: bool = True, *, rect: bool = False, cache: Any = None, side: int = 64, **hyp: Any
) -> PairedDataset:
    config = open_data(world)
    mapping = {"config": config, "names": config.names, "nc": 2, "channels": 4}
    options = get_cfg(overrides={"imgsz": side, **PLAIN, **hyp})
    more = {"rect": rect, "cache": cache, "batch_size": 2}
    return PairedDataset(img_path="train", imgsz=side, augment=augment, hyp=options, data=mapping, **more)


def sample(data: PairedDataset, seed: int = 3) -> np.ndarray:
    data.buffer = list(range(len(data)))
    random.seed(seed)
    np.random.seed(seed)
    return np.asarray(data[0]["img"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("degrees", 45), ("translate", 0.4), ("scale", 0.9), ("scale", [0.3, 0.4]), ("shear", 30)),
        *(("perspective", 0.001), ("flipud", 1.0), ("fliplr", 1.0), ("mosaic", 1.0), ("mixup", 1.0), ("cutmix", 1.0)),
        *(("hsv_h", 0.5), ("hsv_s", 0.9), ("hsv_v", 0.9)),
    ],
)
def test_augmentation(name: str, value: Any, world: Path) -> None:
    plain = sample(paired(world))
    assert np.array_equal(plain, sample(paired(world), seed=4)), "without augmentation nothing is random"
    value = check_options({name: value})[name]
    augmented = paired(world, **{name: value})
    # CutMix needs a place that is free of objects, which is not there in every draw.
    assert any(not np.array_equal(plain, sample(augmented, seed)) for seed in range(100))


def test_the_parts_of_the_loss_are_weighted() -> None:
    from test_objective import make_batch, make_model

    def parts(**gains: float) -> dict[str, float]:
        model = make_model(method_config("sum"))
        model.args = get_cfg(overrides=gains)
        return {name: float(value) for name, value in model.loss(make_batch())[1].items()}

    once = parts()
    for name in ("box", "cls", "dfl"):
        twice = parts(**{name: 2 * defaults()[name]})
        assert {k: v / once[k] for k, v in twice.items()} == pytest.approx(
            {k: 2.0 if k == f"{name}_loss" else 1.0 for k in once}
        )


def test_the_pairs_that_are_read(world: Path) -> None:
    assert all(image is None for image in paired(world).ims)
    assert all(image is not None for image in paired(world, cache="ram").ims)
    assert paired(world, side=128, rect=True)[0]["img"].shape == (4, 96, 128)
    assert paired(world, side=128)[0]["img"].shape == (4, 128, 128)


def test_workers_on_the_cpu_are_told_of(world: Path, tmp_path: Path, log: list[str]) -> None:
    assert trainer(world, tmp_path, workers=3).args.workers == 0
    assert "workers=3: on the CPU the training itself loads its pairs" in log


def test_a_resumed_run_keeps_its_options(world: Path, tmp_path: Path) -> None:
    """Those that ultralytics lets be changed are told; test_resume.py resumes."""
    run = trainer(world, tmp_path, epochs=3)
    torch.save({"epoch": 0, "train_args": vars(run.args)}, tmp_path / "last.pt")
    with pytest.raises(
        UserError, match="epochs=5: a resumed run keeps its own epochs, 3; what can be changed are imgsz"
    ):
        train(None, None, {"resume": str(tmp_path / "last.pt"), "epochs": 5})
    with pytest.raises(UserError, match="no checkpoint"):
        train(None, None, {"resume": str(tmp_path / "absent.pt")})


def test_classes_that_are_not_there(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="classes=2: the data have classes 0 to 1"):
        trainer(world, tmp_path, classes=[0, 2])


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_devices_are_read_in_both_forms() -> None:
    forms = {"": [None, "", "auto", "none"], "cpu": ["cpu", "CPU", torch.device("cpu")], "mps": ["mps"]}
    forms |= {"0": [0, "0", "00", "cuda", "cuda:0", [0], "[0]"], "0,1": ["0,1", "[0, 1]", (0, 1), "cuda:0,cuda:1"]}
    forms |= {"-1": [-1, "-1"], "-1,-1": ["-1,-1"]}
    for read, words in forms.items():
        assert [read_device(w) for w in words] == [read] * len(words)
    for odd in ("gpu", "cuda:-2", "0,0", "cpu,0", "1.5", True, "-", ["a"], "npu"):
        with pytest.raises(UserError, match="is not one of: auto, cpu, mps"):
            check_device(odd)


def test_devices_that_are_not_there(no_gpu: None) -> None:
    assert (check_device(None), check_device("cpu"), inference_device("auto"), scoring_device(None)) == (
        *("", "cpu", "cpu", "cpu"),
    )
    for device in ("0", "cuda:1", "-1", [0, 1]):
        with pytest.raises(UserError, match="is not there; this machine has cpu alone"):
            check_device(device)
        with pytest.raises(UserError, match="is not there"):
            inference_device(device)


def test_devices_of_a_machine_with_two_gpus(two_gpus: None) -> None:
    assert [check_device(d) for d in ("auto", "1", "cuda:1", "0,1", -1)] == ["", "1", "1", "0,1", "-1"]
    assert [inference_device(d) for d in ("auto", "1", "cuda:1", -1)] == ["cuda:0", "cuda:1", "cuda:1", "cuda:0"]
    assert [scoring_device(d) for d in ("", "1", "1,0", "cpu", "mps")] == ["cuda:0", "cuda:1", "cuda:1", "cpu", "cpu"]
    for device in ("2", "0,2"):
        with pytest.raises(UserError, match="cuda:0 to cuda:1"):
            check_device(device)
    with pytest.raises(UserError, match="inference takes one of"):
        inference_device("0,1")


def test_the_pages_have_the_recipe_that_label_bag_prints() -> None:
    for page, times in (("README.md", 1), ("docs/your_drive.md", 2)):
        assert (ROOT / page).read_text(encoding="utf-8").count(f"    {FEW_PAIRS}\n") == times, page
    assert parse_options(FEW_PAIRS.split())["nbs"] == 8
