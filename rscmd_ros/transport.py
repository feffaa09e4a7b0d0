"""What processes of ROS are started with: `--help`, files of `config/`, the transport profile, a free domain."""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from rscmd_model.errors import UserError

_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
_MEMORY = "/dev/shm"


def heed_help(program: str, text: str, words: Sequence[str]) -> None:
    """Print the help of a node and exit with code 0 where one of the words before `--ros-args` asks for it.

    Args:
        program: how the node is called.
        text: the help: a summary, an empty line, details.
        words: the command line without the program's name. All others are for ROS, which judges them itself.
    """
    summary, _, details = text.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [-h] [--ros-args ...]",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    end = words.index("--ros-args") if "--ros-args" in words else len(words)
    parser.parse_known_args(words[:end])


def config_file(name: str) -> Path:
    """`config/NAME` of the source tree, or of the installed package.

    Raises:
        UserError: neither has it.
    """
    places = [Path(__file__).resolve().parent.parent]  # the source tree, where this code runs from it
    try:
        from ament_index_python.packages import get_package_share_directory

        places.append(Path(get_package_share_directory("rscmd_ros")))
    except (ImportError, OSError, LookupError):
        pass  # no ROS installation, none sourced, or this package is not in it
    for place in places:
        if (place / "config" / name).is_file():
            return place / "config" / name
    raise UserError(f"config/{name} of rscmd_ros is missing; looked in {' and '.join(map(str, places))}")


def use_large_messages() -> None:
    """Choose the transport profile that lets large images through, for this process and its children.

    One that the user chose stays. Call it before rclpy.init.
    """
    if any(os.environ.get(name) for name in _VARIABLES):
        return
    for name in _VARIABLES:
        os.environ[name] = str(config_file("fastdds.xml"))


def shared_memory_problem() -> str | None:
    """Why images do not come by shared memory, though the transport profile in use wants that; None where they can.

    Fast DDS goes on without, and says of it that the platform has none. Call it when there is a node.
    """
    from rclpy.utilities import get_rmw_implementation_identifier

    profile = next(filter(None, map(os.environ.get, _VARIABLES)), None)
    if profile is None or not get_rmw_implementation_identifier().startswith("rmw_fastrtps"):
        return None
    try:
        text, maps = Path(profile).read_text(), Path("/proc/self/maps").read_text()
        free = shutil.disk_usage(_MEMORY).free / 1e6
    except (OSError, ValueError):  # a profile that is none, of which Fast DDS complains itself
        return None
    # There may be a smaller one: where discovery is kept to this machine, ROS adds a transport of its own.
    wanted = max(map(int, re.findall(r"<segment_size>(\d+)<", text)), default=1)
    segments = re.findall(rf"^(\w+)-(\w+) .* {_MEMORY}/fast(?:rtps|dds)_", maps, re.MULTILINE)
    if "<type>SHM</type>" not in text or any(int(end, 16) - int(start, 16) >= wanted for start, end in segments):
        return None
    return (
        f"no shared memory for images: the segment that {profile} asks for could not be made in {_MEMORY}, where "
        f"{free:.0f} MB are free. They come by UDP, and most large ones are lost. What killed processes left there "
        "goes by `fastdds shm clean`; a container needs --ipc=host"
    )


def free_domain() -> int:
    """A ROS domain whose first discovery ports nobody on this machine has taken."""
    domains = random.sample(range(1, 101), 100)
    for domain in domains:
        try:
            for port in (7400 + 250 * domain + 10, 7400 + 250 * domain + 11):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return domain
    return domains[0]
