"""What runs a network: one face for torch, ONNX Runtime, OpenVINO and TensorRT; OpenVINO; and the exported files.

A backend takes (B, H, W, 4) uint8 (red, green, blue, thermal; H and W multiples of 32) and gives the answers asked for.
Nothing here imports torch: an exported model starts without it.

`model.openvino` and `model.engine` are zip archives, not compressed, of what the runtime reads (`model.xml` and
`model.bin`, or one engine for each branch) and `header.json`: two files that belong together cannot be parted.

A runtime's parser is written in C++ and trusts its input more than it should, so damage is told before it is called: by
the checksums of an archive's members, and by a digest at the end of a model.onnx (`sealed`).
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rscmd_model.config import STRIDE
from rscmd_model.errors import UserError, first_line, out_of_memory, shown
from rscmd_model.inference.prepared import Prepared, stacked
from rscmd_model.network.header import DIGEST, HEADER, LARGEST_SIDE, ModelHeader, parse_header, read_whole

INPUT = "pair"  # name of an exported graph's input; its outputs are named like the branches
ARCHIVE_HEADER = "header.json"
BFLOAT16 = "bfloat16"  # marks an OpenVINO model that is to run in bfloat16
BFLOAT16_MEASURED = "bfloat16_measured"  # beside it: what export measured when it chose so by itself, in words
_HEX = 64  # digits of a SHA-256
_LARGEST_BATCH = 1 << 28  # pixels of a batch: 16 pairs at the largest size


class Backend(Protocol):
    """A loaded network.

    Attributes:
        name: "torch", "onnxruntime", "openvino" or "tensorrt".
        device: "cpu" or "cuda:N".
        header: of the file it was loaded from.
        fixed: (batch, height, width) of a file exported for that input alone; None takes any.
        precision: what the network is computed in here: "float32", "float16", "bfloat16", "int8" (its convolutions), or
            "as exported" of an engine, which does not say.
        slow_calls: so many first calls for answers to inputs of new shapes take longer: what runs them is made then.
    """

    name: str
    device: str
    header: ModelHeader
    fixed: tuple[int, int, int] | None
    precision: str
    slow_calls: int

    @property
    def largest_batch(self) -> int | None:
        """Pairs that one batch holds at most; None is any number."""

    def take(self, pairs: Sequence[Prepared]) -> Any:
        """Pairs of one network size, and of the same answers, as `forward` takes them; several threads may ask at once.

        Raises:
            UserError: an image is not of the shape the registration was made for.
        """

    def forward(self, batch: Any, answers: Sequence[str]) -> list[np.ndarray]:
        """Some answers to a batch, each (B, 4 + classes, N) float32, as `suppression.suppress` takes them.

        Only what they need is computed, and what several need is computed once.

        Args:
            batch: (B, H, W, 4) uint8, or what `take` gave.
            answers: names of the model's answers: "fused", "visible", "thermal".

        Raises:
            UserError: naming the file where the runtime finds, only now, that it cannot run what the file holds.
        """


def needed(package: str, why: str, how: str = "") -> Any:
    """Import a package that not every installation has.

    Args:
        package: the module.
        why: what needs it.
        how: to install it, where that is not pip alone.

    Raises:
        UserError: it is missing, or there and cannot be imported, as where one of its libraries is missing.
    """
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:  # the second is what ctypes raises over a library
        told = f"installed and cannot be imported ({shown(first_line(error), 300)}): mend or install it again"
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            told = f"not installed: {how or f'pip install {package}'}"
        raise UserError(f"{why} needs {package}, which is {told}") from None


def threads() -> int:
    """The processors this process may use; the runtimes would count all of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StackTaking:
    """Of the backends whose networks are given stacks that the processor made."""

    fixed: tuple[int, int, int] | None
    slow_calls = 0

    @property
    def largest_batch(self) -> int | None:
        """See `Backend`."""
        return self.fixed[0] if self.fixed else None

    def take(self, pairs: Sequence[Prepared]) -> np.ndarray:
        """See `Backend`: (B, H, W, 4) uint8."""
        return stacked(pairs, self.fixed)


