"""Made the files of this folder, by the code of the commit that README.md names. It is not run by the tests."""

from __future__ import annotations

import json
import lzma
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from test_before import BEFORE, MADE_IN, pair
from test_train import QUICK, two_class_world

from rscmd_model.config import parse_method
from rscmd_model.export import export
from rscmd_model.inference import Predictor
from rscmd_model.model_file import load_model, save_model
from rscmd_model.trainer import PairedTrainer

OPTIONS = {**QUICK, "batch": 6, "nbs": 6, "epochs": 3, "optimizer": "SGD", "seed": 0}
PATTERN = torch.randn(251, generator=torch.Generator().manual_seed(0))


def simplify(state: dict[str, torch.Tensor]) -> None:
    """Put weights in a model's place that answer something and compress well: a short pattern, in powers of two."""
    for name, value in state.items():
        if not value.is_floating_point() or name.endswith("dfl.conv.weight"):
            continue
        if value.dim() == 4:
            size = 2.0 ** round(float(np.log2(1.5 / np.sqrt(value[0].numel()))))
            if ".cv3." in name and name.endswith(".2.weight"):  # scores that differ
                size *= 4
            value.copy_(size * PATTERN.repeat(value.numel() // 251 + 1)[: value.numel()].view(value.shape))
        elif name.endswith(("bn.weight", "running_var")):
            value.fill_(1)
        elif name.endswith(".2.bias") and ".cv2." in name:  # near sides are the likely ones
            value.copy_(-0.5 * (torch.arange(len(value)) % 16))
        else:  # biases and running means
            value.fill_(0)


def tensors(tree: object) -> list[torch.Tensor]:
    """The tensors of the optimizer's state."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [found for value in values for found in tensors(value)]


def store(file: Path, name: str) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**27}]
    (BEFORE / f"{name}.xz").write_bytes(lzma.compress(file.read_bytes(), filters=filters))


class StopError(Exception):
    """The first epoch's checkpoint is written."""


def stop(_: PairedTrainer) -> None:
    raise StopError


def make(method: str, name: str, whole: bool) -> None:
    """Train an epoch of three; keep the model file, and with `whole` the checkpoint and the exports too."""
    shutil.rmtree(MADE_IN, ignore_errors=True)
    folder = Path(MADE_IN)
    data = two_class_world(folder / "data")
    overrides = {**OPTIONS, "model": "rscmd", "data": str(data), "project": str(folder), "name": "run"}
    trainer = PairedTrainer(overrides=overrides)
    trainer.start_from(parse_method(method))
    trainer.add_callback("on_model_save", stop)
    with suppress(StopError):
        trainer.train()

    file = folder / "model.safetensors"
    model, header = load_model(folder / "run/model.safetensors")
    simplify(model.state_dict())
    save_model(file, model, header)
    store(file, f"{name}.safetensors")
    answers = {}
    visible, thermal = pair()
    pairs = {"both": (visible, thermal), "visible": (visible, None), "thermal": (None, thermal)}
    for kind in ("both", *header.config.branches[1:]):
        found = Predictor(file, device="cpu", conf=0.1).predict(*pairs[kind])
        answers[kind] = {
            "count": len(found),
            "boxes": [[round(float(x), 2) for x in box] for box in found.boxes[:5]],
            "scores": [round(float(x), 4) for x in found.scores[:5]],
            "classes": found.classes[:5].tolist(),
        }
    (BEFORE / f"{name}.json").write_text(json.dumps(answers) + "\n")
    print(name, answers)
    if not whole:
        return

    last = folder / "run/weights/last.pt"
    checkpoint = torch.load(last, weights_only=False)
    assert checkpoint["epoch"] == 0
    exact = checkpoint["optimizer"]["exact"]
    for state in (checkpoint["ema"].state_dict(), exact["model"], exact["ema"]):
        simplify(state)
    for value in tensors([exact["state"], checkpoint["optimizer"]["state"]]):
        value.zero_()
    torch.save(checkpoint, last)
    store(last, f"{name}.pt")
    shutil.copy(folder / "run/results.csv", BEFORE / f"{name}.csv")
    for form in ("onnx", "openvino"):
        out = folder / f"model.{form}"
        export(file, form, out, size=(64, 64))
        store(out, f"{name}.{form}")


if __name__ == "__main__":
    make("rscmd+branch=full", "full", False)
    make("sum+fusion=adapt", "adapt", False)
    make("rscmd", "rscmd", True)
