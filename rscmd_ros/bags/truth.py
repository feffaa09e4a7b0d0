"""What is really in the recorded pictures: from a topic of the bag, or from a COCO file that knows frames by stamp."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.evaluation.scoring import Truth
from rscmd_model.text import read_json
from rscmd_ros.bags.reader import Bag
from rscmd_ros.bags.topics import DETECTIONS
from rscmd_ros.cameras.conversions import best_hypothesis, stamp_ns, upright_box

Box = tuple[float, float, float, float]


@dataclass
class FrameTruths:
    """What is really in the frames.

    Attributes:
        by_stamp: by the frame's header stamp in ns, class names and boxes (x0, y0, x1, y1) in px of the visible frame.
    """

    by_stamp: dict[int, list[tuple[str, Box]]] = field(default_factory=dict)

    def for_classes(self, stamp: int, names: Mapping[int, str]) -> Truth:
        """The frame's truth in the model's class numbers; boxes of classes the model does not know are left out."""
        numbers = _numbers(names)
        rows = [(box, numbers[name]) for name, box in self.by_stamp[stamp] if name in numbers]
        return Truth(
            np.array([box for box, _ in rows], np.float32).reshape(-1, 4), np.array([n for _, n in rows], np.int64)
        )

    def unknown(self, names: Mapping[int, str]) -> list[str]:
        """Classes that occur here and that the model does not know, sorted."""
        return sorted({name for rows in self.by_stamp.values() for name, _ in rows} - set(_numbers(names)))


def _numbers(names: Mapping[int, str]) -> dict[str, int]:
    """Class numbers by name, and by the number itself, which some publishers use for a class_id."""
    return {str(number): number for number in names} | {name: number for number, name in names.items()}


def truth_from_topic(bag: Bag, topic: str) -> FrameTruths:
    """Read the truth of a bag.

    Args:
        bag: it is read to its end.
        topic: of vision_msgs/Detection2DArray, under the headers of the visible frames.

    Raises:
        UserError: the topic is of another type, a box has no class or is none, or two messages have one stamp.
    """
    bag.require(topic, DETECTIONS, "--truth-topic")
    truths, where = FrameTruths(), f"{topic} in {bag.path}"
    for _, _, message in bag.messages([topic]):
        rows = _rows_of(truths, stamp_ns(message.header), f"messages of {where}")
        for detection in message.detections:
            if (best := best_hypothesis(detection)) is None:
                raise UserError(f"{where} has a box without a class (its results are empty)")
            rows.append((best.class_id, _whole(upright_box(detection.bbox), where)))
    return truths


def _rows_of(truths: FrameTruths, stamp: int, what: str) -> list[tuple[str, Box]]:
    """The boxes of a frame that was not met before, none yet."""
    if stamp in truths.by_stamp:
        raise UserError(
            f"two {what} have the stamp {stamp}: what is in a frame is said once, by the stamp of its visible picture"
        )
    return truths.by_stamp.setdefault(stamp, [])


def _whole(box: Box, where: str) -> Box:
    if not all(map(math.isfinite, box)):
        raise UserError(f"{where} has a box that is none: {', '.join(f'{value:g}' for value in box)}")
    return box


def truth_from_file(path: Path) -> FrameTruths:
    """Read a COCO detection file.

    A frame is known by its stamp: the key `stamp` of the image entry (integer ns), or a file name made of it, as
    1700000000123456789.png or 1700000000.123456789.png.

    Raises:
        UserError: it cannot be read, is no such file, an image has no stamp or that of another, or a box is none.
    """
    data: Any = read_json(path)
    try:
        names = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
        stamps = {entry["id"]: _stamp(entry, path) for entry in data["images"]}
        truths = FrameTruths()
        for stamp in stamps.values():
            _rows_of(truths, stamp, f"images of {path}")
        for entry in data["annotations"]:
            if entry.get("iscrowd"):
                continue
            x, y, w, h = (float(value) for value in entry["bbox"])
            rows = truths.by_stamp[stamps[entry["image_id"]]]
            rows.append((names[entry["category_id"]], _whole((x, y, x + w, y + h), str(path))))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is not a COCO detection file: {type(error).__name__} {error}") from None
    return truths


def _stamp(entry: Mapping[str, Any], path: Path) -> int:
    if isinstance(entry.get("stamp"), int):
        return int(entry["stamp"])
    name = str(entry.get("file_name", ""))
    match = re.fullmatch(r"(\d+)(?:\.(\d{9}))?(?:\.[A-Za-z]\w*)?", Path(name).name)
    if match is None:
        raise UserError(f"{path}: image {name!r} has no stamp; give the key 'stamp' (ns) or name the file by it")
    seconds, nanoseconds = match.groups()
    return int(seconds) if nanoseconds is None else int(seconds) * 10**9 + int(nanoseconds)
