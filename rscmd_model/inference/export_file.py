"""From a model.safetensors to a checked model.onnx, .openvino or .engine.

A file is put in place only if it answers as the model does. Only `export` needs torch, so that a command can name the
formats without it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from rscmd_model.datasets.pairs import DataConfig, find_pairs
from rscmd_model.devices import inference_device
from rscmd_model.errors import UserError, first_line
from rscmd_model.files import whole_file
from rscmd_model.imaging.images import read_thermal, read_visible, stack_pair
from rscmd_model.imaging.preprocess import fill, place
from rscmd_model.inference.backends import (
    ARCHIVE_HEADER,
    BFLOAT16,
    BFLOAT16_MEASURED,
    Backend,
    OpenVinoBackend,
    fixed_input,
    has_bfloat16,
    needed,
    openvino_core,
    pick,
    read_archive,
    sealed,
    write_archive,
)
from rscmd_model.inference.opening import SUFFIXES, open_backend
from rscmd_model.inference.tensorrt_backend import OpenSizes, tensorrt, write_engines
from rscmd_model.network.header import HEADER, ModelHeader
from rscmd_model.synthetic.world import WorldConfig, generate
from rscmd_model.versions import require

if TYPE_CHECKING:
    from rscmd_model.inference.torch_backends import TorchBackend

FORMATS = tuple(f for f in SUFFIXES if f != "safetensors")
COUNTS = 0.05
"""Boxes below this score in both answers are not compared: nobody would see them."""
CHECKED = 8
"""Pairs whose answers are compared."""
CALIBRATED = 64
"""Pairs that show the range of values for 8 bits."""
WORTH = 0.9
"""bfloat16 that nobody asked for is taken if it needs at most this share of the time of 32 bits."""
_TURNS = 10


@dataclass(frozen=True)
class Bound:
    """How far an exported file's answer may lie from the model's.

    Attributes:
        box: most difference of a corner, as a share of the box's longer side.
        score: most difference of a class's score, 0 to 1.
        whole: the bounds are for the worst box; otherwise for the mean over boxes.
    """

    box: float
    score: float
    whole: bool = True


EXACT = Bound(0.001, 0.001)
HALF = Bound(0.05, 0.03)
INT8 = Bound(0.10, 0.05, whole=False)


@dataclass(frozen=True)
class Gain:
    """What bfloat16 changes, measured on the processor of the export.

    Attributes:
        box, score: largest differences to the model, as `compare` gives them.
        time: that the answer to one input takes, as a share of the time in 32 bits.
    """

    box: float
    score: float
    time: float

    @property
    def pays(self) -> bool:
        """Whether it is near enough to the model, by `HALF`, and fast enough, by `WORTH`."""
        return self.box <= HALF.box and self.score <= HALF.score and self.time <= WORTH

    def __str__(self) -> str:
        near = f"boxes {self.box:.4%} of their longer side, scores {self.score:.5f}"
        return f"{near}, {self.time:.2f} of the time of 32 bits"


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how its answers compare.

    Attributes:
        box: difference of corners to the model's, as a share of the box's longer side; as the bound counts it.
        score: difference of scores, 0 to 1; as the bound counts it.
        summary: lines to print: what the file is, how it compares, and what came of bfloat16 where it was measured.
    """

    box: float
    score: float
    summary: str


