"""A run that may be killed at any moment and goes on to the same curve.

Two things make it so. Nothing random outlives an epoch: the generators of Python, NumPy and torch, in the training and
in each of the loader's workers, the order of the pairs and the mosaic's partners are set from (seed, epoch, rank,
worker) when an epoch begins, so that no checkpoint has to keep any of them. And a checkpoint keeps in full precision
what ultralytics' own rounds to 16 bits: the weights, their moving average and the optimizer's momentum.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, get_worker_info
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.patches import torch_load
from ultralytics.utils.torch_utils import unwrap_model

from rscmd_model.errors import UserError
from rscmd_model.files import whole_file

if TYPE_CHECKING:
    from ultralytics.data.build import InfiniteDataLoader
    from ultralytics.engine.trainer import BaseTrainer

    from rscmd_model.training.paired_dataset import PairedDataset

# Images that the mosaic may draw on when an epoch begins, before others have been read. Each costs at most one reading.
MOSAIC_START = 32
_EXACT = "exact"


class Epoch:
    """Which epoch it is, in memory that the training shares with the workers of its loader.

    A worker sets all that is random in it when it makes its first sample of an epoch, whether it is new or was there
    before. So workers that live on give what those of a resumed run give, which are new.
    """

    def __init__(self) -> None:
        self._shared = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._met = 0

    def begin(self, seed: int, epoch: int) -> None:
        """Say it to the workers, of which none may be at work."""
        self._shared.copy_(torch.tensor([seed, epoch, int(self._shared[2]) + 1]))

    def meet(self, data: PairedDataset) -> None:
        """In a worker: begin an epoch that it has not met yet. In the training itself: nothing."""
        worker = get_worker_info()
        if worker is None:
            return
        seed, epoch, begun = self._shared.tolist()
        if begun != self._met:
            self._met = begun
            _set_random(data, _words(seed, epoch, 1 + worker.id))


class EpochLoader(DataLoader):
    """ultralytics' training loader, whose workers begin every epoch anew.

    ultralytics' own keeps random states, and batches of the epoch to come that were drawn before it began.

    Attributes:
        epoch: what its workers see of it.
        order: draws the order of the pairs, unless the sampler is that of several processes.
    """

    _iterator: Any

    def __init__(self, loader: InfiniteDataLoader) -> None:
        workers = loader.num_workers
        super().__init__(
            loader.dataset,
            batch_size=loader.batch_size,
            sampler=loader.sampler,
            num_workers=workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            drop_last=loader.drop_last,
            worker_init_fn=loader.worker_init_fn,
            # torch draws a seed whenever it starts workers, which must not move the order of the pairs.
            generator=torch.Generator() if workers else loader.generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=workers > 0,
        )
        self.order = loader.generator
        self.epoch = loader.dataset.epoch = Epoch()
        self._amid = False

    def __iter__(self) -> Any:
        """The batches of an epoch."""
        return self._batches() if self.num_workers else super().__iter__()

    def _batches(self) -> Iterator[Any]:
        # Nothing happens before the first batch is asked for: ultralytics makes two iterators an epoch, and drops one.
        if self._amid:  # batches of an epoch that was left are still being made
            self.reset()
        self._amid = True
        yield from super().__iter__()
        self._amid = False

    def reset(self) -> None:
        """End the workers. ultralytics calls it when the augmentation has changed, which new ones will see."""
        if self._iterator is not None:
            self._iterator._shutdown_workers()
            self._iterator = None

    close = reset  # what ultralytics calls at the end


def begin_epoch(seed: int, epoch: int, loader: EpochLoader) -> None:
    """Set all that is random in an epoch, before its first batch is drawn.

    Args:
        seed: of the run.
        epoch: counted from 0.
        loader: of the training, of this process.
    """
    words = _words(seed, epoch)
    loader.order.manual_seed(int(words[3]))
    loader.epoch.begin(seed, epoch)
    _set_random(loader.dataset, words)


def _words(seed: int, epoch: int, process: int = 0) -> np.ndarray:
    """Four seeds for process 0, the training itself, or one of its loader's workers, counted from 1; (4,) uint32.

    NumPy fills what is missing with zeros: those of process 0 are the seeds of (seed, epoch, rank).
    """
    return np.random.SeedSequence([seed, epoch, max(RANK, 0), process]).generate_state(4)


def _set_random(data: Any, words: np.ndarray) -> None:
    """Set the generators of this process, and the images that its mosaic may draw on."""
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))
    if data.augment and data.cache != "ram":
        data.ims, data.im_hw0, data.im_hw = ([None] * data.ni for _ in range(3))
        data.buffer = random.sample(range(data.ni), min(max(data.max_buffer_length - 1, 0), MOSAIC_START))


def keep_exact_state(trainer: BaseTrainer, optimizer: Optimizer) -> None:
    """Have every checkpoint carry, inside its optimizer state, what ultralytics rounds to 16 bits.

    There it needs no second file that could be lost, and it is stripped with the optimizer when the run ends.

    Args:
        trainer: whose model and moving average are kept.
        optimizer: of the trainer.
    """

    def add(_: Optimizer, state: dict[str, Any]) -> None:
        state[_EXACT] = _Uncopied(
            model=to_cpu(unwrap_model(trainer.model).state_dict()),
            ema=to_cpu(trainer.ema.ema.state_dict()),
            state=state["state"],
        )
        state["state"] = {}  # which ultralytics would copy, round and store once more

    optimizer.register_state_dict_post_hook(add)


class _Uncopied(dict[str, Any]):
    """A mapping that a deep copy leaves as it is, and that is stored as an ordered one.

    ultralytics copies the state of the optimizer and then only writes it; copying these takes as long as writing them.
    """

    def __deepcopy__(self, memo: Any) -> _Uncopied:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), None, None, iter(self.items())  # which torch also reads with weights_only


def to_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, so that a checkpoint takes no memory of the GPU."""
    return {k: v.cpu() for k, v in state.items()}


