"""Puts the shared libraries of this environment's ROS wheels on the loader's path, before Python gets to work.

The wheels' libraries find each other through LD_LIBRARY_PATH, which the loader reads once, when a process starts. So
the wheels bring a .pth file that starts every Python a second time, with the variable set, and marks the process by
_ROS_WHEELS_BOOTSTRAP_COMPLETE. Two things are wrong with it: it joins the folders in random order, so the libraries of
a sourced ROS distribution come first on one day and last on another; and the mark is inherited, so the Python of one
environment, started by that of another, never gets its own libraries. This module is called by a .pth file that is read
before that one, and does the same in a fixed order wherever the libraries are not on the path yet. All of it happens
while the interpreter starts: no program is restarted half way, pytest included, and child processes start only once.
"""

import glob
import os
import sys


def library_path(prefix: str, environ: "os._Environ[str] | dict[str, str]") -> str:
    """LD_LIBRARY_PATH for the environment at `prefix`.

    Its own folders come first, unless a distribution's rclpy is on PYTHONPATH: that one is the one imported, and its
    libraries must be the ones loaded.
    """
    inherited = [part for part in environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]
    own = [
        os.path.join(prefix, "lib"),
        *sorted(glob.glob(os.path.join(prefix, "lib", "python3*", "site-packages", "ros_*.libs"))),
    ]
    others = [part for part in inherited if part not in own]
    sourced = any(
        os.path.isdir(os.path.join(part, "rclpy")) for part in environ.get("PYTHONPATH", "").split(os.pathsep) if part
    )
    return os.pathsep.join(others + own if sourced else own + others)


def start_again() -> None:
    """Replaces this process by itself with the libraries on the path; returns only where they already are."""
    own = os.path.join(sys.prefix, "lib")
    if own in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep):
        os.environ["_ROS_WHEELS_BOOTSTRAP_COMPLETE"] = "1"
        return
    environ = dict(os.environ)
    environ["LD_LIBRARY_PATH"] = library_path(sys.prefix, os.environ)
    environ["_ROS_WHEELS_BOOTSTRAP_COMPLETE"] = "1"
    os.execve(sys.executable, sys.orig_argv, environ)
