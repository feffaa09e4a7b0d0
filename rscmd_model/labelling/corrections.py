"""Reads back what a person corrected in CVAT or Label Studio, into the label files and sidecars of a labelled set.

A label that a person touched is never lost. A pair is written only where the file differs from what stands in the
folder and from everything that a tool may have been given. The label file is written before the sidecar: broken off
between the two, the label file alone says that a person changed it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rscmd_model.datasets.entries import Entry, Shape
from rscmd_model.datasets.listed import load
from rscmd_model.datasets.sidecars import Found, Sidecar, label_text, write_sidecar
from rscmd_model.errors import UserError, did_you_mean, quoted, several
from rscmd_model.files import whole_file
from rscmd_model.labelling.label_set import SPLITS
from rscmd_model.labelling.label_tools import UNSURE, refuse_unsure
from rscmd_model.labelling.standing import Box, Standing, found_at, pictures, pixel_box, read_pair

_MOVED = 0.5  # px by which an edge must lie elsewhere; tools round


@dataclass
class Corrections:
    """What was read back, in pairs.

    Attributes:
        listed: in the file and in the set.
        corrected: written anew, with the person's boxes.
        confirmed: submitted without a change: their labels are now a person's.
        kept: changed in the folder, by hand or by another model, while the file has them as they were exported; the
            folder's labels stay.
        unchanged: as they stand in the folder.
        waiting: listed in the file, and not labelled there yet.
        added, removed: boxes of the corrected pairs, doubtful regions apart.
        left_out: shapes that are no boxes, or lie outside the picture.
    """

    listed: int = 0
    corrected: int = 0
    confirmed: int = 0
    kept: int = 0
    unchanged: int = 0
    waiting: int = 0
    added: int = 0
    removed: int = 0
    left_out: int = 0

    def line(self) -> str:
        """One line for people, without what is zero but for the pairs that were taken over."""
        parts = [f"{self.corrected} corrected (+{self.added} -{self.removed} boxes)"]
        for name, said in (
            ("confirmed", "confirmed"),
            ("kept", "changed here and not there, kept"),
            ("unchanged", "unchanged"),
            ("waiting", "not labelled yet"),
        ):
            if count := getattr(self, name):
                parts.append(f"{count} {said}")
        out = f"; {self.left_out} shapes that are no boxes left out" if self.left_out else ""
        return f"{self.listed} pairs: {', '.join(parts)}{out}"


@dataclass(frozen=True)
class _Given:
    """What the file says of one pair: objects and doubtful regions."""

    labels: tuple[Box, ...]
    unsure: tuple[Box, ...]


def correct(folder: Path, file: Path, names: Mapping[int, str]) -> Corrections:
    """Take over what a person corrected.

    Nothing is written before the whole file is found to fit the set. The caller keeps others from writing into the
    folder.

    Args:
        folder: of the set: visible/, thermal/, labels/ and sidecars/ with the splits below each.
        file: from CVAT ("CVAT for images 1.1"), Label Studio (JSON) or COCO. Its pictures are those of the set by the
            stems of their names. A task of Label Studio that was submitted counts as looked at, changed or not; in the
            other forms a pair that was looked at and not changed cannot be told from one that was not.
        names: class names by number.

    Raises:
        UserError: the file is none of these or lists nothing, has a picture or class that the set does not have, lacks
            a label of the set, has boxes on a thermal picture or on one of another size, or has none in several pairs
            that all have objects; or a file of the set cannot be read or written.
    """
    refuse_unsure(names)
    form = _form(file)
    listed = load(form, file)
    entries = _by_stem(listed.images, file)
    if form != "label_studio":  # whose file names no labels but those of its boxes
        _refuse_missing(listed.classes, names, file)
    pairs = _pairs(folder, entries, file)
    counts = Corrections(listed=len(entries))
    index = {name: number for number, name in names.items()}
    plans: list[tuple[Standing, _Given, bool]] = []
    had: list[_Given] = []
    for stem, (picture, entry) in sorted(entries.items()):
        if not entry.done:
            counts.waiting += 1
            continue
        pair = read_pair(folder, *pairs[stem], names)
        given = _given(pair, entry, index, f"{file}, {quoted(picture)}", counts)
        if pair.labels:
            had.append(given)
        if _same(given, _Given(*_pixels(pair.labels, pair.unsure, pair.size))):
            confirms = form == "label_studio" and (pair.sidecar is None or not pair.sidecar.person)
            counts.confirmed += confirms
            counts.unchanged += not confirms
            if confirms:
                plans.append((pair, given, True))
        elif any(_same(given, _Given(*_pixels(old.labels, old.ignore, pair.size))) for old in _exported(pair.sidecar)):
            counts.kept += 1
        else:
            counts.corrected += 1
            plans.append((pair, given, False))
    if form != "label_studio" and len(had) > 1 and not any(given.labels or given.unsure for given in had):
        raise UserError(
            f"{file} has not one box in the {len(had)} pairs that have objects here: upload the boxes to the task "
            "before it is corrected; where there is nothing in truth, empty the pairs' files in labels/ by hand"
        )
    for pair, given, confirmed in plans:
        _write(pair, given, confirmed, counts)
    return counts


def _refuse_missing(labels: Sequence[str], names: Mapping[int, str], file: Path) -> None:
    """Refuse a file of a task that had not all labels of the set: the tool left out their boxes, no person did."""
    if missing := [name for name in (*names.values(), UNSURE) if name not in labels]:
        raise UserError(
            f"{file} is of a task without the label {several(missing, 3)}, so its boxes are missing and no person has "
            "deleted them: make the task anew with all labels of the set, those in for_cvat/labels.json"
        )


def _form(file: Path) -> str:
    """Which of the loaders reads a file."""
    match file.suffix.lower():
        case ".xml":
            return "cvat"
        case ".zip":
            raise UserError(f"{file} is an archive: unpack it, and give the .xml or .json in it")
        case ".json":
            try:
                with file.open("rb") as opened:
                    start = opened.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
            except OSError as error:
                raise UserError(f"cannot read {file}: {error.strerror}") from None
            if not start:
                raise UserError(f"{file} is empty")
            return "label_studio" if start.startswith(b"[") else "coco"
    raise UserError(f"{file}: corrections come as .xml of 'CVAT for images 1.1', or .json of Label Studio or COCO")


def _by_stem(images: Mapping[str, Entry], file: Path) -> dict[str, tuple[str, Entry]]:
    """Name and entry of each pair; of two pictures of a pair the one with boxes."""
    found: dict[str, tuple[str, Entry]] = {}
    for name, entry in images.items():
        parts = name.replace("\\", "/").split("/")
        if entry.shapes and "thermal" in parts[-3:-1]:  # KIND/SPLIT/NAME; folders before it are called as one likes
            raise UserError(f"{file} has boxes on the thermal picture {quoted(name)}: they belong on the visible one")
        stem = os.path.splitext(parts[-1])[0]
        other = found.get(stem)
        if other is not None and other[1].shapes and entry.shapes:
            raise UserError(f"{file} lists the pair {quoted(stem)} twice: as {quoted(other[0])} and {quoted(name)}")
        if other is None or entry.shapes or entry.done > other[1].done:
            found[stem] = name, entry
    if not found:
        raise UserError(f"{file} lists no picture")
    return found


def _pairs(folder: Path, stems: Iterable[str], file: Path) -> dict[str, tuple[str, str, Path, Path]]:
    """Split, stem, visible and thermal picture of each pair."""
    found: dict[str, tuple[str, str, Path, Path]] = {}
    for split in SPLITS:
        visible, thermal = pictures(folder, split)
        for stem in set(visible) & set(thermal):
            if stem in found:
                raise UserError(f"{folder} has the pair {quoted(stem)} in {found[stem][0]} and in {split}")
            found[stem] = split, stem, visible[stem], thermal[stem]
    if unknown := sorted(set(stems) - set(found)):
        raise UserError(f"{file} has {len(unknown)} pictures that are in no pair of {folder}: {several(unknown, 3)}")
    return found


def _given(pair: Standing, entry: Entry, index: Mapping[str, int], where: str, counts: Corrections) -> _Given:
    """The boxes of an entry, inside the picture."""
    if entry.size is not None and entry.size != pair.size:
        (w, h), (width, height) = entry.size, pair.size
        raise UserError(f"{where} has {w}x{h} px, and the visible picture of the pair has {width}x{height}")
    labels: list[Box] = []
    unsure: list[Box] = []
    for shape in entry.shapes:
        if shape.name not in (UNSURE, *index):
            hint = did_you_mean(shape.name, index, f"the set has {', '.join(index)}")
            raise UserError(f"{where}, {shape.place}: unknown class {quoted(shape.name)}{hint}")
        box = _inside(shape, pair.size)
        if box is None:
            counts.left_out += 1
        elif shape.name == UNSURE:
            unsure.append((0, box))
        else:
            labels.append((index[shape.name], box))
    return _Given(tuple(labels), tuple(unsure))


def _inside(shape: Shape, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """The box cut off at the edges of the picture; None for what is no box, or has less than a pixel in it."""
    left, top, right, bottom = shape.box
    if shape.left_out is not None or not all(map(math.isfinite, shape.box)):
        return None
    left, right = (min(max(x, 0.0), size[0]) for x in (left, right))
    top, bottom = (min(max(y, 0.0), size[1]) for y in (top, bottom))
    return (left, top, right, bottom) if min(right - left, bottom - top) >= 1 else None


def _exported(sidecar: Sidecar | None) -> Iterator[Sidecar]:
    """What a tool may have been given before the labels in the folder were changed: all that was ever said."""
    while sidecar is not None:
        yield sidecar
        sidecar = sidecar.before


def _pixels(
    labels: Sequence[Found], unsure: Sequence[Found], size: tuple[int, int]
) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
    """Boxes in px; doubtful regions have no class."""
    return (
        tuple(pixel_box(found, size) for found in labels),
        tuple((0, pixel_box(found, size)[1]) for found in unsure),
    )


def _same(one: _Given, other: _Given) -> bool:
    """Whether each box of one is a box of the other."""
    return all(
        len(a) == len(b) and None not in _partners(a, b)
        for a, b in ((one.labels, other.labels), (one.unsure, other.unsure))
    )


def _partners(boxes: Sequence[Box], others: Sequence[Box]) -> list[int | None]:
    """For each box the place of the one that it is among others, of its class and within `_MOVED`; none twice."""
    free = dict(enumerate(others))
    partners: list[int | None] = []
    for label, box in boxes:
        apart = [
            (max(abs(a - b) for a, b in zip(box, edges)), place)
            for place, (number, edges) in free.items()
            if number == label
        ]
        distance, nearest = min(apart, default=(math.inf, -1))
        partners.append(nearest if distance <= _MOVED else None)
        if distance <= _MOVED:
            del free[nearest]
    return partners


def _write(pair: Standing, given: _Given, confirmed: bool, counts: Corrections) -> None:
    """Write a pair's label file, then its sidecar; of one that is confirmed the sidecar alone.

    What is known of a box that the person left goes on.
    """
    labels, unsure = _pixels(pair.labels, pair.unsure, pair.size)
    same, doubtful = _partners(given.labels, labels), _partners(given.unsure, unsure)
    counts.added += same.count(None)
    counts.removed += len(labels) - (len(same) - same.count(None))
    before = pair.sidecar
    if before is not None and before.person:
        before = before.before
    sidecar = Sidecar(
        tuple(
            found_at(box, pair.size, 1.0) if place is None else pair.labels[place]
            for box, place in zip(given.labels, same)
        ),
        tuple(
            found_at(box, pair.size, 0.0) if place is None else pair.unsure[place]
            for box, place in zip(given.unsure, doubtful)
        ),
        person=True,
        before=before,
    )
    if not confirmed:  # what a person wrote in his own way, as a polygon, stays so
        with whole_file(pair.label_file) as aside:
            aside.write_text(label_text(sidecar), encoding="utf-8")
    write_sidecar(pair.sidecar_file, sidecar)
