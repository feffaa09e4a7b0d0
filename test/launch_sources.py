"""The `launch` of ROS 2, from a folder of its repositories: the wheels of ROS have none. See docs/distributions.md."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

# Where each package lies in the repository that brings it.
PLACES = {
    "launch": "launch/launch",
    "launch_ros": "launch_ros/launch_ros",
    "osrf_pycommon": "osrf_pycommon",
}
MESSAGES = "rcl_interfaces/composition_interfaces"
# launch_ros imports the classes of these services and calls none, so that nothing is compiled here.
GENERATE = """
import os, sys
from pathlib import Path
os.environ["AMENT_PREFIX_PATH"] = sys.prefix
from rosidl_cli.command.translate.api import translate
from rosidl_generator_py.cli import GeneratePython
source, target = Path(sys.argv[1]), Path(sys.argv[2])
name = source.name
include = [str(Path(sys.prefix, "share", each)) for each in ("builtin_interfaces", "rcl_interfaces", "service_msgs")]
files = [f"{source}:srv/{path.name}" for path in sorted(source.glob("srv/*.srv"))]
idl = translate(
    package_name=name, interface_files=files, include_paths=include, output_format="idl", output_path=target / "idl"
)
GeneratePython("py", typesupport_implementations=["rosidl_typesupport_c"]).generate(name, idl, include, target / name)
(target / name / "__init__.py").touch()
"""


def installed(name: str) -> bool:
    """Whether there is such a package; our folder `launch`, which holds no modules, passes for an empty one."""
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None


def launch_folder() -> Path | None:
    """What LAUNCH names. Raises FileNotFoundError where something is missing there."""
    if not os.environ.get("LAUNCH"):
        return None
    folder = Path(os.environ["LAUNCH"]).expanduser().resolve()
    for place in (*(f"{place}/{name}" for name, place in PLACES.items()), MESSAGES):
        if not (folder / place).is_dir():
            raise FileNotFoundError(f"LAUNCH={folder}: there is no {place} in it; see docs/distributions.md")
    return folder


def on_path(folder: Path, generated: Path) -> list[str]:
    """Folders for PYTHONPATH with which launch and launch_ros are found; `generated` is for what has to be made."""
    command = [sys.executable, "-c", GENERATE, str(folder / MESSAGES), str(generated)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [str(generated), *(str(folder / place) for place in PLACES.values())]
