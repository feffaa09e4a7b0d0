"""Old versions of other packages are named in one line, and the lower bounds stand in one place."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from rscmd_model import versions
from rscmd_model.errors import UserError
from rscmd_model.versions import OLDEST, TESTED_ULTRALYTICS, installed, require, untested_trainer

ROOT = Path(__file__).resolve().parent.parent
KEYS = {
    "numpy": "python3-numpy",
    "cv2": "python3-opencv",
    "yaml": "python3-yaml",
    "matplotlib": "python3-matplotlib",
    "torch": "python3-pytorch-pip",
    "ultralytics": "python3-ultralytics-pip",
}


def older(folder: Path, module: str, version: str) -> dict[str, str]:
    """The environment of a process in which pip believes that this version is installed."""
    name = OLDEST[module][1]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_what_is_installed_here_is_new_enough() -> None:
    require(*OLDEST)
    for module, (_, _, oldest) in OLDEST.items():
        assert Version(str(installed(module))) >= Version(oldest)


@pytest.mark.parametrize(
    ("version", "refused"),
    [
        ("1.21.5", True),
        ("1.23", True),
        ("1.24", False),
        ("1.24.0rc1", False),
        ("1.100.0", False),
        ("2.4.6+local", False),
        ("0.9+1.99", True),
        ("unknown", False),
    ],
)
def test_a_version_is_compared_by_its_numbers(monkeypatch: pytest.MonkeyPatch, version: str, refused: bool) -> None:
    import numpy

    monkeypatch.setattr(numpy, "__version__", version)
    if refused:
        with pytest.raises(UserError, match=rf"^NumPy {re.escape(version)} is installed, rscmd needs 1\.24 or newer: "):
            require("numpy")
    else:
        require("numpy")


@pytest.mark.parametrize(
    ("module", "version", "command"),
    [
        ("matplotlib", "3.4.3", ["-m", "rscmd_model.diagnose", "gradients", "--help"]),
        ("ultralytics", "8.3.0", ["-m", "rscmd_model.train", "--data", "no.yaml", "--out", "no"]),
        ("matplotlib", "3.4.3", ["-m", "rscmd_ros.detector_node"]),
    ],
)
def test_a_command_says_in_one_line_what_is_too_old(
    tmp_path: Path, module: str, version: str, command: list[str]
) -> None:
    environ = older(tmp_path, module, version)
    done = subprocess.run([sys.executable, *command], env=environ, cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    name, package, oldest = OLDEST[module]
    assert f"{name} {version} is installed, rscmd needs {oldest} or newer: " in line
    assert line.endswith(f" -m pip install '{package}>={oldest}'")


def test_an_exported_model_is_not_refused_for_the_sake_of_torch(tmp_path: Path) -> None:
    """That the model is not there is all that is wrong."""
    command = [sys.executable, "-m", "rscmd_model.predict", "--model", "no.onnx", "--visible", "no.png"]
    environ = older(tmp_path, "ultralytics", "8.3.0")
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no.onnx" in done.stderr
    assert "ultralytics" not in done.stderr


def test_help_imports_nothing_for_it() -> None:
    code = "import sys, rscmd_model.versions as v; v.require(*v.OLDEST); print(*v.OLDEST.keys() & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_manifest_asks_for_the_same_versions() -> None:
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    asked = {e.text: e.get("version_gte") for e in manifest if e.tag.endswith("depend") and e.get("version_gte")}
    assert asked == {KEYS[module]: oldest for module, (_, _, oldest) in OLDEST.items()}


def test_the_requirements_over_a_distribution_ask_for_no_less() -> None:
    """What comes from pip alone; the rest is as new as the distribution."""
    asked = [Requirement(line) for line in (ROOT / "requirements.ros.txt").read_text().splitlines() if line[:1] != "#"]
    floors = {r.name: s.version.removesuffix(".0a0") for r in asked for s in r.specifier if s.operator == ">="}
    jetpack = "2.5.0a0+872d972e41.nv24.08"  # which is not to be replaced by PyPI's
    assert next(r for r in asked if r.name == "torch").specifier.contains(jetpack, prereleases=True)
    assert {m: floors.get(OLDEST[m][1]) for m in ("torch", "ultralytics")} == {
        m: OLDEST[m][2] for m in ("torch", "ultralytics")
    }


def test_the_tests_can_be_run_with_the_oldest_versions() -> None:
    """torch is too large to be had twice."""
    text = (ROOT / "requirements.oldest.lock").read_text()
    pins = [Requirement(line.partition("#")[0]) for line in text.splitlines() if line.partition("#")[0].strip()]
    for module, (_, package, oldest) in OLDEST.items():
        versions = [next(iter(pin.specifier)).version for pin in pins if pin.name.lower() == package]
        if module != "torch":
            first = min(versions, key=Version)
            assert first == oldest or first.startswith(oldest + "."), (module, first)


def test_docs_name_the_same_versions() -> None:
    text = (ROOT / "docs" / "distributions.md").read_text()
    said = re.findall(r"^\| (\S+) \| ([0-9.]+) \|", text[text.index("## Oldest versions") :], re.MULTILINE)
    assert dict(said) == {name: oldest for name, _, oldest in OLDEST.values()}


def test_a_trainer_newer_than_the_one_tested_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = [
        Requirement(line)
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line and line[:1] != "#"
    ]
    (pin,) = (next(iter(p.specifier)).version for p in pins if p.name == "ultralytics")
    assert pin == TESTED_ULTRALYTICS
    for version, told in ((pin, False), ("8.4.183", False), ("8.10.0", True), ("9.0", True)):
        monkeypatch.setattr(versions, "installed", lambda _, version=version: version)
        assert bool(untested_trainer()) == told, version
