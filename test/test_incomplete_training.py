"""Training on pairs that have lost one camera for good: what is lost reaches nothing, and the rest is as if alone."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lives import killed
from test_ddp import free_port
from test_objective import gradients, make_model
from test_pairs import write_world
from test_resume import assert_same_run
from test_train import QUICK, two_class_world
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from ultralytics.cfg import get_cfg

from rscmd_model.config import MODALITIES, Augmentation, Incomplete
from rscmd_model.datasets.incomplete import lost_cameras
from rscmd_model.datasets.opening import open_data
from rscmd_model.diagnosis.gradient_recorder import GradientRecorder
from rscmd_model.errors import UserError
from rscmd_model.methods import METHODS, method_config, parse_method
from rscmd_model.methods.sum import Sum
from rscmd_model.network.lost import labels_of, rows_with
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.objective import Detection
from rscmd_model.training.paired_dataset import PairedDataset
from rscmd_model.training.run import train
from rscmd_model.training.trainer import PairedTrainer

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {
    **QUICK,
    "batch": 2,
    "nbs": 4,
    "epochs": 2,
    "optimizer": "SGD",
    "mixup": 0.5,
    "close_mosaic": 1,
    "val": False,
}
METHODS_OF_TWO = ("late", "sum", "sum+fusion=adapt", "aux", "rsc", "rsc+rsc=shared", "rscmd", "rscmd+md=stop")
NONE, VISIBLE, THERMAL = range(3)
HALF = Incomplete(0.5)


def make_batch(lost: list[int] | None = None, seed: int = 1) -> dict[str, Any]:
    """Four samples with one, two, no and one objects."""
    g = torch.Generator().manual_seed(seed)
    batch = {
        "img": torch.rand(4, 4, 64, 64, generator=g),
        "batch_idx": torch.tensor([0.0, 1.0, 1.0, 3.0]),
        "cls": torch.tensor([[0.0], [1.0], [0.0], [1.0]]),
        "bboxes": torch.rand(4, 4, generator=g) * 0.3 + 0.35,
    }
    return batch if lost is None else {**batch, "lost": torch.tensor(lost)}


def batch_of(batch: dict[str, Any], samples: list[int]) -> dict[str, Any]:
    """Some samples as a batch of their own."""
    labels = [(new, row) for new, old in enumerate(samples) for row in (batch["batch_idx"] == old).nonzero().flatten()]
    rows = torch.tensor([int(row) for _, row in labels], dtype=torch.int64)
    out = {key: batch[key][rows] for key in ("cls", "bboxes", "weights") if key in batch}
    return {**out, "img": batch["img"][samples], "batch_idx": torch.tensor([float(new) for new, _ in labels])}


def statistics(model: RscmdModel, camera: str) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.backbones[camera].named_buffers()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# What a model learns


@pytest.mark.parametrize("camera", MODALITIES)
def test_a_unimodal_answer_learns_as_from_a_batch_of_those_that_have_the_camera(camera: str) -> None:
    """Statistics, losses and gradients of `late`, and of its control on the two others alone, bit for bit."""
    number = 1 + MODALITIES.index(camera)
    batch = make_batch([NONE, number, number, NONE])
    late, control = make_model(method_config("late")), make_model(method_config(camera))
    items = late.loss(batch)[1]
    late.loss(batch)[0].sum().backward()
    alone = batch_of(batch, [0, 3])
    control.loss(alone)
    total = control.loss(alone)[0].sum()
    total.backward()
    assert_equal(statistics(late, camera), statistics(control, camera))
    for part in ("backbones", "branches"):
        ours, theirs = getattr(late, part)[camera], getattr(control, part)[camera]
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert a.grad is None if b.grad is None else torch.equal(a.grad, b.grad), name
    own = [v for name, v in items.items() if (name == "thermal_loss") == (camera == "thermal")]
    assert float(torch.stack(own).sum()) * 4 == pytest.approx(float(total.detach()), rel=1e-5), (
        "the mean over the batch"
    )


@pytest.mark.parametrize("method", ["rscmd+md=stop", "rscmd+md=stop+rsc=shared", "rscmd+md=stop+branch=full"])
def test_a_backbone_s_own_loss_is_that_of_the_others_alone(method: str) -> None:
    """Under md=stop a backbone is taught by its own loss and nothing else, so its gradients show that loss."""
    batch = make_batch([VISIBLE, NONE, VISIBLE, NONE])
    model, twin = make_model(parse_method(method)), make_model(parse_method(method))
    ours = gradients(model.loss(batch)[0].sum(), model.backbones["visible"])
    alone = batch_of(batch, [1, 3])
    answer = twin.branch("visible")(twin.features(alone["img"], "visible"))
    parts = Detection(twin).losses({"visible": answer}, alone)["visible"]
    theirs = gradients(torch.stack(list(parts.values())).sum() * 2, twin.backbones["visible"])
    assert any(g.any() for g in ours)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7 * float(b.abs().max() + 1))
    assert_equal(statistics(model, "visible"), statistics(twin, "visible"))


@pytest.mark.parametrize("method", METHODS_OF_TWO)
def test_what_a_lost_image_shows_does_not_matter(method: str) -> None:
    results = []
    for content in (0.0, 1.0):
        batch = make_batch([VISIBLE, THERMAL, NONE, VISIBLE])
        batch["img"][[0, 3], :3] = content
        batch["img"][1, 3:] = content
        model = make_model(parse_method(method))
        total, items = model.loss(batch)
        total.sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((items, grads, dict(model.named_buffers())))
    for a, b in zip(*results):
        assert_equal(a, b)


def test_the_fusion_reads_the_features_of_a_black_image() -> None:
    batch, model = make_batch([VISIBLE, THERMAL, NONE, THERMAL]), make_model(method_config("rscmd"))
    taught = model.predict(batch["img"], lost=batch["lost"])
    for number, camera in enumerate(MODALITIES, 1):
        lost = batch["lost"] == number
        alone = make_model(method_config("rscmd"))
        theirs = alone.features(batch["img"][~lost], camera)
        black = alone.eval().features(torch.zeros(1, 4, 64, 64), camera)  # as evaluation has it
        for level, those, nothing in zip(taught.features[camera], theirs, black):
            assert torch.equal(level[~lost], those)
            torch.testing.assert_close(level[lost], nothing.expand(int(lost.sum()), -1, -1, -1))
            (reaches,) = torch.autograd.grad(
                level[lost].sum(), model.backbones[camera].b0.conv.weight, retain_graph=True
            )
            assert not reaches.any()
    black_batch = batch["img"].clone()
    black_batch[0, :3] = 0
    black_batch[[1, 3], 3:] = 0
    model.frozen_statistics = True  # so that a sample's features do not depend on the others
    model.train()
    seen = model.predict(batch["img"], lost=batch["lost"]).answers["fused"]["scores"]
    torch.testing.assert_close(seen, model.answers(black_batch)["fused"]["scores"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS_OF_TWO)
def test_a_batch_in_which_no_sample_has_a_camera(method: str) -> None:
    model, batch = make_model(parse_method(method)), make_batch([THERMAL] * 4)
    before = statistics(model, "thermal")
    total, items = model.loss(batch)
    total.sum().backward()
    assert all(value.isfinite() for value in items.values())
    if method.startswith(("late", "rsc")):
        assert items["thermal_loss"] == 0
    assert all(p.grad is None for p in model.backbones["thermal"].parameters())
    assert_equal(before, statistics(model, "thermal"))
    assert any(p.grad is not None and p.grad.any() for p in model.backbones["visible"].parameters())


@pytest.mark.parametrize("method", METHODS_OF_TWO)
def test_where_nothing_is_lost_a_step_is_the_plain_one(method: str) -> None:
    results = []
    for batch in (make_batch(), make_batch([NONE] * 4)):
        model = make_model(parse_method(method))
        total, items = model.loss(batch)
        total.sum().backward()
        results.append((items, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    for a, b in zip(*results):
        assert_equal(a, b)


def test_the_control_of_rsc_has_losses_on_every_sample() -> None:
    """The further branches of `aux` read what is fused, which every sample has."""
    model, batch = make_model(method_config("aux")), make_batch([VISIBLE, VISIBLE, THERMAL, NONE])
    taught = model.predict(batch["img"], lost=batch["lost"])
    assert {len(answer["scores"]) for answer in taught.answers.values()} == {4}


def test_labels_of_some_samples_are_those_of_a_batch_of_them_alone() -> None:
    batch = {**make_batch(), "weights": torch.rand(4, 3)}
    for samples in ([0, 1, 2, 3], [1, 3], [2], [0, 2]):
        found, expected = labels_of(torch.tensor(samples), batch), batch_of(batch, samples)
        for key in ("batch_idx", "cls", "bboxes", "weights"):
            assert torch.equal(found[key], expected[key])
            assert found[key].dtype == batch[key].dtype
    assert rows_with("thermal", torch.tensor([0, 2, 1, 2])).tolist() == [0, 2]


def test_weights_of_labels_go_with_them() -> None:
    batch = make_batch([NONE, VISIBLE, NONE, VISIBLE])
    batch["weights"] = torch.tensor([[1.0, 0.5, 1.0], [1.0, 0.3, 1.0], [1.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    other = {**batch, "weights": batch["weights"].clone()}
    other["weights"][1:, 1] = 0.9  # of samples that have lost the camera
    own, same = (make_model(method_config("rsc")).loss(b)[1] for b in (batch, other))
    assert_equal(own, same)
    other["weights"][0, 1] = 1.0
    assert make_model(method_config("rsc")).loss(other)[1]["visible_loss"] > own["visible_loss"]


def test_modality_dropout_takes_the_complete_samples_alone() -> None:
    batch, model = make_batch([VISIBLE, THERMAL, NONE, NONE]), make_model(method_config("sum"))
    model.augmentation = Augmentation(modality_dropout=1.0)
    features = model.predict(batch["img"], lost=batch["lost"]).features
    for _ in range(8):
        out = model._drop_modalities(batch["img"], features, batch["lost"])
        changed = [[not torch.equal(out[m][0][i], features[m][0][i]) for m in MODALITIES] for i in range(4)]
        assert changed[:2] == [[False, False]] * 2
        assert [sum(sample) for sample in changed[2:]] == [1, 1]


def test_losses_in_16_bits_send_gradients_to_every_weight() -> None:
    """The pass of black images, which has none, does not take those of the others."""
    grads = []
    for lost in (None, [NONE, VISIBLE, THERMAL, NONE]):
        model = make_model(method_config("rsc"))
        with torch.autocast("cpu", torch.bfloat16):
            total, _ = model.loss(make_batch(lost))
        total.sum().backward()
        grads.append({n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()})
    assert grads[0] == grads[1]


# Data


def dataset(data: Path, lost: dict[str, str], mixing: float = 0.0, **kwargs: Any) -> PairedDataset:
    config = open_data(data)
    mapping = {"config": config, "names": config.names, "nc": len(config.names), "channels": 4}
    hyp = get_cfg(overrides={"imgsz": 64, "mosaic": mixing, "mixup": mixing, "cutmix": mixing})
    return PairedDataset(
        img_path="train", imgsz=64, augment=True, hyp=hyp, data=mapping, batch_size=4, lost=lost, **kwargs
    )


def test_a_lost_image_is_black_after_the_augmentation_and_named_in_the_batch(tmp_path: Path) -> None:
    data = write_world(tmp_path, ("a", "b", "c"))  # 64 x 48: the letterbox has grey around it
    pairs = dataset(data, {"a": "visible", "c": "thermal"}, thermal_shift=5)
    plain = dataset(data, {})
    assert "lost" not in PairedDataset.collate_fn([plain[i] for i in range(3)])
    for _ in range(3):
        batch = PairedDataset.collate_fn([pairs[i] for i in range(3)])
        assert [Path(file).stem for file in batch["im_file"]] == ["a", "b", "c"]
        assert batch["lost"].tolist() == [VISIBLE, NONE, THERMAL]
        assert batch["lost"].dtype == torch.int64
        assert [[bool(image[c].any()) for c in range(4)] for image in batch["img"]] == [
            [False] * 3 + [True],
            [True] * 4,
            [True] * 3 + [False],
        ]
        assert batch["img"].shape == (3, 4, 64, 64)


@pytest.mark.parametrize("cache", [None, "ram"])
def test_samples_are_put_together_from_pairs_with_the_same_cameras(
    cache: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stems = tuple("abcdefg")
    lost = {"a": "visible", "c": "thermal", "d": "thermal", "e": "visible"}
    pairs = dataset(write_world(tmp_path, stems), lost, mixing=0.7, cache=cache)
    loaded: list[int] = []
    load = pairs.load_image
    monkeypatch.setattr(pairs, "load_image", lambda i, *args: (loaded.append(i), load(i, *args))[1])
    partners: dict[str, set[str]] = {}
    for _ in range(10):
        for i, stem in enumerate(stems):
            loaded.clear()
            sample = pairs[i]
            partners.setdefault(stem, set()).update(stems[j] for j in loaded)
            assert sample["lost"] == {None: NONE, "visible": VISIBLE, "thermal": THERMAL}[lost.get(stem)]
    for stem, them in partners.items():
        assert them == {s for s in stems if lost.get(s) == lost.get(stem)}, stem


def test_a_model_of_one_camera_is_trained_on_the_pairs_that_have_it(tmp_path: Path) -> None:
    data = write_world(tmp_path, ("a", "b", "c"))
    lost = {"a": "visible", "c": "thermal"}
    pairs = dataset(data, lost, cameras=("visible",))
    assert [Path(file).stem for file in pairs.im_files] == ["b", "c"]
    assert "lost" not in PairedDataset.collate_fn([pairs[0], pairs[1]])
    with pytest.raises(UserError, match="that has not lost its visible image"):
        dataset(data, dict.fromkeys("abc", "visible"), cameras=("visible",))


# Runs


def run(data: Path, folder: Path, kill: bool = False) -> None:
    """Train, or go on with a run; with `kill` die by SIGKILL amid the second epoch."""
    last = folder / "weights/last.pt"
    go_on = {"resume": str(last), "model": str(last)} if last.is_file() else {}
    place = {"data": str(data), "project": str(folder.parent), "name": folder.name}
    trainer = PairedTrainer(overrides={"model": "rscmd", **OPTIONS, **place, **go_on})
    if not go_on:
        trainer.start_from(method_config("rscmd"), None, Augmentation(incomplete=HALF))
    if kill:
        trainer.add_callback("on_train_batch_end", lambda t: t.epoch == 1 and os.kill(os.getpid(), signal.SIGKILL))
    trainer.train()


def table(folder: Path) -> dict[str, str]:
    with (folder / "incomplete.csv").open() as file:
        return {row["name"]: row["lost"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_class_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody killed, half of whose pairs have lost a camera."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(world, folder)
    return folder


def test_the_files_of_lost_images_do_not_matter(world: Path, whole: Path, tmp_path: Path) -> None:
    """Another picture in their place, and the run is the same bit for bit."""
    lost = table(whole)
    assert sorted(lost.values()) == ["none"] * 3 + ["thermal"] + ["visible"] * 2
    assert {k: v for k, v in lost.items() if v != "none"} == lost_cameras("abcdef", 0.5)
    data = two_class_world(tmp_path / "data")
    rng = np.random.default_rng(9)
    for stem, camera in lost.items():
        if camera != "none":
            shape = (64, 64, 3) if camera == "visible" else (64, 64)
            cv2.imwrite(str(tmp_path / f"data/{camera}/train/{stem}.png"), rng.integers(0, 256, shape, np.uint8))
    run(data, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_killed_run_goes_on_to_the_same_curve_with_its_table(world: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed(run, world, folder, True)
    kept = (folder / "incomplete.csv").read_bytes()
    with pytest.raises(UserError, match="keeps its own modality dropout, thermal shift and lost cameras"):
        train(None, None, {"resume": str(folder / "weights/last.pt")}, None, Augmentation(incomplete=HALF))
    watch = partial(GradientRecorder.attach, every=1)
    with pytest.raises(UserError, match="--incomplete has others: leave one out"):
        train(None, None, {"resume": str(folder / "weights/last.pt")}, observers=[watch])
    (folder / "incomplete.csv").write_text("name,lost\na,none\n")
    with pytest.raises(UserError, match="is of other pairs than"):
        run(world, folder)
    (folder / "incomplete.csv").write_bytes(kept)
    run(world, folder)
    assert_same_run(folder, whole)
    assert (folder / "incomplete.csv").read_bytes() == kept


def test_a_rate_of_0_is_plain_training_bit_for_bit(
    command: Callable[..., subprocess.CompletedProcess[str]], world: Path, tmp_path: Path
) -> None:
    options = [f"{key}={value}" for key, value in {**OPTIONS, "epochs": 1, "project": tmp_path}.items()]
    words = ["--data", world, "--method", "rsc", *options]
    assert command("rscmd_model.train", *words, "name=plain").returncode == 0
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero/incomplete.csv").write_text("of an earlier run")
    done = command("rscmd_model.train", *words, "name=zero", "--incomplete", "0,visible")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "plain", tmp_path / "zero")
    assert not (tmp_path / "zero/incomplete.csv").exists()


def test_the_methods_of_one_seed_are_trained_with_one_table(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_world(tmp_path / "data", tuple("abcd"))
    options = [f"{k}={v}" for k, v in {**OPTIONS, "epochs": 1, "project": tmp_path, "verbose": True}.items()]
    tables = []
    for method in ("thermal", "late", "aux"):
        words = ["--data", data, "--method", method, "--incomplete", "0.7", *options]
        done = command("rscmd_model.train", *words, f"name={method}", "seed=3")
        assert done.returncode == 0, done.stderr
        tables.append(table(tmp_path / method))
    told = "of 4 pairs 2 have lost the visible image for good, 1 the thermal one (incomplete.csv, "
    assert caplog.text.count(told) == 3
    assert tables == [tables[0]] * 3
    assert {k: v for k, v in tables[0].items() if v != "none"} == lost_cameras("abcd", 0.7, seed=3)


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    data, port = two_class_world(tmp_path / "data"), free_port()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    launch += [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test", "--local-addr=127.0.0.1"]
    options = {**OPTIONS, "epochs": 1, "batch": 4, "project": tmp_path, "name": "run"}
    words = ["-m", "rscmd_model.train", "--data", data, "--incomplete", "0.7", "--method", "rscmd"]
    words += [f"{k}={v}" for k, v in options.items()]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *map(str, words)], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model.safetensors").is_file()
    assert {k: v for k, v in table(tmp_path / "run").items() if v != "none"} == lost_cameras("abcdef", 0.7)


def worker(rank: int, folder: str) -> None:
    """A rank of two: the second has no visible image at all."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(make_model(method_config("rscmd")), find_unused_parameters=True)
    loss, _ = model(make_batch(*LOST_OF_RANK[rank]))
    (loss.sum() * 2).backward()
    torch.save({n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


LOST_OF_RANK = (([NONE, THERMAL, VISIBLE, NONE], 5), ([VISIBLE] * 4, 6))


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    mp.start_processes(worker, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    expected: dict[str, Tensor] = {}
    for given in LOST_OF_RANK:
        model = make_model(method_config("rscmd"))
        model(make_batch(*given))[0].sum().backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                expected[name] = expected.get(name, torch.zeros_like(p)) + p.grad
    assert set(first) == set(second) == set(expected)
    scale = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, grad in expected.items():
        assert torch.equal(first[name], second[name]), name
        assert float((first[name] - grad).norm()) < 1e-4 * float(scale), name


# What does not go with it


class Unheard(Sum):
    """A method that says nothing of lost cameras; what `Sum` says is not taken for it."""


def test_what_does_not_go_with_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_world(tmp_path / "data")
    monkeypatch.setitem(METHODS, "unheard", "test_incomplete_training:Unheard")

    def refused(says: str, method: str = "rsc", **options: Any) -> None:
        place = {"project": str(tmp_path), "name": "run"}
        with pytest.raises(UserError, match=says):
            train(data, parse_method(method), {**OPTIONS, **place, **options}, None, Augmentation(incomplete=HALF))
        assert not (tmp_path / "run/incomplete.csv").exists()

    refused(
        "method unheard is not made for pairs .* these are: visible, thermal, late, sum, aux, rsc, rscmd", "unheard"
    )
    refused("does not work with compile", compile=True)
    refused("batches of 64 px or more", imgsz=32)
    refused("batches of 64 px or more", multi_scale=0.5)
    for text, says in (("1.5", "share of the pairs"), ("half", "give RATE"), ("0.5,radar", "'radar' is not visible")):
        with pytest.raises(UserError, match=says):
            Incomplete.parse(text)
    before = object.__new__(Augmentation)  # as a checkpoint of before there was such a thing has it
    before.__dict__.update(modality_dropout=0.0, thermal_shift=0)
    assert before == Augmentation()
    assert Incomplete.parse("0.7") == Incomplete(0.7, "either")
    assert Incomplete.parse(str(Incomplete(0.3, "thermal"))) == Incomplete(0.3, "thermal")


def test_gradients_of_lost_cameras_are_not_recorded(world: Path, whole: Path, tmp_path: Path) -> None:
    place = {"data": str(world), "project": str(tmp_path), "name": "run"}
    trainer = PairedTrainer(overrides={"model": "rscmd", **OPTIONS, **place})
    trainer.start_from(method_config("rscmd"), None, Augmentation(incomplete=HALF))
    with pytest.raises(UserError, match="--incomplete has others: leave one out"):
        GradientRecorder(trainer, 1)


# Ablations


def test_an_ablation_hands_it_to_every_training(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    data, out = write_world(tmp_path / "data", tuple("abcd")), tmp_path / "out"
    words = ["--data", data, "--out", out, "--methods", "sum", "--seeds", "1"]
    words += ["epochs=1", "batch=4", "device=cpu", "workers=0", "--resamples", "0"]
    refused = command("rscmd_model.ablate", *words, "imgsz=32", "--incomplete", "0.5,visible")
    assert (refused.returncode, "needs batches of 64 px" in refused.stderr) == (2, True)
    assert not out.exists()
    words += ["imgsz=64"]
    done = command("rscmd_model.ablate", *words, "--incomplete", "0.5,visible")
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "recipe.json").read_text())["incomplete"] == "0.5,visible"
    assert sorted(table(out / "sum-seed0").values()) == ["none", "none", "visible", "visible"]
    other = command("rscmd_model.ablate", *words)
    assert "holds an ablation with another incomplete" in other.stderr
    recipe = json.loads((out / "recipe.json").read_text())
    del recipe["incomplete"]  # as of before there was a choice
    (out / "recipe.json").write_text(json.dumps(recipe))
    assert command("rscmd_model.ablate", *words).returncode == 0
