"""Files are written whole or not at all: aside first, then renamed; and a folder has one writer at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from rscmd_model.errors import UserError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; on success it is renamed to `path`, on failure removed.

    The folder is made if need be.

    Raises:
        UserError: the file cannot be written (permission, full disk, a folder in the way).
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"{str(path)!r} is a folder: give the name of a file")
    # The suffix stays last, because some writers choose the format by it.
    aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if aside.parent.is_dir():
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Give a place for a folder that bears the name of `path` already; made there, it gets that of `path` on success.

    What lies at `path` then is replaced: whether it may be is for the caller to say. On failure it stays, and nothing
    of the new folder does.

    The place is in a hidden folder beside `path`, which one process at a time keeps. What a killed one left there goes,
    and a folder that it had taken the name from gets it back.

    Raises:
        UserError: another process is making this folder, the hidden one is not ours, or the current folder would be
            replaced.
        OSError: a folder cannot be made or renamed.
    """
    path = Path(os.path.normpath(path))
    if path.exists() and Path.cwd().is_relative_to(path.resolve()):
        raise UserError(
            f"{path} is the folder that you are in, or holds it: call from elsewhere, or choose another one"
        )
    room = path.with_name(f".{path.name}.partial")
    new, old = room / "new", room / "old"
    if os.path.lexists(room):
        there = {entry.name for entry in room.iterdir()} if room.is_dir() and not room.is_symlink() else {""}
        if there and (".lock" not in there or not there <= {".lock", new.name, old.name}):
            raise UserError(f"{room} is in the way, and no run of ours left it there: move it and try again")
    with lock_folder(room, "run"):
        try:
            if old.exists() and not path.exists():  # killed between the two renames below
                old.rename(path)
            for left in (new, old):
                if left.exists():
                    shutil.rmtree(left)
            new.mkdir()
            yield new / path.name
            if path.exists():
                path.rename(old)
            try:
                (new / path.name).rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
        finally:
            shutil.rmtree(room, ignore_errors=True)


def check_writable(*paths: Path | None) -> None:
    """Find out, before long work, whether `whole_file` can write there. The folders are made if need be.

    Args:
        paths: of files; None is one that is not asked for.

    Raises:
        UserError: it cannot.
    """
    for path in filter(None, paths):
        if not path.name or path.is_dir():
            raise UserError(f"{str(path)!r} is a folder: give the name of a file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal. Raises `OSError` where it cannot be read."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(path: str | Path, content: Any) -> None:
    """Write indented JSON, whole.

    Args:
        path: the file.
        content: plain JSON types.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(path) as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def lock_folder(folder: Path, writer: str) -> IO[str]:
    """Keep a folder, which is made if need be, for this process alone.

    Use it with `with`. The folder is kept until the block (or the process) ends.

    The lock is a record lock on FOLDER/.lock. It dies with its process, however that ends; children such as a loader's
    workers do not inherit it; over NFS it holds between machines, where locks are served there. On a file system
    without locks the folder is taken for free.

    Args:
        folder: what to keep.
        writer: what writes into it, as in "training", for the message.

    Returns:
        the open lock file; closing it gives the folder back.

    Raises:
        UserError: another process keeps it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        who = file.read(200).strip()
        file.close()
        raise UserError(
            f"another {writer} is writing into {folder}{f' ({who})' if who.isprintable() and who else ''}: "
            "wait for its end, or choose another folder"
        ) from None
    except OSError:
        return file  # no locks here
    with suppress(OSError):  # who it is helps people; on a full disk the lock holds all the same
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
    return file
