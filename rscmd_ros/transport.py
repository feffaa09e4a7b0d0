"""Files of `config/`, found wherever the package is used from; the transport profile that lets large images through."""

from __future__ import annotations

import os
from pathlib import Path

from rscmd_model.errors import UserError

_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def config_file(name: str) -> Path:
    """`config/NAME` of the source tree, or of the installed package. Raises UserError where neither has it."""
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
    """Choose that profile for this process and its children, unless the user chose one. Call it before rclpy.init."""
    if any(os.environ.get(name) for name in _VARIABLES):
        return
    for name in _VARIABLES:
        os.environ[name] = str(config_file("fastdds.xml"))
