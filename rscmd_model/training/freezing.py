"""Layers that a training holds still: ultralytics' option freeze=, in the names of this network.

The ultralytics trainer looks for model.0, model.1 and so on, which this network does not have. Its parts have the layer
numbers of the family's yaml (`Family.coco_layers`): of YOLOv8, b0 to b9 in each backbone, n12 to n21 and head (22) in
each branch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rscmd_model.errors import UserError, quoted
from rscmd_model.network.families import find_family
from rscmd_model.network.model import RscmdModel


def frozen_parts(model: RscmdModel, freeze: int | Sequence[int | str] | None) -> list[str]:
    """Names of the modules that `freeze` means, in `model.named_modules()`.

    Args:
        model: the network.
        freeze: how many layers of the family's yaml from the first, or a list of layer numbers and names: of a module,
            as "backbones.thermal", or of a part of a layer, as "22.cv2".

    Raises:
        UserError: nothing bears a number or name of the list, or nothing would be left to train.
    """
    parts: list[str] = []
    layers = {number: part for part, number in find_family(model.config.family).coco_layers.items()}
    modules = dict(model.named_modules())
    for item in range(freeze) if isinstance(freeze, int) else freeze or ():
        name = str(item)
        layer, _, rest = name.partition(".")
        here = [name] if name in modules else []
        if layer.isdigit() and int(layer) in layers:
            place = rf"\w+\.\w+\.{layers[int(layer)]}" + (re.escape(f".{rest}") if rest else "")
            here = [path for path in modules if re.fullmatch(place, path)]
        if not here and not isinstance(freeze, int):
            raise UserError(
                f"freeze={quoted(item)}: this model has no such weights; give numbers of layers of "
                f"{model.config.family}.yaml ({', '.join(map(str, layers))}) or names as in "
                f"backbones.{model.config.modalities[0]}"
            )
        parts += here
    held = {id(weight) for part in parts for weight in modules[part].parameters()}
    if all(id(weight) in held for name, weight in model.named_parameters() if ".dfl." not in name):
        raise UserError(f"freeze={quoted(freeze)} leaves nothing to train")
    return parts