def export(
    model: Path,
    format: str,
    out: Path,
    *,
    half: bool | None = None,
    int8: bool = False,
    batch: int = 1,
    dynamic: bool = False,
    size: tuple[int, int] | None = None,
    data: DataConfig | None = None,
    answer: str | None = None,
) -> Exported:
    """Write a model in another format, checked.

    Args:
        model: a model.safetensors.
        format: one of `FORMATS`.
        out: the file to write, with the format's suffix.
        half: 16-bit arithmetic. None means no, but for openvino on a processor with bfloat16: there both are measured,
            and the file runs in bfloat16 if that pays (`Gain.pays`). Its weights keep their 32 bits then, so that on
            another processor it is the file of 32 bits.
        int8: 8-bit convolutions; needs `data`.
        batch: pairs per batch.
        dynamic: take every image size and batch; on a GPU batches up to `batch`.
        size: (width, height) in px of the images to come; None means that of `data`'s first pair, or a square.
        data: its val split shows whether the answers agree, its train split the range of values for `int8`. Without
            it the answers to drawn scenes are compared.
        answer: what answers a whole pair of the exported file unless another is asked for, as `Predictor` takes it.

    Raises:
        UserError: a bad model, an answer that it does not have, a package that is not installed, or answers that differ
            too much. Then nothing is written.
    """
    _check_request(format, out, int8, data)
    require("torch", "ultralytics")
    from rscmd_model.inference.torch_backends import TorchBackend

    eager = TorchBackend(model, "cpu", False)
    header = eager.header = replace(eager.header, answer=eager.header.pair_answer(answer))
    stacks = read_stacks(data, "val", header, CHECKED, size) if data else drawn_stacks(header, size)
    calibration = read_stacks(data, "train", header, CALIBRATED, size) if int8 and data else None
    height, width = stacks[0].shape[:2]
    fixed = fixed_input((0, 0, 0) if dynamic else (batch, height, width), out)
    side = header.image_size  # of every image `place` makes the longer side so long
    with whole_file(out) as aside:
        _write(aside, format, eager, fixed, bool(half), calibration, OpenSizes(batch, (height, width), side))
        made, _ = open_backend(aside, "auto", None, None)
        kind, bound = ("int8", INT8) if int8 else ("half", HALF) if half else ("float", EXACT)
        box, score = compare(eager, made, stacks, bound.whole)
        pairs = f"{len(stacks)} pairs of {data.name}" if data else f"{len(stacks)} drawn scenes (no --data)"
        differences = _differences(box, score, bound, pairs)
        if box > bound.box or score > bound.score:
            raise UserError(f"{out} is not written, its answers are not the model's: {differences}")
        if format == "openvino" and half is None and not int8 and has_bfloat16(openvino_core(str(out))):
            gain = measure_bfloat16(eager, aside, stacks)
            differences += f"\nbfloat16 here: {gain}: {'taken; --no-half keeps 32 bits' if gain.pays else 'left'}"
            if gain.pays:
                mark_bfloat16(aside, gain)
                kind, box, score = "bfloat16 (32 bits where the processor has none)", gain.box, gain.score
        megabytes = aside.stat().st_size / 2**20
    takes = f"{width}x{height} px, batch {batch}" if fixed else "any size"
    if format == "engine" and not fixed:
        takes += f", batches up to {batch}"
    answers = ", ".join(header.config.answers) + " (joined for a pair)" * (header.answer == "ensemble")
    return Exported(box, score, f"{out}: {format}, {kind}, {takes}, {answers}, {megabytes:.1f} MiB\n{differences}")


def measure_bfloat16(eager: Backend, path: Path, stacks: Sequence[np.ndarray]) -> Gain:
    """What bfloat16 would change in a model.openvino; where the processor has none, both are 32 bits.

    Args:
        eager: the model.
        path: the file in 32 bits.
        stacks: as `compare` takes them; the first is what is timed, in turns, for the answers that a pair gets.
    """
    both = halves, _ = OpenVinoBackend(path, path, half=True), OpenVinoBackend(path, path, half=False)
    box, score = compare(eager, halves, stacks, HALF.whole)
    batch = np.repeat(stacks[0][None], halves.fixed[0] if halves.fixed else 1, 0)
    answers = eager.header.config.made_of(eager.header.answer)
    times: tuple[list[float], list[float]] = [], []
    for _ in range(_TURNS + 1):
        for backend, taken in zip(both, times):
            started = time.perf_counter()
            backend.forward(batch, answers)
            taken.append(time.perf_counter() - started)
    less, more = (median(taken[1:]) for taken in times)
    return Gain(box, score, less / more)


