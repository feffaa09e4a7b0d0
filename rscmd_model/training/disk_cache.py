"""The files of `cache=disk`: decoded and resized pairs, in a folder of the run's own and never among the data.

The name of a file says what is in it, by a digest: both pictures (path, size and time of the last change), the size
they are brought to, the thermal contract, the registration, and the versions that decoded them. A picture that was
changed between two parts of a run is therefore made anew, and not answered from an old file.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np

from rscmd_model import __version__
from rscmd_model.datasets.pairs import DataConfig, PairFiles
from rscmd_model.errors import UserError
from rscmd_model.files import whole_file

_HEAD = 128  # bytes of a .npy file before its numbers


def cache_of(run: Path) -> Path:
    """The cache in the folder of a run. It outlives a run that is killed, which uses it again when it is resumed."""
    return run / "cache"


def stack_file(folder: Path, data: DataConfig, pair: PairFiles, size: tuple[int, int]) -> Path:
    """Where the stack of a pair lies, or will.

    Args:
        folder: of the cache.
        data: that the pair is of.
        pair: its files.
        size: (height, width) px of the stack.

    Raises:
        UserError: an image is not there.
    """
    known: list[object] = [__version__, cv2.__version__, size, data.thermal_contract.to_dict()]
    known.append(data.registration and data.registration.to_dict())
    for file in (pair.visible, pair.thermal):
        try:
            state = file.stat()
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None
        known.append((str(file.absolute()), state.st_size, state.st_mtime_ns))
    return folder / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]}.npy"


def read_stack(file: Path) -> np.ndarray | None:
    """The stack in a file, (h, w, 4) uint8; None where there is no such file or it is damaged."""
    try:
        return np.load(file)
    except (OSError, ValueError, EOFError):
        return None


def write_stack(file: Path, stack: np.ndarray) -> None:
    """Write a stack, (h, w, 4) uint8, whole.

    Raises:
        UserError: the file cannot be written, as on a full disk.
    """
    content = io.BytesIO()
    np.save(content, stack)
    with whole_file(file) as aside:  # np.save itself does not say why it could not write
        aside.write_bytes(content.getbuffer())


def remove_cache(run: Path) -> None:
    """Remove the cache of a run that is finished, if it has one."""
    shutil.rmtree(cache_of(run), ignore_errors=True)


def check_room(folder: Path, stacks: list[tuple[int, int]]) -> None:
    """Look whether stacks of these sizes, (height, width) px, find room in a folder, which is made if need be.

    Raises:
        UserError: they do not.
    """
    wanted = sum(_HEAD + height * width * 4 for height, width in stacks)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None
    if wanted > free:
        raise UserError(
            f"cache=disk needs {wanted / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free: make room, or "
            "leave it out"
        )
