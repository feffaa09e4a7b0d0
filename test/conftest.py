"""What every test runs in: a DDS of its own, and nothing written to the user's home.

The wheels of ROS start the interpreter a second time to set LD_LIBRARY_PATH (underlay/rscmd_libraries.py says why).
That happens before pytest or any other program is read, so the settings below are made once, in the process that runs
the tests; its child processes inherit them and LD_LIBRARY_PATH, and are not restarted.
"""

import fcntl
import gc
import logging
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from detector_process import Cameras

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = Path(tempfile.mkdtemp(prefix="rscmd_test_"))


def claim_domain() -> int:
    """A ROS domain that no other test run on this machine uses, held until this process ends.

    Domains above 101 would use ports that Linux hands out to others.
    """
    for step in range(101):
        domain = 1 + (os.getpid() + step) % 101
        try:
            handle = os.open(Path(tempfile.gettempdir(), f"rscmd_test_domain_{domain}.lock"), os.O_RDWR | os.O_CREAT)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        return domain
    raise pytest.UsageError("every ROS domain is taken by another test run")


# Set while pytest collects, before any test imports rclpy or ultralytics.
os.environ.update(
    ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST",
    ROS_DOMAIN_ID=str(claim_domain()),
    FASTRTPS_DEFAULT_PROFILES_FILE=str(ROOT / "config" / "fastdds.xml"),
    FASTDDS_DEFAULT_PROFILES_FILE=str(ROOT / "config" / "fastdds.xml"),  # from Kilted on
    OMP_WAIT_POLICY="PASSIVE",  # as rscmd_model sets it, for tests that import torch first
    ROS_HOME=str(SCRATCH / "ros"),
    ROS_LOG_DIR=str(SCRATCH / "ros" / "log"),
    YOLO_CONFIG_DIR=str(SCRATCH / "ultralytics"),
    # Kept from run to run, since matplotlib takes seconds to list the fonts.
    MPLCONFIGDIR=str(ROOT / ".pytest_cache" / "matplotlib"),
)
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # Dozens of processes would compile torch's sources, each anew. The bytecode lies apart from them.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(ROOT / ".pytest_cache" / "bytecode")
# Under nohup SIGHUP is ignored, and what a test starts would rightly go on ignoring it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other processors run other tests
# What a process imports that is forked by multiprocessing's server; it is started once, by the first that needs it.
multiprocessing.set_forkserver_preload(["ultralytics.models.yolo.detect", "torch._inductor"])
for folder in ("ROS_LOG_DIR", "YOLO_CONFIG_DIR", "MPLCONFIGDIR"):
    os.makedirs(os.environ[folder], exist_ok=True)


def pytest_unconfigure() -> None:
    shutil.rmtree(SCRATCH, ignore_errors=True)


# Files in the order of what they take; a worker of xdist gets whole files, and a long one begun last is waited for.
LONGEST = (
    "resume",
    "ablate",
    "ablate_folds",
    "benchmarks",
    "export",
    "engine_graph",
    "epochs",
    "bfloat16",
    "cache",
    "ddp",
    "train",
    "node",
    "gradients",
    "many_bags",
    "evaluate_bag",
)
FIRST = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before a file's first test: what is there by now, mostly modules, is not searched for garbage in the tests.

    ultralytics has all of it searched at the end of every training.
    """
    if item.path not in _begun:
        _begun.add(item.path)
        gc.collect()
        gc.freeze()


_begun: set[Path] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.get(item.path.name, len(FIRST)))


@pytest.fixture(scope="session")
def llvip_mini() -> Path:
    """The folder of real photographs that lies beside a checkout, in the native layout; skips where there is none."""
    folder = ROOT.parent / "shared" / "llvip_mini"
    if not (folder / "data.yaml").is_file():
        pytest.skip("no photographs: ../shared/llvip_mini is not there")
    return folder


@pytest.fixture(scope="module")
def cameras() -> Iterator["Cameras"]:
    """Both cameras as publishers, and a listener to everything the detector says, for the tests of a module."""
    from detector_process import Cameras

    cameras = Cameras()
    yield cameras
    cameras.close()


@pytest.fixture(scope="session")
def colcon() -> str:
    """The colcon of this Python's environment, or else the one on PATH; skips where there is none."""
    found = shutil.which("colcon", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip("colcon not installed")
    return found


@pytest.fixture(scope="session")
def installed_package(colcon: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The prefix into which `colcon build` installed a copy of this checkout: `install/rscmd_ros`."""
    workspace = tmp_path_factory.mktemp("workspace")
    # Under src, as in a workspace; hidden folders such as .git and .venv are no part of a package.
    shutil.copytree(ROOT, workspace / "src" / "rscmd_ros", ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
    environ = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    if sys.prefix != sys.base_prefix:
        # The commands are to run on this Python, though colcon may be a distribution's, and another environment active.
        environ["VIRTUAL_ENV"] = sys.prefix
    environ["COLCON_HOME"] = str(SCRATCH / "colcon")
    build = subprocess.run([colcon, "build"], cwd=workspace, capture_output=True, text=True, env=environ)
    assert build.returncode == 0, build.stdout + build.stderr
    yield workspace / "install" / "rscmd_ros"
    shutil.rmtree(workspace)


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What a training says to ultralytics' log from here on. caplog sees it with the newest releases of pytest alone,
    because it is not propagated."""
    from ultralytics.utils import LOGGER

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`python -m MODULE WORDS` in this process: what it says and its exit code, without seconds of importing torch.

    For a command whose start, signals or memory are not what the test is about. It may quieten the log of its process,
    which is that of the next tests: the level is put back.
    """
    from ultralytics.utils import LOGGER

    level = LOGGER.level

    def run(module: str, *words: object) -> "subprocess.CompletedProcess[str]":
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [module, *map(str, words)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
            try:
                runpy.run_module(module, run_name="__main__")
                code = 0
            except SystemExit as exit:
                code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
            finally:
                LOGGER.setLevel(level)
        said = capfd.readouterr()
        return subprocess.CompletedProcess([module, *map(str, words)], code, said.out, said.err)

    return run