def mark_bfloat16(path: Path, gain: Gain) -> None:
    """Have a model.openvino of 32 bits run in bfloat16 where the processor has it, and say why."""
    header, members = read_archive(path)
    model = openvino_core(str(path)).read_model(*pick(members, ("model.xml", "model.bin"), path))
    model.set_rt_info("yes", BFLOAT16)
    model.set_rt_info(str(gain), BFLOAT16_MEASURED)
    _save_openvino(path, model, header, compress=False)


def _check_request(format: str, out: Path, int8: bool, data: DataConfig | None) -> None:
    """Refuse, before anything long, what can be told to fail."""
    if out.suffix.lower() != SUFFIXES[format]:
        raise UserError(f"--out {out}: a file of format {format} ends in {SUFFIXES[format]}")
    if int8 and data is None:
        raise UserError("--int8 needs --data")
    if format == "engine":
        tensorrt("--format engine")
        if inference_device("auto") == "cpu":  # told later, it would have cost the minutes that the engines take
            raise UserError("--format engine builds on the CUDA GPU that is to run it, and torch finds none here")
    if format == "openvino":
        needed("openvino", "--format openvino")


def _differences(box: float, score: float, bound: Bound, pairs: str) -> str:
    """What `compare` found, in one line with the bound."""
    return (
        f"{'largest' if bound.whole else 'mean'} difference to the model on {pairs}: boxes {box:.4%} of their longer "
        f"side (at most {bound.box:.1%}), scores {score:.5f} (at most {bound.score:g})"
    )


def compare(model: Backend, made: Backend, stacks: Sequence[np.ndarray], whole: bool) -> tuple[float, float]:
    """How far two backends' answers to the same inputs lie apart, over all that the model can answer.

    Args:
        model, made: the one to be trusted, and the other.
        stacks: (H, W, 4) uint8 each, of one size.
        whole: the largest difference, otherwise the mean, of the boxes that score `COUNTS` or more in either answer.

    Returns:
        of corners, as a share of the box's longer side (at least 8 px), and of scores. Infinite for an answer that is
        not finite.
    """
    boxes, scores = [np.zeros(1)], [np.zeros(1)]
    repeats = made.fixed[0] if made.fixed else 1
    for stack in stacks:
        for answer in model.header.config.answers:
            a = model.forward(stack[None], [answer])[0][0]
            b = made.forward(np.repeat(stack[None], repeats, 0), [answer])[0][-1]
            if not np.isfinite(b).all():
                return np.inf, np.inf
            seen = np.maximum(a[4:].max(0), b[4:].max(0)) >= COUNTS
            a, b = a[:, seen], b[:, seen]
            centre, half = np.abs(a[:2] - b[:2]), np.abs(a[2:4] - b[2:4]) / 2
            boxes.append((centre + half).max(0) / np.maximum(a[2:4].max(0), 8))
            scores.append(np.abs(a[4:] - b[4:]).max(0))
    both = np.concatenate(boxes), np.concatenate(scores)
    box, score = (float(d.max() if whole else d.mean()) for d in both)
    return box, score


