"""The training pairs of a dataset of which some have lost one camera for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_pairs import write_world
from ultralytics.cfg import get_cfg

from rscmd_model.datasets.opening import open_data
from rscmd_model.errors import UserError
from rscmd_model.training.paired_dataset import PairedDataset

NONE, VISIBLE, THERMAL = range(3)


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
