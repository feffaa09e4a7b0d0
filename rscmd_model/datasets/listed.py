"""Pairs whose labels stand in one file for many images: COCO, CVAT and Label Studio.

Each form has a loader that gives the images it lists by name. Which image of which camera a name means, and which
pairs come of it, is decided here for all of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rscmd_model.datasets import coco, cvat, label_studio
from rscmd_model.datasets.entries import Entry, Listed
from rscmd_model.datasets.folders import others_below, walk
from rscmd_model.datasets.pairs import Labels, Listing, PairFiles, Place, Problem, tidy
from rscmd_model.datasets.two_labels import VISIBLE, Boxes
from rscmd_model.datasets.voc import FRACTIONS
from rscmd_model.errors import UserError, quoted
from rscmd_model.imaging.images import IMAGE_SUFFIXES

_LOADERS: Mapping[str, Callable[[Path], Listed]] = {
    "coco": coco.load,
    "cvat": cvat.load,
    "label_studio": label_studio.load,
}
FORMS = tuple(_LOADERS)
_DEEPEST = 64  # folders in a name
_CAMERAS = ("visible", "thermal")


@dataclass(frozen=True)
class _Folder:
    """The images of one camera.

    Attributes:
        path: the folder.
        stems: the images' paths below it, by the path without suffix.
    """

    path: Path
    stems: dict[str, list[str]]

    def has(self, name: str) -> bool:
        """Whether there is an image of this path below the folder."""
        return name in self.stems.get(os.path.splitext(name)[0], ())


@dataclass(frozen=True)
class ListedPairs:
    """Per split a folder of visible images, one of thermal images, and a file with the labels (`Reader`).

    Attributes:
        form: one of `FORMS`.
        splits: split, visible folder, thermal folder, file.
        boxes: which labels are used.
        chosen: whether somebody said so. If not, one camera alone may have labels, and those are used.
    """

    form: str
    splits: tuple[tuple[str, Path, Path, Path], ...]
    boxes: Boxes = VISIBLE
    chosen: bool = False

    def places(self) -> tuple[Place, ...]:
        """The two folders of each split."""
        return tuple(Place(s, kind, folder) for s, *pair, _ in self.splits for kind, folder in zip(_CAMERAS, pair))

    def unlisted(self) -> tuple[str, bool]:
        """The file is to name every image."""
        return "in the label file of no split", True

    def pairs(self, split: str) -> Listing:
        """The pairs whose visible or thermal image the file names.

        A name is a path below the visible or the thermal folder, with or without folders before it. An image's partner
        has the same path but for the suffix. A pair that nobody has labelled is left out, and is among the problems:
        its objects are not known, which is another thing than to have none.

        Raises:
            UserError: a folder is missing, or the file cannot be read or lists an image twice.
        """
        _, *paths, file = next(row for row in self.splits if row[0] == split)
        all_folders = {place.folder for place in self.places()}
        folders = [_images(path, others_below(path, all_folders)) for path in paths]
        listed = load(self.form, file)
        problems: list[Problem] = []
        entries: dict[str, list[str | None]] = {}  # by stem what the file calls the visible and the thermal image
        images: dict[str, list[str | None]] = {}
        for name in sorted(listed.images):
            camera, inner = _meant(name, folders)
            if not inner:
                text = f"{file} names {quoted(name)}, which is not there"
                problems.append(Problem("no_partner", paths[0] / os.path.basename(name), text))
                continue
            stem = os.path.splitext(inner)[0]
            entry = entries.setdefault(stem, [None, None])
            if entry[camera] is not None:
                text = f"{entry[camera]} and {name}"
                raise UserError(f"{file} lists {folders[camera].path / inner} twice: as {quoted(text)}")
            entry[camera] = name
            images.setdefault(stem, [None, None])[camera] = inner
        if not self.chosen:
            _labelled(listed, entries, file)
        pairs = []
        for stem, named in sorted(images.items()):
            found, problem = _partners(stem, named, folders)
            if problem is None and not self._is_done(listed, entries[stem]):
                text = f"{file} lists {found[0]}, and nobody has labelled it"
                problem = Problem("unlabelled", found[0], text, partner=found[1])
            if problem is None:
                visible, thermal = found
                pairs.append(PairFiles(stem, visible, thermal, file, entries=(entries[stem][0], entries[stem][1])))
            else:
                problems.append(problem)
        return Listing(tuple(pairs), tuple(problems))

    def _is_done(self, listed: Listed, names: list[str | None]) -> bool:
        """Whether somebody has labelled the images of a pair whose labels are used.

        Args:
            listed: of the file.
            names: what the file calls the visible and the thermal image; None where it does not list it.
        """
        done = [None if name is None else listed.images[name].done for name in names]
        if self.chosen and self.boxes.choice != "union":
            used = done[_CAMERAS.index(self.boxes.choice)]
            return any(done) if used is None else used
        return False not in done

    def labels(self, pair: PairFiles, names: Mapping[int, str]) -> Labels:
        """As `Reader.labels`: the objects drawn on either image of the pair, as `boxes` says."""
        assert pair.label is not None
        listed = load(self.form, pair.label)
        visible, thermal = (
            _labels(None if name is None else listed.images[name], pair.label, image, names)
            for name, image in zip(pair.entries, (pair.visible, pair.thermal))
        )
        second = pair.entries[1]
        if not self.chosen and second is not None and listed.images[second].shapes:  # then no visible image has labels
            return replace(self.boxes, choice="thermal").of(visible, thermal)
        return self.boxes.of(visible, thermal)


def load(form: str, file: Path) -> Listed:
    """Read what a label file lists; the result is kept until the file changes.

    Args:
        form: one of `FORMS`.
        file: the label file.

    Raises:
        UserError: as the loader of the form.
    """
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    return _load(form, file, changed)


@functools.lru_cache(maxsize=8)
def _load(form: str, file: Path, changed: int) -> Listed:
    del changed  # part of the key
    return _LOADERS[form](file)


def _images(path: Path, without: list[Path]) -> _Folder:
    if not path.is_dir():
        raise UserError(f"no folder {path}")
    stems: dict[str, list[str]] = {}
    for name in walk(path, without):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES:
            stems.setdefault(stem, []).append(name)
    return _Folder(path, stems)


def _meant(name: str, folders: list[_Folder]) -> tuple[int, str]:
    """Which camera's image a name means, and its path below that camera's folder ("" for no image).

    Where both cameras have an image of that path, the folders before it decide; without any it is the visible one.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")][-_DEEPEST:]
    best = (-1, 0, "")
    for camera, folder in enumerate(folders):
        for start in range(len(parts)):
            inner = "/".join(parts[start:])
            if folder.has(inner):
                before, own = parts[:start], folder.path.parts
                alike = 0
                while alike < min(len(before), len(own)) and before[-1 - alike] == own[-1 - alike]:
                    alike += 1
                rank = len(parts) - start + alike
                if rank > best[0]:
                    best = (rank, camera, inner)
                break
    return best[1], best[2]


