"""The oldest versions of other packages that this one works with, and one line for a user who has older ones.

`make test-oldest` runs the tests with them; package.xml and requirements.oldest.lock are held to this table.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import sys

from rscmd_model.errors import UserError

# By the module that is imported: how people call it, what pip calls it, and the oldest version.
OLDEST = {
    "numpy": ("NumPy", "numpy", "1.24"),
    "cv2": ("OpenCV", "opencv-python", "4.6"),
    "yaml": ("PyYAML", "pyyaml", "6.0"),
    "matplotlib": ("matplotlib", "matplotlib", "3.5"),
    "torch": ("torch", "torch", "2.5"),
    "ultralytics": ("ultralytics", "ultralytics", "8.4.183"),
}
TESTED_ULTRALYTICS = "8.4.190"
"""The newest release whose trainer was tested; `training` overrides methods that are no part of its interface."""
# An exported model runs without the last two, so whoever needs them asks for them.
EVERYWHERE = ("numpy", "cv2", "yaml", "matplotlib")
# What to give pip in place of "NAME>=OLDEST": cv_bridge of a distribution that old is built for NumPy 1.
_ASK_FOR = {"numpy": "numpy>=1.24,<2"}


def installed(module: str) -> str | None:
    """The version that is or would be imported; None where that cannot be told without importing it."""
    if found := getattr(sys.modules.get(module), "__version__", None):
        return str(found)
    try:
        return importlib.metadata.version(OLDEST[module][1])
    except importlib.metadata.PackageNotFoundError:  # python3-opencv of Debian and Ubuntu brings no metadata
        return None


def require(*modules: str) -> None:
    """Nothing is imported for it, and what is not installed is left to the import.

    Raises:
        UserError: one of these is older than this package can use; it says which, and what to do.
    """
    old = [module for module in modules if (version := installed(module)) and _older(version, OLDEST[module][2])]
    if not old:
        return
    found = ", ".join(f"{OLDEST[m][0]} {installed(m)} is installed, rscmd needs {OLDEST[m][2]} or newer" for m in old)
    wanted = [_ASK_FOR.get(m, f"{OLDEST[m][1]}>={OLDEST[m][2]}") for m in old]
    raise UserError(f"{found}: {shlex.join([sys.executable, '-m', 'pip', 'install', *wanted])}")


def untested_trainer() -> str | None:
    """One line to log where ultralytics is newer than what was tested."""
    version = installed("ultralytics")
    if version is None or not _older(TESTED_ULTRALYTICS, version):
        return None
    return (
        f"ultralytics {version} is newer than {TESTED_ULTRALYTICS}, the last one whose trainer was tested here: take "
        "that one should the training fail"
    )


def _older(version: str, oldest: str) -> bool:
    """Whether a version like "2.14.1+cu130" or "5.0.0-dev" comes before one like "2.5"; a strange one does not."""
    numbers = [[int(part) for part in re.findall(r"\d+", text.partition("+")[0])] for text in (version, oldest)]
    return bool(numbers[0]) and numbers[0] < numbers[1]
