"""What TensorRT is given is what it takes, as far as a machine without a GPU can tell.

The operators and their restrictions are those of docs/operators.md of onnx/onnx-tensorrt at tag 10.1-GA (commit
96e7811), the parser of TensorRT 10. Newer releases add operators. TensorRT for RTX, which has the same interface,
parses and builds without a GPU: where it is installed, it is asked itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_families import build
from test_inference import NAMES, image

from rscmd_model.config import FAMILIES
from rscmd_model.errors import UserError
from rscmd_model.imaging.images import stack_pair
from rscmd_model.imaging.preprocess import place
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.backends import INPUT
from rscmd_model.inference.export_file import COUNTS, EXACT, HALF, INT8, Bound, engine_graphs
from rscmd_model.inference.graphs import quantised, to_onnx
from rscmd_model.inference.tensorrt_backend import OpenSizes, build_engine, check_place
from rscmd_model.inference.torch_backends import TorchBackend
from rscmd_model.methods import METHODS, method_class
from rscmd_model.network.header import ModelHeader
from rscmd_model.network.model_file import save_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

OPSETS = range(9, 21)
FLOATS = {"FLOAT", "FLOAT16"}
NUMBERS = FLOATS | {"INT32", "INT64"}
ANY = NUMBERS | {"BOOL"}
TAKES = {
    **dict.fromkeys(["Add", "Div", "Max", "Min", "Mul", "Range", "ReduceMean", "ReduceSum", "Relu", "Sub"], NUMBERS),
    **dict.fromkeys(
        ["AveragePool", "Clip", "Conv", "Exp", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "Pow", "Sqrt"], FLOATS
    ),
    **dict.fromkeys(["QuantizeLinear", "Resize", "Sigmoid", "Softmax", "Tanh"], FLOATS),
    **dict.fromkeys(["Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "Identity", "Reshape"], ANY),
    **dict.fromkeys(["Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"], ANY),
    "Cast": {*ANY, "UINT8"},
    "DequantizeLinear": {"INT8"},
}
"""Operators, and the types of what each is first given."""
CONSTANT = {"Slice": 3, "Squeeze": 1, "Unsqueeze": 1, "ReduceSum": 1}
"""Which input of an operator, its axes, has to be constant."""
SIZES = {"open": None, "fixed": (1, 96, 128)}


def opened(folder: Path, method: str, family: str = "yolov8", **changes: Any) -> TorchBackend:
    """A model of random weights with class biases high enough that boxes are compared."""
    model = build(method, family, **changes)
    for head in model.heads():
        for classifier in head.cv3:
            torch.nn.init.normal_(classifier[-1].weight, std=0.3)
            torch.nn.init.constant_(classifier[-1].bias, -1.0)
    path = folder / "model.safetensors"
    save_model(path, model, ModelHeader(model.config, NAMES, 128, ThermalContract()))
    return TorchBackend(path, "cpu", False)


def calibration() -> list[np.ndarray]:
    return [stack_pair(*image(96, 128, seed)) for seed in range(2)]


def types(graph: Any) -> dict[str, str]:
    """The element type of every tensor."""
    values = [*graph.input, *graph.output, *graph.value_info]
    named = {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in graph.initializer}
    return {name: onnx.TensorProto.DataType.Name(kind) for name, kind in named.items()}


def constants(graph: Any) -> dict[str, np.ndarray]:
    """Every tensor whose value stands in the graph."""
    found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def faults(content: bytes) -> Iterator[str]:
    """What TensorRT would not take."""
    onnx.checker.check_model(content, full_check=True)
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content), strict_mode=True, data_prop=True)
    kinds, known = types(model.graph), constants(model.graph)
    (opset,) = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(model.opset_import) > 1 or opset not in OPSETS:
        yield f"opset {model.opset_import}"
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        name = f"{node.op_type} {node.name}"
        kind = kinds[(node.input or node.output)[0]]
        if node.domain not in ("", "ai.onnx") or kind not in TAKES.get(node.op_type, ()):
            yield f"{name} of {node.domain} is given {kind}"
        if node.op_type in CONSTANT and node.input[CONSTANT[node.op_type]] not in known:
            yield f"{name} has axes that are not constant"
        if INPUT in node.input and kinds[node.output[0]] not in FLOATS:
            yield f"{name} does not make floating-point numbers of 8-bit pixels"
        if node.op_type in ("AveragePool", "Conv", "MaxPool") and len(attributes["kernel_shape"]) not in (2, 3):
            yield f"{name} is neither 2D nor 3D"
        if node.op_type.endswith("Pool") and (len(node.output) > 1 or set(attributes.get("dilations", [1])) != {1}):
            yield f"{name} has indices or dilations"
        if node.op_type == "Resize" and (attributes["mode"], attributes["nearest_mode"]) != (b"nearest", b"floor"):
            yield f"{name} is not of a kind that was looked up"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if len(node.input) < 3 or known[node.input[2]].dtype != np.int8 or known[node.input[2]].any():
                yield f"{name} is not signed around zero"
            if (known[node.input[1]] <= 0).any():
                yield f"{name} has a scale that is not positive"
    for output in model.graph.output:
        if kinds[output.name] != "FLOAT":
            yield f"the answer {output.name} is {kinds[output.name]}"


def graphs(eager: TorchBackend, size: str, precision: str) -> Iterator[tuple[str, bytes]]:
    stacks = calibration() if precision == "int8" else None
    return engine_graphs(eager, SIZES[size], stacks, 1, precision == "half")


# Each family in each precision, each precision with each kind of sizes.
KINDS = [
    (family, tuple(SIZES)[(i + j) % 2], precision)
    for i, family in enumerate(FAMILIES)
    for j, precision in enumerate(("float", "half", "int8"))
]


@pytest.fixture
def build_with_nvidias(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, str], bytes]:
    """`build_engine` for graphs of a size in `SIZES`, with TensorRT for RTX as TensorRT."""
    library = pytest.importorskip(
        "tensorrt_rtx_bindings",
        reason="pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs (NVIDIA's, not free, a tenth of a GB)",
    )
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    return lambda content, size: build_engine(content, None if SIZES[size] else OpenSizes(4, (96, 128), 128))


@pytest.mark.parametrize(("family", "size", "precision"), KINDS)
def test_nvidias_builder_takes_every_graph(
    build_with_nvidias: Callable[[bytes, str], bytes], family: str, size: str, precision: str, tmp_path: Path
) -> None:
    _, content = next(graphs(opened(tmp_path, "rscmd", family), size, precision))
    assert build_with_nvidias(content, size)


@pytest.mark.parametrize(("family", "size", "precision"), KINDS)
def test_tensorrt_takes_every_graph(family: str, size: str, precision: str, tmp_path: Path) -> None:
    """Of every kind that --half, --int8 and --dynamic make, and it answers as the model does."""
    eager = opened(tmp_path, "rscmd", family)
    bound = {"float": EXACT, "half": HALF, "int8": INT8}[precision]
    most = 1 if precision == "int8" else None  # which takes long; the fused answer's graph has all the others have
    for answer, content in islice(graphs(eager, size, precision), most):
        assert list(faults(content)) == []
        operators = {node.op_type for node in onnx.load_model_from_string(content).graph.node}
        assert ("QuantizeLinear" in operators) == (precision == "int8")
        assert_close(eager, answer, content, bound)


def assert_close(eager: TorchBackend, answer: str, content: bytes, bound: Bound) -> None:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    stacks = np.stack(calibration()[:1])
    (expected,), (given,) = eager.forward(stacks, [answer]), session.run([answer], {INPUT: stacks})
    seen = expected[:, 4:].max(1) >= COUNTS
    assert seen.any()
    scores = np.abs(given - expected)[:, 4:].max(1)[seen]
    assert (scores.max() if bound.whole else scores.mean()) <= bound.score


# One for each way to make an answer of features.
GRAPHS = {(kind.fuse, kind.answer, kind.modalities): name for name in METHODS if (kind := method_class(name))}


@pytest.mark.parametrize("method", GRAPHS.values())
def test_tensorrt_takes_every_method(method: str, tmp_path: Path) -> None:
    """Single-camera controls, and whatever fuses the two streams: the graph of the main answer has it."""
    _, content = next(graphs(opened(tmp_path, method), "fixed", "float"))
    assert list(faults(content)) == []


@pytest.mark.parametrize("method", GRAPHS.values())
def test_nvidias_builder_takes_every_method(
    build_with_nvidias: Callable[[bytes, str], bytes], method: str, tmp_path: Path
) -> None:
    _, content = next(graphs(opened(tmp_path, method), "open", "float"))
    assert build_with_nvidias(content, "open")


def for_the_others(folder: Path) -> bytes:
    """8 bits as ONNX Runtime and OpenVINO have them: unsigned, with biases in integers."""
    eager = opened(folder, "visible")
    return quantised(to_onnx(eager.network, eager.header), calibration(), 1)


def test_nvidias_builder_refuses_in_one_line_what_the_other_runtimes_get(
    build_with_nvidias: Callable[[bytes, str], bytes], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"cannot read the graph: .* has type Int32") as caught:
        build_with_nvidias(for_the_others(tmp_path), "open")
    assert len(str(caught.value).splitlines()) == 1


def test_what_the_other_runtimes_get_would_not_do(tmp_path: Path) -> None:
    found = list(faults(for_the_others(tmp_path)))
    assert any("is not signed around zero" in fault for fault in found)
    assert any("is given INT32" in fault for fault in found)


@pytest.mark.parametrize("frame", [(512, 640), (640, 512), (360, 640), (1, 3000), (97, 101), (2160, 3840)])
def test_open_sizes_hold_every_image(frame: tuple[int, int]) -> None:
    """The longer side of what any image becomes is the trained one, the side of the largest input of an engine."""
    assert max(place(frame, 640).network) == 640


def test_an_engine_of_another_place_is_refused() -> None:
    orin = "Orin, compute capability 8.7, 16 multiprocessors, TensorRT 10.3.0"
    check_place(orin, orin, Path("m.engine"))
    for here in (orin.replace("16", "8"), orin.replace("10.3.0", "10.3.1"), orin.replace("8.7", "8.6")):
        with pytest.raises(UserError, match=r"^m\.engine was built for Orin, .*, and here is .*: export it again here"):
            check_place(orin, here, Path("m.engine"))


def test_a_builder_that_finds_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """pybind11's word for it, which TensorRT 10 gives in a container without CUDA (NVIDIA/TensorRT#2913)."""

    def builder(logger: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    flags = SimpleNamespace(STRONGLY_TYPED=1)
    library = SimpleNamespace(
        __version__="10.3.0",
        NetworkDefinitionCreationFlag=flags,
        Builder=builder,
        Logger=lambda level: None,
    )
    library.Logger.ERROR = 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", library)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^TensorRT 10\.3\.0 cannot begin \(.*returned nullptr\): is there a GPU\?$"):
        build_engine(b"", None)
    library.NetworkDefinitionCreationFlag, library.__version__ = SimpleNamespace(), "8.6.2"
    with pytest.raises(UserError, match=r"needs TensorRT 10 or newer, and 8\.6\.2 is installed"):
        build_engine(b"", None)
