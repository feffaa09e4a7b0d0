"""Which backend runs a model file: by its name, by what was asked for, or by a short trial."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rscmd_model.errors import UserError, first_line
from rscmd_model.inference.backends import Backend, OpenVinoBackend
from rscmd_model.inference.onnx_backend import OnnxBackend
from rscmd_model.versions import require

if TYPE_CHECKING:
    from rscmd_model.inference.torch_backends import TorchBackend

SUFFIXES = {
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "openvino": ".openvino",
    "engine": ".engine",
}
BACKENDS = ("torch", "onnxruntime", "openvino")  # for a model.safetensors
_OWN = {"onnx": "onnxruntime", "openvino": "openvino", "engine": "tensorrt"}  # what runs an exported file
_ROUNDS = 3


def open_backend(
    path: Path, device: str, half: bool | None, backend: str | None, answer: str | None = None
) -> tuple[Backend, str]:
    """Load a model file of any format.

    Args:
        path: the suffix tells the format; anything unknown is taken for a model.safetensors.
        device, half, backend: as `Predictor` takes them.
        answer: the same; it is what a trial times.

    Returns:
        the backend, and what a trial measured in one line (empty without one).

    Raises:
        UserError: as `Predictor`.
    """
    if backend not in (*BACKENDS, "auto", "tensorrt", None):
        raise UserError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}, auto")
    if not path.is_file():
        raise UserError(f"no model file {path}")
    suffix = path.suffix.lower()
    if suffix == ".torchscript":
        raise UserError(
            f"{path}: TorchScript is a program, which runs on loading, and is not read: give the model.safetensors, or "
            "what rscmd_model.export makes of it today"
        )
    form = next((form for form in _OWN if SUFFIXES[form] == suffix), "safetensors")
    if form in _OWN:
        _only_its_own(path, form, half, backend)
    if form == "onnx":
        return OnnxBackend(path, path, device), ""
    if form == "openvino":
        _only_cpu(device, f"{path} runs", "give the model.safetensors, or what --format onnx or engine makes of it")
        return OpenVinoBackend(path, path), ""
    if form == "engine":
        from rscmd_model.inference.tensorrt_backend import EngineBackend

        return EngineBackend(path, device), ""
    if backend == "tensorrt":
        raise UserError(f"backend tensorrt runs a model.engine: make one of {path} with rscmd_model.export")
    require("torch", "ultralytics")
    from rscmd_model.inference.torch_backends import TorchBackend

    if backend in ("onnxruntime", "openvino"):
        _only_cpu(device, f"backend {backend} converts {path} and runs it", "leave backend, or export the model")
        return _converted(TorchBackend(path, "cpu", None), path, backend, half), ""
    eager = TorchBackend(path, device, half)
    return _trial(eager, path, half, answer) if backend == "auto" and eager.device == "cpu" else (eager, "")


def _only_its_own(path: Path, form: str, half: bool | None, backend: str | None) -> None:
    """Refuse what an exported file has settled already."""
    if half:
        raise UserError(
            f"{path}: the precision of an exported model is chosen by rscmd_model.export --half; leave half"
        )
    if backend not in (_OWN[form], "auto", None):
        raise UserError(
            f"{path} is run by {_OWN[form]}, and backend {backend} was asked for: leave backend, or give the "
            "model.safetensors"
        )


def _only_cpu(device: str, what: str, instead: str) -> None:
    if device not in ("auto", "cpu"):
        raise UserError(f"{what} on the CPU, and device {device!r} was asked for: {instead}")


def _converted(eager: TorchBackend, path: Path, backend: str, half: bool | None) -> Backend:
    """A model on the CPU, converted in memory."""
    from rscmd_model.inference.graphs import to_onnx

    graph = to_onnx(eager.network, eager.header)
    return OnnxBackend(graph, path) if backend == "onnxruntime" else OpenVinoBackend(graph, path, half)


def _trial(eager: TorchBackend, path: Path, half: bool | None, answer: str | None) -> tuple[Backend, str]:
    """The fastest backend for the answer to one square pair, and what each took.

    A backend that is not installed, or fails, is left out and named: torch always remains.
    """
    side = eager.header.image_size
    asked = eager.header.config.made_of(eager.header.pair_answer(answer))
    pair = np.random.default_rng(0).integers(0, 256, (1, side, side, 4), np.uint8)
    best: Backend = eager
    least = _seconds(eager, pair, asked)
    measured = [f"torch {1e3 * least:.1f} ms"]
    for name in BACKENDS[1:]:
        try:
            other = _converted(eager, path, name, half)
            seconds = _seconds(other, pair, asked)
        except Exception as error:
            # Whatever goes wrong in a runtime of others, the detector runs; the reason is in the line.
            measured.append(f"{name} left out ({first_line(error)})")
            continue
        measured.append(f"{name} {1e3 * seconds:.1f} ms")
        if seconds < least:
            best, least = other, seconds
    return best, f"trial at {side}x{side} px: {', '.join(measured)}; taken: {best.name}"


def _seconds(backend: Backend, pair: np.ndarray, answers: Sequence[str]) -> float:
    """The least time of some runs, after one that is not counted."""
    taken = []
    for _ in range(_ROUNDS + 1):
        started = time.perf_counter()
        backend.forward(pair, answers)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])
