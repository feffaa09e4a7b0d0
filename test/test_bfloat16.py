"""bfloat16 of an OpenVINO export: when it is taken unasked, and what the file says of it."""

from __future__ import annotations

import re
import subprocess
import sys
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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "model.safetensors")


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
    worth: float, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision is forced; what is measured, written and read is real. Without the instructions both are 32 bits."""
    able = backends.has_bfloat16(backends.openvino_core("a test"))
    monkeypatch.setattr(export_file, "has_bfloat16", lambda core: True)
    monkeypatch.setattr(export_file, "WORTH", worth)
    out, float_out, size = tmp_path / "m.openvino", tmp_path / "float.openvino", (128, 96)
    done = export(model, "openvino", out, size=size)
    export(model, "openvino", float_out, size=size, half=False)
    first, _, last = done.summary.splitlines()
    found = re.fullmatch(
        r"bfloat16 here: (boxes .* of their longer side, scores .*, ([\d.]+) of the time .*): (.*)", last
    )
    assert found
    assert float(found[2]) > 0
    assert done.box <= HALF.box
    backend, plain = (OpenVinoBackend(file, file) for file in (out, float_out))
    assert backend.header == plain.header
    if worth:
        assert found[3] == "taken; --no-half keeps 32 bits"
        assert "bfloat16 (32 bits where the processor has none)" in first
        assert (backend.measured, backend.precision) == (found[1], "bfloat16" if able else "float32")
    else:
        assert (found[3], backend.measured, backend.precision) == ("left", "", "float32")
    if backend.precision == "float32":  # the file holds the weights of 32 bits
        stack = stack_pair(*image(96, 128))[None]
        assert (backend.forward(stack, ["fused"])[0] == plain.forward(stack, ["fused"])[0]).all()


def test_bfloat16_is_not_measured_where_somebody_says(model: Path, tmp_path: Path) -> None:
    """Nor where the processor has none."""
    able = backends.has_bfloat16(backends.openvino_core("a test"))
    out = tmp_path / "m.openvino"
    words = ["-m", "rscmd_model.export", "--model", model, "--format", "openvino", "--size", "128,96", "--out", out]
    for said in ([], ["--no-half"], ["--half"]):
        command = [str(word) for word in (sys.executable, *words, *said)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ("bfloat16 here: " in done.stdout) == (able and not said)
