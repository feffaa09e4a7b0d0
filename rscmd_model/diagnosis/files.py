"""The gradients of runs and of model files on disk, and short names for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.telling import reading_lines
from rscmd_model.diagnosis.gradient_recorder import FixedPairs
from rscmd_model.diagnosis.gradient_table import read_rows
from rscmd_model.diagnosis.gradients import GradientRow, OpenModel, measure
from rscmd_model.errors import UserError
from rscmd_model.inference.torch_backends import select_device
from rscmd_model.network.model_file import load_model
from rscmd_model.network.objective import PARTS
from rscmd_model.text import read_yaml


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
        file = whole.name.removesuffix(".safetensors")  # no other dot begins a suffix: rsc+lambda_visible=0.5
        name = whole.parent.name if whole.name == "model.safetensors" else file
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


def gradients_of_model(
    model: Path,
    data: str,
    split: str,
    pairs: int,
    batch: int,
    device: str,
    progress: Callable[[str], None] = lambda line: None,
) -> list[GradientRow]:
    """Measure the gradients in a finished model: it reads the pairs as in `evaluate`, and has the loss of its training.

    Args:
        model: its file.
        data: as `open_data` takes it.
        split: of the data.
        pairs: how many to measure on, spread evenly over the split.
        batch: pairs per batch, at most.
        device: as `select_device` takes it.
        progress: called with lines to show: what the model reads the pairs by, and the gains of the loss.

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
    palette_ok = header.thermal.palette_ok or config.thermal_contract.palette_ok
    thermal, registration = replace(header.thermal, palette_ok=palette_ok), config.registration or header.registration
    network.args, gains = _loss_of(model)
    for line in (*reading_lines(config, thermal, registration), gains):
        progress(line)
    config = replace(config, thermal_contract=thermal, registration=registration)
    dataset = FixedPairs(
        pairs,
        img_path=split,
        imgsz=header.image_size,
        hyp=network.args,
        data={"config": config, "names": config.names, "nc": len(config.names), "channels": 4},
    )
    return measure(OpenModel(network.to(chosen)), dataset.batches(batch, chosen))


def _loss_of(model: Path) -> tuple[Any, str]:
    """ultralytics' options with the gains of a model's training, and a line that says which these are and whence.

    Raises:
        UserError: the args.yaml beside the model cannot be read, or has no gains.
    """
    file = model.parent / "args.yaml"
    if not file.is_file():
        args, whence = get_cfg(), f"ultralytics' defaults, since there is no {file}"
    else:
        options = read_yaml(file)
        try:
            args, whence = get_cfg(overrides={part: options[part] for part in PARTS}), f"those of {file}"
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{file} has no gains {', '.join(PARTS)}, as that of a training has") from None
    return args, f"gains of the loss: {', '.join(f'{part} {getattr(args, part):g}' for part in PARTS)} ({whence})"
