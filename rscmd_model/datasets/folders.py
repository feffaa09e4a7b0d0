"""What lies in a folder of a data set: one walk, hidden files apart."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from rscmd_model.datasets.pairs import Problem
from rscmd_model.errors import UserError
from rscmd_model.imaging.images import IMAGE_SUFFIXES

_MOST = 1_000_000  # entries below a folder


def walk(folder: Path, without: Collection[Path] = (), deep: bool = True) -> Iterator[str]:
    """Every file below a folder as its path from there, with "/" between folders, in order of names.

    Args:
        folder: where to begin. Links to folders are followed, none twice.
        without: folders below it that are passed over.
        deep: look into the folders below it.

    Yields:
        hidden files as well; of a hidden folder its own name with "/" behind it, not what it holds.

    Raises:
        UserError: a folder is missing, may not be read, or has a million entries below it, as the root of a disk has.
    """
    skipped = {os.path.realpath(other) for other in without}
    seen: set[str] = set()
    pending, count = [""], 0
    while pending:
        inner = pending.pop()
        here = os.path.join(folder, inner)
        real = os.path.realpath(here)
        if real in seen or (inner and real in skipped):
            continue
        seen.add(real)
        try:
            with os.scandir(here) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            raise UserError(f"no folder {here}") from None
        except OSError as error:
            raise UserError(f"cannot read the folder {here}: {error.strerror}") from None
        except ValueError:
            raise UserError(f"no folder {here!r}") from None
        below = []
        count += len(found)
        if count > _MOST:
            raise UserError(f"{folder} has more than {_MOST} entries below it: is it the folder of the images?")
        for entry in found:
            name = f"{inner}/{entry.name}" if inner else entry.name
            if not _is_dir(entry):
                yield name
            elif entry.name.startswith(".") or entry.name == "__MACOSX":
                yield f"{name}/"
            elif deep:
                below.append(name)
        pending += reversed(below)


def images_in(folder: Path, without: Collection[Path] = (), deep: bool = True) -> tuple[dict[str, Path], list[Problem]]:
    """The images below a folder.

    Hidden files, such as the ._NAME.jpg of a Mac's archive, are left out.

    Args:
        folder: as for `walk`.
        without: as for `walk`.
        deep: as for `walk`.

    Returns:
        the images by stem (their path from the folder, without suffix), and a problem for each stem that two share.

    Raises:
        UserError: as `walk`.
    """
    found: dict[str, Path] = {}
    problems = []
    for name in walk(folder, without, deep):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in IMAGE_SUFFIXES or os.path.basename(name).startswith("."):
            continue
        file = folder / name
        if stem in found:
            text = f"{found[stem]} and {file} have the same stem, so their partner is ambiguous"
            problems.append(Problem("same_stem", file, text))
        else:
            found[stem] = file
    return found, problems


def explained(missing: list[Problem], folders: Sequence[Path]) -> list[Problem]:
    """Add to each image without a partner what lies there under nearly the right name.

    Args:
        missing: problems of images without a partner.
        folders: of both cameras.

    Returns:
        the same problems, with a hint where there is one.
    """
    if not missing:
        return missing
    near: dict[str, list[str]] = {}
    for folder in folders:
        for name in walk(folder):
            near.setdefault(os.path.splitext(name)[0].lower(), []).append(os.path.join(folder, name))
    told = []
    for problem in missing:
        own = next(folder for folder in folders if problem.file.is_relative_to(folder))
        stem = os.path.splitext(problem.file.relative_to(own).as_posix())[0].lower()
        others = [file for file in near.get(stem, []) if not problem.file.is_relative_to(os.path.dirname(file))]
        hint = ""
        if others:
            suffix = os.path.splitext(others[0])[1]
            hint = "its name differs in upper and lower case"
            if suffix.lower() not in IMAGE_SUFFIXES:
                hint = f"pictures of the format {suffix} are not read: convert to PNG or JPEG"
            hint = f"; {others[0]} is there, but {hint}"
        told.append(Problem(problem.kind, problem.file, f"{problem.text}{hint}"))
    return told


def others_below(folder: Path, folders: Collection[Path]) -> list[Path]:
    """Those of some folders that lie within another one.

    Args:
        folder: the outer one, which is left out itself.
        folders: any.
    """
    return [other for other in folders if other != folder and other.is_relative_to(folder)]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False