class OpenVinoBackend(StackTaking):
    """OpenVINO on the CPU. What is asked for together is compiled for each input size when it is first used.

    Args:
        source: path of a model.openvino, or the bytes of an ONNX model.
        where: what to call it in messages.
        half: bfloat16 where the processor is made for it; a file that is marked so has it anyway. Left to itself
            OpenVINO would take it there, and the answers would depend on the machine.

    Attributes:
        measured: what export measured when it chose bfloat16 by itself, in words; empty if it was asked to or did not.
    """

    name, device = "openvino", "cpu"
    _MOST_COMPILED = 12

    def __init__(self, source: Path | bytes, where: Path, half: bool | None = None) -> None:
        self._openvino, self._core = needed("openvino", str(where)), openvino_core(str(where))
        self._where = where
        header, parts = None, [source, b""]
        if isinstance(source, Path):
            header, members = read_archive(source)
            parts = [*pick(members, ("model.xml", "model.bin"), where)]
        try:
            self._model = self._core.read_model(*parts)
            shape = self._model.input(INPUT).get_partial_shape()
            sizes = [d.get_length() if d.is_static else 0 for d in list(shape)[:3]]
            text = "" if header else self._model.get_rt_info(["framework", HEADER]).astype(str)
        except Exception as error:  # RuntimeError as a rule
            raise UserError(
                f"{where} is cut short or no OpenVINO model ({shown(first_line(error), 300)}): export it again"
            ) from None
        self.header = header or exported_header(text, where)
        marked, said = self._model.has_rt_info(BFLOAT16), self._model.has_rt_info(BFLOAT16_MEASURED)
        self.measured: str = self._model.get_rt_info(BFLOAT16_MEASURED).astype(str) if said else ""
        # Without the instructions OpenVINO would imitate bfloat16 on some processors, which is slower than 32 bits.
        bfloat16 = (half or marked) and has_bfloat16(self._core)
        quantised = any(node.get_type_name() == "FakeQuantize" for node in self._model.get_ops())
        self.precision = "int8" if quantised else "bfloat16" if bfloat16 else "float32"
        self._hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        }
        self.fixed = fixed_input(sizes, where)
        self.slow_calls = 0 if self.fixed else 1  # the only shape is met by the warm-up
        self._requests: dict[tuple[tuple[str, ...], tuple[int, ...]], Any] = {}

    def forward(self, batch: np.ndarray, answers: Sequence[str]) -> list[np.ndarray]:
        """See `Backend`."""
        key = (tuple(answers), batch.shape)
        try:
            if key not in self._requests:
                self._requests[key] = self._compiled(*key)
            found = self._requests[key].infer([batch], share_inputs=True)
            return [found[i] for i in range(len(answers))]
        except Exception as error:
            raise not_run(self._where, "OpenVINO", error) from None

    def _compiled(self, answers: tuple[str, ...], shape: tuple[int, ...]) -> Any:
        """A request for some answers at one size."""
        if len(self._requests) == self._MOST_COMPILED:  # a camera whose size changes all the time
            self._requests.pop(next(iter(self._requests)))
        # A model of its own for each: OpenVINO computes what no output needs, and is faster for one size than any.
        whole = self._model.clone()
        outputs = [whole.output(answer) for answer in answers]
        part = self._openvino.Model(outputs, whole.get_parameters(), "+".join(answers))
        part.reshape(shape)
        return self._core.compile_model(part, "CPU", self._hints).create_infer_request()


def openvino_core(why: str) -> Any:
    """The one `openvino.Core` of this process, which is never given up.

    With a core comes a stack for signal handlers, and with the core it goes: whichever of several cores ends last puts
    back what it found. That may be the stack of one that is gone, and then the next signal kills the process.

    Raises:
        UserError: as `needed`.
    """
    return _core_of(needed("openvino", why))


@cache
def _core_of(openvino: Any) -> Any:
    return openvino.Core()


