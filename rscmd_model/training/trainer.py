"""Training on the ultralytics trainer: the thin subclass that gives it pairs, our network and our model file.

What each of ultralytics' options does here stands in `options.py`; the rest, such as multi-GPU, plots and loggers, is
as its users know it. It also runs under torchrun, on one node or several, on GPUs or CPUs. This file, `resume.py`,
`checkpoints.py`, `mixed_precision.py` and `paired_dataset.py` are the ones that name its internals.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from ultralytics.data.utils import get_split_fraction
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.utils import DEFAULT_CFG, LOCAL_RANK, LOGGER, RANK, WORLD_SIZE
from ultralytics.utils.torch_utils import unwrap_model

from rscmd_model.config import COMPLETE, NO_AUGMENTATION, Augmentation, ModelConfig, check_names
from rscmd_model.datasets.opening import open_data, write_description
from rscmd_model.datasets.pairs import count_problem, list_pairs, split_hash, whole_pairs
from rscmd_model.datasets.telling import left_out_line, trained_on_line
from rscmd_model.datasets.unused import unused_line
from rscmd_model.errors import UserError, first_line
from rscmd_model.files import lock_folder, write_json
from rscmd_model.network.checkpoint import Detector, read_detector
from rscmd_model.network.header import check_image_size
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.objective import PARTS
from rscmd_model.network.pretrained import load_weights
from rscmd_model.network.teachers import Teachers
from rscmd_model.training.checkpoints import close_checkpoints, forget_earlier_run, save_aside, write_model
from rscmd_model.training.continuing import Finished, hold
from rscmd_model.training.cost import StepMeter
from rscmd_model.training.disk_cache import cache_of, remove_cache
from rscmd_model.training.fixed_pairs import FixedPairs
from rscmd_model.training.freezing import frozen_parts
from rscmd_model.training.incomplete import check_incomplete, run_table
from rscmd_model.training.mixed_precision import checked_by_name
from rscmd_model.training.paired_dataset import PairedDataset
from rscmd_model.training.resume import EpochLoader, begin_epoch, drop_rows_after, keep_exact_state, take_exact_state

_SAMPLE, _SAMPLE_BATCH = 64, 16  # pairs that a method may measure on before it begins


class PairedTrainer(DetectionTrainer):
    """Trains an `RscmdModel` on image pairs; leaves `model.safetensors` beside ultralytics' own results.

    Args:
        overrides: ultralytics' options; `model` is a checkpoint only when resuming.
    """

    last: Path
    best: Path
    model: Any
    accumulate: int
    metrics: dict[str, float]
    frozen: list[str]
    _save_dir: Path
    _made = False  # the run's folder, by this process
    _lock: IO[str] | None = None

    def __init__(self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: Any = None) -> None:
        overrides = dict(overrides or {})
        ranked = RANK != -1  # one process of several, started by torchrun or by the parent itself
        if RANK > 0:
            # The run's folder is rank 0's alone, and may not be there on another node. The parent would name it anew
            # in each process, and each would remove the results.csv it finds there.
            self.scratch = TemporaryDirectory(prefix="rscmd_rank_")
            overrides["save_dir"] = self.scratch.name
        if ranked and not overrides.get("device") and torch.cuda.is_available():
            overrides["device"] = ",".join(str(i) for i in range(int(os.environ["LOCAL_WORLD_SIZE"])))
        with self.no_empty_run():
            super().__init__(cfg, overrides, _callbacks)
            if self.args.compile:  # of a run that was begun before it was refused
                LOGGER.warning(f"compile={self.args.compile} is left aside: it is refused today, see docs/training.md")
                self.args.compile = False
            if ranked and self.device.type == "cuda":
                if len(self.args.device.split(",")) <= LOCAL_RANK:
                    raise UserError(
                        f"device={self.args.device} is too few GPUs: name one for each process of this node"
                    )
                self.world_size = WORLD_SIZE  # the parent counts the GPUs of one node
            self.meter = StepMeter(self)
            self.save_period = -1  # `save_model` does it
            if ranked and self.args.rect:
                LOGGER.warning("rect=True does not go with several processes and is off")
                self.args.rect = False
            if ranked and self.batch_size % WORLD_SIZE:
                raise UserError(f"batch={self.batch_size} cannot be shared by {WORLD_SIZE} processes: give a multiple")
            if self.device.type == "cpu" and overrides.get("workers"):
                LOGGER.info(f"workers={overrides['workers']}: on the CPU the training itself loads its pairs")

    @property
    def save_dir(self) -> Path:
        """The run's folder. Nothing is written before the parent sets it, and then it is kept from other trainings."""
        return self._save_dir

    @save_dir.setter
    def save_dir(self, folder: Path) -> None:
        self._save_dir = folder
        if RANK in {-1, 0}:
            new = not folder.exists()
            self._lock = lock_folder(folder, "training")
            self._made = new  # not before it is ours

    @contextmanager
    def no_empty_run(self) -> Iterator[None]:
        """What fails in this block before the end of the first epoch leaves no folder: the next try gets its name. A
        folder that was there before the run stays."""
        try:
            yield
        except BaseException:
            if self._made and not (self.save_dir / "results.csv").exists():
                shutil.rmtree(self.save_dir, ignore_errors=True)
            raise

    def train(self) -> None:
        """Run the training; the run's folder is free again afterwards. With verbose=False only warnings are logged."""
        level = LOGGER.level
        if not self.args.verbose:
            LOGGER.setLevel(logging.WARNING)
        if self.ddp and self._lock:  # the first of the processes that the parent starts keeps the folder
            self._lock.close()
        try:
            super().train()
            remove_cache(self.save_dir)
        finally:
            LOGGER.setLevel(level)
            if self._lock:
                self._lock.close()

    def get_dataset(self) -> dict[str, Any]:
        """The data as the mapping that the parent hands around; what they are is kept in the run's `data.yaml`.

        Raises:
            UserError: the description is wrong, or lacks the splits train and val, or pairs are missing; or the option
                `classes` names one that the data do not have.
        """
        config = open_data(self.args.data)
        if beyond := [c for c in self.args.classes or () if c >= len(config.names)]:
            raise UserError(f"classes={beyond[0]}: the data have classes 0 to {len(config.names) - 1}")
        names = {0: "item"} if self.args.single_cls else config.names  # the parent's word
        listings = {split: list_pairs(config, split) for split in ("train", self.args.split)}
        pairs = {split: whole_pairs(config, split, listing) for split, listing in listings.items()}
        if RANK in {-1, 0}:
            for split, found in pairs.items():
                if problem := count_problem(config, split, len(found)):
                    LOGGER.warning(problem.text)
            lines = [left_out_line(split, listing) for split, listing in listings.items()]
            if self.args.val:
                lines.append(trained_on_line(self.args.split, pairs[self.args.split], pairs["train"]))
            for line in filter(None, [*lines, unused_line(config)]):
                LOGGER.warning(line)
            write_description(config, pairs, self.save_dir / "data.yaml")
        return {
            "config": config,
            "split_hash": split_hash(pairs["train"]),
            "path": config.root,
            "train": "train",
            self.args.split: self.args.split,
            "names": names,
            "nc": len(names),
            "channels": 4,
        }

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> PairedDataset:
        """The pairs of split `img_path`: augmented in mode "train", in batches of one shape in mode "val"."""
        model: RscmdModel = unwrap_model(self.model)
        return PairedDataset(
            img_path=img_path,
            batch_size=batch,
            augment=mode == "train",
            rect=self.args.rect or mode == "val",
            cache=self.args.cache or None,
            cache_folder=cache_of(self.save_dir),
            prefix=f"{mode}: ",
            fraction=get_split_fraction(self.args.fraction, mode),
            thermal_shift=model.augmentation.thermal_shift,
            lost=run_table(self, model.augmentation.incomplete) if mode == "train" else None,
            cameras=model.config.modalities,
            **self._of_pairs,
        )

    @property
    def _of_pairs(self) -> dict[str, Any]:
        chosen = {key: getattr(self.args, key) for key in ("imgsz", "single_cls", "classes")}
        return {**chosen, "hyp": self.args, "data": self.data}

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """ultralytics' loader; the one for training begins every epoch anew, see `resume.py`."""
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        return EpochLoader(loader) if mode == "train" else loader

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> RscmdModel:
        """A model of configuration `cfg` with the weights of a checkpoint, if one is resumed."""
        config = weights.config if weights is not None else cfg
        if not isinstance(config, ModelConfig):
            raise UserError(
                f"{cfg} is no checkpoint of this trainer: resume from the weights/last.pt of an earlier run"
            )
        model = RscmdModel(config, self.data["names"])
        if weights is not None:
            model.load_state_dict(weights.float().state_dict())
            model.augmentation = getattr(weights, "augmentation", model.augmentation)  # older checkpoints have none
            model.frozen_statistics, model.new_norms = weights.frozen_statistics, weights.new_norms
            model.kept = weights.kept
            model.teachers, model.old = weights.teachers, weights.old
            model.reopen()
        return model

    def start_from(
        self,
        config: ModelConfig,
        weights: str | Path | Detector | Finished | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
        teachers: Mapping[str, Path] | None = None,
    ) -> None:
        """Begin a new model, drawn from the run's seed, or from a plain detector's weights (prints the count), or go on
        from a finished model of the same configuration.

        The augmentation is kept with the model, and so are the teachers' files: that is what a checkpoint and the
        parent's other processes receive.

        Args:
            config: of the model.
            weights: a plain detector's checkpoint, or what `read_detector` made of it.
            augmentation: faults to play.
            teachers: by modality the model.safetensors of its single-camera control, for methods that need them.

        Raises:
            UserError: the augmentation does not suit the model, or as `read_detector` or `Teachers`.
        """
        faults = replace(augmentation, incomplete=COMPLETE)
        if augmentation.incomplete.rate:
            check_incomplete(config.method, self.args)
        if len(config.modalities) == 1 and faults != NO_AUGMENTATION:
            raise UserError(
                f"a {config.modalities[0]}-only model has no second camera: leave out modality dropout and the "
                "thermal shift"
            )
        if augmentation.thermal_shift > self.args.imgsz // 4:
            raise UserError(
                f"thermal_shift {augmentation.thermal_shift}: give at most a quarter of imgsz={self.args.imgsz}"
            )
        self.model = self.get_model(config)
        self.model.method.check_augmentation(augmentation)
        self.model.augmentation = augmentation
        if faults != NO_AUGMENTATION:
            LOGGER.info(
                f"augmentation: modality dropout {augmentation.modality_dropout:g}, "
                f"thermal shift up to {augmentation.thermal_shift} px"
            )
        if isinstance(weights, Finished):
            self.model.load_state_dict(weights.model.state_dict())
        elif weights is not None:
            detector = weights if isinstance(weights, Detector) else read_detector(weights)
            loaded = load_weights(self.model, detector)
            self.model.new_norms = loaded.new_norms
            LOGGER.info(f"{detector.file}: {loaded}")
        if teachers:
            self.model.teachers = Teachers(teachers)
            thermal = self.data["config"].thermal_contract
            self.model.teachers.check(config, self.model.names, self.data["split_hash"], thermal)
        self.model.method.start(self.model, self.sample)

    def sample(self) -> list[dict[str, Any]]:
        """Batches of some training pairs as they are, unaugmented, on the CPU."""
        return FixedPairs(_SAMPLE, img_path="train", **self._of_pairs).batches(_SAMPLE_BATCH, torch.device("cpu"))

    def run_callbacks(self, event: str) -> None:
        """ultralytics' callbacks; at the start of an epoch all that is random is set first."""
        if event == "on_train_epoch_start":
            self.batches = self.waiting = 0
            unwrap_model(self.model).method.progress = self.epoch / self.epochs
            begin_epoch(self.args.seed, self.epoch, self.train_loader)
        super().run_callbacks(event)

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> Optimizer:
        """ultralytics' optimizer, whose saved state carries the exact state of the run. What is frozen is so from here
        on: before, the parent thaws what it does not know as frozen."""
        optimizer = super().build_optimizer(model, *args, **kwargs)
        if unwrap_model(model) is unwrap_model(self.model):
            self.frozen = self.parts_to_freeze(unwrap_model(model))
            for part in self.frozen:
                unwrap_model(model).get_submodule(part).requires_grad_(False)
            if self.frozen:
                LOGGER.info(f"Freezing {', '.join(self.frozen)}")
            if (kept := unwrap_model(model).kept) is not None:
                LOGGER.info(hold(unwrap_model(model), kept, optimizer))
            keep_exact_state(self, optimizer)
        return optimizer

    def parts_to_freeze(self, model: RscmdModel) -> list[str]:
        """Names of the modules that are not trained, see `frozen_parts`."""
        return [*model.method.frozen, *frozen_parts(model, self.args.freeze)]

    def _model_train(self) -> None:
        super()._model_train()
        for part in self.frozen:  # BatchNorm's statistics are held still, too
            unwrap_model(self.model).get_submodule(part).eval()

    def _do_train(self) -> None:
        if RANK != -1 and self.device.type == "cpu":
            dist.init_process_group("gloo")
        super()._do_train()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _setup_train(self) -> None:
        if self.device.type == "cpu":
            self.args.amp = False  # as the parent's check finds, but it asks rank 0 alone
        if RANK in {-1, 0} and not self.resume:
            forget_earlier_run(self)
        if isinstance(self.model, RscmdModel):  # in a process that the parent started, it comes from another one
            self.model.reopen()
        with checked_by_name():
            super()._setup_train()
        # What the model file would refuse, before hours of training and not after.
        check_names(self.data["names"])
        check_image_size(int(self.args.imgsz))

    def _build_train_pipeline(self) -> None:
        if self.device.type == "cpu" and self.args.channels_last is not False:
            self.model.to(memory_format=torch.channels_last)  # the parent does so on GPUs; it is faster here, too
        if RANK != -1 and self.device.type == "cpu" and not self.world_size:
            # The parent knows no processes on CPUs: it would wrap the model for a GPU. Its other steps are the same.
            self.world_size = WORLD_SIZE
            self.model = DistributedDataParallel(self.model, find_unused_parameters=True)
        try:
            super()._build_train_pipeline()
        except ValueError as error:  # a last batch of one pair at so small an imgsz that BatchNorm has one value
            raise UserError(first_line(error)) from None
        # The parent now calls optimizer_step after every batch, which does the counting.
        self.batches_per_step, self.accumulate = self.accumulate, 1

    def optimizer_step(self) -> None:
        """Called after every batch: a step for each `batches_per_step` batches (ramped up in the warm-up), and at an
        epoch's end. The parent carries gradients over into the next epoch, where a resumed run has none.

        Raises:
            UserError: the loss is not finite. The run's last checkpoint knows nothing of it.
        """
        epoch_length, wanted = len(self.train_loader), self.batches_per_step
        done, warmup = self.batches + self.epoch * epoch_length, self._get_warmup_iterations(epoch_length)
        if done < warmup:
            wanted = round(np.interp(done, [0, warmup], [1, wanted]))
        self.batches, self.waiting = self.batches + 1, self.waiting + 1
        if self.waiting >= wanted or self.batches == epoch_length:
            unwrap_model(self.model).method.before_step(unwrap_model(self.model))
            super().optimizer_step()
            self.waiting = 0
            for part in self.frozen:  # whose moving average would be rounded
                still = unwrap_model(self.model).get_submodule(part).state_dict()
                self.ema.ema.get_submodule(part).load_state_dict(still)
        # Last, because the host waits for the device here: it has asked for the step already.
        if not torch.stack(list(self.tloss.values())).isfinite().all():
            parts = ", ".join(f"{k} {float(v):.4g}" for k, v in self.tloss.items())
            raise UserError(
                f"the loss is not finite in epoch {self.epoch + 1}, batch {self.batches} (means: {parts}): "
                f"lower lr0, or set amp=False"
            )

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        exact = take_exact_state(ckpt)
        super()._load_checkpoint_state(ckpt)
        if exact is not None:
            unwrap_model(self.model).load_state_dict(exact["model"])
            self.ema.ema.load_state_dict(exact["ema"])

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Go on where a checkpoint was written, and forget what results.csv has of later epochs."""
        super().resume_training(ckpt)
        if self.start_epoch and not self.args.val:  # the last epoch's model is to be kept, whatever was scored before
            self.best_fitness = None
        if self.start_epoch and RANK in {-1, 0}:
            drop_rows_after(self.csv, self.start_epoch)

    def plot_training_samples(self, batch: dict[str, Any], ni: int) -> None:
        """The parent's picture of a batch, without regions to ignore."""
        if "weights" in batch:
            objects = (batch["weights"] > 0).any(1)
            batch = {**batch, **{key: batch[key][objects] for key in ("cls", "bboxes", "batch_idx")}}
        super().plot_training_samples(batch, ni)

    def get_validator(self) -> DetectionValidator:
        """ultralytics' validator: it meets the main answer alone."""
        return DetectionValidator(self.test_loader, self.save_dir, copy(self.args), self.callbacks)

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        """Named losses; a validation computes those of the main answer alone, and the others are left out there."""
        labelled = super().label_loss_items(loss_items, prefix)
        if prefix != "val":
            return labelled
        kept = [key for key in labelled if key.removeprefix("val/").removesuffix("_loss") in PARTS]
        return {key: labelled[key] for key in kept} if isinstance(labelled, dict) else kept

    def progress_string(self) -> str:
        """The head of the progress bar's columns; the parent's names of losses are wider than these."""
        losses = [name.removesuffix("_loss")[:10] for name in self.loss_names]
        return "\n" + "".join(f"{name:>11}" for name in ("Epoch", "GPU_mem", *losses, "Instances", "Size"))

    def save_metrics(self, metrics: dict[str, float]) -> None:
        """results.csv's row of an epoch, and `model.safetensors` if it is the best so far (with val=False, the last).

        Both come before the epoch's checkpoint: a run that is killed meanwhile is resumed from the epoch before, and
        writes them again.
        """
        super().save_metrics(metrics)
        args, last = self.args, self.epoch + 1 >= self.epochs
        if self.best_fitness == self.fitness and (args.val or args.save or args.time or last):
            write_model(self)

    def save_model(self) -> bool:
        """ultralytics' checkpoints, see `save_aside`."""
        return save_aside(self, super().save_model)

    @property
    def model_file(self) -> Path:
        """Where the best model so far lies, ready to ship; of several processes only rank 0 writes one."""
        return self.save_dir / "model.safetensors"

    def final_eval(self) -> None:
        """Score the best epoch once more. The parent would send it through a loader that knows only plain YOLO."""
        best = [self.best.exists()]
        if RANK in {-1, 0}:
            # A run counts as finished with its last checkpoint: one that is killed before this line has no cost.
            write_json(self.save_dir / "cost.json", self.meter.summary(self.ema.ema, self.args.imgsz))
            if weights := close_checkpoints(self):
                LOGGER.info(f"\nValidating {self.best}...")
                self.ema.ema.load_state_dict(weights)
        if RANK != -1:  # every process scores its share, with rank 0's weights
            dist.broadcast_object_list(best)
            for value in self.ema.ema.state_dict().values():
                dist.broadcast(value, 0)
        if best[0]:
            self.stopper.possible_stop = True  # else the other ranks would not plot, and rank 0 wait for their part
            self.validator.args.plots = self.args.plots
            self.metrics = self.validator(self) or {}
            self.metrics.pop("fitness", None)

    def _handle_nan_recovery(self, epoch: int) -> bool:
        # A loss that is not finite has ended the training in optimizer_step.
        if self.fitness is not None and not math.isfinite(self.fitness):
            raise UserError(f"the validation of epoch {epoch + 1} has no finite score: lower lr0")
        return False
