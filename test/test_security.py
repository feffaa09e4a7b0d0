"""config/sros2_policy.xml against the graph of a running node, and model files that try to run code."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from detector_process import ROOT, Cameras, Detector

from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import method_config
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import ModelHeader, load_model, save_model

POLICY = ROOT / "config" / "sros2_policy.xml"
NODE = "/rscmd_detector"

# Only with some values of the node's parameters.
BY_PARAMETER = {
    f"subscribe /{stream}/{name}" for stream in ("visible", "thermal") for name in ("image/compressed", "camera_info")
} | {"subscribe /clock"}


def allowed() -> set[str]:
    """What the policy lets the node do, as "publish /name", "subscribe /name", "reply /name"."""
    (profile,) = ElementTree.parse(POLICY).getroot().iterfind("enclaves/enclave[@path='/rscmd_detector']/profiles/*")
    assert (profile.get("ns"), f"/{profile.get('node')}") == ("/", NODE)
    rights = []
    for group in profile:
        assert set(group.attrib.values()) == {"ALLOW"}
        for expression in group:
            name = (expression.text or "").replace("~", NODE)
            rights += [f"{kind} {name if name.startswith('/') else f'/{name}'}" for kind in group.attrib]
    assert len(rights) == len(set(rights))
    assert not any(wildcard in right for right in rights for wildcard in "*?[")
    return set(rights)


@pytest.fixture
def cameras() -> Iterator[Cameras]:
    cameras = Cameras()
    yield cameras
    cameras.close()


def test_the_policy_is_what_a_node_needs_and_no_more(tmp_path: Path, cameras: Cameras) -> None:
    config, names = method_config("rscmd"), {0: "person"}
    header = ModelHeader(config, names, 64, ThermalContract())
    save_model(tmp_path / "model.safetensors", RscmdModel(config, names), header)
    detector = Detector(tmp_path, model=tmp_path / "model.safetensors")
    try:
        detector.wait_for("active: listening")
        used: set[str] = set()
        grown_at = time.monotonic()

        def settled() -> bool:
            """Endpoints are discovered one after the other; that is over when there is nothing new for a while."""
            nonlocal grown_at
            before = len(used)
            for kind, ask in (
                ("publish", cameras.node.get_publisher_names_and_types_by_node),
                ("subscribe", cameras.node.get_subscriber_names_and_types_by_node),
                ("reply", cameras.node.get_service_names_and_types_by_node),
                ("request", cameras.node.get_client_names_and_types_by_node),
            ):
                used.update(f"{kind} {name}" for name, _ in ask("rscmd_detector", "/"))
            if len(used) > before:
                grown_at = time.monotonic()
            return time.monotonic() - grown_at > 3

        cameras.spin_until(lambda: "rscmd_detector" in cameras.node.get_node_names(), "the node")
        cameras.spin_until(settled, "an end of discovery")
    finally:
        detector.close()
    assert used - BY_PARAMETER == allowed() - BY_PARAMETER


def test_a_keystore_that_will_not_do_is_one_line(tmp_path: Path) -> None:
    """The middleware refuses to start: without keys, or, as that of the wheels, being built without security."""
    (tmp_path / "enclaves" / "rscmd_detector").mkdir(parents=True)
    environ = {
        "ROS_SECURITY_KEYSTORE": str(tmp_path),
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
    }
    command = [sys.executable, "-m", "rscmd_ros.detector_node", "--ros-args", "--enclave", "/rscmd_detector"]
    refused = subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "error: cannot start: " in refused.stderr
    assert "security" in refused.stderr.lower()


# ---- model files ----


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch"])
def test_a_model_file_cannot_run_code(tmp_path: Path, kind: str) -> None:
    mark, file = tmp_path / "ran", tmp_path / "model.safetensors"
    buffer = io.BytesIO()
    if kind == "pickle":
        pickle.dump({"weights": Payload(mark)}, buffer)
    else:
        torch.save({"weights": Payload(mark)}, buffer, _use_new_zipfile_serialization=kind == "torch")
    file.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(file)
    assert not mark.exists()
    # And it would have run, had it been unpickled.
    if kind == "pickle":
        pickle.loads(buffer.getvalue())
        assert mark.is_dir()


PROGRAM = """
import sys
import torch

class Program(torch.nn.Module):
    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return torch.zeros(1), self.mark, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        self.mark = state[1]
        self.training = state[2]
        torch.save(state[0], state[1])

torch.jit.save(torch.jit.script(Program(sys.argv[1])), sys.argv[2])
"""
"""Makes a TorchScript file that writes a file when it is loaded."""


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.jit, about its own age
def test_torchscript_is_a_program_and_is_not_loaded(tmp_path: Path) -> None:
    mark, file, renamed = tmp_path / "ran", tmp_path / "m.torchscript", tmp_path / "m.safetensors"
    (tmp_path / "make.py").write_text(PROGRAM)
    subprocess.run([sys.executable, tmp_path / "make.py", mark, file], check=True, capture_output=True)
    renamed.write_bytes(file.read_bytes())
    for name, says in ((file, "TorchScript is a program"), (renamed, "not a model file")):
        with pytest.raises(UserError, match=says):
            Predictor(name, device="cpu")
    assert not mark.exists()
    # And it would have run, had it been loaded.
    torch.jit.load(file)
    assert mark.exists()
