"""Pairs that are kept decoded and resized, in memory or in files of the run: exact, and read once."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_train import PLAIN, two_class_world
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader

from rscmd_model.datasets.opening import open_data
from rscmd_model.errors import UserError
from rscmd_model.training.disk_cache import check_room, write_stack
from rscmd_model.training.paired_dataset import PairedDataset
from rscmd_model.training.resume import EpochLoader, begin_epoch


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Six pairs of 64 px, one of them of another shape."""
    data = two_class_world(tmp_path / "data")
    cv2.imwrite(str(tmp_path / "data/visible/train/c.png"), np.full((60, 80, 3), 90, np.uint8))
    return data


def pairs(data: Path, cache: str | None, side: int = 96, **hyp: float) -> PairedDataset:
    config = open_data(data)
    mapping = {"config": config, "names": config.names, "nc": len(config.names), "channels": 4}
    options = get_cfg(overrides={"imgsz": side, **hyp})
    kept = {"cache": cache, "cache_folder": data.parent.parent / "cache"}
    return PairedDataset(img_path="train", imgsz=side, augment=True, hyp=options, data=mapping, batch_size=2, **kept)


def images(of: PairedDataset) -> torch.Tensor:
    """An epoch of a training."""
    loader = EpochLoader(build_dataloader(of, 2, 0))
    begin_epoch(0, 0, loader)
    return torch.cat([batch["img"] for batch in loader])


def files(data: Path) -> list[Path]:
    return sorted((data.parent.parent / "cache").iterdir())


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_cache_changes_nothing_and_is_read_in_place_of_the_pictures(cache: str, world: Path) -> None:
    """The same pictures to the bit. With cache=ram the draws are others: the mosaic's partners are any pairs."""
    plain, augmented = images(pairs(world, None, **PLAIN)), images(pairs(world, None))
    before = sorted(world.parent.rglob("*"))
    kept, kept_augmented = pairs(world, cache, **PLAIN), pairs(world, cache)
    assert sorted(world.parent.rglob("*")) == before, "written into the data's folder"
    for name in ("visible", "thermal"):
        for file in (world.parent / name / "train").iterdir():
            file.write_bytes(b"no picture any more")
    assert torch.equal(images(kept), plain)
    assert torch.equal(images(kept_augmented), augmented) == (cache == "disk")


def test_a_file_is_made_anew_when_what_it_shows_was_changed(world: Path) -> None:
    pairs(world, "disk")
    first = files(world)
    assert len(first) == 6
    times = [file.stat().st_mtime_ns for file in first]
    pairs(world, "disk")
    assert [file.stat().st_mtime_ns for file in files(world)] == times, "made twice"

    picture = world.parent / "thermal/train/a.png"
    picture.write_bytes((world.parent / "thermal/train/b.png").read_bytes())
    changed = pairs(world, "disk", mosaic=0)
    assert len(files(world)) == 7
    assert torch.equal(images(changed), images(pairs(world, None, mosaic=0)))
    pairs(world, "disk", side=64)
    assert len(files(world)) == 13
    with world.open("a") as file:
        file.write("thermal_contract: {source: mono8, scale: [10, 200]}\n")
    other = pairs(world, "disk", mosaic=0)
    assert len(files(world)) == 19
    assert torch.equal(images(other), images(pairs(world, None, mosaic=0)))


def test_a_file_that_is_damaged_or_gone_is_made_from_the_pictures(world: Path) -> None:
    plain, kept = images(pairs(world, None)), pairs(world, "disk")
    one, other, *_ = files(world)
    one.write_bytes(one.read_bytes()[:-9])
    other.unlink()
    assert torch.equal(images(kept), plain)
    pairs(world, "disk")
    assert {file.stat().st_size % 64 for file in files(world)} == {0}
    assert other.exists()


def test_a_full_disk_is_told_and_leaves_no_half_file(world: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*/cache/.*\.npy: File too large"):
            pairs(world, "disk")
        with pytest.raises(UserError, match=r"cannot write .*/one\.npy: File too large"):
            write_stack(tmp_path / "alone/one.npy", np.zeros((96, 96, 4), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "alone").iterdir()) == []


def test_too_little_room_is_told_before(tmp_path: Path) -> None:
    check_room(tmp_path / "cache", [(640, 640)])
    side = int(shutil.disk_usage(tmp_path).total ** 0.5)
    with pytest.raises(UserError, match=r"cache=disk needs .* GB in .*/cache, where .* GB are free"):
        check_room(tmp_path / "cache", [(side, side)])
