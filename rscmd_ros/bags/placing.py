"""Where a labelled set grows and how it gets its name: nothing half-made ever has it, and no work of a person is lost.

A set grows in OUT.partial, where a run that was broken off goes on. An earlier set at OUT is replaced only when asked
for, and what a person did in it is taken over. For that moment it is called .OUT.replaced, a name that nobody gives
to a folder of his own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rscmd_model.datasets.opening import open_data
from rscmd_model.errors import UserError, quoted
from rscmd_model.files import whole_file, write_json
from rscmd_model.labelling.label_set import DESCRIPTION, KINDS, LabelledPair, LabelSet, link_or_copy
from rscmd_model.labelling.showing import SHOWN
from rscmd_model.text import read_json
from rscmd_ros.bags.journal import JOURNAL

RECORD = "label_bag.json"
"""How a set was made: settings, limits and counts."""
_OURS = {RECORD, JOURNAL, DESCRIPTION, ".lock", *KINDS, *SHOWN}
_MEANT = {
    "recording": "of another recording",
    "files": "of other files, or before they were changed",
    "model": "with another model",
}


def named(out: Path) -> Path:
    """A folder by its own name, which `.` and `..` have not: other names are made of it.

    Raises:
        UserError: it is the root of the file system.
    """
    out = out if out.name not in ("", "..") else Path(os.path.abspath(out))
    if not out.name:
        raise UserError(f"{out} has no name to put another beside it; choose another --out")
    return out


def partial_of(out: Path) -> Path:
    """Where a set grows."""
    return out.with_name(out.name + ".partial")


def replaced_of(out: Path) -> Path:
    """What an earlier set is called while another takes its place."""
    return out.with_name(f".{out.name}.replaced")


def recover(out: Path) -> None:
    """Give an earlier set its name back, where a replacement was broken off between its two renames.

    Raises:
        UserError: it cannot be renamed.
    """
    old = replaced_of(out)
    if old.is_dir() and not out.exists():
        try:
            old.rename(out)
        except OSError as error:
            raise UserError(f"cannot rename {old} to {out}: {error.strerror or error}") from None


def refuse_existing(out: Path, force: bool) -> None:
    """Make sure that a set may be made at `out`; what was broken off is recovered first, and nothing is removed.

    Args:
        out: folder of the set.
        force: an earlier set may be replaced.

    Raises:
        UserError: something else is there, or a set and `force` is not given.
    """
    recover(out)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} exists and is not a folder; choose another --out")
    if not out.exists():
        return
    if not (out / RECORD).is_file():
        raise UserError(f"{out} exists and is no set of label_bag; choose another --out")
    if not force:
        raise UserError(
            f"{out} exists already: take in corrections with --corrected FILE, replace the model's labels with --force "
            "(a person's stay), or choose another --out"
        )


def begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Begin a set in its folder, or make sure that what was begun there is of these settings.

    Where an earlier set at `out` has the same settings, it begins with that one's pictures and journal.

    Args:
        out: folder of the set; the one in which it grows is there, and kept from others.
        settings: all that the journal and the choice of pairs depend on, in plain JSON types.

    Raises:
        UserError: it was begun with other settings, or holds something else.
    """
    folder = partial_of(out)
    record = folder / RECORD
    if record.exists():
        begun = recorded(record)
        for name, value in settings.items():
            if begun.get(name) != value:
                what = _MEANT.get(name) or f"with {name} {quoted(begun.get(name))}, and it is {quoted(value)} now"
                raise UserError(
                    f"{folder} was begun {what}: call again as before to go on there, or remove it to begin anew"
                )
        return
    if strange := sorted({path.name for path in folder.glob("[!.]*")} - _OURS):
        raise UserError(f"{folder} holds something that is no set of label_bag ({strange[0]}); choose another --out")
    if out.exists() and recorded(out / RECORD) == settings:
        for kind in ("visible", "thermal"):
            for file in sorted((out / kind).rglob("*.*")):
                if file.is_file() and not file.name.startswith("."):
                    link_or_copy(file, folder / file.relative_to(out))
        if (out / JOURNAL).exists():
            with whole_file(folder / JOURNAL) as aside:  # no second name: it may be cut
                shutil.copyfile(out / JOURNAL, aside)
    write_json(record, {"settings": settings})


def recorded(file: Path) -> dict[str, Any]:
    """The settings of a `RECORD`. Raises `UserError` where it has none."""
    content = read_json(file)
    settings = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise UserError(f"{file} is no record of label_bag: choose another --out")
    return settings


def persons_pairs(out: Path, settings: Mapping[str, Any]) -> list[LabelledPair]:
    """The pairs of an earlier set whose labels are a person's.

    Args:
        out: folder of the earlier set; it need not be there.
        settings: of the new one.

    Raises:
        UserError: they do not go with the new set: it has other classes, is of another recording or divides it
            elsewhere; or the earlier set cannot be opened.
    """
    if not out.exists():
        return []
    found = [pair for pair in LabelSet(out).pairs() if pair.touched]
    begun = recorded(out / RECORD)
    if found and (out / DESCRIPTION).is_file():  # where a person may have changed the classes since
        begun["names"] = list(open_data(out / DESCRIPTION).names.values())
    changed = [name for name in ("recording", "names", "val_share", "gap") if begun.get(name) != settings[name]]
    if found and changed:
        name = changed[0]
        what = f"was made with {name} {quoted(begun.get(name))}"
        if name == "recording":
            what = "was made of another recording"
        elif name == "names":
            what = f"has the classes {', '.join(map(str, begun[name]))} in its {DESCRIPTION}"
        raise UserError(
            f"{out} has {len(found)} pairs with labels of a person and {what}: keep to that, or choose another --out"
        )
    return found


def put_in_place(out: Path) -> None:
    """Give a set that is whole its name, in place of an earlier one; what else lies in that one is taken along.

    Raises:
        UserError: a folder cannot be renamed.
    """
    folder, old = partial_of(out), replaced_of(out)
    try:
        (folder / ".lock").unlink(missing_ok=True)
        if out.exists():
            if old.exists():  # of a replacement that was broken off at its very end
                shutil.rmtree(old)
            for path in sorted(out.iterdir()):
                if path.name not in _OURS:
                    path.rename(folder / path.name)
            out.rename(old)
        folder.rename(out)
        if old.exists():
            shutil.rmtree(old)
    except OSError as error:
        raise UserError(f"cannot put {folder} in the place of {out}: {error.strerror or error}") from None
