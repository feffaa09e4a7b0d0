"""What each of ultralytics' options means in this training: a table, the words on a command line, and their refusal.

Every option of ultralytics' own cfg/default.yaml has a row. It is honoured, or refused with the reason. A value is
read by what the option takes, and never as YAML, which would make something else than a name of 007, on, 1e3 or
2026-11-26. docs/training.md shows the table; `python -m rscmd_model.options` writes it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rscmd_model.devices import FORMS, read_device
from rscmd_model.errors import UserError, did_you_mean, quoted
from rscmd_model.option_values import (
    Option,
    number,
    one_of,
    read_classes,
    read_either,
    read_fraction,
    read_freeze,
    read_resume,
    read_scale,
    read_text,
    switch,
    text,
    whole,
)

# What ultralytics lets a resumed run change; the other options stand in its checkpoint.
RESUMABLE = (
    *("imgsz", "batch", "device", "close_mosaic", "save_period", "workers", "cache", "patience", "time", "freeze"),
    *("val", "plots", "channels_last"),
)
# The recipe for a few hundred pairs and `--weights`; docs/your_drive.md has what it gives.
FEW_PAIRS = "epochs=30 batch=8 nbs=8 optimizer=AdamW lr0=0.0001 cos_lr=True warmup_bias_lr=0.0001"
_NONE = ("none", "null", "~")
_PREDICTION = "acts when ultralytics predicts: use `python -m rscmd_model.predict`"
_EXPORT = "acts when ultralytics exports: use `python -m rscmd_model.export`"
_TASK = "is for another task than detection"
_POLYGONS = "copies objects along their outlines, and these data have boxes"
_DISTILLATION = (
    "distillation of another detector is not part of this trainer; for the answers of a finished model see `--distil`"
)

OPTIONS: dict[str, Option] = {
    "task": Option("this trainer detects"),
    "mode": Option("this command trains"),
    "model": Option("use `--scale n|s|m|l|x` and `--method`", harmless=False),
    "data": Option("use `--data`", harmless=False),
    "epochs": whole("epochs to train for", 1),
    "time": number("hours to train for; sets the number of epochs by the clock", 100_000, 0.0001),
    "patience": whole("ends the training after so many epochs without a better score; 0: never"),
    "batch": whole("pairs in a forward pass, over all processes, whose number must divide it", 1),
    "imgsz": whole("side of the square network input in pixels; made a multiple of 32 (the log says so)", 32, 16384),
    "save": switch("False: no checkpoints but that of the last epoch; model.safetensors is written all the same"),
    "save_period": whole("also keeps the checkpoint of every so many epochs; -1: none", -1),
    "cache": Option(
        "keeps decoded and resized pairs: in memory, or as files in the run's folder until it is finished; see below",
        "True, False, ram or disk",
        lambda value: read_either(value, "ram", "disk"),
    ),
    "device": Option("where to train; see below", FORMS, read_device),
    "workers": whole("processes that load pairs; on the CPU none, since they would take its cores", 0, 1024),
    "project": text("folder of runs", "a folder"),
    "name": text("name of the run's folder", "a name"),
    "exist_ok": switch("takes a run's folder that is there already"),
    "pretrained": Option("use `--weights FILE`; without it training starts from random weights", harmless=False),
    "cls_remap": Option("class outputs of `--weights` are always taken by name", harmless=False),
    "optimizer": one_of(
        "auto chooses MuSGD or AdamW and their lr0, momentum and warmup_bias_lr: a warning says so if these are given",
        *("auto", "SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp"),
    ),
    "verbose": switch("False: warnings alone while it trains"),
    "seed": whole("of all that is random", 0, 2**31),
    "deterministic": switch("torch's deterministic kernels, where there are some"),
    "single_cls": switch("every object is an `item`, the only class of the model, which finds no other"),
    "rect": switch("batches of one shape each, without mosaic, mixup and cutmix; not with several processes"),
    "cos_lr": switch("the learning rate falls along a cosine, not a line"),
    "close_mosaic": whole("the last so many epochs are without mosaic, mixup and cutmix"),
    "resume": Option("goes on with a run", "the weights/last.pt of the run to resume", read_resume),
    "amp": Option(
        "mixed precision, on CUDA GPUs alone",
        "True, False, fp16, bf16 or fp32",
        lambda value: read_either(value, "fp16", "bf16", "fp32"),
    ),
    "fraction": Option(
        "trains on the first pairs alone; of two, the second is for the scored split",
        "a share above 0 and up to 1, a number of pairs, or two of these as in [0.5,100]",
        read_fraction,
    ),
    "profile": Option("measures ONNX and TensorRT files of plain YOLO"),
    "freeze": Option(
        "holds layers still, by their numbers in the family's yaml (0 to 9, with YOLO11 0 to 10: both backbones; those "
        "after: neck and head of every answer) or by their names in the model",
        "a number of layers, or a list of layers and names as in [0,1,backbones.thermal]",
        read_freeze,
    ),
    "multi_scale": number("batches are resized by up to this share of imgsz"),
    "compile": Option("torch.compile takes minutes to begin, and nothing was measured that it gains afterwards"),
    "channels_last": switch("layout of the tensors in memory; the default is True where it is faster"),
    "overlap_mask": Option(_TASK),
    "mask_ratio": Option(_TASK),
    "dropout": Option(f"{_TASK}; for cameras that fail see `--modality-dropout`"),
    "val": switch("False: only the last epoch is scored, and its model is the one that is kept"),
    "split": text("split that is scored while it trains", "a split of the data"),
    "save_json": Option("writes no file while it trains: use `python -m rscmd_model.evaluate --json`"),
    "conf": number("lowest score of a box when a split is scored while it trains; 0.001 by default"),
    "iou": number("overlap above which boxes are taken for one when a split is scored while it trains"),
    "max_det": whole("most boxes of an image when a split is scored while it trains", 1, 100_000),
    "quantize": Option("training is in 16 or 32 bits, see amp"),
    "dnn": Option(_PREDICTION),
    "plots": switch("draws labels, batches and curves into the run's folder"),
    "nms": Option("the head needs it"),
    "source": Option(_PREDICTION),
    "vid_stride": Option(_PREDICTION),
    "stream_buffer": Option(_PREDICTION),
    "visualize": Option(_PREDICTION),
    "augment": Option(_PREDICTION),
    "agnostic_nms": switch("boxes of different classes suppress each other when a split is scored while it trains"),
    "classes": Option(
        "trains and scores on objects of these classes alone; the others are background",
        "numbers of classes, as in 0 or [0,2]",
        read_classes,
    ),
    "retina_masks": Option(_TASK),
    "embed": Option(_PREDICTION),
    "show": Option(_PREDICTION),
    "save_frames": Option(_PREDICTION),
    "save_txt": switch("writes the boxes found in the scored split into labels/ of the run"),
    "save_conf": switch("with save_txt: their scores, too"),
    "save_crop": Option(_PREDICTION),
    "show_labels": Option(_PREDICTION),
    "show_conf": Option(_PREDICTION),
    "show_boxes": Option(_PREDICTION),
    "line_width": Option(_PREDICTION),
    "format": Option(_EXPORT),
    "optimize": Option(_EXPORT),
    "dynamic": Option(_EXPORT),
    "simplify": Option(_EXPORT),
    "opset": Option(_EXPORT),
    "workspace": Option(_EXPORT),
    "lr0": number("learning rate at first"),
    "lrf": number("learning rate at last, as a share of lr0"),
    "momentum": number("momentum of SGD, first beta of Adam"),
    "weight_decay": number("weight decay"),
    "warmup_epochs": number("epochs in which the learning rate rises", 1_000_000),
    "warmup_momentum": number("momentum at first in the warm-up"),
    "warmup_bias_lr": number("learning rate of biases at first in the warm-up"),
    "distill_model": Option(_DISTILLATION),
    "dis": Option(_DISTILLATION),
    "box": number("weight of the loss of boxes", 1e6),
    "cls": number("weight of the loss of classes", 1e6),
    "cls_pw": number("rare classes weigh more in the loss: by their inverse number to this power"),
    "dfl": number("weight of the distribution focal loss", 1e6),
    "pose": Option(_TASK),
    "kobj": Option(_TASK),
    "rle": Option(_TASK),
    "angle": Option(_TASK),
    "dlog": Option(_TASK),
    "dgrad": Option(_TASK),
    "dlam": Option(_TASK),
    "nbs": whole("pairs wanted in an optimizer step, see below", 1),
    "hsv_h": number("hue of the visible image changes by up to this share"),
    "hsv_s": number("saturation of the visible image changes by up to this share"),
    "hsv_v": number("brightness of the visible image and contrast of the thermal one change by up to this share"),
    "degrees": number("pairs are turned by up to so many degrees", 180),
    "translate": number("pairs are moved by up to this share of their size"),
    "scale": Option(
        "pairs are made smaller or larger by up to this share",
        "a number from 0 to 1, or two factors as in [0.5,2]",
        read_scale,
    ),
    "shear": number("pairs are sheared by up to so many degrees", 89),
    "perspective": number("perspective of the pairs changes by up to this much; 0 to 0.001 is usual"),
    "flipud": number("share of the pairs that are turned upside down"),
    "fliplr": number("share of the pairs that are mirrored"),
    "bgr": Option("swaps channels of images that have three, and a pair has four"),
    "mosaic": number("share of the samples that are put together from four pairs"),
    "mixup": number("share of the samples that are blended from two"),
    "cutmix": number("share of the samples that get a piece of another"),
    "copy_paste": Option(_POLYGONS),
    "copy_paste_mode": Option(_POLYGONS),
    "auto_augment": Option(_TASK),
    "erasing": Option(_TASK),
    "cfg": Option("give the options themselves, as key=value words", harmless=False),
    "tracker": Option("the node tracks: see docs/parameters.md"),
}


@cache
def defaults() -> dict[str, Any]:
    """ultralytics' own defaults, read without importing it, which takes seconds."""
    found = importlib.util.find_spec("ultralytics")
    assert found is not None
    assert found.submodule_search_locations
    file = Path(found.submodule_search_locations[0]) / "cfg/default.yaml"
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Read ultralytics' options from a command line.

    Args:
        words: of the form key=value.

    Raises:
        UserError: a word without "=", an option given twice, and what `check_options` refuses. The message is one line.
    """
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            hint = ""
            if given and "[" in (last := list(given.items())[-1])[1] and "]" not in last[1]:
                hint = f"; a list is one word, without spaces: {last[0]}=[0,1]"
            raise UserError(f"{quoted(word)}: expected key=value, as in epochs=100{hint}")
        if key in given:
            raise UserError(f"{quoted(key)} is given twice: leave one out")
        given[key] = value
        if key in OPTIONS and key in defaults():
            _read(key, value)  # now, so that the first wrong word is the one that is named
    return check_options(given)


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options, and read each as its row of `OPTIONS` says.

    Args:
        options: values by name; a value is text, or already of its type.

    Returns:
        the values as read, without those of refused options that were set to their harmless default.

    Raises:
        UserError: an option that ultralytics does not have (the nearest one is named), one that this trainer does not
            implement, a value that it does not take, or options that do not go together.
    """
    read: dict[str, Any] = {}
    for key, value in options.items():
        if key not in OPTIONS or key not in defaults():  # the table may have rows of a newer ultralytics
            hint = did_you_mean(key, OPTIONS.keys() & defaults().keys() - {key})
            raise UserError(f"unknown training option {quoted(key)}{hint}")
        read[key] = _read(key, value)
    if read.get("save_conf") and not read.get("save_txt"):
        raise UserError("save_conf=True has no effect without save_txt=True")
    return {key: value for key, value in read.items() if OPTIONS[key].read}


