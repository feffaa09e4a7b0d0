"""One training from its start to the model file, and the scores of what it made."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER, RANK

from rscmd_model.config import MODALITIES, NO_AUGMENTATION, Augmentation, ModelConfig, other_modality
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.datasets.telling import trained_on_line
from rscmd_model.devices import check_device, scoring_device
from rscmd_model.errors import UserError, quoted
from rscmd_model.evaluation.answers import ANSWERS, lost_answer
from rscmd_model.evaluation.faults import Fault
from rscmd_model.evaluation.scoring import MAX_DETECTIONS
from rscmd_model.evaluation.sweep import LOWEST_SCORE, answer_pairs, score_all
from rscmd_model.files import write_json
from rscmd_model.inference.predictor import Predictor
from rscmd_model.network.checkpoint import Detector
from rscmd_model.network.distillation import OldAnswers
from rscmd_model.network.memory import Kept
from rscmd_model.options import RESUMABLE, check_options, without_effect
from rscmd_model.training.continuing import Finished
from rscmd_model.training.remembering import remember_run
from rscmd_model.training.resume import is_finished, options_of
from rscmd_model.training.trainer import PairedTrainer
from rscmd_model.versions import untested_trainer


def train(
    data: str | Path | None,
    config: Any,
    options: dict[str, Any],
    weights: str | Path | Detector | Finished | None = None,
    augmentation: Augmentation = NO_AUGMENTATION,
    *,
    frozen_statistics: bool = False,
    teachers: Mapping[str, Path] | None = None,
    kept: Kept | None = None,
    distil: bool = False,
    observers: Sequence[Callable[[PairedTrainer], None]] = (),
    trainer_class: type[PairedTrainer] = PairedTrainer,
) -> Path:
    """Train one model.

    Args:
        data: what `open_data` takes; None only when options["resume"] names a checkpoint.
        config: a `ModelConfig`; ignored when resuming.
        options: ultralytics' options.
        weights: a plain detector's checkpoint to start from, or what `read_detector` made of it, of the family and
            scale of `config`; or a finished model to go on from, of that very `config`, at its image size unless
            `options` name another.
        augmentation: faults to play in training; must be left alone when resuming, which keeps the run's own.
        frozen_statistics: see `RscmdModel`; ignored when resuming, which keeps the run's own.
        teachers: by modality the model.safetensors of its single-camera control, where the method learns from them
            (`methods.needs_teachers`); ignored when resuming, which keeps the run's own.
        kept: what is kept of the finished model that `weights` is; needs frozen statistics.
        distil: whether the answers of the finished model that `weights` is are taught beside the labels.
        observers: each is called with the trainer before it trains, and may hang its callbacks on it. A run does not
            remember them: a resumed one has those that are given.
        trainer_class: in place of `PairedTrainer`.

    Returns:
        path of the run's `model.safetensors`; of several processes (torchrun) only that of rank 0 is a file.

    Raises:
        UserError: bad data, options, device or weights; or a file of the run that cannot be written, as on a full disk.
    """
    options = check_options(options)
    old = _distilled(weights, options, augmentation) if distil else None
    if isinstance(weights, Finished) and data is not None:
        options = {"imgsz": weights.header.image_size, **options}
        site = open_data(data)
        weights.check(site, options)
        if line := weights.other_registration(site):
            LOGGER.warning(line)
    overrides = _overrides(data, options)
    checkpoint = options.get("resume")
    if checkpoint and augmentation != NO_AUGMENTATION:
        raise UserError(
            "a resumed run keeps its own modality dropout, thermal shift and lost cameras: leave these options out"
        )
    if isinstance(checkpoint, str):
        if file := _model_of_finished(checkpoint):
            print(f"{checkpoint}: the run is finished, there is nothing left to train")
            return file
        _check_resumed(checkpoint, options, overrides)
    _check_values(overrides)
    for line in filter(None, [untested_trainer(), *without_effect(options)]):
        LOGGER.warning(line)
    trainer = trainer_class(overrides=overrides)
    with trainer.no_empty_run():
        if trainer.args.amp in ("bf16", "fp16") and trainer.device.type != "cuda":
            raise UserError(f"amp={trainer.args.amp} needs a CUDA GPU; on the CPU training is in 32 bits")
        if not checkpoint:
            trainer.start_from(config, weights, augmentation, teachers)
            trainer.model.frozen_statistics, trainer.model.kept = frozen_statistics, kept
            trainer.model.old = OldAnswers(old.file, old.sha256) if old else None
            if old and (left := set(trainer.model.config.answers) - set(trainer.model.method.taught_in_turn)):
                LOGGER.warning(
                    f"--distil: method {trainer.model.config.method} does not compute the answers of "
                    f"{' and '.join(sorted(left))} while it trains, and the finished model's are not taught to them"
                )
        for observe in observers:
            observe(trainer)
        _run(trainer)
    return trainer.model_file


def _distilled(weights: Any, options: Mapping[str, Any], augmentation: Augmentation) -> Finished:
    """The finished model whose answers are to be taught.

    Raises:
        UserError: the training goes on from no finished model, or something does not go with it.
    """
    if not isinstance(weights, Finished):
        raise UserError("--distil teaches the answers of the model that a training goes on from: give --continue MODEL")
    if augmentation.incomplete.rate:
        raise UserError("--distil needs both cameras of every pair, and --incomplete takes some away: leave one out")
    return weights


def _overrides(data: str | Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options in the form that the ultralytics trainer takes.

    Raises:
        UserError: the device is not there, or the data cannot be opened.
    """
    overrides: dict[str, Any] = {**options, "mode": "train", "task": "detect"}
    overrides["device"] = check_device(options.get("device"))
    if options.get("name") == "model":
        overrides["name"] = "./model"  # ultralytics would put the name of the model in the place of this one
    if data is not None:
        overrides["data"] = open_data(data).spec
    checkpoint = options.get("resume")
    overrides["model"] = str(checkpoint) if checkpoint else "rscmd"
    return overrides


