"""Train a detector on visible-thermal pairs.

    python -m rscmd_model.train --data data.yaml --method rscmd --model n epochs=100 imgsz=640 device=0

    python -m rscmd_model.train resume=runs/rscmd/weights/last.pt
    torchrun --nproc-per-node 2 -m rscmd_model.train --data data.yaml batch=32

Options in the form key=value are ultralytics' own (epochs, imgsz, batch, optimizer, lr0, patience, amp, device,
workers, seed, project, name, resume, plots, ...). The run's folder, runs/METHOD by default, gets the checkpoints,
curves and plots, and model.safetensors: the best epoch, which the node, predict and evaluate read.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from rscmd_model.config import (
    CHOICES,
    FAMILIES,
    METHODS,
    MODALITIES,
    NO_AUGMENTATION,
    SCALES,
    Augmentation,
    parse_method,
)
from rscmd_model.datasets.opening import camera_arguments, data_arguments, open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.devices import check_device, scoring_device
from rscmd_model.errors import UserError, quoted, run_cli
from rscmd_model.files import whole_file, write_json
from rscmd_model.options import RESUMABLE, check_options, parse_options, without_effect
from rscmd_model.versions import require


def train(
    data: str | Path | None,
    config: Any,
    options: dict[str, Any],
    weights: str | Path | None = None,
    augmentation: Augmentation = NO_AUGMENTATION,
    *,
    diagnose: int | None = None,
    trainer_class: Any = None,
) -> Path:
    """Train one model.

    Args:
        data: what `open_data` takes; None only when options["resume"] names a checkpoint.
        config: a `ModelConfig`; ignored when resuming.
        options: ultralytics' options.
        weights: an ultralytics checkpoint of the config's family to start from.
        augmentation: faults to play in training; must be left alone when resuming, which keeps the run's own.
        diagnose: measure the gradients at the features every so many epochs, see `gradients`. A run that was started
            with it and is resumed goes on with it.
        trainer_class: in place of `PairedTrainer`.

    Returns:
        path of the run's `model.safetensors`; of several processes (torchrun) only that of rank 0 is a file.

    Raises:
        UserError: bad data, options, device or weights; or a file of the run that cannot be written, as on a full disk.
    """
    from ultralytics.cfg import get_cfg
    from ultralytics.utils import LOGGER, RANK

    from rscmd_model.gradient_recorder import GradientRecorder
    from rscmd_model.resume import is_finished, options_of
    from rscmd_model.trainer import PairedTrainer

    options = check_options(options)
    resume = options.get("resume")
    overrides: dict[str, Any] = {**options, "mode": "train", "task": "detect"}
    overrides["device"] = check_device(options.get("device"))
    if options.get("name") == "model":
        overrides["name"] = "./model"  # the engine puts another name in the place of this one
    if data is not None:
        overrides["data"] = open_data(data).spec
    overrides["model"] = str(resume) if resume else "rscmd"
    if resume and augmentation != NO_AUGMENTATION:
        raise UserError("a resumed run keeps its own modality dropout and thermal shift: leave these options out")
    if isinstance(resume, str) and not Path(resume).is_file():
        raise UserError(f"no checkpoint {resume}: give the weights/last.pt of the run to resume")
    if isinstance(resume, str) and is_finished(resume):
        file = Path(resume).resolve().parents[1] / "model.safetensors"
        if not file.is_file():
            raise UserError(f"the run of {resume} is finished, but its {file} is gone")
        print(f"{resume}: the run is finished, there is nothing left to train")
        return file
    if isinstance(resume, str):
        kept = options_of(resume)
        for key, value in options.items():
            if key not in (*RESUMABLE, "resume") and value != kept.get(key):
                raise UserError(
                    f"{key}={value}: a resumed run keeps its own {key}, {quoted(kept.get(key))}; what can be changed "
                    f"are {', '.join(RESUMABLE)}"
                )
        if "device" not in options:
            check_device(kept.get("device"))
            del overrides["device"]
    if diagnose is not None and options.get("freeze"):
        raise UserError("--diagnose measures gradients where layers are trained: leave out freeze")
    try:
        get_cfg(overrides=overrides)
    except (TypeError, ValueError) as error:  # an option's value of the wrong type or out of range
        raise UserError(str(error).strip().splitlines()[0]) from None
    for line in without_effect(options):
        LOGGER.warning(line)
    trainer = (trainer_class or PairedTrainer)(overrides=overrides)
    if trainer.args.amp in ("bf16", "fp16") and trainer.device.type != "cuda":
        raise UserError(f"amp={trainer.args.amp} needs a CUDA GPU; on the CPU training is in 32 bits")
    if not resume:
        trainer.start_from(config, weights, augmentation)
    GradientRecorder.attach(trainer, diagnose)
    try:
        trainer.train()
    except subprocess.CalledProcessError:  # device=0,1: the engine starts a process for each GPU
        raise UserError(f"training on device={trainer.args.device} failed; the reason stands above") from None
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):  # the reader of our output went away
            raise
        # What failed to be written has no name in such an error; a checkpoint of before is whole.
        go_on = f"; go on with resume={trainer.last}" if trainer.last.is_file() else ""
        where = error.filename or trainer.save_dir
        raise UserError(f"training ended: {where}: {error.strerror}{go_on}") from None
    if RANK in {-1, 0} and not trainer.model_file.is_file():
        raise UserError(f"the run in {trainer.save_dir} ended without a model; its log says why")
    return trainer.model_file


def score_branches(model: Path, split: str) -> None:
    """Score every answer of a finished run's model as `rscmd_model.evaluate` does, on the device of its training.

    Writes scores.json beside it.

    Args:
        model: the run's model.safetensors.
        split: of the data that the run was trained on.

    Raises:
        UserError: as `evaluate`.
    """
    from rscmd_model.evaluate import LOWEST_SCORE, sweep
    from rscmd_model.faults import Fault
    from rscmd_model.inference import Predictor

    options = yaml.safe_load((model.parent / "args.yaml").read_text(encoding="utf-8"))
    predictor = Predictor(model, device=scoring_device(options["device"]), conf=LOWEST_SCORE, max_det=100)
    data = open_data(options["data"])
    pairs = find_pairs(data, split)
    # The main answer gets both images; a branch is what answers when the other camera is lost.
    main, *alone = predictor.config.branches
    faults = [Fault(), *(Fault(drop=lost) for branch in alone for lost in MODALITIES if lost != branch)]
    scores = dict(zip((main, *alone), sweep(predictor, data, pairs, faults)))
    for branch, figures in scores.items():
        print(f"{split}, {branch}: mAP50 {figures['mAP50']:.3f}, mAP50:95 {figures['mAP50_95']:.3f}")
    write_json(model.parent / "scores.json", {"split": split, "pairs": len(pairs), "branches": scores})


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_model.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data_arguments(parser, required=False)
    camera_arguments(parser)
    parser.add_argument(
        "--method",
        help=f"{', '.join(METHODS)}: a control is trained with the same recipe. With changes to the model's settings: "
        "rscmd+md=map (default: rscmd)",
    )
    parser.add_argument("--model", choices=SCALES, help="scale of both streams (default: n)")
    parser.add_argument("--family", choices=FAMILIES, help="layers of both streams (default: yolov8)")
    parser.add_argument(
        "--weights",
        type=Path,
        help="yolov8*.pt, or of --family, whose COCO weights start both streams (never downloaded)",
    )
    parser.add_argument(
        "--rsc", choices=CHOICES["rsc"], help="unimodal branches: own, or sharing the fused one; aux: a control"
    )
    parser.add_argument("--md", choices=CHOICES["md"], help="what of the fused loss reaches the backbones")
    parser.add_argument("--lambda-visible", type=float, help="weight of the visible branch's loss")
    parser.add_argument("--lambda-thermal", type=float, help="weight of the thermal branch's loss")
    parser.add_argument(
        "--modality-dropout",
        type=float,
        default=Augmentation.modality_dropout,
        metavar="P",
        help="share of the samples whose fused branch sees one camera black, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--thermal-shift",
        type=int,
        default=Augmentation.thermal_shift,
        metavar="PX",
        help="move thermal images by up to this many pixels of the network's input (default: %(default)s)",
    )
    parser.add_argument(
        "--diagnose", action="store_true", help="record how gradients are suppressed: gradients.csv and .png in the run"
    )
    parser.add_argument(
        "--diagnose-every", type=int, metavar="K", help="every K epochs (implies --diagnose; default 1)"
    )
    parser.add_argument("--score", metavar="SPLIT", help="afterwards score every answer of the model on this split")
    parser.add_argument("--out", type=Path, help="also copy the finished model to this file")
    parser.add_argument("options", nargs="*", metavar="key=value", help="ultralytics' options")
    args = parser.parse_intermixed_args()
    require("torch", "ultralytics")
    options = parse_options(args.options)
    if args.data is None and not options.get("resume"):
        raise UserError("give --data data.yaml (or resume=RUN/weights/last.pt)")
    if options.get("resume"):
        for name in ("method", "model", "family", "weights", "rsc", "md", "lambda_visible", "lambda_thermal"):
            if getattr(args, name) is not None:
                raise UserError(f"a resumed run keeps its own model: leave out --{name.replace('_', '-')}")
    if args.score and options.get("single_cls"):
        raise UserError("--score compares with the data's own classes, which single_cls=True gives up: leave one out")
    # Opened here, so that a mistake is told before torch is loaded.
    data = None
    if args.data is not None:
        opened = open_data(args.data, args.root, args.split_file, args.registration, args.palette_ok)
        data = opened.spec
        if args.score:
            find_pairs(opened, args.score)
    method = args.method or "rscmd"
    config = parse_method(
        method,
        scale=args.model,
        family=args.family,
        rsc=args.rsc,
        md=args.md,
        lambda_visible=args.lambda_visible,
        lambda_thermal=args.lambda_thermal,
    )
    if not options.get("resume"):  # else both stand in the checkpoint
        options["project"] = str(Path(options.get("project") or "runs").resolve())
        options.setdefault("name", method)
    augmentation = Augmentation(args.modality_dropout, args.thermal_shift)
    diagnose = args.diagnose_every if args.diagnose_every is not None else 1 if args.diagnose else None
    file = train(data, config, options, args.weights, augmentation, diagnose=diagnose)
    if int(os.environ.get("RANK", 0)) > 0:  # of several processes the first one has the model
        return
    if args.score:
        score_branches(file, args.score)
    if args.out:
        with whole_file(args.out) as aside:
            shutil.copyfile(file, aside)
        file = args.out
    print(f"model: {file}")


if __name__ == "__main__":
    run_cli(main)
