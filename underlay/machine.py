"""What a machine must have before `.venv` can be made. The syntax is kept to what Python 3.6 reads."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from typing import Any, Callable, Dict, List, Optional

OLDEST, NEWEST = (3, 10), (3, 13)
VERSIONS = "3.10 to 3.13"
# What a sourced ROS distribution or another environment leaves behind and which would mix with the wheels.
FOREIGN = (
    "PYTHONPATH",
    "PYTHONHOME",
    "AMENT_PREFIX_PATH",
    "CMAKE_PREFIX_PATH",
    "COLCON_PREFIX_PATH",
    "VIRTUAL_ENV",
    "_ROS_WHEELS_BOOTSTRAP_COMPLETE",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
)

# Run by each Python that could be used; prints what is to be known about it.
PROBE = """
import json, os, platform, sys, sysconfig
def there(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True
print(json.dumps({
    "version": list(sys.version_info[:3]),
    "implementation": platform.python_implementation(),
    "executable": getattr(sys, "_base_executable", None) or sys.executable,
    "venv": there("venv") and there("ensurepip"),
    "headers": os.path.isfile(os.path.join(sysconfig.get_config_var("INCLUDEPY") or "", "Python.h")),
}))
"""


class SetupError(Exception):
    """Why the environment cannot be made and what to do about it, in one line."""


def clean_environment(**more: str) -> Dict[str, str]:
    """The environment for programs of the setup: nothing of a sourced ROS distribution, nothing of another venv."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    kept.update(PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONUNBUFFERED="1", **more)
    return kept


def check_machine() -> None:
    """Raises SetupError where no wheel of ROS 2 fits: they exist for 64-bit Linux on Intel and AMD with glibc."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "AMD64"):
        raise SetupError(
            f"ROS 2 comes as wheels for Linux on x86_64 only, this is {platform.system()} on {platform.machine()}; "
            "where ROS 2 Jazzy is installed, build the package with colcon instead"
        )
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 28):
        raise SetupError(f"glibc 2.28 or newer is needed, this is {name or 'another C library'} {version}")


def probe(executable: str) -> Optional[Dict[str, Any]]:
    """What the Python at this path is, or None where it does not run (a pyenv shim without a version, say)."""
    try:
        answer = subprocess.run(
            [executable, "-c", PROBE],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
            timeout=60,
            check=True,
        )
        found = dict(json.loads(answer.stdout.decode()))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    found["series"] = "{}.{}".format(*found["version"])
    found["name"] = "Python {}.{}.{} ({})".format(*found["version"], found["executable"])
    return found


def fault(python: Dict[str, Any]) -> Optional[str]:
    """What keeps this Python from being used, or None."""
    name, series = python["name"], python["series"]
    if python["implementation"] != "CPython" or not OLDEST <= tuple(python["version"])[:2] <= NEWEST:
        return f"{name} will not do, CPython {VERSIONS} is needed"
    parts = [("venv", "no venv module", f"python{series}-venv")]
    parts += [("headers", "no C headers (Python.h)", f"python{series}-dev")]
    lacking = [(what, package) for key, what, package in parts if not python[key]]
    if lacking:
        return f"{name} has {' and '.join(w for w, _ in lacking)}: install {' and '.join(p for _, p in lacking)}"
    return None


def together(*checks: Callable[[], Any]) -> List[Any]:
    """What each check gives; raises one SetupError that has everything they complain of."""
    found, faults = [], []
    for check in checks:
        try:
            found.append(check())
        except SetupError as error:
            faults.append(str(error))
    if faults:
        raise SetupError("; and ".join(faults))
    return found


def find_python() -> Dict[str, Any]:
    """The Python to build on: the one PYTHON names, else the one running this, else the newest on PATH that will do."""
    wanted = os.environ.get("PYTHON")
    if wanted:
        path = shutil.which(wanted)
        found = probe(path) if path else None
        reason = fault(found) if found else f"does not run, CPython {VERSIONS} is needed"
        if found is None or reason:
            raise SetupError(f"PYTHON={wanted}: {reason}")
        return found
    first = ""
    numbered = [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    for name in [sys.executable, *numbered, "python3", "python"]:
        path = shutil.which(name) if name else None
        found = probe(path) if path else None
        if found is None:
            continue
        reason = fault(found)
        if reason is None:
            return found
        # A Python of the right version that lacks a part is the better one to complain about.
        if not first or ("will not do" in first and "will not do" not in reason):
            first = reason
    raise SetupError((first or "no Python was found") + " (PYTHON=/path/to/python names another one)")


def find_compiler() -> List[str]:
    """The command of a C++ compiler that works: what CXX says, else c++, g++ or clang++."""
    wanted = os.environ.get("CXX")
    for command in [shlex.split(wanted)] if wanted else [["c++"], ["g++"], ["clang++"]]:
        if command and shutil.which(command[0]):
            break
    else:
        if wanted:
            raise SetupError(f"CXX={wanted} is not there: name a C++ compiler, or unset CXX to use c++, g++ or clang++")
        raise SetupError("no C++ compiler on PATH (c++, g++ or clang++): install g++ (Debian, Ubuntu: apt install g++)")
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "probe.cpp")
        with open(source, "w") as file:
            file.write("#include <cstdint>\n#include <string>\nint main() { return std::string().size(); }\n")
        if subprocess.call([*command, source, "-o", source + ".out"], stderr=subprocess.DEVNULL) != 0:
            raise SetupError(f"the C++ compiler {' '.join(command)} cannot build a program: install g++")
    return command


def check_disk(venv: str, gigabytes: float) -> None:
    """Raises SetupError unless `venv` can grow to this size where it is or will be."""
    place, there = venv, 0
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    for top, _, names in os.walk(venv):
        there += sum(os.lstat(os.path.join(top, name)).st_size for name in names)
    free, needed = shutil.disk_usage(place).free / 1e9, gigabytes - there / 1e9
    if free < needed:
        raise SetupError(f"{needed:.1f} GB of free disk are needed in {place}, there are {free:.1f} GB")
