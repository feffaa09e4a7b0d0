"""The files that a run leaves of its model: each is whole at any moment, whatever ends the run."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from rscmd_model.evaluation.answers import ANSWERS
from rscmd_model.files import whole_file
from rscmd_model.network.model_file import ModelHeader, save_model

if TYPE_CHECKING:
    from rscmd_model.training.trainer import PairedTrainer


def forget_earlier_run(trainer: PairedTrainer) -> None:
    """Remove what an earlier run left in this one's folder (`exist_ok`) and what would pass for this one's: its
    checkpoints, scores and answers."""
    for file in (*trainer.wdir.glob("*.pt"), trainer.save_dir / "scores.json", trainer.save_dir / ANSWERS):
        file.unlink(missing_ok=True)


def write_model(trainer: PairedTrainer) -> None:
    """Write the moving average of the weights, as it is now, as the run's `model.safetensors`."""
    data = trainer.data["config"]
    counts = dict(trainer.ema.ema.method.named_buffers())
    for name, value in unwrap_model(trainer.model).method.named_buffers():
        if not value.is_floating_point():  # of which the moving average takes no notice
            counts[name].copy_(value)
    header = ModelHeader(
        config=trainer.ema.ema.config,
        names=trainer.data["names"],
        image_size=int(trainer.args.imgsz),
        thermal=data.thermal_contract,
        registration=data.registration,
        data={"name": data.name, "split_hash": trainer.data["split_hash"]},
        metrics={k: float(v) for k, v in trainer.metrics.items() if k.startswith("metrics/")},
    )
    save_model(trainer.model_file, trainer.ema.ema, header)


def save_aside(trainer: PairedTrainer, save: Callable[[], bool]) -> bool:
    """Let ultralytics write last.pt under another name, and rename it when it is whole. Of the best epoch it is
    best.pt, too: one file of two names, so that it is written once. Then copy it, if the option `save_period` wants
    this epoch kept.

    Args:
        trainer: of the run.
        save: writes the file `trainer.last` and, of the best epoch, the same into `trainer.best`.

    Returns:
        what `save` returns: False where ultralytics could not write.
    """
    best, last = trainer.best, trainer.last
    written = last.with_suffix(".partial")
    trainer.best, trainer.last = Path(os.devnull), written
    try:
        saved = save()
        if written.exists():
            if trainer.best_fitness == trainer.fitness:
                _name_too(written, best)
            written.replace(last)
    finally:
        trainer.best, trainer.last = best, last
        written.unlink(missing_ok=True)
    if trainer.args.save_period > 0 and trainer.epoch % trainer.args.save_period == 0:
        with whole_file(trainer.wdir / f"epoch{trainer.epoch}.pt") as copied:
            shutil.copyfile(trainer.last, copied)
    return saved


def _name_too(file: Path, other: Path) -> None:
    """Give a file another name besides, in place of what has it; a copy where the file system has no second names."""
    with whole_file(other) as aside:
        try:
            os.link(file, aside)
        except OSError:
            shutil.copyfile(file, aside)


def close_checkpoints(trainer: PairedTrainer) -> dict[str, Tensor]:
    """Leave out of best.pt and last.pt what only a resumed run needs: from here on the run counts as finished.

    Returns:
        the weights in best.pt, in 16 bits; none where there is no such file.
    """
    best, last = trainer.best, trainer.last
    weights: dict[str, Tensor] = {}
    one = best.exists() and last.exists() and filecmp.cmp(best, last, shallow=False)  # the last epoch was the best
    for file in (last, best):
        if not file.exists():
            continue
        with whole_file(file) as aside:
            if one and file == best:
                shutil.copyfile(last, aside)
            else:
                weights = _stripped(file, aside)["model"].state_dict()
    if weights:
        LOGGER.info("the checkpoints are closed: what only a resumed run needs is left out of them")
    return weights if best.exists() else {}


def _stripped(file: Path, aside: Path) -> dict[str, Any]:
    """ultralytics' `strip_optimizer`, without the line of its log that names `aside`, which nobody is to look for."""
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        content: dict[str, Any] = strip_optimizer(file, str(aside))
        return content
    finally:
        LOGGER.setLevel(level)