def without_effect(options: Mapping[str, Any]) -> list[str]:
    """A line for each option that another one makes ineffective."""
    if options.get("optimizer", "auto") != "auto" or options.get("resume"):
        return []
    chosen = [key for key in ("lr0", "momentum", "warmup_bias_lr") if key in options]
    return [f"{key}={options[key]} has no effect with optimizer=auto: add optimizer=SGD or another" for key in chosen]


def _read(key: str, value: Any) -> Any:
    option, default = OPTIONS[key], defaults()[key]
    if value is None and default is None:
        return None
    if default is None and option.harmless and option.read is not read_text and str(value).strip().lower() in _NONE:
        return None
    if option.read is None:
        if option.harmless and str(value).strip().lower() == str(default).lower():
            return default
        raise UserError(f"{key}={_shown(value)} is refused: {option.about.replace('`', '')}")
    try:
        return option.read(value)
    except ValueError:
        cut = isinstance(value, str) and value.count("[") != value.count("]")
        hint = f" (the shell splits words at spaces: {key}=[0,1] is one word)" if cut else ""
        raise UserError(f"{key}={_shown(value)}: {key} takes {option.takes}{hint}") from None


def _shown(value: Any) -> str:
    """A value as it was typed, if that can be shown."""
    if isinstance(value, str) and value and len(value) < 60 and value.isprintable():
        return value
    return quoted(value)


def word(key: str, value: Any) -> str:
    """The word of a command line that `parse_options` reads as a value.

    Args:
        key: name of the option.
        value: a number, a text, or a list of them.
    """
    if isinstance(value, (list, tuple)):
        value = f"[{','.join(map(str, value))}]"
    return f"{key}={value}"


def to_markdown() -> str:
    """The table of docs/training.md."""
    lines = ["| option | default | takes | here |", "|---|---|---|---|"]
    for name, option in OPTIONS.items():
        if option.read:
            lines.append(
                f"| `{name}` | `{defaults()[name]}` | {option.takes} | {option.about} |".replace("n|s|", "n\\|s\\|")
            )
    lines += ["", "| refused | reason |", "|---|---|"]
    reasons: dict[str, list[str]] = {}
    for name, option in OPTIONS.items():
        if not option.read:
            reasons.setdefault(option.about, []).append(f"`{name}`")
    lines += [f"| {', '.join(names)} | {why.replace('|', chr(92) + '|')} |" for why, names in reasons.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(to_markdown(), end="")
