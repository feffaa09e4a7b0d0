"""The files that a run leaves of its model: each is whole at any moment, whatever ends the run."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor
from ultralytics.utils.torch_utils import strip_optimizer

from rscmd_model.files import whole_file
from rscmd_model.network.model_file import ModelHeader, save_model

if TYPE_CHECKING:
    from rscmd_model.training.trainer import PairedTrainer


def write_model(trainer: PairedTrainer) -> None:
    """Write the moving average of the weights, as it is now, as the run's `model.safetensors`."""
    data = trainer.data["config"]
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
    """Let ultralytics write best.pt and last.pt under other names, and rename them when they are whole, last.pt at the
    end. Then copy last.pt, if the option `save_period` wants this epoch kept.

    Args:
        trainer: of the run.
        save: writes the files `trainer.best` and `trainer.last`.

    Returns:
        what `save` returns: False where ultralytics could not write.
    """
    files = trainer.best, trainer.last
    aside = [file.with_suffix(".partial") for file in files]
    trainer.best, trainer.last = aside
    try:
        saved = save()
        for written, file in zip(aside, files):
            if written.exists():
                written.replace(file)
    finally:
        trainer.best, trainer.last = files
        for written in aside:
            written.unlink(missing_ok=True)
    if trainer.args.save_period > 0 and trainer.epoch % trainer.args.save_period == 0:
        with whole_file(trainer.wdir / f"epoch{trainer.epoch}.pt") as copied:
            shutil.copyfile(trainer.last, copied)
    return saved


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
                weights = strip_optimizer(file, str(aside))["model"].state_dict()
    return weights if best.exists() else {}
