"""The loader of a training: workers that live on give, bit for bit, what new ones give."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import two_class_world
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader

from rscmd_model.datasets.opening import open_data
from rscmd_model.training.paired_dataset import PairedDataset
from rscmd_model.training.resume import EpochLoader, begin_epoch

LOST = {"b": "visible", "e": "thermal", "f": "visible"}
AUGMENTED = {"imgsz": 64, "mosaic": 0.8, "mixup": 0.5, "degrees": 5.0, "hsv_h": 0.1, "hsv_v": 0.6}


def loader(data: Path, workers: int = 2, **kwargs: Any) -> EpochLoader:
    """Of six pairs, three batches an epoch."""
    config = open_data(data)
    mapping = {"config": config, "names": config.names, "nc": len(config.names), "channels": 4}
    options = {"imgsz": 64, "augment": True, "hyp": get_cfg(overrides=AUGMENTED), "data": mapping, "batch_size": 2}
    pairs = PairedDataset(img_path="train", thermal_shift=3, **options, **kwargs)
    return EpochLoader(build_dataloader(pairs, 2, workers))


def batches(of: EpochLoader, epoch: int) -> list[dict[str, Any]]:
    begin_epoch(7, epoch, of)
    return list(of)


def closed(of: EpochLoader) -> EpochLoader:
    """As ultralytics ends the mosaic."""
    of.dataset.close_mosaic(get_cfg(overrides=AUGMENTED))
    of.reset()
    return of


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    """Whether two epochs are the same to the bit, and whole."""
    assert len(a) == len(b) == 3
    assert all(set(x) == set(y) for x, y in zip(a, b))
    pairs = [(x[key], y[key]) for x, y in zip(a, b) for key in x]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def workers_live_on(data: Path, kwargs: dict[str, Any]) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as in any command
    living = loader(data, **kwargs)
    epochs, processes = [], []
    for epoch in range(3):
        epochs.append(batches(living, epoch))
        processes.append({process.pid for process in multiprocessing.active_children()})
    assert processes[0] == processes[1] == processes[2]
    assert len(processes[0]) == 2
    assert not same(epochs[0], epochs[1])
    assert same(batches(living, 1), epochs[1]), "epochs do not depend on those before them"
    for epoch in (0, 2):
        assert same(batches(loader(data, **kwargs), epoch), epochs[epoch])

    begin_epoch(7, 3, living)
    next(iter(living))  # an epoch that is left
    fourth = batches(living, 4)
    assert same(batches(loader(data, **kwargs), 4), fourth)
    assert not same(batches(closed(living), 4), fourth)
    assert same(batches(living, 5), batches(closed(loader(data, **kwargs)), 5))
    living.close()
    assert not processes[0] & {process.pid for process in multiprocessing.active_children()}


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"cache": "ram"}, {"lost": LOST}, {"lost": LOST, "cache": "ram"}],
    ids=["plain", "ram", "lost", "both"],
)
def test_workers_that_live_on_give_what_new_ones_give(kwargs: dict[str, Any], tmp_path: Path) -> None:
    """In a process of its own, which forks its workers: this one has DDS's threads."""
    data = two_class_world(tmp_path)
    process = multiprocessing.get_context("forkserver").Process(target=workers_live_on, args=(data, kwargs))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_two_iterators_of_an_epoch_start_its_workers_once(tmp_path: Path) -> None:
    """ultralytics' trainer makes one that it never asks for a batch."""
    of, before = loader(two_class_world(tmp_path)), multiprocessing.active_children()
    for batches_of in (enumerate(of), enumerate(of)):
        assert multiprocessing.active_children() == before, batches_of
