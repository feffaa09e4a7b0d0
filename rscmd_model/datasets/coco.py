"""COCO json files of image pairs: the json of a split lists the visible images, each thermal one has the same name."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rscmd_model.datasets.pairs import Labels, Listing, PairFiles, Problem, tidy
from rscmd_model.errors import UserError
from rscmd_model.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class _Image:
    """One image of a COCO file: its size in px, and its annotations (category name, x, y, w, h, iscrowd)."""

    size: tuple[int, int]
    boxes: tuple[tuple[str, float, float, float, float, bool], ...]


@dataclass(frozen=True)
class CocoPairs:
    """Per split a folder of visible images, one of thermal images, and a json file (`Reader`)."""

    splits: tuple[tuple[str, Path, Path, Path], ...]

    def pairs(self, split: str) -> Listing:
        """The pairs that the json lists: `file_name` in the visible folder, the same stem in the thermal one."""
        _, visible_folder, thermal_folder, file = next(row for row in self.splits if row[0] == split)
        for folder in (visible_folder, thermal_folder):
            if not folder.is_dir():
                raise UserError(f"no folder {folder}")
        images, _ = load_coco(file)
        found: list[PairFiles] = []
        problems: list[Problem] = []
        for name in sorted(images):
            visible = visible_folder / name
            wanted = thermal_folder / name
            partners = [p for s in IMAGE_SUFFIXES for p in (wanted.with_suffix(s), wanted.with_suffix(s.upper()))]
            thermal = [p for p in partners if p.is_file()]
            if len(thermal) > 1:
                text = f"{thermal[0]} and {thermal[1]} have the same stem, so the partner of {visible} is ambiguous"
                problems.append(Problem("same_stem", thermal[1], text))
            elif not thermal:
                problems.append(Problem("no_partner", visible, f"{visible} has no thermal partner {wanted.stem}.*"))
            elif not visible.is_file():
                problems.append(Problem("no_partner", thermal[0], f"{file} names {visible}, which is not there"))
            else:
                found.append(PairFiles(str(Path(name).with_suffix("")), visible, thermal[0], file))
        return Listing(tuple(found), tuple(problems))

    def labels(self, pair: PairFiles, names: Mapping[int, str]) -> Labels:
        """The annotations of the pair's visible image; classes by category name."""
        assert pair.label is not None
        images, _ = load_coco(pair.label)
        folder = next(row[1] for row in self.splits if pair.visible.is_relative_to(row[1]) and row[3] == pair.label)
        image = images[pair.visible.relative_to(folder).as_posix()]
        index = {name: number for number, name in names.items()}
        rows, where, problems = [], [], []
        width, height = image.size
        for number, (name, x, y, w, h, crowd) in enumerate(image.boxes, 1):
            place = f"{pair.visible.name}, annotation {number}"
            if name not in index:
                text = f"{pair.label}, {place}: class {name!r} is unknown; names has {', '.join(index)}"
                problems.append(Problem("unknown_class", pair.label, text))
            elif crowd:
                problems.append(Problem("crowd", pair.label, f"{pair.label}, {place}: a crowd region, left out"))
            else:
                rows.append((float(index[name]), x / width, y / height, (x + w) / width, (y + h) / height))
                where.append(place)
        labels = tidy(rows, pair.label, where)
        return Labels(labels.boxes, (*problems, *labels.problems), image.size)


def load_coco(file: Path) -> tuple[dict[str, _Image], tuple[str, ...]]:
    """Images by `file_name`, and category names in order of their ids; kept until the file changes.

    Raises:
        UserError: the file is missing, no JSON, or lacks what a COCO detection file has.
    """
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    return _load(file, changed)


@functools.lru_cache(maxsize=8)
def _load(file: Path, changed: int) -> tuple[dict[str, _Image], tuple[str, ...]]:
    del changed  # part of the key
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        categories = {int(c["id"]): str(c["name"]) for c in data["categories"]}
        boxes: dict[int, list[tuple[str, float, float, float, float, bool]]] = {}
        for note in data["annotations"]:
            x, y, w, h = (float(v) for v in note["bbox"])
            row = (categories[int(note["category_id"])], x, y, w, h, bool(note.get("iscrowd", 0)))
            boxes.setdefault(int(note["image_id"]), []).append(row)
        images: dict[str, _Image] = {}
        for image in data["images"]:
            name, number = Path(str(image["file_name"])).as_posix(), int(image["id"])
            size = (int(image["width"]), int(image["height"]))
            if min(size) <= 0:
                raise UserError(f"{file}: image {name} has the size {size}")
            if name in images:
                raise UserError(f"{file} lists {name} twice")
            images[name] = _Image(size, tuple(boxes.pop(number, [])))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is no readable JSON: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is no COCO detection file: {type(error).__name__} {error}") from None
    if boxes:
        raise UserError(f"{file}: annotations of an image id {min(boxes)} that is not among its images")
    return images, tuple(categories[number] for number in sorted(categories))