def has_bfloat16(core: Any) -> bool:
    """Whether an `openvino.Core` finds a processor here with instructions for bfloat16."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    """Write the members into a zip archive at `path`, not compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def read_archive(path: Path) -> tuple[ModelHeader, dict[str, bytes]]:
    """The header and the members of what `write_archive` wrote.

    Raises:
        UserError: it is anything else, or damaged: a member that is there twice, compressed or encrypted ones, ones
            that overlap, a checksum that differs, no header.
    """
    content = read_whole(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            there = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED for m in there):  # could swell without bound
                raise UserError(f"{path} holds compressed members, which rscmd_model.export does not write")
            names = [m.filename for m in there]
            if len(set(names)) < len(names):
                raise ValueError(f"{Counter(names).most_common(1)[0][0]!r} is in it more than once")
            if sum(m.file_size for m in there) > len(content):
                raise ValueError("its members overlap")
            members = {name: archive.read(name) for name in names}
    except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, OSError, struct.error, OverflowError) as error:
        # The encrypted and those of a later version of zip are a RuntimeError; a false offset may be any of them.
        reason = shown(first_line(error), 300)
        raise UserError(
            f"{path} is cut short or was not written by rscmd_model.export ({reason}): export it again"
        ) from None
    return exported_header(members.pop(ARCHIVE_HEADER, b"").decode(errors="replace"), path), members


def pick(members: Mapping[str, bytes], names: Sequence[str], path: Path) -> list[bytes]:
    """Those members of the archive `path`. Raises `UserError` where one is missing."""
    if missing := [name for name in names if name not in members]:
        raise UserError(f"{path} has no {' and no '.join(missing)}: export it again")
    return [members[name] for name in names]


def sealed(content: bytes) -> bytes:
    """An ONNX model with a SHA-256 of itself as its last entry of metadata_props, which `broken_seal` checks.

    Protobuf lets a message be continued by more bytes, so that the digest is of everything before it.
    """
    return content + _seal(content)


def broken_seal(content: bytes) -> bool:
    """Whether the content of a model.onnx ends in a digest that is not its own. Costs some 1.5 ms for each MB."""
    length = len(_seal(b""))
    before, seal = memoryview(content)[:-length], content[-length:]
    return seal[:-_HEX] == _seal(b"")[:-_HEX] and seal != _seal(before)


def _seal(content: bytes | memoryview) -> bytes:
    """ModelProto.metadata_props (field 14) with one entry: key (1) and value (2)."""
    key, value = DIGEST.encode(), hashlib.sha256(content).hexdigest().encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry


def fixed_input(sizes: Sequence[int], where: Path) -> tuple[int, int, int] | None:
    """`Backend.fixed` from the input's (batch, height, width), where what is open is 0 or less.

    Raises:
        UserError: the network takes no such input, or one of no sane size.
    """
    if len(sizes) != 3:
        raise UserError(f"{where} was not written by rscmd_model.export: it has no input {INPUT!r} of pairs")
    batch, height, width = sizes
    if min(sizes) <= 0:
        return None
    if (
        height % STRIDE
        or width % STRIDE
        or max(height, width) > LARGEST_SIDE
        or batch * height * width > _LARGEST_BATCH
    ):
        raise UserError(
            f"{where} is for {batch} pairs of {width}x{height} px: sides are multiples of {STRIDE} up to "
            f"{LARGEST_SIDE}, and a batch has at most {_LARGEST_BATCH} px; export it again"
        )
    return batch, height, width


def not_run(where: Path, runtime: str, error: Exception) -> UserError:
    """What to say when a runtime fails over what is in a file, or finds no memory for it."""
    if out_of_memory(error):
        return UserError(f"{where}: {runtime} is out of memory ({shown(first_line(error), 300)})")
    return UserError(
        f"{where} is damaged, or {runtime} cannot run it ({shown(first_line(error), 300)}): export it again"
    )


def exported_header(text: str | None, where: Path) -> ModelHeader:
    """The header in an exported file. Raises `UserError` where there is none, or a damaged one."""
    if not text:
        raise UserError(f"{where} was not written by rscmd_model.export: it has no {HEADER!r} header")
    return parse_header(where, text)
