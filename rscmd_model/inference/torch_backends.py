"""The backend that needs torch: a model.safetensors on the CPU or a CUDA GPU.

On a GPU (written from the documentation, not measured): one upload of 8-bit pixels from pinned memory for each pair,
normalisation and decoding on the device, half precision, channels last, the launches recorded once as a CUDA graph, and
one wait, for the table of boxes to come back. Overlapping boxes are removed on the host, where it takes less time than
the two further waits of the device's NMS.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rscmd_model.devices import inference_device
from rscmd_model.errors import UserError

_MOST_GRAPHS = 8  # CUDA graphs kept, each with its own memory
_Key = tuple[tuple[str, ...], tuple[int, ...]]  # answers and shape of the input


def select_device(device: str) -> torch.device:
    """A torch device from what `inference_device` takes: "auto" (the first CUDA GPU, else the CPU), "cpu", "cuda:N".

    Raises:
        UserError: no such device here; the message names those that are.
    """
    return torch.device(inference_device(device))


class TorchBackend:
    """A model in eager torch, BatchNorm folded into the convolutions, channels last.

    Args:
        path: a model.safetensors.
        device: as `select_device` takes it.
        half: half precision; None means on CUDA and only there.
    """

    name = "torch"
    fixed: tuple[int, int, int] | None = None

    def __init__(self, path: Path, device: str, half: bool | None) -> None:
        from rscmd_model.network.model_file import load_model

        self._device = select_device(device)
        self.device = str(self._device)
        self.half = self._device.type == "cuda" if half is None else half
        if self.half and self._device.type == "cpu":
            raise UserError("half precision needs a CUDA device; leave half unset on the CPU")
        self.network, self.header = load_model(path)
        self._dtype = torch.float16 if self.half else torch.float32
        self.network.fuse().to(self._device, self._dtype, memory_format=torch.channels_last).eval()
        self._staging: dict[tuple[int, ...], Tensor] = {}
        self._graphs: dict[_Key, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Any]] = {}

    def forward(self, batch: np.ndarray, answers: Sequence[str]) -> list[np.ndarray]:
        """See `Backend`; it waits for the device once, for all the answers."""
        with torch.inference_mode():
            if self._device.type == "cpu":
                return [answer.numpy() for answer in self._answers(torch.from_numpy(batch), answers)]
            return list(self._on_gpu(batch, tuple(answers)).cpu().numpy())

    def _answers(self, pair: Tensor, answers: Sequence[str]) -> list[Tensor]:
        """(B, H, W, 4) uint8 on the device to (B, 4 + classes, N) float32 there for each answer."""
        x = pair.permute(0, 3, 1, 2).to(self._dtype) / 255  # the permuted view is channels last already
        found = self.network.answers(x, answers)
        return [found[answer][0].float() for answer in answers]

    def _on_gpu(self, batch: np.ndarray, answers: tuple[str, ...]) -> Tensor:
        """The answers one behind the other, (A, B, 4 + classes, N)."""
        if batch.shape not in self._staging:
            self._staging = {batch.shape: torch.empty(batch.shape, dtype=torch.uint8, pin_memory=True)}
        pinned = self._staging[batch.shape]
        pinned.numpy()[:] = batch
        if len(batch) > 1:  # batches are for throughput, where launches cost little
            return torch.stack(self._answers(pinned.to(self._device, non_blocking=True), answers))
        key = (answers, batch.shape)
        if key not in self._graphs:
            if len(self._graphs) == _MOST_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[key] = self._record(pinned, answers)
        graph, taken, given, _ = self._graphs[key]
        taken.copy_(pinned, non_blocking=True)
        graph.replay()
        return given

    def _record(self, pinned: Tensor, answers: tuple[str, ...]) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Any]:
        """The graph of some answers at one size, its input, its output, and tensors it reads that must stay alive."""
        with torch.cuda.device(self._device):
            taken = pinned.to(self._device)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # the first runs choose algorithms and make the head's anchors
                    torch.stack(self._answers(taken, answers))
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                given = torch.stack(self._answers(taken, answers))
            heads: list[Any] = [self.network.branch(answer).head for answer in answers]
            return graph, taken, given, [(head.anchors, head.strides) for head in heads]
