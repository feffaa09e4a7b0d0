"""The backend that needs torch: a model.safetensors on the CPU or a CUDA GPU.

On a GPU (written from the documentation): one upload of the images as they are, from pinned memory; letterbox, stack,
normalisation and decoding on the device, in half precision and channels last; the launches recorded as a CUDA graph
when images of some shapes come for the second time; and one wait, for the table of boxes to come back. Overlapping
boxes are removed on the host, where it takes less time than the two further waits of the device's NMS.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rscmd_model.devices import inference_device
from rscmd_model.errors import UserError, out_of_memory
from rscmd_model.imaging.preprocess import Placement
from rscmd_model.inference.device_input import Images, Letterbox
from rscmd_model.inference.prepared import Prepared, stacked

_MOST_GRAPHS = 8  # CUDA graphs kept, each with its own memory
_MOST_MET = 64  # kinds of input that are remembered
_RECORDING = threading.Lock()  # torch lets a process record one graph at a time
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
    largest_batch: int | None = None

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
        self.slow_calls = 2 if self._device.type == "cuda" else 0  # the second is recorded
        self._staging: _Parts = {}
        self._graphs: dict[_Key, _Graph] = {}
        self._met: dict[_Key, bool] = {}
        """What came before, and whether a graph of it may be recorded: not again where there was no memory for it."""
        self._letterbox: Letterbox | None = None
        # torch's own stream for recording belongs to the device that recorded first.
        self._side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

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
            with torch.cuda.device(self._device), self._exact():
                return self._on_gpu(placement, images, tuple(answers))

    def _stacking(self, placement: Placement | None) -> Callable[[_Parts], Tensor]:
        """What makes (B, H, W, 4) uint8 of what was uploaded."""
        if placement is None:
            return lambda parts: parts["stack"]
        letterbox = self._letterbox
        if letterbox is None or letterbox.placement != placement:
            letterbox = self._letterbox = Letterbox(placement, self._device)
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
        graph = self._graph(_Key(answers, placement, tuple((name, *of.shape) for name, of in pinned.items())), pinned)
        if graph is None:
            parts = {name: of.to(self._device, non_blocking=True) for name, of in pinned.items()}
            return list(torch.stack(self._answers(self._stacking(placement)(parts), answers)).cpu().numpy())
        for name, taken in graph.taken.items():
            taken.copy_(pinned[name], non_blocking=True)
        graph.graph.replay()
        graph.back.copy_(graph.given, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return list(graph.back.numpy().copy())

    def _graph(self, key: _Key, pinned: _Parts) -> _Graph | None:
        """The graph for such an input, recorded when it comes for the second time; None before.

        Also None where there was no memory to record it: it is answered launch by launch then, and so is what had a
        graph, until it comes again.
        """
        if key in self._graphs:
            self._graphs[key] = self._graphs.pop(key)  # the first of them is the one that was not used for longest
            return self._graphs[key]
        if not self._met.get(key, False):
            if key not in self._met:
                self._met[key] = True
                if len(self._met) > _MOST_MET:
                    self._met.pop(next(iter(self._met)))
            return None
        if len(self._graphs) == _MOST_GRAPHS:
            self._graphs.pop(next(iter(self._graphs)))
        try:
            graph = self._graphs[key] = self._record(pinned, key.placement, key.answers)
            return graph
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # After the handler, since the exception holds on to what the recording had made.
        self._met[key] = False
        self._graphs.clear()
        torch.cuda.empty_cache()
        return None

    def _exact(self) -> AbstractContextManager[Any]:
        """Convolutions in 32 bits where those are asked for. torch takes TF32, 10 bits of mantissa, if it is let."""
        if self.half:
            return nullcontext()
        cudnn = torch.backends.cudnn
        flags: AbstractContextManager[Any] = cudnn.flags(
            cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False
        )
        return flags

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
        stacking, side = self._stacking(placement), self._side
        assert side is not None
        graph = torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        # The stream is set outside, too: where a recording fails torch leaves the thread on the one that it records on.
        with _RECORDING, torch.cuda.stream(side):
            for _ in range(3):  # the first runs choose algorithms and make the head's anchors
                torch.stack(self._answers(stacking(taken), answers))
            # Other threads may go on asking for memory meanwhile, such as those of a second predictor.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                given = torch.stack(self._answers(stacking(taken), answers))
        torch.cuda.current_stream().wait_stream(side)
        back = torch.empty(given.shape, pin_memory=True)
        heads: list[Any] = [self.network.branch(answer).head for answer in answers]
        return _Graph(graph, taken, given, back, (stacking, [(head.anchors, head.strides) for head in heads]))
