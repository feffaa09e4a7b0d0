"""The tree as a ROS package: what colcon makes of it, and whether its manifests agree."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from configparser import ConfigParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rscmd_model

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()
ROS_REQUIREMENTS = (ROOT / "requirements.ros.txt").read_text().splitlines()
# rosdep does not know these, so they come from requirements.ros.txt; all but the first three are optional.
WITHOUT_KEY = {"faster_coco_eval", "lap", "safetensors", "ray", "onnx", "onnxruntime", "openvino"}

ENTRY_POINTS = sorted(
    f"rscmd_ros.{path.stem}" for path in ROOT.glob("rscmd_ros/*.py") if '__name__ == "__main__"' in path.read_text()
)


def test_colcon_installs_what_ros2_looks_for(installed_package: Path) -> None:
    share = installed_package / "share"
    assert (share / "ament_index/resource_index/packages/rscmd_ros").is_file()
    assert (share / "rscmd_ros/package.xml").read_text() == (ROOT / "package.xml").read_text()
    for folder in ("launch", "config"):
        mine = {path.name for path in (ROOT / folder).iterdir() if path.is_file()}
        # A launch leaves a __pycache__ beside its file.
        assert {path.name for path in (share / "rscmd_ros" / folder).iterdir() if path.is_file()} == mine
    assert {"detector.launch.py"} <= {path.name for path in (ROOT / "launch").iterdir()}
    assert {
        "detector.yaml",
        "fastdds.xml",
        "foxglove.json",
        "rscmd.rviz",
        "rscmd_detector.service",
        "sros2_policy.xml",
    } <= {path.name for path in (ROOT / "config").iterdir()}
    for name in ("annotations", "detector_node", "evaluate_bag", "label_bag", "make_bag", "register_bag", "self_train"):
        command = installed_package / "lib/rscmd_ros" / name
        assert os.access(command, os.X_OK)
        assert Path(command.read_text().splitlines()[0].removeprefix("#!")).samefile(sys.executable)


def test_an_installed_command_runs_what_was_installed(installed_package: Path, tmp_path: Path) -> None:
    """Not what lies in the checkout: from another folder, by the installed modules."""
    modules = next(installed_package.glob("lib/python3*/site-packages"))
    environ = {**os.environ, "PYTHONPATH": str(modules), "AMENT_PREFIX_PATH": str(installed_package)}
    where = "import rscmd_model, rscmd_model.datasets, rscmd_ros; print(rscmd_model.__file__, rscmd_ros.__file__)"
    found = subprocess.run([sys.executable, "-c", where], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count(str(modules)) == 2
    lists = {path.name for path in (modules / "rscmd_model/datasets/splits").iterdir()}
    assert lists == {path.name for path in (ROOT / "rscmd_model/datasets/splits").iterdir()}
    assert (modules / "rscmd_ros/bags/report.html").read_text() == (ROOT / "rscmd_ros/bags/report.html").read_text()
    command = [installed_package / "lib/rscmd_ros/make_bag", "--help"]
    usage = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert usage.returncode == 0, usage.stderr
    assert "--rate-thermal" in usage.stdout


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_help_comes_without_torch_and_ros(module: str) -> None:
    """Both take seconds to import, and somebody who asks for help waits for them."""
    code = (
        f"import runpy, sys; sys.argv = [{module!r}, '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "slow = {'torch', 'ultralytics', 'rclpy', 'ray', 'onnxruntime', 'openvino'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith(f"usage: python -m {module}")


def test_nobody_imports_an_entry_point() -> None:
    """They parse, call and print; what others need stands elsewhere."""
    names = "|".join(module.rpartition(".")[2] for module in ENTRY_POINTS)
    pattern = rf"from rscmd_ros import .*\b({names})\b|(?:from|import) rscmd_ros\.({names})\b"
    for source in ROOT.glob("rscmd_*/**/*.py"):
        assert not re.findall(pattern, source.read_text()), source


def test_colcon_sees_one_package(colcon: str) -> None:
    """The message package in underlay would otherwise be built over a distribution's."""
    assert (ROOT / "underlay/COLCON_IGNORE").is_file()
    listed = subprocess.run([colcon, "--log-base", os.devnull, "list"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert [line.split() for line in listed.stdout.splitlines()] == [["rscmd_ros", ".", "(ros.ament_python)"]]


def test_the_manifest_is_valid() -> None:
    package = pytest.importorskip("catkin_pkg.package").parse_package(ROOT / "package.xml", warnings=(warnings := []))
    package.validate(warnings=warnings)
    assert not warnings
    assert (package.package_format, package.get_build_type()) == (3, "ament_python")
    assert package.licenses == ["AGPL-3.0-only"]
    assert (ROOT / str(package.licenses[0].file)).read_text().lstrip().startswith("GNU AFFERO GENERAL PUBLIC LICENSE")


def test_versions_agree() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    command = [sys.executable, "setup.py", "--version"]
    asked = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    versions = {MANIFEST.findtext("version"), asked.stdout.split()[-1], rscmd_model.__version__}
    assert len(versions) == 1


def test_every_imported_ros_package_is_declared() -> None:
    """A missing dependency shows only on a machine with a bare ROS: here everything is installed anyway."""
    declared = {element.text for element in MANIFEST if element.tag in ("depend", "exec_depend")}
    keys = {"cv2": "python3-opencv", "matplotlib": "python3-matplotlib", "numpy": "python3-numpy"}
    keys |= {
        "jinja2": "python3-jinja2",
        "yaml": "python3-yaml",
        "torch": "python3-pytorch-pip",
        "torchvision": "python3-pytorch-pip",
    }
    keys |= {"ultralytics": "python3-ultralytics-pip", "rosbags": "python3-rosbags-pip"}
    keys |= dict.fromkeys(("backports", "compression", "lz4"), "python3-rosbags-pip")  # or Python 3.14 itself
    own = {"rscmd_model", "rscmd_ros"}
    imported = set()
    for source in [*ROOT.glob("rscmd_*/**/*.py"), *ROOT.glob("launch/*.py")]:
        for node in ast.walk(ast.parse(source.read_text())):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {name.partition(".")[0] for name in named}
    foreign = imported - own - WITHOUT_KEY - set(sys.stdlib_module_names)
    missing = {name for name in foreign if keys.get(name, name) not in declared}
    assert not missing


def test_what_rosdep_skips_comes_from_the_requirements() -> None:
    """The keys that resolve to pip are skipped, each by name, and what they stand for is installed in their place."""
    asked = {canonicalize_name(Requirement(line).name) for line in ROS_REQUIREMENTS if not line.startswith("#")}
    pip_keys = {element.text for element in MANIFEST if (element.text or "").endswith("-pip")}
    behind = {"python3-pytorch-pip": {"torch", "torchvision"}}
    for key in pip_keys:
        assert behind.get(str(key), {str(key).removeprefix("python3-").removesuffix("-pip")}) <= asked
    assert {canonicalize_name(name) for name in WITHOUT_KEY - {"ray"}} <= asked
    for page in ("README.md", "Dockerfile"):
        (skipped,) = re.findall(r'--skip-keys "([^"]+)"', (ROOT / page).read_text())
        assert set(skipped.split()) == pip_keys


def test_the_requirements_stay_below_what_breaks_a_distribution() -> None:
    pins = {Requirement(line).name: str(Requirement(line).specifier) for line in ROS_REQUIREMENTS if "<" in line}
    # cv_bridge and matplotlib are built for NumPy 1; colcon --symlink-install needs the older setuptools.
    assert pins == {"numpy": "<2", "opencv-python": "<4.12", "setuptools": "<80"}


@pytest.mark.parametrize("links", [False, True])
def test_commands_run_on_the_python_of_the_active_environment(colcon: str, tmp_path: Path, links: bool) -> None:
    """colcon of a distribution runs on the system's Python, where torch is not."""
    source = tmp_path / "src" / "rscmd_ros"
    source.mkdir(parents=True)
    for name in ("package.xml", "setup.py", "setup.cfg"):
        shutil.copy(ROOT / name, source)
    for name in ("resource", "rscmd_ros"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(tmp_path / "venv", with_pip=False)
    environ = {**os.environ, "COLCON_HOME": str(tmp_path / "colcon"), "VIRTUAL_ENV": str(tmp_path / "venv")}
    command = [sys.executable, colcon, "build", *(["--symlink-install"] if links else [])]
    build = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environ)
    assert build.returncode == 0, build.stdout + build.stderr
    for name in ("annotations", "detector_node", "evaluate_bag", "label_bag", "make_bag", "register_bag", "self_train"):
        installed = tmp_path / "install" / "rscmd_ros" / "lib" / "rscmd_ros" / name
        assert installed.read_text().splitlines()[0] == f"#!{tmp_path}/venv/bin/python"
        assert os.access(installed, os.X_OK)


def test_an_environment_that_is_gone_is_named(tmp_path: Path) -> None:
    environ = {**os.environ, "VIRTUAL_ENV": str(tmp_path / "gone")}
    command = [sys.executable, "setup.py", "--version"]
    asked = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert asked.returncode == 1
    (line,) = asked.stderr.splitlines()
    assert str(tmp_path / "gone") in line


@pytest.mark.parametrize("name", ["my env", "long" * 60])
def test_an_environment_that_commands_cannot_name_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name / "bin").mkdir(parents=True)
    (tmp_path / name / "bin" / "python").symlink_to(sys.executable)
    environ = {**os.environ, "VIRTUAL_ENV": str(tmp_path / name)}
    asked = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert asked.returncode == 1
    (line,) = asked.stderr.splitlines()
    assert f"VIRTUAL_ENV is {tmp_path / name}: " in line


def test_the_unit_ends_launch_by_sigint_and_starts_it_again() -> None:
    """By SIGTERM, systemd's own choice, ros2 launch ends and leaves the node running (ros2/launch#666)."""
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read(ROOT / "config" / "rscmd_detector.service")
    service = unit["Service"]
    # mixed: to launch alone, for the node is told by launch; what is left in the end is killed.
    assert (service["KillSignal"], service["KillMode"]) == ("SIGINT", "mixed")
    # ros2 launch ends with 0 when its node has crashed, which is no failure to systemd.
    assert (service["Restart"], int(service["RestartSec"]) > 0) == ("always", True)
    shell, option, script = shlex.split(service["ExecStart"])
    assert (shell, option) == ("/bin/bash", "-c")
    words = shlex.split(script.rpartition("&& exec ")[2])
    assert words[:4] == ["ros2", "launch", "rscmd_ros", "detector.launch.py"]
    declared = (ROOT / "launch" / "detector.launch.py").read_text()
    assert all(f'    "{word.partition(":=")[0]}": "' in declared for word in words[4:])


def test_a_missing_module_names_the_python_that_looked_for_it(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [python, "-m", "rscmd_ros.detector_node"]
    asked = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert asked.returncode == 2
    (line,) = asked.stderr.splitlines()
    assert "No module named" in line
    assert f"{python}, of the virtual environment {tmp_path / 'venv'}:" in line
