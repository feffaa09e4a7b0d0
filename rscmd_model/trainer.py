"""Training on the ultralytics engine: the thin subclass that gives it pairs, our network and our model file.

Everything ultralytics knows keeps working as its users know it: epochs, imgsz, batch, optimizer, resume, patience, amp,
device, multi-GPU, plots and loggers. This file and `datasets/paired.py` are the ones that name its internals.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import torch
from ultralytics.data.utils import get_split_fraction
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from rscmd_model.config import NO_AUGMENTATION, Augmentation, ModelConfig
from rscmd_model.datasets.opening import open_data, write_description
from rscmd_model.datasets.paired import PairedDataset
from rscmd_model.datasets.pairs import count_problem, find_pairs, split_hash
from rscmd_model.errors import UserError
from rscmd_model.model import RscmdModel
from rscmd_model.model_file import ModelHeader, save_model
from rscmd_model.pretrained import load_yolov8, read_yolov8


class PairedTrainer(DetectionTrainer):
    """Trains an `RscmdModel` on image pairs; leaves `model.safetensors` beside ultralytics' own results.

    Args:
        overrides: ultralytics' options; `model` is a checkpoint only when resuming.
    """

    last: Path
    best: Path
    metrics: dict[str, float]

    def get_dataset(self) -> dict[str, Any]:
        """The data as the mapping that the engine hands around; what they are is kept in the run's `data.yaml`.

        Raises:
            UserError: the description is wrong, or lacks the splits train and val, or pairs are missing.
        """
        config = open_data(self.args.data)
        pairs = {split: find_pairs(config, split) for split in ("train", self.args.split)}
        if RANK in {-1, 0}:
            for split, found in pairs.items():
                if problem := count_problem(config, split, len(found)):
                    LOGGER.warning(problem.text)
            write_description(config, pairs, self.save_dir / "data.yaml")
        return {
            "config": config,
            "split_hash": split_hash(pairs["train"]),
            "path": config.root,
            "train": "train",
            self.args.split: self.args.split,
            "names": config.names,
            "nc": len(config.names),
            "channels": 4,
        }

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> PairedDataset:
        """The pairs of split `img_path`: augmented in mode "train", in batches of one shape in mode "val"."""
        return PairedDataset(
            img_path=img_path,
            imgsz=self.args.imgsz,
            batch_size=batch,
            augment=mode == "train",
            hyp=self.args,
            rect=self.args.rect or mode == "val",
            cache=self.args.cache or None,
            single_cls=self.args.single_cls,
            stride=32,
            pad=0.0 if mode == "train" else 0.5,
            prefix=f"{mode}: ",
            classes=self.args.classes,
            data=self.data,
            fraction=get_split_fraction(self.args.fraction, mode),
            thermal_shift=unwrap_model(self.model).augmentation.thermal_shift,
        )

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
        return model

    def start_from(
        self,
        config: ModelConfig,
        weights: str | Path | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
    ) -> None:
        """Begin a new model, drawn from the run's seed, or from a YOLOv8 checkpoint's weights (prints the count).

        The augmentation is kept with the model: that is what a checkpoint and the engine's other processes receive.
        """
        if len(config.modalities) == 1 and augmentation != NO_AUGMENTATION:
            raise UserError(
                f"a {config.modalities[0]}-only model has no second camera: leave out modality dropout and the "
                "thermal shift"
            )
        if augmentation.thermal_shift > self.args.imgsz // 4:
            raise UserError(
                f"thermal_shift {augmentation.thermal_shift}: give at most a quarter of imgsz={self.args.imgsz}"
            )
        self.model = self.get_model(config)
        self.model.augmentation = augmentation
        if augmentation != NO_AUGMENTATION:
            LOGGER.info(
                f"augmentation: modality dropout {augmentation.modality_dropout:g}, "
                f"thermal shift up to {augmentation.thermal_shift} px"
            )
        if weights is not None:
            LOGGER.info(f"{weights}: {load_yolov8(self.model, read_yolov8(weights))}")

    def get_validator(self) -> DetectionValidator:
        """ultralytics' validator: it meets the main answer alone."""
        return DetectionValidator(self.test_loader, self.save_dir, copy(self.args), self.callbacks)

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        """Named losses; those of further answers are not computed in validation and are left out there."""
        labelled = super().label_loss_items(loss_items, prefix)
        extra = [f"val/{name}_loss" for name in unwrap_model(self.model).config.branches[1:]]
        if isinstance(labelled, dict):
            return {k: v for k, v in labelled.items() if k not in extra}
        return [k for k in labelled if k not in extra]

    def save_model(self) -> bool:
        """ultralytics' checkpoints, and `model.safetensors` whenever this epoch is the best so far.

        The checkpoints are written aside and renamed: a run that is killed meanwhile can still be resumed.
        """
        files = self.last, self.best
        aside = [file.with_suffix(".partial") for file in files]
        self.last, self.best = aside
        try:
            saved = super().save_model()
            for written, file in zip(aside, files):
                if written.exists():
                    written.replace(file)
        finally:
            self.last, self.best = files
            for written in aside:
                written.unlink(missing_ok=True)
        if self.best_fitness == self.fitness:
            data = self.data["config"]
            header = ModelHeader(
                config=self.ema.ema.config,
                names=self.data["names"],
                image_size=int(self.args.imgsz),
                thermal=data.thermal_contract,
                registration=data.registration,
                data={"name": data.name, "split_hash": self.data["split_hash"]},
                metrics={k: float(v) for k, v in self.metrics.items() if k.startswith("metrics/")},
            )
            save_model(self.model_file, self.ema.ema, header)
        return saved

    @property
    def model_file(self) -> Path:
        """Where the best model so far lies, ready to ship."""
        return self.save_dir / "model.safetensors"

    def final_eval(self) -> None:
        """Score the best epoch once more. The parent would send it through a loader that knows only plain YOLO."""
        if RANK not in {-1, 0}:
            return
        for file in (self.last, self.best):
            if file.exists():
                strip_optimizer(file)
        if self.best.exists():
            LOGGER.info(f"\nValidating {self.best}...")
            self.ema.ema.load_state_dict(load_checkpoint(self.best)[0].state_dict())
            self.validator.args.plots = self.args.plots
            self.metrics = self.validator(self)
            self.metrics.pop("fitness", None)

    def _handle_nan_recovery(self, epoch: int) -> bool:
        if self.loss is not None and not torch.isfinite(self.loss) and epoch == self.start_epoch:
            parts = ", ".join(f"{k} {float(v):.4g}" for k, v in self.loss_items.items())
            raise UserError(f"the loss is not finite in the first epoch ({parts}): lower lr0, or set amp=False")
        return super()._handle_nan_recovery(epoch)
