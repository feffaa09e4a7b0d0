"""Measuring gradients while a model trains, without the training noticing.

`GradientRecorder` hangs on the ultralytics trainer's callbacks. It trains a reference branch for each modality on the
detached features of the training batches. Every K epochs it measures the gradients on a fixed set of pairs. Weights,
BatchNorm statistics and random state of the training stay bit for bit what they are without it.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from rscmd_model.config import MODALITIES
from rscmd_model.diagnosis.gradient_table import describe, plot, read_rows, write_rows
from rscmd_model.diagnosis.gradients import OpenModel, measure
from rscmd_model.errors import UserError
from rscmd_model.files import whole_file
from rscmd_model.methods import method_config
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.objective import Detection
from rscmd_model.training.fixed_pairs import FixedPairs

if TYPE_CHECKING:
    from rscmd_model.training.trainer import PairedTrainer

PAIRS, BATCH = 64, 16  # of the fixed set: four batches, for a spread between them


class ReferenceBranches(nn.ModuleDict):
    """A fresh neck and head for each modality, drawn from `seed`."""

    model = (None,)  # where the ultralytics optimizer builder looks for a head whose rate it would raise

    def __init__(self, model: RscmdModel, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            like: Any = {"scale": model.config.scale, "family": model.config.family}
            solo = {m: RscmdModel(method_config(m, **like), model.names) for m in MODALITIES}
        super().__init__({m: solo[m].branch(m) for m in MODALITIES})


@contextmanager
def undisturbed_random() -> Iterator[None]:
    """Leave the random states of Python, numpy and torch as they were."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


