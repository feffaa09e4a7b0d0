"""Trainings on pairs that have lost one camera for good: the table of a run, and what does not go with one.

The table is drawn for the training's split from the run's seed (`datasets.incomplete`), so it is the same for every
method, in every process, and when the run is resumed. It is kept in the run's folder.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from rscmd_model.config import Incomplete
from rscmd_model.datasets.incomplete import lost_cameras, table_digest, write_table
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import UserError
from rscmd_model.files import sha256_of
from rscmd_model.methods import METHODS, method_class

if TYPE_CHECKING:
    from rscmd_model.training.trainer import PairedTrainer

TABLE = "incomplete.csv"
_LEAST_SIDE = 64  # px: one sample alone then has several values for BatchNorm at stride 32


def check_incomplete(method: str, options: Any) -> None:
    """Make sure that a training can be on pairs that have lost a camera.

    Args:
        method: its name.
        options: ultralytics' options, as attributes.

    Raises:
        UserError: the method or an option does not go with such pairs.
    """
    if not _takes_incomplete(method):
        fit = ", ".join(filter(_takes_incomplete, METHODS))
        raise UserError(
            f"--incomplete: method {method} is not made for pairs that have lost a camera; these are: {fit}"
        )
    if int(options.imgsz * (1 - options.multi_scale)) < _LEAST_SIDE:
        raise UserError(f"--incomplete needs batches of {_LEAST_SIDE} px or more: raise imgsz, or lower multi_scale")


def _takes_incomplete(method: str) -> bool:
    return bool(vars(method_class(method)).get("takes_incomplete"))


def run_table(trainer: PairedTrainer, incomplete: Incomplete) -> dict[str, str]:
    """The table of a run: told in the log, and kept as incomplete.csv in the run's folder.

    Args:
        trainer: of the run.
        incomplete: what share of its pairs has lost a camera.

    Returns:
        the lost camera by the stem of each pair that has lost one.

    Raises:
        UserError: the run is resumed, and its pairs are no longer those that the table was drawn for.
    """
    file = trainer.save_dir / TABLE
    if RANK in {-1, 0} and not trainer.resume:  # what an earlier run left in this folder is not ours
        file.unlink(missing_ok=True)
    if not incomplete.rate:
        return {}
    check_incomplete(
        unwrap_model(trainer.model).config.method, trainer.args
    )  # again: a resumed run may have another imgsz
    stems = [pair.stem for pair in find_pairs(trainer.data["config"], "train")]
    lost = lost_cameras(stems, incomplete.rate, incomplete.which, trainer.args.seed)
    digest = table_digest(stems, lost)
    if RANK in {-1, 0}:
        if file.is_file() and not sha256_of(file).startswith(digest):
            raise UserError(f"{file} is of other pairs than {trainer.args.data} has now: start the training anew")
        write_table(file, stems, lost)
        counts = Counter(lost.values())
        LOGGER.info(
            f"train: of {len(stems)} pairs {counts['visible']} have lost the visible image for good, "
            f"{counts['thermal']} the thermal one ({TABLE}, {digest})"
        )
    return lost