def take_exact_state(checkpoint: dict[str, Any]) -> dict[str, dict[str, Tensor]] | None:
    """Put the full-precision optimizer state where ultralytics looks for it.

    Args:
        checkpoint: is changed in place.

    Returns:
        the weights ("model") and their moving average ("ema") in full precision; None, with a warning, for a checkpoint
        that has none of it.
    """
    exact = (checkpoint.get("optimizer") or {}).pop(_EXACT, None)
    if exact is None:
        LOGGER.warning("the checkpoint holds 16-bit weights alone: the run goes on, but not to the very same curve")
        return None
    checkpoint["optimizer"]["state"] = exact.pop("state")
    return exact


def drop_rows_after(results: Path, epoch: int) -> None:
    """Remove from results.csv the epochs that reached no checkpoint; they are trained again.

    Args:
        results: the file; may be missing.
        epoch: the last one to keep, counted from 1.
    """
    if not results.is_file():
        return
    head, *rows = results.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
    kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= epoch]
    if kept != rows:
        with whole_file(results) as aside:
            aside.write_text("".join([head, *kept]), encoding="utf-8")


def is_finished(checkpoint: str | Path) -> bool:
    """Whether the run of a weights/last.pt has nothing left to train: it has all its epochs, or stopped early.

    Raises:
        UserError: no checkpoint of a training.
    """
    options, done, stopper = _read(checkpoint)
    waited = done - stopper.get("best_epoch", 0) if stopper.get("best_epoch") else 0
    return done in (0, options["epochs"]) or waited >= (options["patience"] or float("inf"))


def options_of(checkpoint: str | Path) -> dict[str, Any]:
    """The options of the run that a weights/last.pt is of.

    Raises:
        UserError: as `is_finished`.
    """
    return _read(checkpoint)[0]


def _read(checkpoint: str | Path) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """Options, number of finished epochs and state of the early stopping."""
    try:  # mapped, since only a few numbers are wanted
        state = torch_load(checkpoint, map_location="cpu", mmap=True)
        return dict(state["train_args"]), state["epoch"] + 1, state.get("stopper") or {}
    except Exception as error:  # what a damaged pickle raises is anything
        raise UserError(
            f"{checkpoint} is no checkpoint to resume from ({type(error).__name__}): give the weights/last.pt of a run"
        ) from None
