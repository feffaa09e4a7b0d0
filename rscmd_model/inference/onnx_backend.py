"""ONNX Runtime: a model.onnx, or a model converted in memory, on the CPU or on a CUDA GPU. It needs no torch.

The GPU is written from the documentation and was never run; what is said where it cannot be used was tried on machines
without one. ONNX Runtime's TensorRT is not used: it would build its engines while the detector starts, for minutes, and
nothing would compare their answers with the model's. `export --format engine` does both.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rscmd_model.devices import read_device
from rscmd_model.errors import UserError, first_line, quoted, shown
from rscmd_model.inference.backends import (
    INPUT,
    StackTaking,
    broken_seal,
    exported_header,
    fixed_input,
    needed,
    not_run,
    threads,
)
from rscmd_model.network.header import DIGEST, HEADER, read_whole

_FATAL = 4  # of onnxruntime's severities: what it would print is in the exception
_CUDA = "CUDAExecutionProvider"
_INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


class OnnxBackend(StackTaking):
    """ONNX Runtime.

    Args:
        source: path of a model.onnx, or its bytes.
        where: what to call it in messages.
        device: "cpu"; "cuda:N", for which the package onnxruntime-gpu is needed; or "auto", which is the CPU.

    Raises:
        UserError: a damaged or foreign file, a missing package, or a device that is not there or cannot be used.
    """

    name = "onnxruntime"

    def __init__(self, source: Path | bytes, where: Path, device: str = "cpu") -> None:
        self._runtime = needed("onnxruntime", str(where))
        self._runtime.set_default_logger_severity(_FATAL)
        onnx = needed("onnx", str(where))
        self._where, self._gpu = where, _gpu(device, where)
        self.device = "cpu" if self._gpu is None else f"cuda:{self._gpu}"
        if self._gpu is not None:
            self._load_cuda()
        content = source if isinstance(source, bytes) else read_whole(source)
        if broken_seal(content):
            raise UserError(
                f"{where} is not what rscmd_model.export wrote (its {DIGEST} differs): copy or export it again. A file "
                "that was edited on purpose is taken without that entry of its metadata_props"
            )
        try:
            self._model = onnx.load_model_from_string(content)
        except Exception as error:  # protobuf's own kinds, which change between releases
            raise UserError(f"{where} is cut short or no ONNX file ({type(error).__name__}): export it again") from None
        self.header = exported_header({e.key: e.value for e in self._model.metadata_props}.get(HEADER), where)
        elsewhere = any(t.data_location == onnx.TensorProto.EXTERNAL for t in _tensors(self._model.graph))
        if elsewhere or self._model.functions:
            raise UserError(
                f"{where} has functions, or weights in other files, which rscmd_model.export does not write: "
                "export it again"
            )
        halves = any(t.data_type == onnx.TensorProto.FLOAT16 for t in self._model.graph.initializer)
        quantised = any(node.op_type == "QuantizeLinear" for node in self._model.graph.node)
        if quantised and self._gpu is not None:
            raise UserError(
                f"{where} is in 8 bits, for which ONNX Runtime has no convolutions on a GPU: give device cpu, or "
                "export the model with --format engine --int8, or without --int8"
            )
        self.precision = "int8" if quantised else "float16" if halves else "float32"
        shapes = [i.type.tensor_type.shape.dim for i in self._model.graph.input if i.name == INPUT]
        self.fixed = fixed_input([d.dim_value for d in shapes[0][:3]] if shapes else [], where)
        self._sessions: dict[tuple[str, ...], Any] = {}
        if self._gpu is not None:  # now, and not with the first pair, it is told whether the device can be used
            self._session_for(self.header.config.made_of(self.header.answer))

    def forward(self, batch: np.ndarray, answers: Sequence[str]) -> list[np.ndarray]:
        """See `Backend`; on a GPU the pixels go there and the answers come back with each call."""
        session = self._session_for(tuple(answers))
        try:
            found: list[np.ndarray] = session.run(list(answers), {INPUT: batch})
        except Exception as error:  # a dozen kinds of onnxruntime
            raise not_run(self._where, "ONNX Runtime", error) from None
        return found

    def _session_for(self, answers: tuple[str, ...]) -> Any:
        """The session for some answers, made when it is first asked for, on the device that was asked for."""
        if answers not in self._sessions:
            try:
                session = self._session(answers)
            except Exception as error:  # of onnx as well
                if reason := cuda_failure(str(error)):
                    raise self._unusable(reason) from None
                raise not_run(self._where, "ONNX Runtime", error) from None
            if self._gpu is not None and _CUDA not in session.get_providers():
                raise self._unusable(self._missing())
            self._sessions[answers] = session
        return self._sessions[answers]

    def _session(self, answers: tuple[str, ...]) -> Any:
        """A session for the nodes that these answers need. Asked for one output, the runtime would compute them all."""
        from onnx.utils import Extractor

        part = Extractor(self._model).extract_model([INPUT], list(answers))
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads()
        # Waiting threads sleep: on a robot the processor is never idle, and spinning ones would hold up the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _FATAL
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._gpu is not None:  # TF32 is on by default: 10 bits of mantissa where the file says 32-bit numbers
            providers.insert(0, (_CUDA, {"device_id": str(self._gpu), "use_tf32": "0"}))
        return self._runtime.InferenceSession(
            part.SerializeToString(),
            options,
            providers=providers,
            enable_fallback=0,  # to the CPU, with four printed lines; without it the fall is silent, see `_session_for`
        )

    def _load_cuda(self) -> None:
        """Load CUDA's libraries where pip has put them. Raises `UserError` where this onnxruntime is for the CPU."""
        if _CUDA not in self._runtime.get_available_providers():
            raise UserError(
                f"{self._where}: device {self.device} needs the package onnxruntime-gpu, and the onnxruntime that is "
                f"installed knows the CPU alone: pip uninstall onnxruntime, then {_INSTALL}; or give device cpu, or "
                "the model.safetensors"
            )
        preload = getattr(self._runtime, "preload_dlls", lambda: None)  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it prints what it does not find; `_unusable` says it
            preload()

    def _missing(self) -> str:
        """Why ONNX Runtime, asked for a GPU, took the CPU, as it does without a word."""
        try:
            ctypes.CDLL(str(Path(self._runtime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"))
        except OSError as error:
            return first_line(error)
        return "its CUDA provider did not start; is there a GPU of this number?"

    def _unusable(self, reason: str) -> UserError:
        """What to say where ONNX Runtime cannot use the GPU, and why."""
        version = getattr(self._runtime, "cuda_version", "")
        return UserError(
            f"{self._where}: ONNX Runtime cannot use {self.device} ({shown(reason, 300)}). It needs NVIDIA's driver, "
            f"CUDA {version} and cuDNN 9 ({_INSTALL} brings the last two); or give device cpu"
        )


def cuda_failure(said: str) -> str | None:
    """What CUDA or cuDNN said, of an error of ONNX Runtime that begins with its own function; None if neither did."""
    found = re.search(r"(CUDA|CUDNN) failure \d+: [^;\n]+|Invalid device ID: [^;\n]+", said)
    return found and found[0].strip()


def _gpu(device: str, where: Path) -> int | None:
    """The number of the GPU that is meant; None is the CPU. Raises `UserError` for what is neither."""
    try:
        chosen = read_device(device)
    except ValueError:
        chosen = "none"
    if chosen in ("", "cpu"):
        return None
    if not chosen.isdigit():
        raise UserError(f"{where}: device {quoted(device)} is not one of auto, cpu, cuda:0, cuda:1, ...")
    return int(chosen)


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of an ONNX graph, those in attributes and in graphs within it too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
