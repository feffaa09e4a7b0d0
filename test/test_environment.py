"""The setup: what it says when a machine lacks something, and that it can be stopped anywhere."""

import ast
import contextlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# At the end: what stands in for a distribution lies in that folder too.
sys.path.append(str(ROOT / "underlay"))
import environment  # noqa: E402

BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)


class Tree:
    """A checkout with the real setup and hardly anything to install, all of it from wheels in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"
        (folder / "underlay").mkdir(parents=True)
        self.wheels.mkdir()
        for name in ("environment.py", "machine.py", "rscmd_libraries.py", "generate_messages.py"):
            shutil.copy(ROOT / "underlay" / name, folder / "underlay")
        shutil.copytree(ROOT / "underlay" / "message_filters", folder / "underlay" / "message_filters")
        # What the setup asks for besides the requirements; Python 3.12 has no setuptools of its own.
        self.wheel("setuptools", "1.0")
        (folder / "requirements.lock").write_text("rscmd-one==1.0\nrscmd-two==2.0\n")
        (folder / "requirements.in").write_text("rscmd-one\n")
        self.wheel("rscmd_one", "1.0", requires="rscmd-two")
        self.wheel("rscmd_two", "2.0")
        self.wheel("rscmd_two", "3.0")

    def wheel(self, name: str, version: str, requires: str = "") -> None:
        info = f"{name}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        files = {
            f"{name}/__init__.py": f"version = '{version}'\n",
            f"{info}/METADATA": metadata + (f"Requires-Dist: {requires}\n" if requires else ""),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(self.wheels / f"{name}-{version}-py3-none-any.whl", "w") as archive:
            for path, text in {**files, f"{info}/RECORD": record}.items():
                archive.writestr(path, text)

    def environ(self, **more: str) -> dict[str, str]:
        hidden = ("PYTHON", "CXX", "LD_LIBRARY_PATH", "PYTHONPATH")
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        environ = {name: value for name, value in environ.items() if name not in hidden}
        environ |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        return {**environ, **more}

    def command(self, *before: str) -> list[str]:
        return [*before, BASE_PYTHON, str(self.folder / "underlay" / "environment.py")]

    def setup(self, *before: str, **more: str) -> "subprocess.CompletedProcess[str]":
        environ = self.environ(**more)
        return subprocess.run(self.command(*before), env=environ, capture_output=True, text=True, cwd=self.folder)

    def versions(self) -> str:
        """Of the two packages, as the Python of the environment imports them."""
        code = "import rscmd_one, rscmd_two; print(rscmd_one.version, rscmd_two.version)"
        python = self.folder / ".venv" / "bin" / "python"
        return subprocess.run([python, "-c", code], capture_output=True, text=True, env=self.environ()).stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "checkout")


def only_error(result: "subprocess.CompletedProcess[str]") -> str:
    """The one line on stderr of a setup that failed, without its prefix."""
    assert result.returncode not in (0, None)
    (line,) = result.stderr.splitlines()
    assert line.startswith("setup: error: "), line
    return line.removeprefix("setup: error: ")


# ---- what is said about a machine ----


def test_no_compiler(tree: Tree, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "underlay" / "vision_msgs", tree.folder / "underlay" / "vision_msgs")
    error = only_error(tree.setup(PATH=str(tmp_path / "nothing")))
    assert "no C++ compiler" in error
    assert "g++" in error
    # Before anything was made, so that nobody waits to hear of it.
    assert not (tree.folder / ".venv").exists()
    assert "CXX=no-such-compiler is not there" in only_error(tree.setup(CXX="no-such-compiler"))
    assert "cannot build a program" in only_error(tree.setup(CXX="false"))
    old = pretender(tmp_path / "old", "import sys; sys.version_info = (3, 9, 18)")
    assert re.search("3.13 is needed; and CXX=none is not there", only_error(tree.setup(PYTHON=str(old), CXX="none")))


def pretender(folder: Path, pretence: str) -> Path:
    """A Python that runs some code before what it is asked to run with -c."""
    folder.mkdir(exist_ok=True)
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\nexec {BASE_PYTHON} -c '{pretence}; exec(sys.argv.pop(1))' \"$2\"\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("pretence", "said"),
    [
        ("import sys; sys.version_info = (3, 9, 18)", r"Python 3\.9\.18 .* 3\.10 to 3\.13 is needed"),
        ("import sys; sys.version_info = (3, 14, 0)", r"Python 3\.14\.0 .* 3\.10 to 3\.13 is needed"),
        # As Debian's python3 without python3-venv, and without python3-dev.
        ("import sys; sys.modules['ensurepip'] = None", r"no venv module: install python3\.\d+-venv"),
        ("import sys, sysconfig; sysconfig.get_config_var = {}.get", r"no C headers .*: install python3\.\d+-dev"),
        (
            "import sys, sysconfig; sys.modules['ensurepip'] = None; sysconfig.get_config_var = {}.get",
            r"has no venv module and no C headers \(Python\.h\): install python3\.\d+-venv and python3\.\d+-dev$",
        ),
    ],
)
def test_wrong_python(tree: Tree, tmp_path: Path, pretence: str, said: str) -> None:
    path = pretender(tmp_path / "bin", pretence.replace("'", '"'))
    error = only_error(tree.setup(PYTHON=str(path)))
    assert error.startswith(f"PYTHON={path}: ")
    assert re.search(said, error)
    assert not (tree.folder / ".venv").exists()


def test_another_python_on_the_path_is_found(tree: Tree, tmp_path: Path) -> None:
    """The one that runs the setup will not do here, but there is one that will."""
    old = pretender(tmp_path / "old", "import sys; sys.version_info = (3, 9, 18)")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3.12").symlink_to(BASE_PYTHON)
    code = f"import sys; sys.path.insert(0, {str(tree.folder / 'underlay')!r}); import machine; "
    code += f"sys.executable = {str(old)!r}; print(machine.find_python()['executable'])"
    only_this = tree.environ(PATH=str(tmp_path / "bin"))
    found = subprocess.run([BASE_PYTHON, "-c", code], env=only_this, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).samefile(BASE_PYTHON)
    only_this["PATH"] = str(tmp_path / "old")
    missed = subprocess.run([BASE_PYTHON, "-c", code], env=only_this, capture_output=True, text=True)
    assert "3.9.18" in missed.stderr


def test_a_python_that_does_not_run(tree: Tree) -> None:
    assert "PYTHON=/no/such/python" in only_error(tree.setup(PYTHON="/no/such/python"))


def test_the_setup_runs_on_old_pythons_far_enough_to_say_so() -> None:
    for name in ("environment.py", "machine.py"):
        ast.parse((ROOT / "underlay" / name).read_text(), feature_version=(3, 6))


@pytest.mark.skipif(shutil.which("setarch") is None, reason="setarch is not installed")
def test_wrong_architecture(tree: Tree) -> None:
    """setarch has the kernel claim another machine."""
    error = only_error(tree.setup("setarch", "i686"))
    assert "x86_64" in error
    assert "i686" in error


def test_no_disk(tree: Tree) -> None:
    """The one thing that is pretended here: nobody fills a disk for a test."""
    code = "import runpy, shutil, sys; real = shutil.disk_usage; "
    code += "shutil.disk_usage = lambda path: real(path)._replace(free=2 * 10**9); "
    code += "sys.argv.pop(0); sys.path.insert(0, sys.argv[0].rpartition('/')[0]); "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [BASE_PYTHON, "-c", code, str(tree.folder / "underlay" / "environment.py")]
    error = only_error(subprocess.run(command, env=tree.environ(), capture_output=True, text=True))
    assert re.search(r"\d+\.\d GB of free disk are needed in \S+, there are 2\.0 GB", error)
    assert str(tree.folder) in error


def test_a_venv_of_somebody_else_s_is_left_alone(tree: Tree) -> None:
    (tree.folder / ".venv").mkdir()
    (tree.folder / ".venv" / "precious").touch()
    assert "not of this setup's making" in only_error(tree.setup())
    assert [path.name for path in (tree.folder / ".venv").iterdir()] == ["precious"]


def test_each_distribution_has_its_own_versions(tree: Tree) -> None:
    """Those of ROS change, all others stay; and a distribution without versions is refused with those there are."""
    assert environment.distributions() == ["jazzy", "kilted"]
    jazzy, kilted = (environment.packages_of(name) for name in ("jazzy", "kilted"))
    assert jazzy == ((ROOT / "requirements.in").read_text(), (ROOT / "requirements.lock").read_text())
    assert "ros-kilted-rclpy" in kilted[0]
    assert "jazzy" not in kilted[0].replace("ROS 2 Jazzy", "")
    versions = [[line for line in lock.splitlines() if "==" in line] for _, lock in (jazzy, kilted)]
    ros = [{line for line in lines if line.startswith("ros-")} for lines in versions]
    common = [[line for line in lines if not line.startswith("ros-")] for lines in versions]
    assert common[0] == common[1]
    assert all(ros)
    assert ros[0] != ros[1]
    refused = subprocess.run([*tree.command(), "--ros", "noetic"], env=tree.environ(), capture_output=True, text=True)
    assert only_error(refused) == "no versions for ROS=noetic; there are jazzy"


def test_another_distribution_has_an_environment_of_its_own(tree: Tree) -> None:
    (tree.folder / "requirements.kilted.lock").write_text("ros-kilted-thing==1.0\n")
    (tree.folder / "requirements.in").write_text("rscmd-one\nros-jazzy-thing\n")
    tree.wheel("ros_kilted_thing", "1.0")
    made = subprocess.run([*tree.command(), "--ros", "kilted"], env=tree.environ(), capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert f"{tree.folder / '.venv.kilted'} is ready" in made.stdout
    assert not (tree.folder / ".venv").exists()
    (site,) = (tree.folder / ".venv.kilted").glob("lib/python3*/site-packages")
    assert (site / "ros_kilted_thing").is_dir()
    assert (site / "rscmd_two" / "__init__.py").read_text() == "version = '2.0'\n"


def test_the_oldest_versions_stand_before_all_else_of_an_environment(tree: Tree) -> None:
    """Those alone are installed again; the rest is the other environment's, its commands run by this one's Python."""
    tree.wheel("rscmd_two", "0.5")
    (tree.folder / "requirements.oldest.lock").write_text("# why\nrscmd-two==0.5\n")
    assert tree.setup().returncode == 0
    command = tree.folder / ".venv" / "bin" / "which"
    command.write_text(f"#!{tree.folder}/.venv/bin/python\nimport sys, rscmd_one, rscmd_two\n")
    command.open("a").write("print(sys.prefix, rscmd_one.version, rscmd_two.version)\n")
    command.chmod(0o755)
    (tree.folder / ".venv/bin/__pycache__").mkdir()  # of a command that was imported
    made = subprocess.run([*tree.command(), "--oldest"], env=tree.environ(), capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert f"{tree.folder / '.venv'} is up to date" in made.stdout
    oldest = tree.folder / ".venv.oldest"
    said = [subprocess.run([oldest / "bin" / "which"], capture_output=True, text=True, env=tree.environ()).stdout]
    said += [subprocess.run([command], capture_output=True, text=True, env=tree.environ()).stdout]
    assert said == [f"{oldest} 1.0 0.5\n", f"{tree.folder / '.venv'} 1.0 2.0\n"]
    (site,) = oldest.glob("lib/python3*/site-packages")
    assert (site / "rscmd_one").is_symlink()
    assert sorted(path.name for path in site.glob("rscmd_two*")) == ["rscmd_two", "rscmd_two-0.5.dist-info"]
    again = subprocess.run([*tree.command(), "--oldest"], env=tree.environ(), capture_output=True, text=True)
    assert again.stdout.count("is up to date") == 2
    # It follows the environment that it is made from.
    (tree.folder / "requirements.lock").write_text("rscmd-one==1.0\nrscmd-two==3.0\n")
    changed = subprocess.run([*tree.command(), "--oldest"], env=tree.environ(), capture_output=True, text=True)
    assert f"{oldest} is ready" in changed.stdout
    # Removing the one does not remove what it links to.
    shutil.rmtree(oldest)
    assert tree.versions() == "1.0 3.0"


# ---- stopping and going on ----


def test_from_nothing_to_done_with_every_kind_of_interruption(tree: Tree) -> None:
    """One test, because each environment takes seconds to make."""
    state = tree.folder / ".venv" / ".setup"
    killed_while(tree, lambda: state.is_dir())
    assert not (state / "venv").exists()

    # Without a network; a closed port refuses at once.
    offline = tree.setup(
        PIP_NO_INDEX="0", PIP_FIND_LINKS="", PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1"
    )
    assert "no network" in only_error(offline)
    assert (state / "venv").exists()

    # A source package that does not finish building keeps the next one in the middle of its step. Only the setup is
    # killed, and must not leave a pip behind that works on while the next setup does.
    building = tree.folder / "building"
    with zipfile.ZipFile(tree.wheels / "rscmd_two-2.0.zip", "w") as archive:
        forever = f"import pathlib, time\nmark = pathlib.Path({str(building)!r})\nmark.touch()\n"
        forever += "while mark.exists(): time.sleep(0.1)\n"
        archive.writestr("rscmd_two-2.0/setup.py", forever)
    (tree.wheels / "rscmd_two-2.0-py3-none-any.whl").rename(tree.folder / "aside")
    killed_while(tree, building.exists, alone=True)
    assert not pips(tree)
    building.unlink()
    (tree.wheels / "rscmd_two-2.0.zip").unlink()
    (tree.folder / "aside").rename(tree.wheels / "rscmd_two-2.0-py3-none-any.whl")

    done = tree.setup()
    assert done.returncode == 0, done.stderr
    # What was finished before is not done again.
    assert "making" not in done.stdout
    assert re.search(r"installing packages: \d+ s", done.stdout)
    assert tree.versions() == "1.0 2.0"
    assert not (state / "tmp").exists()

    # Now nothing is left to do.
    stamps = {path: path.stat().st_mtime_ns for path in state.iterdir()}
    again = tree.setup()
    assert again.stdout.splitlines() == [f"setup: {tree.folder / '.venv'} is up to date"]
    assert {path: path.stat().st_mtime_ns for path in state.iterdir()} == stamps

    # Killed while pip was writing: one package has its record and not all its files, the other is cut off.
    site = next((tree.folder / ".venv").glob("lib/python3*/site-packages"))
    (state / "packages").unlink()
    (site / "rscmd_one" / "__init__.py").unlink()
    (site / "rscmd_two-2.0.dist-info" / "INSTALLER").unlink()
    (site / "rscmd_two" / "__init__.py").write_text("")
    assert tree.versions() == ""
    assert tree.setup().returncode == 0
    assert tree.versions() == "1.0 2.0"

    # A new pin changes the package, and only that step and what hangs on it are done.
    (tree.folder / "requirements.lock").write_text("rscmd-one==1.0\nrscmd-two==3.0\n")
    changed = tree.setup()
    assert "making" not in changed.stdout
    assert tree.versions() == "1.0 3.0"

    # The folder knows the checkout, its own libraries, and what stands in for a distribution.
    assert (site / "message_filters" / "__init__.py").is_file()
    code = "import sys; print(sys.path)"
    python = tree.folder / ".venv" / "bin" / "python"
    path = subprocess.run([python, "-c", code], capture_output=True, text=True, env=tree.environ(), cwd="/").stdout
    assert repr(str(tree.folder)) in path

    # A moved checkout gets an environment that works: the old one's paths are written all over it.
    moved = tree.folder.with_name("moved")
    tree.folder.rename(moved)
    tree.folder, tree.wheels = moved, moved / "wheels"
    assert "making" in tree.setup().stdout
    assert tree.versions() == "1.0 3.0"


def killed_while(tree: Tree, reached: Callable[[], bool], alone: bool = False) -> None:
    """Starts the setup and kills it as soon as `reached` says so, with everything it started or alone."""
    child = subprocess.Popen(tree.command(), env=tree.environ(), stdout=subprocess.DEVNULL, start_new_session=True)
    for _ in range(3000):
        if reached() or child.poll() is not None:
            break
        time.sleep(0.02)
    assert child.poll() is None, "it ended before it could be killed"
    os.kill(child.pid if alone else -child.pid, signal.SIGKILL)
    child.wait()


def pips(tree: Tree) -> list[str]:
    """Command lines of the processes that install into this environment; they are given a moment to end."""
    for _ in range(100):
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = file.read_bytes().decode().split("\0")
                found += [" ".join(words)] if words[0].startswith(str(tree.folder)) and "pip" in words else []
        if not found:
            break
        time.sleep(0.02)
    return found


# ---- the lock ----


def has(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def test_everything_installed_for_the_project_is_pinned() -> None:
    if not (Path(sys.prefix) / ".setup").is_dir():
        pytest.skip("this Python is not that of .venv")
    (ros,) = (name for name in environment.distributions() if has(f"ros-{name}-rclpy"))
    asked, lock = environment.packages_of(ros, oldest=(Path(sys.prefix) / ".setup" / "oldest").is_file())
    pinned = {}
    for line in lock.splitlines():
        requirement = Requirement(line.partition("#")[0]) if line.partition("#")[0].strip() else None
        if requirement and (requirement.marker is None or requirement.marker.evaluate()):
            pinned[canonicalize_name(requirement.name)] = str(requirement.specifier)
    wanted = [line for line in asked.splitlines() if not line.startswith("#")]
    queue, seen = [Requirement(line) for line in wanted] + [Requirement("pip")], set()
    loose = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        extras = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
        if (name, str(requirement.extras)) in seen:
            continue
        seen.add((name, str(requirement.extras)))
        # A build of torch for the CPU is 2.14.1+cpu, which the pin lets pass.
        installed = importlib.metadata.distribution(name)
        if pinned.get(name) != f"=={installed.version.partition('+')[0]}":
            loose.add(f"{name} {installed.version}")
        for line in installed.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                queue.append(needed)
    assert not loose