class GradientRecorder:
    """Records RUN/gradients.csv while `trainer` trains, and draws RUN/gradients.png at its end.

    Args:
        trainer: before its `train()`.
        every: measure after each so many epochs, and after the last.

    Raises:
        UserError: `every` is not 1 or more; several devices from one process, where the features cannot be had; a
            single-camera model; pairs that have lost a camera for good.
    """

    def __init__(self, trainer: PairedTrainer, every: int) -> None:
        if every < 1:
            raise UserError(f"--diagnose-every {every}: give 1 or more")
        if trainer.ddp:
            raise UserError("--diagnose works on one device per process")
        if trainer.args.freeze:
            raise UserError("--diagnose measures gradients where layers are trained: leave out freeze")
        config = getattr(trainer.model, "config", None)  # a resumed run's model is not there yet
        if config is not None and "fused" not in config.answers:
            raise UserError(f"--diagnose: method {config.method} has no fused loss to compare with")
        if config is not None:
            _refuse_incomplete(trainer.model)
        self.every = every
        self.csv, self.state_file = trainer.save_dir / "gradients.csv", _state_file(trainer.save_dir)
        self.features: dict[str, list[Tensor]] = {}
        self.hooks: list[Any] = []
        if RANK in {-1, 0}:
            trainer.add_callback("on_train_start", self._start)
            trainer.add_callback("on_train_epoch_end", self._epoch_end)
            trainer.add_callback("on_model_save", self._save)
            trainer.add_callback("on_train_end", self._end)

    @staticmethod
    def attach(trainer: PairedTrainer, every: int | None) -> None:
        """Let a training record its gradients, or go on with it.

        Args:
            trainer: before its `train()`.
            every: measure after each so many epochs; None records only where the run is resumed and recorded before.

        Raises:
            UserError: as the class.
        """
        file = _state_file(trainer.save_dir)
        if not trainer.resume:  # as the parent with results.csv: what an earlier run left in this folder is not ours
            for stale in (file, trainer.save_dir / "gradients.csv", trainer.save_dir / "gradients.png"):
                stale.unlink(missing_ok=True)
        elif every is None and file.is_file():
            every = int(torch.load(file, weights_only=True)["every"])
        if every is not None:
            GradientRecorder(trainer, every)

    def _start(self, trainer: PairedTrainer) -> None:
        model: RscmdModel = unwrap_model(trainer.model)
        _refuse_incomplete(model)
        with undisturbed_random():
            self.open = OpenModel(model)
            self.references = ReferenceBranches(model, int(trainer.args.seed)).to(trainer.device).train()
            dataset = FixedPairs(
                PAIRS,
                img_path="train",
                imgsz=trainer.args.imgsz,
                hyp=trainer.args,
                data=trainer.data,
                single_cls=trainer.args.single_cls,
                classes=trainer.args.classes,
            )
            self.batches = dataset.batches(BATCH, torch.device("cpu"))
            LOGGER.info(f"Measuring gradients on {len(dataset)} pairs, with a reference branch for each modality:")
            self.optimizer = trainer.build_optimizer(self.references, name=trainer.args.optimizer, lr=trainer.args.lr0)
        self.detection = Detection(self.open)
        kept = [row for row in (read_rows(self.csv) if self.csv.exists() else []) if row.epoch <= trainer.start_epoch]
        write_rows(self.csv, kept)
        if trainer.start_epoch:
            self._restore(trainer)
        for modality in MODALITIES:
            self.hooks.append(model.backbones[modality].register_forward_hook(self._keep(modality)))
        self.hooks.append(model.register_forward_hook(self._teach))
        self.hooks.append(trainer.optimizer.register_step_post_hook(self._step))

    def _keep(self, modality: str) -> Any:
        def keep(module: nn.Module, args: Any, output: list[Tensor]) -> None:
            if torch.is_grad_enabled():  # else it is the black image that stands for a lost camera
                self.features[modality] = [f.detach().float() for f in output]

        return keep

    def _teach(self, model: nn.Module, args: Any, output: Any) -> None:
        """The reference branches' own loss on the batch that the model has just seen, scaled as the model's."""
        batch = args[0]
        if not (model.training and isinstance(batch, dict) and torch.is_grad_enabled()):
            return
        with torch.autocast(batch["img"].device.type, enabled=False):
            losses = self.detection.losses({m: self.references[m](self.features[m]) for m in MODALITIES}, batch)
            total = torch.stack([p for parts in losses.values() for p in parts.values()]).sum() * len(batch["img"])
            total.backward()

    def _step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for mine, its in zip(self.optimizer.param_groups, optimizer.param_groups):
            mine.update({k: its[k] for k in ("lr", "momentum", "betas", "weight_decay") if k in its})
        nn.utils.clip_grad_norm_(self.references.parameters(), max_norm=10.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _epoch_end(self, trainer: PairedTrainer) -> None:
        # The last epoch, too, before its checkpoint: a run that is killed after that is not trained any more.
        if (trainer.epoch + 1) % self.every == 0 or trainer.epoch + 1 >= trainer.epochs:
            self._measure(trainer)

    def _measure(self, trainer: PairedTrainer) -> None:
        epoch = trainer.epoch + 1
        with undisturbed_random():
            batches = [
                {k: v.to(trainer.device) if isinstance(v, Tensor) else v for k, v in b.items()} for b in self.batches
            ]
            rows = measure(
                self.open.follow(unwrap_model(trainer.model)),
                batches,
                epoch=epoch,
                references=dict(self.references.items()),
                losses=self.detection.losses,
            )
        # An epoch that is done twice (a resumed run, a recovered one) is recorded once.
        write_rows(self.csv, [*(row for row in read_rows(self.csv) if row.epoch < epoch), *rows])

    def _save(self, trainer: PairedTrainer) -> None:
        state = {
            "epoch": trainer.epoch,
            "every": self.every,
            "probes": self.references.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        content = io.BytesIO()  # writing the file itself, torch hides a full disk behind an error of its own
        torch.save(state, content)
        with whole_file(self.state_file) as aside:
            aside.write_bytes(content.getvalue())

    def _restore(self, trainer: PairedTrainer) -> None:
        if not self.state_file.is_file():
            LOGGER.warning(f"no {self.state_file}: the reference branches of the gradient measurement start anew")
            return
        state = torch.load(self.state_file, map_location=trainer.device, weights_only=True)
        self.references.load_state_dict(state["probes"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["epoch"] + 1 != trainer.start_epoch:
            LOGGER.warning(f"{self.state_file} is of epoch {state['epoch'] + 1}, the run of {trainer.start_epoch}")

    def _end(self, trainer: PairedTrainer) -> None:
        for hook in self.hooks:
            hook.remove()
        rows = read_rows(self.csv)
        if not rows or rows[-1].epoch < trainer.epoch + 1:  # it stopped early
            self._measure(trainer)
        _conclude(trainer.save_dir)

    @staticmethod
    def finish(run: Path) -> None:
        """Draw what a finished run recorded that was killed before it did so itself.

        Args:
            run: its folder.

        Raises:
            UserError: the picture cannot be written.
        """
        if _state_file(run).is_file():
            _conclude(run)


def _conclude(run: Path) -> None:
    """Draw the gradients of a run, tell its last epoch's, and remove what only a resumed run needs."""
    csv, png = run / "gradients.csv", run / "gradients.png"
    if rows := read_rows(csv):
        plot({run.name: rows}, png)
        LOGGER.info(f"\n{describe(run.name, rows, 'probe')}\ngradients: {csv}, {png}")
    else:
        LOGGER.warning(f"{csv} has no rows: the run was killed before its last epoch was measured")
    _state_file(run).unlink(missing_ok=True)


def _refuse_incomplete(model: RscmdModel) -> None:
    if model.augmentation.incomplete.rate:
        raise UserError("--diagnose compares the losses of whole pairs, and --incomplete has others: leave one out")


def _state_file(run: Path) -> Path:
    """Where the folder of a run keeps its reference branches, so that a resumed one goes on with them."""
    return run / "weights" / "gradient_probes.pt"
