"""Whether a training may compute in mixed precision (the option `amp`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import ultralytics.engine.trainer
from torch import nn
from ultralytics.utils import LOGGER

# GPUs that ultralytics.utils.checks.check_amp knows to train badly in mixed precision.
_BAD_AT_AMP = re.compile(r"1660|1650|1630|T400|T550|T600|T1000|T1200|T2000|K40m", re.IGNORECASE)


def is_good_at_amp(model: nn.Module) -> bool:
    """Whether the device of a model may train in mixed precision: not the processor, nor a GPU that is known for it."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return False
    if bad := bool(_BAD_AT_AMP.search(torch.cuda.get_device_name(device))):
        LOGGER.warning(f"amp is off: on {torch.cuda.get_device_name(device)} it is known to give losses that are NaN")
    return not bad


@contextmanager
def checked_by_name() -> Iterator[None]:
    """Within, ultralytics' trainer asks `is_good_at_amp`.

    Its own check fetches a model from the net, with YOLO_OFFLINE, too, to compare its answers.
    """
    checked, ultralytics.engine.trainer.check_amp = ultralytics.engine.trainer.check_amp, is_good_at_amp
    try:
        yield
    finally:
        ultralytics.engine.trainer.check_amp = checked
