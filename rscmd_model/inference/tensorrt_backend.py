"""TensorRT: engines built from ONNX, and the backend that runs them. Written from its documentation; not measured.

An engine is bound to one kind of GPU and one version of TensorRT. `model.engine` holds one for each branch, so that the
fused answer does not pay for the others. It is a program, which docs/security.md says more of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.inference.backends import INPUT, StackTaking, fixed_input, needed, pick, read_archive

_WORKSPACE = 4 << 30


def build_engine(onnx: bytes, half: bool, dynamic: tuple[int, int, int] | None) -> bytes:
    """An engine from an ONNX model of one branch.

    Args:
        onnx: the model's bytes. Where it is quantised (int8), TensorRT takes the scales from it.
        half: allow 16-bit arithmetic.
        dynamic: (batch, height, width) of the largest input, of a model whose sizes are open; the least is 1, 32, 32.

    Raises:
        UserError: TensorRT is not installed, or cannot build it.
    """
    trt = needed("tensorrt", "--format engine")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        raise UserError(f"TensorRT cannot read the graph: {parser.get_error(0)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE)
    if half:
        config.set_flag(trt.BuilderFlag.FP16)
    if dynamic is not None:
        batch, height, width = dynamic
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, (1, 32, 32, 4), (1, height, width, 4), (batch, height, width, 4))
        config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise UserError("TensorRT could not build an engine; its own messages stand above")
    return bytes(built)


class EngineBackend(StackTaking):
    """TensorRT engines on a CUDA GPU, one for each branch.

    Several answers are given by their engines one after another: what they share, the backbones, is computed again in
    each, so that an ensemble takes about the sum of their times.

    Args:
        path: a model.engine.
        device: "auto" or "cuda:N".
    """

    name = "tensorrt"

    def __init__(self, path: Path, device: str) -> None:
        self.header, members = read_archive(path)
        branches = self.header.config.answers
        parts = pick(members, [f"{branch}.engine" for branch in branches], path)
        self._trt = needed("tensorrt", str(path))
        import torch

        from rscmd_model.inference.torch_backends import select_device

        self._torch, self._device = torch, select_device(device)
        if self._device.type != "cuda":
            raise UserError(f"{path} is a TensorRT engine and needs a CUDA GPU; there is none, or device is cpu")
        self.device = str(self._device)
        runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._contexts: dict[str, Any] = {}
        for branch, part in zip(branches, parts):
            engine = runtime.deserialize_cuda_engine(part)
            if engine is None:
                raise UserError(f"{path} was built for another GPU or version of TensorRT: export it again here")
            self._contexts[branch] = engine.create_execution_context()
        self.fixed = fixed_input(list(engine.get_tensor_shape(INPUT)[:3]), path)

    def forward(self, batch: np.ndarray, answers: Sequence[str]) -> list[np.ndarray]:
        """See `Backend`; it waits for the device once all engines have their work."""
        torch = self._torch
        with torch.cuda.device(self._device):
            taken = torch.from_numpy(batch).pin_memory().to(self._device, non_blocking=True)
            found = []
            for answer in answers:
                context = self._contexts[answer]
                context.set_input_shape(INPUT, tuple(batch.shape))
                given = torch.empty(tuple(context.get_tensor_shape(answer)), dtype=torch.float32, device=self._device)
                context.set_tensor_address(INPUT, taken.data_ptr())
                context.set_tensor_address(answer, given.data_ptr())
                context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
                found.append(given)
            return [given.cpu().numpy() for given in found]