def _model_of_finished(checkpoint: str) -> Path | None:
    """The model file of a run that has nothing left to train, or None for one that goes on.

    Raises:
        UserError: there is no such checkpoint, or the model file of a finished run is gone.
    """
    if not Path(checkpoint).is_file():
        raise UserError(f"no checkpoint {checkpoint}: give the weights/last.pt of the run to resume")
    if not is_finished(checkpoint):
        return None
    file = Path(checkpoint).resolve().parents[1] / "model.safetensors"
    if not file.is_file():
        raise UserError(f"the run of {checkpoint} is finished, but its {file} is gone")
    return file


def _check_resumed(checkpoint: str, options: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Hold a resumed run to its own options, and leave its own device in place where none is given.

    Raises:
        UserError: an option is given that a resumed run keeps, or its own device is not there.
    """
    kept = options_of(checkpoint)
    for key, value in options.items():
        if key not in (*RESUMABLE, "resume") and value != kept.get(key):
            raise UserError(
                f"{key}={value}: a resumed run keeps its own {key}, {quoted(kept.get(key))}; what can be changed "
                f"are {', '.join(RESUMABLE)}"
            )
    if "device" not in options:
        check_device(kept.get("device"))
        del overrides["device"]


def _check_values(overrides: dict[str, Any]) -> None:
    """Let ultralytics check the types and ranges of its options.

    Raises:
        UserError: it refuses a value.
    """
    try:
        get_cfg(overrides=overrides)
    except (TypeError, ValueError) as error:
        raise UserError(str(error).strip().splitlines()[0]) from None


def _run(trainer: PairedTrainer) -> None:
    """Train until the model file is there.

    Raises:
        UserError: a process of the training failed, a file could not be written, or no model came of it.
    """
    try:
        trainer.train()
    except subprocess.CalledProcessError:  # device=0,1: ultralytics starts a process for each GPU
        raise UserError(f"training on device={trainer.args.device} failed; the reason stands above") from None
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):  # the reader of our output went away
            raise
        # Such an error does not name the file that could not be written. The checkpoint of the epoch before is whole.
        go_on = f"; go on with resume={trainer.last}" if trainer.last.is_file() else ""
        where = error.filename or trainer.save_dir
        raise UserError(f"training ended: {where}: {error.strerror}{go_on}") from None
    if RANK in {-1, 0} and not trainer.model_file.is_file():
        raise UserError(f"the run in {trainer.save_dir} ended without a model; its log says why")


def score_answers(model: Path, split: str, lost: bool = False) -> None:
    """Score every answer of a finished run's model as `rscmd_model.evaluate` does, on the device of its training.

    Prints the figures and writes scores.json beside the model, and before it answers.npz: the detections behind them.
    Where no pair has an object, as in a fold without any, the figures are None: of the answers to all folds there is a
    score all the same.

    Args:
        model: the run's model.safetensors.
        split: of the data that the run was trained on.
        lost: also score what the fused head says with each camera's image black.

    Raises:
        UserError: as `sweep`.
    """
    options = yaml.safe_load((model.parent / "args.yaml").read_text(encoding="utf-8"))
    predictor = Predictor(model, device=scoring_device(options["device"]), conf=LOWEST_SCORE, max_det=MAX_DETECTIONS)
    data = open_data(options["data"])
    pairs = find_pairs(data, split)
    faults = _sound(predictor.config)
    if lost and "fused" in predictor.config.answers:
        faults |= {lost_answer(camera): Fault(drop=camera, answer="zeros") for camera in MODALITIES}
    answers = answer_pairs(predictor, data, pairs, faults)
    answers.save(model.parent / ANSWERS)
    if line := trained_on_line(split, pairs, find_pairs(data, "train")):
        print(line)
    every: dict[str, dict[str, Any]]
    if any(map(len, answers.truths)):
        every = score_all(answers, data.names)
        for answer, figures in every.items():
            print(f"{split}, {answer}: mAP50 {100 * figures['mAP50']:.1f}, mAP50:95 {100 * figures['mAP50_95']:.1f}")
    else:
        print(f"{split}: none of its {len(answers.stems)} pairs has an object, so it has no score of its own")
        none: dict[str, Any] = {"mAP50": None, "mAP50_95": None, "per_class": {}, "pairs": len(answers.stems)}
        every = dict.fromkeys(answers.found, none)
    left_out = len(pairs) - len(answers.stems)
    scores = {answer: {**every[answer], "left_out": left_out, **asdict(faults[answer])} for answer in every}
    write_json(model.parent / "scores.json", {"split": split, "pairs": len(pairs), "branches": scores})


def write_memory(model: Path) -> None:
    """Write the memory of a finished run beside its model, on the device of its training; prints what is in it.

    Args:
        model: the run's model.safetensors.

    Raises:
        UserError: as `remember_run`.
    """
    options = yaml.safe_load((model.parent / "args.yaml").read_text(encoding="utf-8"))
    data = open_data(options["data"])
    file, memory = remember_run(model, data, scoring_device(options["device"]), LOGGER.info)
    print(f"{file}: {memory}")


def _sound(config: ModelConfig) -> dict[str, Fault]:
    """How each answer is asked for, by its name: to whole pairs, and each branch where the other camera is lost."""
    if len(config.modalities) == 1:
        return {config.answers[0]: Fault()}
    whole = {answer: Fault(answer=answer) for answer in config.pair_answers}
    return whole | {answer: Fault(drop=other_modality(answer)) for answer in config.answers if answer in MODALITIES}