def read_stacks(
    data: DataConfig, split: str, header: ModelHeader, most: int, size: tuple[int, int] | None
) -> list[np.ndarray]:
    """Network inputs of some pairs of a split, spread over it.

    Args:
        data: the pairs; their registration comes before the header's.
        split: "train" or "val".
        header: of the model that is to answer them.
        most: pairs at most.
        size: (width, height) in px of the image whose network input all are fitted into; None means the first pair's.

    Returns:
        (H, W, 4) uint8 each, of one size: red, green, blue, thermal.

    Raises:
        UserError: naming a file that cannot be used.
    """
    pairs = find_pairs(data, split)
    stacks: list[np.ndarray] = []
    frame = None
    for pair in pairs[:: max(1, len(pairs) // most)][:most]:
        visible, plane = read_visible(pair.visible), header.thermal.apply(read_thermal(pair.thermal, header.thermal))
        frame = frame or place(size[::-1] if size else visible.shape[:2], header.image_size).network
        placement = place(visible.shape[:2], header.image_size, frame)
        stack = np.empty((*frame, 4), np.uint8)
        fill(stack, placement, visible, plane, data.registration or header.registration)
        stacks.append(stack)
    return stacks


def drawn_stacks(header: ModelHeader, size: tuple[int, int] | None) -> list[np.ndarray]:
    """The same of `CHECKED` drawn scenes; without a size they are squares of the trained size."""
    height, width = place(size[::-1] if size else (header.image_size, header.image_size), header.image_size).network
    frames = generate(0, 0, CHECKED, width, height, WorldConfig(), 1)
    return [stack_pair(frame.visible, frame.thermal) for _, frame in frames]


def _write(
    path: Path,
    format: str,
    eager: TorchBackend,
    fixed: tuple[int, int, int] | None,
    half: bool,
    calibration: list[np.ndarray] | None,
    open_sizes: OpenSizes,
) -> None:
    """Write ONNX, or what OpenVINO or TensorRT makes of it.

    Args:
        path: the file.
        format: one of `FORMATS`.
        eager: the model.
        fixed: (batch, height, width) of the only input; None leaves all three open.
        half: 16-bit arithmetic.
        calibration: inputs (H, W, 4) uint8 that show the range of values for 8 bits; None means no 8 bits.
        open_sizes: what an engine takes where they are open.
    """
    batch = fixed[0] if fixed else 1
    if format == "onnx":
        path.write_bytes(sealed(_graph(eager, fixed, calibration, batch, half=half)))
    elif format == "openvino":  # it has a 16-bit kind of its own
        _write_openvino(path, _graph(eager, fixed, calibration, batch), eager.header, half)
    else:
        graphs = engine_graphs(eager, fixed, calibration, batch, half)
        write_engines(path, eager.header, graphs, None if fixed else open_sizes)


def engine_graphs(
    eager: TorchBackend,
    fixed: tuple[int, int, int] | None,
    calibration: list[np.ndarray] | None,
    batch: int,
    half: bool,
) -> Iterator[tuple[str, bytes]]:
    """What TensorRT is given: each answer of the model and its graph as ONNX, whose types are those of the engine.

    Args:
        eager, fixed, calibration, half: as `_write` takes them.
        batch: pairs per batch that the graph takes; 1 where that is open.
    """
    for answer in eager.header.config.answers:
        yield answer, _graph(eager, fixed, calibration, batch, half=half, answers=[answer], signed=True)


def _graph(
    eager: TorchBackend,
    fixed: tuple[int, int, int] | None,
    calibration: list[np.ndarray] | None,
    batch: int,
    *,
    half: bool = False,
    answers: Sequence[str] | None = None,
    signed: bool = False,
) -> bytes:
    """The model as ONNX: in 16 bits if `half`, in 8 where there is a `calibration`, with these answers (None: all)."""
    from rscmd_model.inference.graphs import quantised, to_onnx

    network = eager.network
    try:
        content = to_onnx(network.half() if half else network, eager.header, fixed, answers)
    finally:
        network.float()
    return content if calibration is None else quantised(content, calibration, batch, signed=signed)


def _write_openvino(path: Path, onnx: bytes, header: ModelHeader, half: bool) -> None:
    """Write a model.openvino, which runs in bfloat16 if `half`."""
    model = openvino_core("--format openvino").read_model(onnx, b"")
    model.set_rt_info(header.to_json(), HEADER)
    if half:
        model.set_rt_info("yes", BFLOAT16)
    _save_openvino(path, model, header, compress=half)


def _save_openvino(path: Path, model: Any, header: ModelHeader, compress: bool) -> None:
    """Write an `openvino.Model` as model.openvino, its weights in 16 bits if `compress`."""
    openvino = needed("openvino", "--format openvino")
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder, "model.xml")
        try:
            openvino.save_model(model, xml, compress_to_fp16=compress)
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot write to {folder} ({first_line(error)}): is the disk full?") from None
        members = {name: Path(folder, name).read_bytes() for name in ("model.xml", "model.bin")}
    write_archive(path, {ARCHIVE_HEADER: header.to_json().encode(), **members})
