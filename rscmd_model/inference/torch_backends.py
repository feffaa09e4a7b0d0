"""The backend that needs torch: a model.safetensors on the CPU or a CUDA GPU.

On a GPU (written from the documentation): one upload of the images as they are, from pinned memory; letterbox, stack,
normalisation and decoding on the device, in half precision and channels last; the launches recorded once as a CUDA
graph; and one wait, for the table of boxes to come back. Overlapping boxes are removed on the host, where it takes less
time than the two further waits of the device's NMS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rscmd_model.devices import inference_device
from rscmd_model.errors import UserError
from rscmd_model.imaging.preprocess import Placement
from rscmd_model.inference.device_input import Images, Letterbox
from rscmd_model.inference.prepared import Prepared, stacked

_MOST_GRAPHS = 8  # CUDA graphs kept, each with its own memory
_Parts = dict[str, Tensor]  # what is uploaded, by name: "stack", or "visible" and "planes" as `Letterbox` takes them


class _Key(NamedTuple):
    """What a recorded graph is for: answers, how the images lie in the input (None for stacks), and their shapes."""

    answers: tuple[str, ...]
    placement: Placement | None
    shapes: tuple[tuple[Any, ...], ...]


class _Graph(NamedTuple):
    """A recorded graph.

    Attributes:
        graph: to replay.
        taken: its input, on the device.
        given: its output there, (A, B, 4 + classes, N) float32.
        back: the same in pinned memory of the host.
        kept: what it reads besides, and what must stay alive therefore.
    """

    graph: torch.cuda.CUDAGraph
    taken: _Parts
    given: Tensor
    back: Tensor
    kept: Any


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
        self.precision = "float16" if self.half else "float32"
        self.network.fuse().to(self._device, self._dtype, memory_format=torch.channels_last).eval()
        self._staging: _Parts = {}
        self._graphs: dict[_Key, _Graph] = {}
        self._last: _Key | None = None

    def take(self, pairs: Sequence[Prepared]) -> np.ndarray | Images:
        """See `Backend`: for a GPU the images as they are, if they lie alike; otherwise (B, H, W, 4) uint8."""
        if self._device.type == "cuda" and Images.alike(pairs):
            return Images.of(pairs)
        return stacked(pairs, None)

    def forward(self, batch: np.ndarray | Images, answers: Sequence[str]) -> list[np.ndarray]:
        """See `Backend`; it waits for the device once, for all the answers."""
        placement: Placement | None = None
        images: Mapping[str, Any] = {"stack": batch}
        if isinstance(batch, Images):
            placement, images = batch.placement, batch.parts()
        with torch.inference_mode():
            if self._device.type == "cpu":
                parts = {name: torch.from_numpy(np.asarray(of)) for name, of in images.items()}
                return [answer.numpy() for answer in self._answers(self._stacking(placement)(parts), answers)]
            with torch.cuda.device(self._device):
                return self._on_gpu(placement, images, tuple(answers))

    def _stacking(self, placement: Placement | None) -> Callable[[_Parts], Tensor]:
        """What makes (B, H, W, 4) uint8 of what was uploaded."""
        if placement is None:
            return lambda parts: parts["stack"]
        letterbox = Letterbox(placement, self._device)
        return lambda parts: letterbox(parts.get("visible"), parts.get("planes"))

    def _answers(self, pair: Tensor, answers: Sequence[str]) -> list[Tensor]:
        """(B, H, W, 4) uint8 on the device to (B, 4 + classes, N) float32 there for each answer."""
        x = pair.permute(0, 3, 1, 2).to(self._dtype) / 255  # the permuted view is channels last already
        found = self.network.answers(x, answers)
        return [found[answer][0].float() for answer in answers]

    def _on_gpu(
        self, placement: Placement | None, images: Mapping[str, Sequence[np.ndarray]], answers: tuple[str, ...]
    ) -> list[np.ndarray]:
        """The answers to a batch of images, by what `Letterbox` calls them."""
        pinned = {name: self._pinned(name, of) for name, of in images.items()}
        key = _Key(answers, placement, tuple((name, *of.shape) for name, of in pinned.items()))
        again, self._last = key == self._last, key
        if key not in self._graphs:
            if not again and len(next(iter(pinned.values()))) > 1:  # a batch that may not come again
                parts = {name: of.to(self._device, non_blocking=True) for name, of in pinned.items()}
                found = torch.stack(self._answers(self._stacking(placement)(parts), answers))
                return list(found.cpu().numpy())
            if len(self._graphs) == _MOST_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[key] = self._record(pinned, placement, answers)
        graph = self._graphs[key]
        for name, taken in graph.taken.items():
            taken.copy_(pinned[name], non_blocking=True)
        graph.graph.replay()
        graph.back.copy_(graph.given, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return list(graph.back.numpy().copy())

    def _pinned(self, name: str, images: Sequence[np.ndarray]) -> Tensor:
        """The images, one behind the other, in memory that the device reads by itself."""
        shape = (len(images), *images[0].shape)
        if name not in self._staging or self._staging[name].shape != shape:
            self._staging[name] = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        for row, image in zip(self._staging[name].numpy(), images):
            row[:] = image
        return self._staging[name]

    def _record(self, pinned: _Parts, placement: Placement | None, answers: tuple[str, ...]) -> _Graph:
        """The graph of some answers to images of these shapes."""
        taken = {name: of.to(self._device) for name, of in pinned.items()}
        stacking = self._stacking(placement)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # the first runs choose algorithms and make the head's anchors
                torch.stack(self._answers(stacking(taken), answers))
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            given = torch.stack(self._answers(stacking(taken), answers))
        back = torch.empty(given.shape, pin_memory=True)
        heads: list[Any] = [self.network.branch(answer).head for answer in answers]
        return _Graph(graph, taken, given, back, (stacking, [(head.anchors, head.strides) for head in heads]))
