"""Modality dropout and thermal shift: what they change, what they must leave alone, and that they survive a resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_pairs import write_world
from test_train import PLAIN, QUICK, grey_world
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import RandomHSV

from rscmd_model.config import Augmentation
from rscmd_model.datasets.opening import open_data
from rscmd_model.errors import UserError
from rscmd_model.methods import method_config
from rscmd_model.network.model import RscmdModel
from rscmd_model.training.paired_dataset import PairedDataset, PairedPhotometric, ThermalShift
from rscmd_model.training.run import train
from rscmd_model.training.trainer import PairedTrainer

NAMES = {0: "person", 1: "car"}


def dataset(file: Path, shift: int, augment: bool = True) -> PairedDataset:
    config = open_data(file)
    mapping = {"config": config, "names": config.names, "nc": len(config.names), "channels": 4}
    hyp = get_cfg(overrides={"imgsz": 64, **PLAIN})
    options = {"imgsz": 64, "augment": augment, "hyp": hyp, "data": mapping, "batch_size": 4}
    return PairedDataset(img_path="train", thermal_shift=shift, **options)


def test_shift_moves_the_thermal_channel_alone(tmp_path: Path) -> None:
    file = grey_world(tmp_path)
    plain, shifted = dataset(file, 0)[0], dataset(file, 5)
    seen = set()
    for _ in range(20):
        sample = shifted[0]
        assert torch.equal(sample["img"][:3], plain["img"][:3])
        assert torch.equal(sample["bboxes"], plain["bboxes"])
        thermal = sample["img"][3].numpy()
        padded = np.pad(plain["img"][3].numpy(), 5, constant_values=114)
        moves = [
            (dx, dy)
            for dx in range(-5, 6)
            for dy in range(-5, 6)
            if np.array_equal(thermal, padded[5 - dy : 69 - dy, 5 - dx : 69 - dx])
        ]
        assert len(moves) == 1
        seen.update(moves)
    assert len(seen) > 10
    assert min(min(move) for move in seen) < 0 < max(max(move) for move in seen)
    assert torch.equal(dataset(file, 5, augment=False)[0]["img"], dataset(file, 0, augment=False)[0]["img"])


def test_photometric_changes_have_the_bits_of_their_formula() -> None:
    """The thermal map goes through a table of 256 values; here it is computed for every pixel."""
    rng = np.random.default_rng(0)
    for seed in range(20):
        stack = rng.integers(0, 256, (37, 53, 4), np.uint8)
        np.random.seed(seed)
        change = PairedPhotometric(0.5, 0.7, 0.9)
        changed = change.apply_image({"img": stack.copy()})["img"]
        np.random.seed(seed)
        visible = RandomHSV.apply_image(change, {"img": stack[..., :3].copy()})["img"]
        contrast, level = 1 + np.random.uniform(-1, 1) * 0.9, np.random.uniform(-1, 1) * 0.9 / 4 * 255
        thermal = stack[..., 3].astype(np.float32)
        mean = thermal.mean()
        thermal = np.clip((thermal - mean) * contrast + mean + level, 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(changed, np.dstack((visible, thermal)))


def test_shift_outlives_the_mosaic(tmp_path: Path) -> None:
    """The engine builds the transforms anew for the last epochs."""
    pairs = dataset(grey_world(tmp_path), 3)
    pairs.close_mosaic(get_cfg(overrides={"imgsz": 64}))
    assert [t.most for t in pairs.transforms.transforms if isinstance(t, ThermalShift)] == [3]


def trained_mode(dropout: float, method: str = "rscmd") -> RscmdModel:
    torch.manual_seed(0)
    model = RscmdModel(method_config(method), NAMES)
    model.augmentation = Augmentation(modality_dropout=dropout)
    return model.train()


def test_dropout_changes_the_fused_answer_alone() -> None:
    x = torch.rand(4, 4, 64, 64)
    plain, dropping = trained_mode(0.0), trained_mode(1.0)
    a, b = plain.answers(x), dropping.answers(x)
    assert not torch.equal(a["fused"]["scores"], b["fused"]["scores"])
    for modality in ("visible", "thermal"):
        assert torch.equal(a[modality]["scores"], b[modality]["scores"])
    # No black image ever reaches the statistics that BatchNorm keeps of a backbone.
    for (name, one), other in zip(plain.backbones.named_buffers(), dropping.backbones.buffers()):
        assert torch.equal(one, other), name
    assert all(module.training for module in dropping.modules())
    with torch.no_grad():
        dropping.eval()
        without = dropping.answers(x, ["fused"])["fused"][0]
        dropping.augmentation = Augmentation()
        assert torch.equal(dropping.answers(x, ["fused"])["fused"][0], without), "nothing is dropped in evaluation"


def test_a_sample_loses_at_most_one_camera_to_black() -> None:
    x = torch.rand(400, 4, 32, 32)
    model = trained_mode(0.4)
    features = {m: [torch.full((400, 1, 1, 1), 7.0)] for m in ("visible", "thermal")}
    black = {m: [torch.full((1, 1, 1, 1), v)] for m, v in (("visible", 1.0), ("thermal", 2.0))}
    asked = []

    def of_black(image: torch.Tensor, modality: str) -> list[torch.Tensor]:
        assert not image.any()
        asked.append(modality)
        return black[modality]

    model.features = of_black  # type: ignore[method-assign]
    seen, out = model._drop_modalities(x, features)
    assert asked == ["visible", "thermal"]
    visible, thermal = out["visible"][0].flatten() == 1, out["thermal"][0].flatten() == 2
    for planes, gone in ((slice(0, 3), visible), (slice(3, 4), thermal)):  # what a fusion by brightness looks at
        assert not seen[gone, planes].any()
        assert torch.equal(seen[~gone, planes], x[~gone, planes])
    assert not (visible & thermal).any()
    assert 0.12 < visible.float().mean() < 0.28
    assert 0.12 < thermal.float().mean() < 0.28
    assert (out["visible"][0].flatten()[~visible] == 7).all()


@pytest.mark.parametrize("method", ["sum", "rsc", "rscmd"])
def test_dropped_features_are_those_of_evaluation_and_send_nothing_back(method: str) -> None:
    x = torch.rand(2, 4, 64, 64)
    model = trained_mode(1.0, method)
    features = {m: model.features(x, m) for m in ("visible", "thermal")}
    _, out = model._drop_modalities(x, features)
    sum((level * level).sum() for levels in out.values() for level in levels).backward()
    with torch.no_grad():
        expected = {m: model.eval().features(torch.zeros(1, 4, 64, 64), m) for m in features}
    lost = {m: [torch.equal(out[m][0][i], expected[m][0][0]) for i in range(2)] for m in features}
    assert [sum(pair) for pair in zip(*lost.values())] == [1, 1]
    for modality, both in lost.items():
        weights = model.backbones[modality].b0.conv.weight
        assert (weights.grad is None or not weights.grad.any()) == all(both)


def test_options_reach_data_and_checkpoint_and_come_back(tmp_path: Path) -> None:
    data = write_world(tmp_path / "data", ("a", "b", "c", "d"))
    options = {**QUICK, "epochs": 1, "val": False, "project": str(tmp_path), "name": "run", "data": str(data)}
    trainer = PairedTrainer(overrides={**options, "mode": "train", "task": "detect", "model": "rscmd"})
    asked = Augmentation(modality_dropout=0.5, thermal_shift=3)
    trainer.start_from(method_config("rscmd"), None, asked)
    trainer.train()
    assert trainer.train_loader.dataset.thermal_shift == 3
    kept = torch.load(tmp_path / "run" / "weights" / "last.pt", weights_only=False)["model"]
    assert kept.augmentation == asked
    assert trainer.get_model(weights=kept).augmentation == asked, "as resume rebuilds it"
    del kept.augmentation  # a checkpoint of before there was such a thing
    assert trainer.get_model(weights=kept).augmentation == Augmentation()


def test_bad_values_are_told(tmp_path: Path) -> None:
    for values in ({"modality_dropout": 1.1}, {"modality_dropout": float("nan")}, {"thermal_shift": -1}):
        with pytest.raises(UserError, match=next(iter(values))):
            Augmentation(**values)
    data = write_world(tmp_path / "data")
    options = {**QUICK, "project": str(tmp_path)}
    with pytest.raises(UserError, match="no second camera"):
        train(data, method_config("visible"), options, None, Augmentation(modality_dropout=0.1))
    with pytest.raises(UserError, match="a quarter of imgsz=64"):
        train(data, method_config("rscmd"), options, None, Augmentation(thermal_shift=17))
    with pytest.raises(UserError, match="keeps its own modality dropout"):
        train(None, None, {"resume": "last.pt"}, None, Augmentation(thermal_shift=1))
