"""A two-camera model without any training, from the weights of plain detectors.

With one detector for both cameras, everything is that detector: both streams (the thermal one reads grey), and the neck
and head of every answer. The fused one reads the mean of both streams' features. With a second detector for the thermal
camera there is no common neck, and so no fused answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rscmd_model.config import FAMILIES, MODALITIES
from rscmd_model.errors import UserError, did_you_mean, several
from rscmd_model.methods import method_config
from rscmd_model.network.checkpoint import Detector, read_detector
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.pretrained import load_weights


def assemble(weights: Path, thermal_weights: Path | None, classes: Sequence[str] | None) -> RscmdModel:
    """Build the model.

    Args:
        weights: an ultralytics checkpoint (.pt); for both cameras where there is no other for the thermal one.
        thermal_weights: of the thermal camera, of the same family and scale.
        classes: names of the classes that it is to find, in this order; None means all that `weights` finds.

    Returns:
        in evaluation mode. All its answers together answer best.

    Raises:
        UserError: as `read_detector`; the two are of different size; or one of them does not know a class.
    """
    visible = read_detector(weights)
    thermal = read_detector(thermal_weights) if thermal_weights else visible
    if (visible.family, visible.scale) != (thermal.family, thermal.scale):
        raise UserError(
            f"{weights} is {FAMILIES[visible.family]}{visible.scale} and {thermal_weights} is "
            f"{FAMILIES[thermal.family]}{thermal.scale}: both streams are of one family and scale"
        )
    names = dict(enumerate(classes or visible.names.values()))
    _check_classes(weights, visible, names.values())
    if thermal_weights:
        _check_classes(thermal_weights, thermal, names.values())
    of = {"visible": visible, "thermal": thermal}
    size: Any = {"scale": visible.scale, "family": visible.family}
    if thermal_weights:
        config = method_config("late", **size)
    else:
        config = method_config("rsc", rsc="shared", fusion="mean", **size)
    config = replace(config, head_classes=max(len(detector.names) for detector in of.values()))
    with torch.random.fork_rng(devices=[]):
        model = RscmdModel(config, names)
    for modality in MODALITIES:
        load_weights(model, of[modality], only=modality if thermal_weights else None)
    return model.eval()


def _check_classes(path: Path, detector: Detector, wanted: Iterable[str]) -> None:
    """Raise `UserError` unless the detector has all of these classes."""
    known = {name.casefold(): name for name in detector.names.values()}
    for name in wanted:
        if name.casefold() not in known:
            hint = did_you_mean(name.casefold(), known, f"its classes are {several(detector.names.values(), 100)}")
            raise UserError(f"{path} does not know the class {name!r}{hint}")
