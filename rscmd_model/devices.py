"""Where to compute: one reading of a device's name, for training (ultralytics' forms) and for inference (torch's)."""

from __future__ import annotations

import re
from typing import Any

from rscmd_model.errors import UserError, quoted

FORMS = "auto, cpu, mps, a GPU as in 0 or cuda:0, several as in 0,1, or -1 for an idle GPU"


def read_device(value: Any) -> str:
    """A device in ultralytics' words: "" (it chooses), "cpu", "mps", or GPUs by number, as in "0" or "0,1".

    Args:
        value: None, "auto", "cpu", "mps", "cuda", "cuda:0", 0, -1, "0,1", [0, 1], or a `torch.device`.

    Raises:
        ValueError: none of these.
    """
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    text = str("" if value is None else value).strip().lower()
    text = text[1:-1] if re.fullmatch(r"\[.*\]|\(.*\)", text) else text
    words = [word.strip().removeprefix("cuda:") for word in text.split(",")]
    if words in ([""], ["auto"], ["none"]):
        return ""
    if words in (["cpu"], ["mps"]):
        return words[0]
    if words == ["cuda"]:
        return "0"
    if not all(re.fullmatch(r"-1|\d{1,4}", word, re.ASCII) for word in words):
        raise ValueError
    numbers = [str(int(word)) for word in words]
    if len({n for n in numbers if n != "-1"}) + numbers.count("-1") < len(numbers):
        raise ValueError  # one GPU named twice
    return ",".join(numbers)


def check_device(value: Any) -> str:
    """The device to train on, in ultralytics' words, see `read_device`; it is there.

    Raises:
        UserError: it is no device, or not there; the message names those that are.
    """
    import torch

    chosen = _read(value)
    if chosen in ("", "cpu") or (chosen == "mps" and torch.backends.mps.is_available()):
        return chosen
    count = _gpus()
    if chosen == "mps" or any(int(word) >= count for word in chosen.split(",")) or not count:
        raise UserError(f"device {quoted(value)} is not there; this machine has {_there()}")
    return chosen


def inference_device(value: Any) -> str:
    """A device for inference that is there, in torch's words: "cpu" or "cuda:N". "auto" is the first GPU, else the CPU.

    Raises:
        UserError: it is no device, not there, or several; the message names those that are.
    """
    chosen = _read(value)
    count = _gpus()
    if chosen == "cpu" or (chosen == "" and not count):
        return "cpu"
    if chosen in ("", "-1") and count:
        return "cuda:0"
    if not chosen.isdigit() or int(chosen) >= count:
        raise UserError(f"device {quoted(value)} is not there; inference takes one of: {_there()}")
    return f"cuda:{int(chosen)}"


def scoring_device(trained_on: Any) -> str:
    """Where a model is scored that was trained on `trained_on`: on the first GPU of those, else on the CPU."""
    chosen = read_device(trained_on)
    return inference_device("cpu" if chosen in ("cpu", "mps") else chosen.split(",")[0])


def _read(value: Any) -> str:
    try:
        return read_device(value)
    except ValueError:
        raise UserError(f"device {quoted(value)} is not one of: {FORMS}; this machine has {_there()}") from None


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _there() -> str:
    count = _gpus()
    return f"cpu and cuda:0 to cuda:{count - 1}" if count else "cpu alone (no CUDA GPU is visible to torch)"
