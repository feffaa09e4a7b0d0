"""The files below a data set's folders that no pair uses, and why: a wrong name is found before it costs a training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from rscmd_model.datasets.folders import walk
from rscmd_model.datasets.pairs import DataConfig, Listing, Place, Problem, list_pairs
from rscmd_model.datasets.yolo import is_label
from rscmd_model.errors import UserError, quoted
from rscmd_model.imaging.images import IMAGE_SUFFIXES
from rscmd_model.text import read_text

# Pictures that are not read, raw recordings of thermal cameras among them.
_PICTURES = (
    ".arw", ".avif", ".cr2", ".csq", ".dng", ".exr", ".fff", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl",
    ".mpo", ".nef", ".pbm", ".pfm", ".pgm", ".pnm", ".ppm", ".raw", ".rjpeg", ".seq", ".tga", ".webp",
)  # fmt: skip
_CLASS_LISTS = ("classes.txt", "obj.names", "labels.txt")
_ByName = dict[str, list[tuple[str, str, Path]]]
"""By the stem of a file in small letters: split, stem of the pair, image."""
_LABELS = (".json", ".label", ".labels", ".lbl", ".text", ".txt", ".xml")


@dataclass(frozen=True)
class Unused:
    """A file that no pair uses.

    Attributes:
        file: its path.
        reason: why no pair uses it.
        kind: of the problem that this is (a key of `KINDS`), or None where it is none.
    """

    file: Path
    reason: str
    kind: str | None = None


def list_all(data: DataConfig) -> dict[str, Listing]:
    """Every split that can be listed."""
    listings = {}
    for split in data.splits:
        try:
            listings[split] = list_pairs(data, split)
        except UserError:  # told where the split is wanted
            continue
    return listings


def find_unused(data: DataConfig, listings: Mapping[str, Listing]) -> list[Unused]:
    """Every file below the data's folders that is in no pair and in no problem.

    The folders are those of the splits, and those that hold these as long as they lie within the data's root.

    Args:
        data: the data set.
        listings: of its splits.

    Returns:
        the files in order of their paths.
    """
    places = data.reader.places()
    folders = {place.folder for place in places}
    folders |= {folder.parent for folder in folders if _within(folder.parent, data.root)}
    problems = [problem for listing in listings.values() for problem in listing.problems]
    used = {str(file) for problem in problems for file in (problem.file, problem.partner) if file is not None}
    for listing in listings.values():
        for pair in listing.pairs:
            files = pair.visible, pair.thermal, pair.label, pair.thermal_label, pair.sidecar
            used |= {str(file) for file in files if file is not None}
    found: set[str] = set()
    for folder in folders:
        if not any(folder != other and folder.is_relative_to(other) for other in folders) and folder.is_dir():
            found |= {os.path.join(folder, name) for name in walk(folder)} - used
    names = _Names(data, listings, places, found)
    return [names.why(Path(file)) for file in sorted(found)]


def problems_of(unused: list[Unused]) -> list[Problem]:
    """A problem for each file that somebody may have meant to be used."""
    return [Problem(u.kind, u.file, f"{u.file} is not used: {u.reason}") for u in unused if u.kind is not None]


def unused_line(data: DataConfig) -> str:
    """How many files below the data's folders a training does not use, on one line; "" for none that matter."""
    problems = problems_of(find_unused(data, list_all(data)))
    if not problems:
        return ""
    counts = Counter(problem.kind for problem in problems if problem.kind.startswith("unused_"))
    if not counts:
        return ""
    said = " and ".join(f"{counts[k]} {k.removeprefix('unused_')} files" for k in sorted(counts, reverse=True))
    first = next(problem.text for problem in problems if problem.kind in counts)
    where = "below the data's folders are not used (`rscmd_model.datasets check` lists them)"
    return f"{said} {where}, first: {first}"


