"""What a method costs: parameters, arithmetic, time per training step and memory."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from rscmd_model.network.model import RscmdModel


def gflops(model: RscmdModel, answers: Sequence[str], imgsz: int) -> float:
    """Count the arithmetic of some answers to one pair.

    Args:
        model: is run once, in evaluation mode.
        answers: some of the model's, such as ("fused",).
        imgsz: side of the square network input, px.

    Returns:
        GFLOPs; a multiply-add counts as two.
    """
    training = model.training
    p = next(model.parameters())
    x = torch.zeros(1, 4, imgsz, imgsz, device=p.device, dtype=p.dtype)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval().answers(x, answers)
    finally:
        model.train(training)
    return counter.get_total_flops() / 1e9


class StepMeter:
    """Times the steps of a training: from the images' arrival on the device to the optimizer's end.

    Args:
        trainer: an ultralytics trainer before `train()`; gets two callbacks.
    """

    def __init__(self, trainer: Any) -> None:
        self.seconds: list[float] = []
        self._start = 0.0
        self._cuda = trainer.device.type == "cuda"
        trainer.add_callback("on_train_batch_start", lambda _: self._begin())
        trainer.add_callback("on_train_batch_end", lambda _: self._end())

    def _begin(self) -> None:
        self._start = time.perf_counter()

    def _end(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._start)

    def summary(self, model: RscmdModel, imgsz: int) -> dict[str, Any]:
        """What the training cost and what the model costs.

        Args:
            model: the trained one.
            imgsz: side of the square network input, px.

        Returns:
            parameters (trained and shipped), gflops (of the main answer at imgsz), step_ms (median; None if no step
            was timed) and memory_mb (the most that was used so far: CUDA's, or this process's).
        """
        if self._cuda:
            memory = torch.cuda.max_memory_allocated() / 2**20
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        steps = 1000 * statistics.median(self.seconds) if self.seconds else None
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "gflops": gflops(model, model.config.main, imgsz),
            "step_ms": steps,
            "memory_mb": memory,
        }
