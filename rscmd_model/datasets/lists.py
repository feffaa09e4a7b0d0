"""Pairs listed in two text files, one path a line, as CFT and ICAFusion have them: visible images and thermal ones."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rscmd_model.datasets.pairs import Labels, Listing, PairFiles, Place, Problem, match
from rscmd_model.datasets.two_labels import VISIBLE, Boxes
from rscmd_model.datasets.yolo import read_yolo
from rscmd_model.errors import UserError, quoted
from rscmd_model.text import is_path, read_text


@dataclass(frozen=True)
class ImageLists:
    """Per split a list of visible and one of thermal images (`Reader`).

    A line is a path: absolute, or from the list's folder, or from the data's root. The label file of an image lies
    where YOLO looks for it: in the path the last folder `images` becomes `labels`, the suffix .txt; without such a
    folder beside the image.

    Attributes:
        root: the data's folder.
        lists: split, list of visible images, list of thermal ones.
        labels_in: folder of each split's labels by the image's stem, instead of YOLO's rule.
        thermal_labels: the same for the thermal images.
        boxes: which of the labels are used.
    """

    root: Path
    lists: tuple[tuple[str, Path, Path], ...]
    labels_in: tuple[tuple[str, Path], ...] = ()
    thermal_labels: tuple[tuple[str, Path], ...] = ()
    boxes: Boxes = VISIBLE

    def places(self) -> tuple[Place, ...]:
        """The folders of the labels where they are named; the images may lie anywhere."""
        return tuple(
            Place(split, "labels", folder, ".txt") for split, folder in (*self.labels_in, *self.thermal_labels)
        )

    def unlisted(self) -> tuple[str, bool]:
        """Lists leave images out on purpose."""
        return "in the list of no split", False

    def pairs(self, split: str) -> Listing:
        """The pairs of two lists of images.

        Where both lists have the same names in the same order, images of one line belong together. Else images of one
        stem do, where stems occur once.

        Raises:
            UserError: a list cannot be read, or tells no pairs.
        """
        _, *files = next(row for row in self.lists if row[0] == split)
        visible, thermal = (self._read(file) for file in files)
        by_line = len(visible) == len(thermal) and all(map(_alike, visible, thermal))
        problems: list[Problem] = []
        if by_line:
            chosen = list(zip(visible, thermal))
        else:
            stems = [{image.stem: image for image in images} for images in (visible, thermal)]
            if any(len(found) < len(images) for found, images in zip(stems, (visible, thermal))):
                raise UserError(
                    f"{split}: {files[0]} ({len(visible)} images) and {files[1]} ({len(thermal)}) do not name the same "
                    "pairs line by line, and names occur more than once, so that they do not tell the pairs either"
                )
            both, problems = match(*stems)
            if not both:
                raise UserError(f"{split}: no image of {files[0]} has the name of one of {files[1]}")
            chosen = [(stems[0][stem], stems[1][stem]) for stem in both]
        pairs = []
        for images in chosen:
            gone = [image for image in images if not image.is_file()]
            if gone:
                kind = "missing" if len(gone) == 2 else "no_partner"
                problems.append(Problem(kind, gone[0], f"{gone[0]} is listed and not there"))
                continue
            label = self._label(images[0], dict(self.labels_in).get(split))
            other = None
            if self.boxes.choice != "visible":
                other = self._label(images[1], dict(self.thermal_labels).get(split))
            pairs.append(PairFiles(self._stem(images[0]), *images, label, other))
        for shared in ([p.label for p in pairs if p.label], [p.thermal_label for p in pairs if p.thermal_label]):
            if len(set(shared)) < len(shared):
                file = next(file for file, count in Counter(shared).items() if count > 1)
                raise UserError(f"{split}: several images have the label file {file}, for they have the same name")
        for camera, file, found, folders in (  # each by itself: labels of one do not stand in for those of the other
            ("visible", files[0], [(p.visible, p.label) for p in pairs], self.labels_in),
            ("thermal", files[1], [(p.thermal, p.thermal_label) for p in pairs], self.thermal_labels),
        ):
            if self.boxes.choice in (camera, "union") and found and not any(label for _, label in found):
                wanted = _beside(found[0][0], dict(folders).get(split))
                text = f"{split}: not one image of {file} has a label file; the first one's would be {wanted}"
                problems.append(Problem("foreign_labels", file, text))
        return Listing(tuple(sorted(pairs, key=lambda pair: pair.stem)), tuple(problems))

    def labels(self, pair: PairFiles, names: Mapping[int, str]) -> Labels:
        """As `Reader.labels`, from YOLO label files."""
        return self.boxes.of(read_yolo(pair.label, names), read_yolo(pair.thermal_label, names))

    def _read(self, file: Path) -> list[Path]:
        lines = [(n, line.strip()) for n, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
        if not lines:
            raise UserError(f"{file} lists nothing")
        base, found = None, []
        for number, line in lines:
            if not is_path(line):
                raise UserError(f"{file}, line {number}: {quoted(line)} is no path")
            path = Path(line.replace("\\", "/"))
            if base is None or not (base / path).is_file():  # from which of the two, the first line tells
                base = next((b for b in (file.parent, self.root) if (b / path).is_file()), base or file.parent)
            found.append(Path(os.path.normpath(base / path)))
        if len(set(found)) < len(found):
            seen: set[Path] = set()
            twice = next(path for path in found if path in seen or seen.add(path))  # type: ignore[func-returns-value]
            raise UserError(f"{file} lists {twice} twice")
        return found

    def _label(self, image: Path, folder: Path | None) -> Path | None:
        file = _beside(image, folder)
        return file if file.is_file() else None

    def _stem(self, image: Path) -> str:
        inner = image.relative_to(self.root) if image.is_relative_to(self.root) else image
        return inner.with_suffix("").as_posix()


def _alike(visible: Path, thermal: Path) -> bool:
    """Whether two names mean one moment: the same stem, or the same numbers in it (FLIR_00002_RGB, ..._PreviewData)."""
    numbers = re.findall(r"\d+", visible.stem)
    return visible.stem == thermal.stem or (bool(numbers) and numbers == re.findall(r"\d+", thermal.stem))


def _beside(image: Path, folder: Path | None) -> Path:
    """Where an image's label file is looked for."""
    if folder is not None:
        return folder / f"{image.stem}.txt"
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")
