"""What runs a network: one face for torch, TorchScript, ONNX Runtime, OpenVINO and TensorRT.

A backend takes (B, H, W, 4) uint8 (red, green, blue, thermal; H and W multiples of 32) and gives one branch's answer.
Nothing here imports torch: an exported model starts without it.

`model.openvino` and `model.engine` are zip archives, not compressed, of what the runtime reads (`model.xml` and
`model.bin`, or one engine for each branch) and `header.json`: two files that belong together cannot be parted.
"""

from __future__ import annotations

import importlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rscmd_model.errors import UserError, first_line
from rscmd_model.header import HEADER, ModelHeader, parse_header

INPUT = "pair"  # name of an exported graph's input; its outputs are named like the branches
ARCHIVE_HEADER = "header.json"
BFLOAT16 = "bfloat16"  # marks an OpenVINO model that is to run in bfloat16
_PACKAGES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "onnx": "onnx", "tensorrt": "tensorrt"}


class Backend(Protocol):
    """A loaded network.

    Attributes:
        name: "torch", "torchscript", "onnxruntime", "openvino" or "tensorrt".
        device: "cpu" or "cuda:N".
        header: of the file it was loaded from.
        fixed: (batch, height, width) of a file exported for that input alone; None takes any.
    """

    name: str
    device: str
    header: ModelHeader
    fixed: tuple[int, int, int] | None

    def forward(self, batch: np.ndarray, branch: str) -> np.ndarray:
        """The answer of a branch to a batch, (B, 4 + classes, N) float32, as `suppression.suppress` takes it."""


def needed(package: str, why: str) -> Any:
    """Import a package that not every installation has. Raises `UserError` naming it when it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise UserError(f"{why} needs {package}, which is not installed: pip install {package}") from None


def threads() -> int:
    """The processors this process may use; the runtimes would count all of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxBackend:
    """ONNX Runtime on the CPU.

    Args:
        source: path of a model.onnx, or its bytes.
        where: what to call it in messages.
    """

    name, device = "onnxruntime", "cpu"

    def __init__(self, source: Path | bytes, where: Path) -> None:
        self._runtime = needed("onnxruntime", str(where))
        onnx = needed("onnx", str(where))
        try:
            self._model = onnx.load_model_from_string(source) if isinstance(source, bytes) else onnx.load(str(source))
        except Exception as error:  # protobuf's own kinds, which change between releases
            raise UserError(f"{where} is cut short or no ONNX file ({type(error).__name__}): export it again") from None
        self.header = exported_header({e.key: e.value for e in self._model.metadata_props}.get(HEADER), where)
        dimensions = self._model.graph.input[0].type.tensor_type.shape.dim[:3]
        self.fixed = fixed_input([d.dim_value for d in dimensions])
        self._sessions: dict[str, Any] = {}

    def forward(self, batch: np.ndarray, branch: str) -> np.ndarray:
        """See `Backend`."""
        if branch not in self._sessions:
            self._sessions[branch] = self._session(branch)
        answer: np.ndarray = self._sessions[branch].run([branch], {INPUT: batch})[0]
        return answer

    def _session(self, branch: str) -> Any:
        """A session for the nodes one branch needs. Asked for one output, the runtime would compute them all."""
        from onnx.utils import Extractor

        part = Extractor(self._model).extract_model([INPUT], [branch])
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads()
        # Waiting threads sleep: on a robot the processor is never idle, and spinning ones would hold up the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        return self._runtime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])


class OpenVinoBackend:
    """OpenVINO on the CPU. Each branch is compiled for each input size when it is first used.

    Args:
        source: path of a model.openvino, or the bytes of an ONNX model.
        where: what to call it in messages.
        half: bfloat16 where the processor is made for it; a file exported with --half has it anyway. Left to itself
            OpenVINO would take it there, and the answers would depend on the machine.
    """

    name, device = "openvino", "cpu"
    _MOST_COMPILED = 12

    def __init__(self, source: Path | bytes, where: Path, half: bool | None = None) -> None:
        openvino = needed("openvino", str(where))
        self._openvino, self._core = openvino, openvino.Core()
        header = None
        if isinstance(source, bytes):
            self._parts = (source, b"")
        else:
            members = read_archive(source)
            header = members.get(ARCHIVE_HEADER, b"").decode(errors="replace") or None
            self._parts = (members.get("model.xml", b""), members.get("model.bin", b""))
        try:
            self._model = self._core.read_model(*self._parts) if self._parts[1] else self._core.read_model(source)
            shape = self._model.input(INPUT).get_partial_shape()
        except RuntimeError as error:
            raise UserError(
                f"{where} is cut short or no OpenVINO model ({first_line(error)}): export it again"
            ) from None
        if isinstance(source, bytes):
            header = self._model.get_rt_info(["framework", HEADER]).astype(str)
        self.header = exported_header(header, where)
        self._hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if half or self._model.has_rt_info(BFLOAT16) else "f32",
        }
        self.fixed = fixed_input([d.get_length() if d.is_static else 0 for d in list(shape)[:3]])
        self._requests: dict[tuple[str, tuple[int, ...]], Any] = {}

    def forward(self, batch: np.ndarray, branch: str) -> np.ndarray:
        """See `Backend`."""
        key = (branch, batch.shape)
        if key not in self._requests:
            if len(self._requests) == self._MOST_COMPILED:  # a camera whose size changes all the time
                self._requests.pop(next(iter(self._requests)))
            # A model of its own for each: OpenVINO computes what no output needs, and is faster for one size than any.
            whole = self._model.clone()
            part = self._openvino.Model([whole.output(branch)], whole.get_parameters(), branch)
            part.reshape(batch.shape)
            self._requests[key] = self._core.compile_model(part, "CPU", self._hints).create_infer_request()
        found = self._requests[key].infer([batch], share_inputs=True)
        answer: np.ndarray = found[0]
        return answer


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    """Write the members into a zip archive at `path`, not compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def read_archive(path: Path) -> dict[str, bytes]:
    """What `write_archive` wrote. Raises `UserError` for anything else, a damaged file, and compressed members."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(m.compress_type != zipfile.ZIP_STORED for m in archive.infolist()):  # could swell without bound
                raise UserError(f"{path} holds compressed members, which rscmd_model.export does not write")
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise UserError(
            f"{path} is cut short or was not written by rscmd_model.export ({error}): export it again"
        ) from None


def fixed_input(sizes: Sequence[int]) -> tuple[int, int, int] | None:
    """`Backend.fixed` from the input's (batch, height, width), where what is open is 0 or less."""
    batch, height, width = sizes
    return (batch, height, width) if min(sizes) > 0 else None


def exported_header(text: str | None, where: Path) -> ModelHeader:
    """The header in an exported file. Raises `UserError` where there is none, or a damaged one."""
    if not text:
        raise UserError(f"{where} was not written by rscmd_model.export: it has no {HEADER!r} header")
    return parse_header(where, text)
