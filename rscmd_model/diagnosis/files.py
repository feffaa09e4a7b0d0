"""The gradients of runs and of model files on disk, and short names for both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ultralytics.cfg import get_cfg

from rscmd_model.datasets.opening import open_data
from rscmd_model.diagnosis.gradient_recorder import FixedPairs
from rscmd_model.diagnosis.gradient_table import read_rows
from rscmd_model.diagnosis.gradients import GradientRow, OpenModel, measure
from rscmd_model.errors import UserError
from rscmd_model.inference.torch_backends import select_device
from rscmd_model.network.model_file import load_model


def short_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Name run folders and model files.

    Args:
        paths: of either.

    Returns:
        each by its name: that of the folder, for a model.safetensors that of the folder it lies in, for another model
        file its own without the suffix.

    Raises:
        UserError: two would have the same name.
    """
    named: dict[str, Path] = {}
    for path in paths:
        whole = path.resolve()
        name = whole.parent.name if whole.name == "model.safetensors" else whole.stem if whole.suffix else whole.name
        if name in named:
            raise UserError(f"{named[name]} and {path} would both be called {name!r}: rename one")
        named[name] = path
    return named


def gradients_of_run(run: Path) -> list[GradientRow]:
    """The gradients that a run recorded while it trained.

    Args:
        run: its folder.

    Returns:
        one row or more, in order of the epochs.

    Raises:
        UserError: the run was trained without --diagnose, or has no complete epoch yet.
    """
    file = run / "gradients.csv"
    if not file.is_file():
        raise UserError(
            f"{run} has no gradients.csv: train with --diagnose, or give --model {run / 'model.safetensors'}"
        )
    rows = read_rows(file)
    if not rows:
        raise UserError(f"{file} has no rows yet: no epoch of that run is complete")
    return rows


def gradients_of_model(model: Path, data: str, split: str, pairs: int, batch: int, device: str) -> list[GradientRow]:
    """Measure the gradients in a finished model.

    Args:
        model: its file.
        data: as `open_data` takes it.
        split: of the data.
        pairs: how many to measure on, spread evenly over the split.
        batch: pairs per batch, at most.
        device: as `select_device` takes it.

    Returns:
        rows of epoch 0.

    Raises:
        UserError: a bad model, data set, split, number or device, a model of one camera, or classes that differ.
    """
    if pairs < 1 or batch < 1:
        raise UserError(f"--pairs {pairs} and --batch {batch} must be 1 or more")
    chosen = select_device(device)
    network, header = load_model(model)
    config = open_data(data)
    if list(header.names.values()) != list(config.names.values()):
        raise UserError(
            f"{model} finds {', '.join(header.names.values())}; {data} has {', '.join(config.names.values())}"
        )
    dataset = FixedPairs(
        pairs,
        img_path=split,
        imgsz=header.image_size,
        hyp=get_cfg(),
        data={"config": config, "names": config.names, "nc": len(config.names), "channels": 4},
    )
    return measure(OpenModel(network.to(chosen)), dataset.batches(batch, chosen))