def _partners(stem: str, named: list[str | None], folders: list[_Folder]) -> tuple[tuple[Path, Path], Problem | None]:
    """The two images of a stem: those that the file names, the only one of that stem for the other."""
    files = [folder.path / stem for folder in folders]
    for camera, folder in enumerate(folders):
        here = named[camera]
        choice = [here] if here is not None else folder.stems.get(stem, [])
        if not choice:
            other = folders[1 - camera].path / str(named[1 - camera])
            text = f"{other} has no {_CAMERAS[camera]} partner {folder.path / stem}.*"
            return (other, other), Problem("no_partner", other, text)
        if len(choice) > 1:
            text = f"{folder.path / choice[0]} and {folder.path / choice[1]} have the same stem, so the partner"
            other = folders[1 - camera].path / str(named[1 - camera])
            return (other, other), Problem("same_stem", folder.path / choice[1], f"{text} of {other} is ambiguous")
        files[camera] = folder.path / choice[0]
    return (files[0], files[1]), None


def _labelled(listed: Listed, entries: dict[str, list[str | None]], file: Path) -> None:
    """Refuse labels on both cameras' images where nobody said which are meant."""
    counts = [
        sum(bool(listed.images[name].shapes) for entry in entries.values() if (name := entry[camera]) is not None)
        for camera in (0, 1)
    ]
    if all(counts):
        raise UserError(
            f"{file} has labels on {counts[0]} visible and {counts[1]} thermal images: add 'boxes: visible', "
            "'boxes: thermal' or 'boxes: union' to data.yaml"
        )


def _labels(entry: Entry | None, file: Path, image: Path, names: Mapping[int, str]) -> Labels:
    if entry is None:
        return tidy([], file, [])
    index = {name: number for number, name in names.items()}
    rows, where, hints, problems = [], [], [], []
    for shape in entry.shapes:
        place = f"{image.name}, {shape.place}"
        assert entry.size is not None  # as of every image with objects
        width, height = entry.size
        if shape.left_out is not None:
            kind, reason = shape.left_out
            problems.append(Problem(kind, file, f"{file}, {place}: {reason}"))
        elif shape.name not in index:
            text = f"{file}, {place}: class {quoted(shape.name)} is unknown; names has {', '.join(index)}"
            problems.append(Problem("unknown_class", file, text))
        elif max(map(abs, shape.box)) <= 1 < min(entry.size):
            problems.append(Problem("units", file, f"{file}, {place}: {FRACTIONS}"))
        else:
            left, top, right, bottom = shape.box
            rows.append((float(index[shape.name]), left / width, top / height, right / width, bottom / height))
            where.append(place)
            hints.append(shape.hint)
    labels = tidy(rows, file, where, hints)
    return Labels(labels.boxes, (*problems, *labels.problems), entry.size)
