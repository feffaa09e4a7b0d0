"""bfloat16 of an OpenVINO export: when it is taken unasked, and what the file says of it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_inference import image, model_file

from rscmd_model.imaging.images import stack_pair
from rscmd_model.inference import backends, export_file
from rscmd_model.inference.backends import OpenVinoBackend
from rscmd_model.inference.export_file import HALF, WORTH, Gain, export

pytest.importorskip("onnx")
pytest.importorskip("openvino")

SIZE = (128, 96)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def in_32_bits(model: Path) -> OpenVinoBackend:
    """What the model is without bfloat16."""
    file = model.with_name("float.openvino")
    export(model, "openvino", file, size=SIZE, half=False)
    return OpenVinoBackend(file, file)


@pytest.mark.parametrize(
    ("gain", "pays"),
    [
        (Gain(0.01, 0.01, 0.5), True),
        (Gain(HALF.box, HALF.score, WORTH), True),
        (Gain(0.01, 0.01, 0.95), False),
        (Gain(0.06, 0.01, 0.5), False),
        (Gain(0.01, 0.04, 0.5), False),
        (Gain(np.inf, np.inf, 0.5), False),
    ],
)
def test_bfloat16_is_taken_if_it_is_near_and_faster(gain: Gain, pays: bool) -> None:
    assert gain.pays is pays


@pytest.mark.parametrize("worth", [0.0, 100.0])
def test_bfloat16_is_measured_where_nobody_says(
    worth: float, model: Path, in_32_bits: OpenVinoBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision is forced; what is measured, written and read is real. Without the instructions both are 32 bits."""
    able = backends.has_bfloat16(backends.openvino_core("a test"))
    monkeypatch.setattr(export_file, "has_bfloat16", lambda core: True)
    monkeypatch.setattr(export_file, "WORTH", worth)
    out = tmp_path / "m.openvino"
    done = export(model, "openvino", out, size=SIZE)
    first, _, last = done.summary.splitlines()
    found = re.fullmatch(
        r"bfloat16 here: (boxes .* of their longer side, scores .*, ([\d.]+) of the time .*): (.*)", last
    )
    assert found
    assert float(found[2]) > 0
    assert done.box <= HALF.box
    backend = OpenVinoBackend(out, out)
    assert backend.header == in_32_bits.header
    if worth:
        assert found[3] == "taken; --no-half keeps 32 bits"
        assert "bfloat16 (32 bits where the processor has none)" in first
        assert (backend.measured, backend.precision) == (found[1], "bfloat16" if able else "float32")
    else:
        assert (found[3], backend.measured, backend.precision) == ("left", "", "float32")
    if backend.precision == "float32":  # the file holds the weights of 32 bits
        stack = stack_pair(*image(96, 128))[None]
        assert (backend.forward(stack, ["fused"])[0] == in_32_bits.forward(stack, ["fused"])[0]).all()


def test_bfloat16_is_not_measured_where_somebody_says(
    command: Callable[..., subprocess.CompletedProcess[str]], model: Path, tmp_path: Path
) -> None:
    """Nor where the processor has none."""
    able = backends.has_bfloat16(backends.openvino_core("a test"))
    out = tmp_path / "m.openvino"
    words = ["--model", model, "--format", "openvino", "--size", "128,96", "--out", out]
    for said in ([], ["--no-half"], ["--half"]):
        done = command("rscmd_model.export", *words, *said)
        assert done.returncode == 0, done.stderr
        assert ("bfloat16 here: " in done.stdout) == (able and not said)
