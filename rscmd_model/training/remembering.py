"""Making the memory of a finished model: one pass over the pairs it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from ultralytics.nn.tasks import load_checkpoint

from rscmd_model.datasets.pairs import DataConfig, PairFiles, find_pairs, split_hash
from rscmd_model.files import sha256_of
from rscmd_model.imaging.images import read_thermal, read_visible
from rscmd_model.imaging.preprocess import fill, place
from rscmd_model.network.header import ModelHeader
from rscmd_model.network.memory import FILE, Memory, Site, recording, save_memory
from rscmd_model.network.model_file import load_model


def remember(
    file: str | Path,
    data: DataConfig,
    split: str = "train",
    *,
    device: str = "cpu",
    batch: int = 16,
    progress: Callable[[str], None] | None = None,
) -> Memory:
    """Show a model the pairs of a split as an evaluation does, and take down what its convolutions read.

    Every answer is asked for that the model gives or was taught by.

    Args:
        file: model.safetensors.
        data: whose pairs.
        split: of the data.
        device: in torch's words.
        batch: pairs of one shape that go through the network together.
        progress: called with a line now and then.

    Raises:
        UserError: a bad model file, no such split, or an image that cannot be read.
    """
    model, header = load_model(file)
    model.to(device)
    pairs = find_pairs(data, split)
    answers = tuple(dict.fromkeys((*model.config.answers, *model.method.taught)))
    sums: dict[str, Tensor] = {}
    positions: dict[str, int] = {}
    done = 0
    with torch.inference_mode(), recording(model, sums, positions):
        for stack in _stacks(data, pairs, header, batch):
            model.answers(torch.from_numpy(stack).to(device).permute(0, 3, 1, 2).float() / 255, answers)
            done += len(stack)
            if progress and done // 500 > (done - len(stack)) // 500:
                progress(f"{done} of {len(pairs)} pairs")
    moments = {name: (total / positions[name]).float().cpu() for name, total in sums.items()}
    site = Site(data.name, split_hash(pairs), len(pairs))
    return Memory(sha256_of(Path(file)), (site,), moments, positions)


def remember_run(
    model: Path, data: DataConfig, device: str, progress: Callable[[str], None] | None = None
) -> tuple[Path, Memory]:
    """Write the memory of a finished run beside its model: of its train pairs, and of what the run itself kept.

    Args:
        model: the run's model.safetensors.
        data: of the run.
        device: in torch's words.
        progress: as for `remember`.

    Returns:
        the file, and what is in it.

    Raises:
        UserError: as `remember`; or what the run kept is gone or was changed.
    """
    memory = remember(model, data, device=device, progress=progress)
    last = model.parent / "weights" / "last.pt"
    kept = load_checkpoint(last)[0].kept if last.is_file() else None
    if kept is not None:
        memory = memory.with_earlier(kept.read())
    file = model.with_name(FILE)
    save_memory(file, memory)
    return file, memory


def _stacks(data: DataConfig, pairs: list[PairFiles], header: ModelHeader, batch: int) -> Iterator[np.ndarray]:
    """Network inputs (B, H, W, 4) uint8: red, green, blue, thermal; neighbours of one shape together, up to `batch`."""
    contract = replace(header.thermal, palette_ok=data.thermal_contract.palette_ok)
    registration = data.registration or header.registration
    waiting: list[np.ndarray] = []
    for pair in pairs:
        visible, plane = read_visible(pair.visible), contract.apply(read_thermal(pair.thermal, contract))
        height, width = visible.shape[:2]
        placement = place((height, width), header.image_size)
        stack = np.empty((*placement.network, 4), np.uint8)
        fill(stack, placement, visible, plane, registration)
        if waiting and (waiting[0].shape != stack.shape or len(waiting) == batch):
            yield np.stack(waiting)
            waiting = []
        waiting.append(stack)
    if waiting:
        yield np.stack(waiting)
