"""TensorRT: engines built from ONNX, and the backend that runs them. That is written from its documentation; never run.

It is written for TensorRT 10 and 11. 11 knows strongly typed networks alone: the types in the graph are those of the
engine, and there are no flags for 16 and 8 bits any more. 10 is asked for the same, so that both build the same thing.
What a graph may hold is checked on the CPU, by test/test_engine_graph.py. There TensorRT for RTX, which has the same
interface and needs no GPU to build, built every kind of graph.

An engine is bound to one kind of GPU and one version of TensorRT. `model.engine` holds one for each branch, so that the
fused answer does not pay for the others. It is a program, which docs/security.md says more of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rscmd_model.config import STRIDE
from rscmd_model.errors import UserError, first_line, shown
from rscmd_model.inference.backends import (
    ARCHIVE_HEADER,
    INPUT,
    StackTaking,
    fixed_input,
    needed,
    pick,
    read_archive,
    write_archive,
)
from rscmd_model.network.header import ModelHeader

BUILT_FOR = "built_for.txt"  # member of a model.engine: what `place_of` said where it was built

_WORKSPACE = 1 << 30
"""Bytes that a layer may use for itself; a way to compute it that needs more is not taken. Nothing is reserved by it.
Without it all of the device's memory might be used, which on a Jetson is also the computer's."""


class OpenSizes(NamedTuple):
    """What an engine takes whose sizes are open: batches from 1 on, sides from 32 px on.

    Attributes:
        batch: pairs at most.
        tuned: (height, width) in px that it is made fast for.
        side: px of either side at most.
    """

    batch: int
    tuned: tuple[int, int]
    side: int


def tensorrt(why: str) -> Any:
    """TensorRT's package, for `why`.

    Raises:
        UserError: it is not installed, cannot be imported, or is older than what is asked of it.
    """
    trt = needed("tensorrt", why, "pip install tensorrt; on a Jetson take JetPack's, see docs/jetson.md")
    if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        raise UserError(f"{why} needs TensorRT 10 or newer, and {trt.__version__} is installed (JetPack 6.1 has 10.3)")
    return trt


def build_engine(onnx: bytes, sizes: OpenSizes | None) -> bytes:
    """An engine from an ONNX model of one branch; its precision is the graph's.

    Args:
        onnx: the model's bytes, of `export_file.engine_graphs`.
        sizes: of a model whose sizes are open.

    Raises:
        UserError: TensorRT is not installed, finds no GPU, or cannot build it.
    """
    trt = tensorrt("--format engine")
    logger = trt.Logger(trt.Logger.ERROR)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what pybind11 makes of a builder that is none
        raise UserError(f"TensorRT {trt.__version__} cannot begin ({first_line(error)}): is there a GPU?") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        reason = parser.get_error(0).desc() if parser.num_errors else "it gives no reason"
        raise UserError(f"TensorRT {trt.__version__} cannot read the graph: {shown(reason, 300)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE)
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: 10 bits of mantissa where 32-bit numbers were asked for
    if sizes is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, (1, STRIDE, STRIDE, 4), (1, *sizes.tuned, 4), (sizes.batch, sizes.side, sizes.side, 4))
        config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise UserError("TensorRT could not build an engine; its own messages stand above")
    return bytes(built)


def write_engines(
    path: Path, header: ModelHeader, graphs: Iterable[tuple[str, bytes]], sizes: OpenSizes | None
) -> None:
    """Write a model.engine.

    Args:
        path: the file.
        header: of the model.
        graphs: the name of each answer and its ONNX model.
        sizes: of a model whose sizes are open.

    Raises:
        UserError: as `build_engine`.
    """
    engines = {f"{answer}.engine": build_engine(graph, sizes) for answer, graph in graphs}
    head = {ARCHIVE_HEADER: header.to_json().encode(), BUILT_FOR: place_of("cuda").encode()}
    write_archive(path, {**head, **engines})


def place_of(device: Any) -> str:
    """What an engine is bound to that is built on a CUDA device: that kind of GPU, and the version of TensorRT.

    TensorRT itself only logs a warning where the GPU is another one of the same compute capability, as the several
    modules of Jetson Orin are.
    """
    import torch

    gpu = torch.cuda.get_device_properties(device)
    return (
        f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.multi_processor_count} multiprocessors, "
        f"TensorRT {tensorrt('an engine').__version__}"
    )


def check_place(built_for: str, here: str, path: Path) -> None:
    """Raises `UserError` where an engine was built for another place than this one, both as `place_of` says it."""
    if built_for != here:
        raise UserError(
            f"{path} was built for {shown(built_for, 300)}, and here is {here}: export it again here, from the "
            "model.safetensors"
        )


class EngineBackend(StackTaking):
    """TensorRT engines on a CUDA GPU, one for each branch.

    Several answers are given by their engines one after another: what they share, the backbones, is computed again in
    each, so that an ensemble takes about the sum of their times.

    Args:
        path: a model.engine.
        device: "auto" or "cuda:N".

    Raises:
        UserError: no such device, no TensorRT, a damaged file, or one that was built for another kind of GPU or
            another version of TensorRT.
    """

    name = "tensorrt"
    precision = "as exported"

    def __init__(self, path: Path, device: str) -> None:
        self.header, members = read_archive(path)
        branches = self.header.config.answers
        place, *parts = pick(members, [BUILT_FOR, *(f"{branch}.engine" for branch in branches)], path)
        self._trt = tensorrt(str(path))
        import torch

        from rscmd_model.inference.torch_backends import select_device

        self._where, self._torch, self._device = path, torch, select_device(device)
        if self._device.type != "cuda":
            raise UserError(f"{path} is a TensorRT engine and needs a CUDA GPU; there is none, or device is cpu")
        check_place(place.decode(errors="replace"), place_of(self._device), path)
        self.device = str(self._device)
        self._contexts: dict[str, Any] = {}
        with torch.cuda.device(self._device):  # an engine lies on the device that is current when it is read
            self._stream = torch.cuda.Stream()  # on the default one TensorRT would wait once more for each call
            self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))  # has to outlive the engines
            for branch, part in zip(branches, parts):
                engine = self._runtime.deserialize_cuda_engine(part)
                if engine is None:
                    raise UserError(f"{path}: TensorRT {self._trt.__version__} cannot read it: export it again here")
                context = engine.create_execution_context()
                if context is None:
                    raise UserError(f"{path}: {self.device} has too little memory left for it: free some")
                self._contexts[branch] = context
        self.fixed = fixed_input(list(engine.get_tensor_shape(INPUT)[:3]), path)
        self._largest = None if self.fixed else int(engine.get_tensor_profile_shape(INPUT, 0)[2][0])

    @property
    def largest_batch(self) -> int | None:
        """See `Backend`."""
        return super().largest_batch or self._largest

    def forward(self, batch: np.ndarray, answers: Sequence[str]) -> list[np.ndarray]:
        """See `Backend`; it waits for the device once all engines have their work."""
        torch = self._torch
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            taken = torch.from_numpy(batch).pin_memory().to(self._device, non_blocking=True)
            found = []
            for answer in answers:
                context = self._contexts[answer]
                if not context.set_input_shape(INPUT, tuple(batch.shape)):
                    pairs, height, width = batch.shape[:3]
                    raise UserError(
                        f"{self._where} does not take {pairs} pairs of {width}x{height} px: export it again with a "
                        "larger --batch or --size"
                    )
                given = torch.empty(tuple(context.get_tensor_shape(answer)), dtype=torch.float32, device=self._device)
                context.set_tensor_address(INPUT, taken.data_ptr())
                context.set_tensor_address(answer, given.data_ptr())
                if not context.execute_async_v3(self._stream.cuda_stream):
                    raise UserError(f"{self._where}: TensorRT failed; its own messages stand above")
                found.append(given)
            return [given.cpu().numpy() for given in found]