class _Names:
    """What the images of the splits are called, to tell why a file is none of theirs."""

    def __init__(
        self, data: DataConfig, listings: Mapping[str, Listing], places: tuple[Place, ...], unused: Collection[str]
    ) -> None:
        self.reader = data.reader
        self.names = list(data.names.values())
        self.places = sorted(places, key=lambda place: -len(place.folder.parts))  # the innermost first
        self.labels = sorted((place for place in places if place.kind == "labels"), key=lambda place: place.folder)
        parents = {place.folder.parent for place in self.labels if _within(place.folder.parent, data.root)}
        images = [place.folder for place in places if place.kind != "labels"]
        self.above = [parent for parent in parents if not any(folder.is_relative_to(parent) for folder in images)]
        self.images: _ByName = {}
        self.incomplete: _ByName = {}
        for split, listing in listings.items():
            alone = [p.file for p in listing.problems if p.kind in ("no_partner", "same_stem", "missing")]
            for known, stems in (
                (self.images, {pair.stem: pair.visible for pair in listing.pairs}),
                (self.incomplete, {_stem(file, places): file for file in alone}),
            ):
                for stem, image in stems.items():
                    known.setdefault(os.path.basename(stem).lower(), []).append((split, stem, image))
        self.unused: dict[str, str] = {}  # images that no pair uses, by their own stem
        for file in unused:
            stem, suffix = os.path.splitext(os.path.basename(file))
            if suffix.lower() in (*IMAGE_SUFFIXES, *_PICTURES):
                self.unused[stem] = file

    def why(self, file: Path) -> Unused:
        """Why no pair uses a file."""
        stem, suffix = os.path.splitext(file.name)
        place = next((place for place in self.places if file.is_relative_to(place.folder)), None)
        if file.name.startswith(".") or file.name == "__MACOSX":
            return Unused(file, "hidden")
        if suffix.lower() in IMAGE_SUFFIXES:
            if place is None or place.kind == "labels":
                return Unused(file, "in the folder of no split")
            reason, matters = self.reader.unlisted()
            return Unused(file, reason, "unused_image" if matters else None)
        if suffix.lower() in _PICTURES:
            reason = f"pictures of the format {suffix} are not read: convert to PNG or JPEG"
            return Unused(file, reason, "unused_image")
        in_labels = place is not None and place.kind == "labels"
        near_labels = in_labels or any(file.is_relative_to(parent) for parent in self.above)
        if near_labels and file.name in _CLASS_LISTS:
            return self._class_list(file)
        if suffix.lower() not in _LABELS or not is_label(file.name) or not (near_labels or self._like(stem)):
            return Unused(file, "no image and no label file")
        if stem in self.unused and (place is None or not place.split):
            return Unused(file, f"{self.unused[stem]}, which has its name, is not used")
        inner = file.relative_to(place.folder).with_suffix("").as_posix() if place is not None else ""
        whole_set = in_labels and place is not None and not place.split
        incomplete = self._like(stem, self.incomplete) if whole_set else self.incomplete.get(stem.lower(), [])
        if in_labels and any(whole_set or inner == row[1] for row in incomplete):
            return Unused(file, "its image is in no whole pair")  # which is a problem of its own
        own_split = place.split if place is not None else ""
        return Unused(file, self._label(file, stem, inner, place if in_labels else None, own_split), "unused_label")

    def _label(self, file: Path, stem: str, inner: str, place: Place | None, own_split: str) -> str:
        """Why a label file (`inner`: its path below its folder, without suffix) belongs to no pair."""
        if place is None:
            folders = [str(p.folder) for p in self.labels if own_split in ("", p.split)]
            return f"labels are read from {' and '.join(dict.fromkeys(folders[:3])) or 'the label file of the set'}"
        if file.suffix != place.suffix:
            return f"its suffix is {file.suffix}, and {place.suffix} is read"
        own = [row for row in self.images.get(stem.lower(), []) if place.split in ("", row[0])]
        for _, image_stem, image in own:
            if image_stem.lower() == inner.lower():
                return f"{image} differs from its name in upper and lower case"
            return f"{image} has its name, and its label file would be {place.folder / image_stem}{place.suffix}"
        if stem in self.unused:
            return f"{self.unused[stem]}, which has its name, is not used"
        for split, _, image in self.images.get(stem.lower(), []):
            return f"{image}, which has its name, is in the split {split}"
        near = self._like(stem)
        nearest = next((image for split, _, image in near if split == place.split), near[0][2] if near else None)
        return f"no image of {place.split or 'any split'} has its name" + (
            f"; the nearest is {nearest}" if nearest else ""
        )

    def _class_list(self, file: Path) -> Unused:
        """A tool's own list of classes: label files have numbers, so another order is another class in silence."""
        try:
            classes = [line.strip() for line in read_text(file).splitlines() if line.strip()]
        except UserError:
            classes = []
        if classes in ([], self.names):
            return Unused(file, "no image and no label file")
        reason = f"it lists {quoted(', '.join(classes))}, and names has {quoted(', '.join(self.names))}"
        return Unused(file, reason, "class_list")

    def _like(self, stem: str, known: _ByName | None = None) -> list[tuple[str, str, Path]]:
        """Images of that stem, or of one that lacks what stands before or after a dot, a line or a dash in it."""
        tries = [stem]
        for mark in "_-.":
            tries += [stem.rpartition(mark)[0], stem.partition(mark)[2]]
        known = self.images if known is None else known
        return next((known[c.lower()] for c in tries if c and c.lower() in known), [])


def _stem(file: Path, places: tuple[Place, ...]) -> str:
    inside = [place.folder for place in places if file.is_relative_to(place.folder)]
    folder = max(inside, key=lambda folder: len(folder.parts), default=file.parent)
    return file.relative_to(folder).with_suffix("").as_posix()


def _within(folder: Path, root: Path) -> bool:
    return folder != root and folder.is_relative_to(root)
