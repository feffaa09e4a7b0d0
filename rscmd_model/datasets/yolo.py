"""Paired YOLO folders: an image finds its partner and its label file by stem."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rscmd_model.datasets.pairs import Labels, Listing, PairFiles, Problem, images_in, match, tidy
from rscmd_model.errors import UserError


@dataclass(frozen=True)
class YoloFolders:
    """Per split a folder of visible images, one of thermal images and one of labels (`Reader`)."""

    folders: tuple[tuple[str, Path, Path, Path], ...]

    def pairs(self, split: str) -> Listing:
        """Pairs by stem; a pair without a label file has no objects."""
        _, visible_folder, thermal_folder, labels = next(row for row in self.folders if row[0] == split)
        visible, doubled = images_in(visible_folder)
        thermal, doubled_too = images_in(thermal_folder)
        stems, missing = match(visible, thermal)
        if not visible and not thermal:
            raise UserError(f"{split}: no images in {visible_folder}")
        if not labels.is_dir():
            raise UserError(f"{split}: no folder {labels} with the labels")
        found = tuple(
            PairFiles(s, visible[s], thermal[s], label if (label := labels / f"{s}.txt").is_file() else None)
            for s in stems
        )
        return Listing(found, (*doubled, *doubled_too, *missing))

    def labels(self, pair: PairFiles, names: Mapping[int, str]) -> Labels:
        """Lines of "class cx cy w h", centre and size as fractions of the image."""
        return read_yolo(pair.label, names)


def read_yolo(file: Path | None, names: Mapping[int, str]) -> Labels:
    """Read a YOLO label file; None means no objects. Faults are problems that name file and line."""
    if file is None:
        return tidy([], Path(), [])
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return Labels(tidy([], file, []).boxes, (Problem("bad_label", file, f"cannot read {file}: {error}"),))
    rows, where, problems = [], [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            cls, cx, cy, w, h = (float(x) for x in line.split())
        except ValueError:
            text = f"{file}, {place}: expected 'class cx cy w h', got {line.strip()!r}"
            problems.append(Problem("bad_label", file, text))
            continue
        if not math.isfinite(cls) or cls not in names:
            text = f"{file}, {place}: class {cls:g} is unknown; names has classes 0 to {len(names) - 1}"
            problems.append(Problem("unknown_class", file, text))
            continue
        rows.append((cls, cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
        where.append(place)
    labels = tidy(rows, file, where)
    return Labels(labels.boxes, (*problems, *labels.problems))
