"""The network as a graph that other runtimes read: 8-bit pixels in, every branch's answer out."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rscmd_model.inference.backends import INPUT, needed
from rscmd_model.network.header import HEADER, ModelHeader
from rscmd_model.network.model import RscmdModel

OPSET = 17
_FOR_TENSORRT = {"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True}


class Graph(nn.Module):
    """What is exported.

    Args:
        network: fused (`RscmdModel.fuse`), in evaluation mode.
        branches: whose answers it gives, in this order.
    """

    def __init__(self, network: RscmdModel, branches: Sequence[str]) -> None:
        super().__init__()
        self.network, self.branches = network, tuple(branches)

    def forward(self, pair: Tensor) -> tuple[Tensor, ...]:
        """(B, H, W, 4) uint8: red, green, blue, thermal -> for each branch (B, 4 + classes, N) float32."""
        answers = self.network.answers(self.pixels(pair), self.branches)
        return tuple(answers[branch].float() for branch in self.branches)

    def pixels(self, pair: Tensor) -> Tensor:
        """(B, 4, H, W) in [0, 1], in the network's precision. TensorRT can but cast 8-bit pixels."""
        return pair.to(next(self.network.parameters()).dtype).permute(0, 3, 1, 2) / 255


@contextlib.contextmanager
def exporting(network: RscmdModel, open_sizes: bool) -> Iterator[None]:
    """The heads give the decoded boxes alone, and with `open_sizes` make their anchors anew for each input."""
    for head in network.heads():
        head.export, head.dynamic, head.format, head.shape = True, open_sizes, "onnx", None
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the tracer, for the head's sizes and for its own age
            yield
    finally:
        for head in network.heads():
            head.export, head.dynamic, head.shape = False, False, None


def to_onnx(
    network: RscmdModel,
    header: ModelHeader,
    fixed: tuple[int, int, int] | None = None,
    branches: Sequence[str] | None = None,
) -> bytes:
    """An ONNX model with the header in its metadata.

    Args:
        network: fused, in evaluation mode; its precision is the graph's.
        header: of its file.
        fixed: (batch, height, width) of the only input it is to take; None leaves all three open.
        branches: whose answers it gives; None means all.

    Raises:
        UserError: the package onnx is not installed.
    """
    onnx = needed("onnx", "a conversion to ONNX")
    wanted = tuple(branches or header.config.answers)
    example = torch.zeros(fixed or (1, 64, 96), dtype=torch.uint8)[..., None].repeat(1, 1, 1, 4)
    axes: dict[str, dict[int, str]] = {}
    if fixed is None:
        axes = {INPUT: {0: "batch", 1: "height", 2: "width"}, **{b: {0: "batch", 2: f"{b}_boxes"} for b in wanted}}
    buffer: Any = io.BytesIO()  # hints ask for a path; this exporter takes both
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with exporting(network, fixed is None):
        torch.onnx.export(
            Graph(network, wanted).eval().to(next(network.parameters()).device),
            (example.to(next(network.parameters()).device),),
            buffer,
            dynamo=False,  # the newer exporter needs a further package, and gains nothing here
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(wanted),
            dynamic_axes=axes,
        )
    model = onnx.load_model_from_string(buffer.getvalue())
    model.metadata_props.add(key=HEADER, value=header.to_json())
    content: bytes = model.SerializeToString()
    return content


def quantised(content: bytes, stacks: Sequence[np.ndarray], batch: int, *, signed: bool = False) -> bytes:
    """An ONNX model with 8-bit convolutions (quantise-dequantise form), the decoding of boxes left in 32 bits.

    Args:
        content: what `to_onnx` made.
        stacks: (H, W, 4) uint8 each: inputs that show the range of every activation.
        batch: pairs per batch that the model takes.
        signed: for TensorRT, which takes signed values around zero alone and no biases in integers. The others use all
            256 steps of an unsigned range instead.

    Raises:
        UserError: onnxruntime is not installed.
    """
    needed("onnxruntime", "--int8")
    onnx = needed("onnx", "--int8")
    from onnxruntime import quantization

    feeds = iter([{INPUT: np.repeat(stack[None], batch, 0)} for stack in stacks])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        before.write_bytes(content)
        # The heads' numbers are boxes and scores already: 8 bits there cost points of mAP.
        exact = [n.name for n in onnx.load_model_from_string(content).graph.node if "/head/" in n.name]
        logging.disable(logging.WARNING)  # it advises, in several lines, what was decided here
        try:
            quantization.quantize_static(
                before,
                after,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=exact,
                per_channel=True,
                reduce_range=False,
                activation_type=quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options=_FOR_TENSORRT if signed else None,
            )
        finally:
            logging.disable(logging.NOTSET)
        return after.read_bytes()
