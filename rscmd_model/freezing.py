"""Layers that a training holds still: the engine's option freeze=, in the names of this network.

The engine looks for model.0, model.1 and so on, which this network does not have. Its parts carry the layer numbers of
yolov8.yaml in their names: b0 to b9 in each backbone, n12 to n21 and head (layer 22) in each branch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rscmd_model.errors import UserError, quoted
from rscmd_model.model import RscmdModel

HEAD = 22  # the last layer of yolov8.yaml


def frozen_parts(model: RscmdModel, freeze: int | Sequence[int | str] | None) -> list[str]:
    """Names of the modules that `freeze` means, in `model.named_modules()`.

    Args:
        model: the network.
        freeze: how many layers of yolov8.yaml from the first, or a list of layer numbers and names: of a module, as
            "backbones.thermal", or of a part of a layer, as "22.cv2".

    Raises:
        UserError: nothing bears a number or name of the list, or nothing would be left to train.
    """
    parts: list[str] = []
    modules = dict(model.named_modules())
    for item in range(freeze) if isinstance(freeze, int) else freeze or ():
        name = str(item)
        layer, _, rest = name.partition(".")
        here = [name] if name in modules else []
        if layer.isdigit():
            own = "head" if int(layer) == HEAD else f"[bn]{int(layer)}"
            place = rf"\w+\.\w+\.{own}" + (re.escape(f".{rest}") if rest else "")
            here = [path for path in modules if re.fullmatch(place, path)]
        if not here and not isinstance(freeze, int):
            raise UserError(
                f"freeze={quoted(item)}: this model has no such weights; give numbers of layers of yolov8.yaml "
                f"(0 to 9, 12, 15, 16, 18, 19, 21, 22) or names as in backbones.{model.config.modalities[0]}"
            )
        parts += here
    held = {id(weight) for part in parts for weight in modules[part].parameters()}
    if all(id(weight) in held for name, weight in model.named_parameters() if ".dfl." not in name):
        raise UserError(f"freeze={quoted(freeze)} leaves nothing to train")
    return parts
