"""Starting both streams from COCO weights of plain YOLOv8, given as a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rscmd_model.errors import UserError
from rscmd_model.model import RscmdModel


@dataclass(frozen=True)
class LoadCount:
    """How many of the model's tensors came from the file, and the names of those that kept their random start."""

    loaded: int
    kept: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.loaded} of {self.loaded + len(self.kept)} tensors loaded" + (
            f", {len(self.kept)} not: {', '.join(self.kept[:4])}{', ...' if len(self.kept) > 4 else ''}"
            if self.kept
            else ""
        )


def read_yolov8(path: str | Path) -> dict[str, Tensor]:
    """The weights of an ultralytics YOLOv8 detection checkpoint (.pt), float32, by their names there.

    The file is read without running code from it (only known ultralytics and torch classes are rebuilt).

    Raises:
        UserError: no such file, or not a YOLOv8 detection checkpoint.
    """
    from ultralytics.nn.tasks import torch_safe_load

    if not Path(path).is_file():
        raise UserError(f"no weights file {path} (weights are never downloaded: give the path of a yolov8*.pt)")
    try:
        checkpoint, _ = torch_safe_load(str(path), safe_only=True)
        model = checkpoint.get("ema") or checkpoint["model"]
        state = {k: v.float() for k, v in model.state_dict().items()}
    except Exception as error:  # the loader raises many kinds; for the user they are one
        raise UserError(f"{path} is no ultralytics checkpoint: {str(error).splitlines()[0]}") from None
    if "model.22.cv2.0.0.conv.weight" not in state:
        raise UserError(
            f"{path} is an ultralytics checkpoint but not a YOLOv8 detector (it has no YOLOv8 head at layer 22)"
        )
    return state


def load_yolov8(model: RscmdModel, state: dict[str, Tensor]) -> LoadCount:
    """Start every backbone, neck and head of `model` from a plain YOLOv8.

    The thermal stem's filters are the sum over the colour channels, which gives a grey image the same response.
    Tensors whose shape differs (the class outputs for another number of classes, another scale) keep their start.
    """
    kept, loaded = [], 0
    with torch.no_grad():
        for name, target in model.state_dict().items():
            # backbones.thermal.b4.x -> model.4.x; branches.fused.n12.x -> model.12.x; ...head.x -> model.22.x
            source = re.sub(r"^\w+\.\w+\.(?:[bn](\d+)|head)\.", lambda m: f"model.{m[1] or 22}.", name)
            value = state.get(source)
            if value is not None and name.startswith("backbones.thermal.b0.conv"):
                value = value.sum(1, keepdim=True)
            if value is None or value.shape != target.shape:
                kept.append(name)
            else:
                target.copy_(value)
                loaded += 1
    return LoadCount(loaded, tuple(kept))
