"""What is known of each label of a pair that no person drew: a JSON file beside the YOLO label file.

`labels/train/NAME.txt` has the objects as any tool reads them, and `sidecars/train/NAME.json` of each of its lines the
score, what each camera alone gave it, and its track; and the regions where something may be, in which nothing is to be
learned. A label file whose lines are no longer those of its sidecar was changed by a person: then it is the whole truth
of its pair, and the sidecar's regions are over. A sidecar that says `person` goes with the labels that a person left,
and its regions are those that the person left as doubtful.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rscmd_model.errors import UserError, first_line
from rscmd_model.files import write_json
from rscmd_model.text import read_json

SEEN = 0.1
"""A camera whose own answer gives an object this score has seen it."""
_VERSION = 1
_FIELDS = ("score", "visible", "thermal")


@dataclass(frozen=True)
class Found:
    """An object that a model found in a pair.

    Attributes:
        line: as it stands in the label file: "class cx cy w h", fractions of the visible image with six digits.
        score: of the joint answer, 0 to 1.
        visible, thermal: score of that camera's own answer, 0 where it has no such object; None where the model that
            labelled has no such answer.
        track: number of the object through the recording; None for one that was found in this pair alone.
    """

    line: str
    score: float
    visible: float | None = None
    thermal: float | None = None
    track: int | None = None

    def seen_by(self, modality: str) -> bool:
        """Whether the camera alone gives the object a score of `SEEN` or more, or nobody asked it."""
        score = self.visible if modality == "visible" else self.thermal
        return score is None or score >= SEEN


@dataclass(frozen=True)
class Sidecar:
    """What is known of a pair's labels.

    Attributes:
        labels: the lines of the label file.
        ignore: regions in which something may be: neither object nor background.
        person: whether a person looked at the pair's labels, which are then the whole truth but for `ignore`.
        before: what a model had said, where a person has looked at it or another model has labelled since; its own
            `before` is what had been said before that, and so on.
    """

    labels: tuple[Found, ...] = ()
    ignore: tuple[Found, ...] = ()
    person: bool = False
    before: Sidecar | None = None

    def touched(self, text: str) -> bool:
        """Whether a label file with this content was made or changed by a person.

        Args:
            text: of the whole label file.
        """
        return self.person or not self.goes_with(text)

    def regions(self, text: str) -> tuple[Found, ...]:
        """The regions to ignore beside a label file with this content: none where its lines are no longer `labels`.

        Args:
            text: of the whole label file.
        """
        return self.ignore if self.goes_with(text) else ()

    def goes_with(self, text: str) -> bool:
        """Whether the lines of a label file with this content are `labels`, in any order.

        Args:
            text: of the whole label file.
        """
        lines = sorted(" ".join(line.split()) for line in text.splitlines() if line.strip())
        return lines == sorted(found.line for found in self.labels)


def label_line(label: int, box: Sequence[float]) -> str:
    """A line of a YOLO label file.

    Args:
        label: number of the class.
        box: cx, cy, w, h as fractions of the image.
    """
    return f"{label} " + " ".join(f"{value:.6f}" for value in box)


def numbers(line: str) -> tuple[float, ...]:
    """Class, cx, cy, w, h of a `label_line`. Raises `ValueError` where it is none."""
    values = tuple(float(word) for word in line.split())
    if len(values) != 5 or not all(map(math.isfinite, values)):
        raise ValueError(f"{line[:60]!r} is no line of a label file")
    return values


def label_text(sidecar: Sidecar) -> str:
    """The label file that goes with a sidecar."""
    return "".join(found.line + "\n" for found in sidecar.labels)


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Write a sidecar, whole.

    Raises:
        UserError: it cannot be written.
    """
    write_json(path, {"version": _VERSION, **_content(sidecar)})


def read_sidecar(path: Path) -> Sidecar:
    """Read a sidecar.

    Raises:
        UserError: it is missing, no JSON, of a newer version, or not as `write_sidecar` writes it.
    """
    data: Any = read_json(path)
    try:
        version = data["version"]
        if version != _VERSION:
            raise UserError(f"{path} has version {version!r}, and {_VERSION} is read: update rscmd_model")
        return _sidecar(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path} is no sidecar of labels ({type(error).__name__}: {first_line(error)}): label the bag anew, or "
            "leave out 'sidecars' in data.yaml to take every label as sure"
        ) from None


def _content(sidecar: Sidecar) -> dict[str, Any]:
    content: dict[str, Any] = {"person": sidecar.person}
    for name in ("labels", "ignore"):
        content[name] = [
            {key: value for key, value in vars(found).items() if value is not None} for found in getattr(sidecar, name)
        ]
    return content if sidecar.before is None else {**content, "before": _content(sidecar.before)}


def _sidecar(data: Any) -> Sidecar:
    labels, ignore = (tuple(_found(item) for item in data[name]) for name in ("labels", "ignore"))
    before = data.get("before")
    return Sidecar(labels, ignore, bool(data["person"]), None if before is None else _sidecar(before))


def _found(item: Any) -> Found:
    numbers(item["line"])
    scores = {name: None if item.get(name) is None else float(item[name]) for name in _FIELDS}
    if any(score is not None and not 0 <= score <= 1 for score in scores.values()) or scores["score"] is None:
        raise ValueError(f"scores are within 0 to 1, got {item}")
    track = item.get("track")
    return Found(
        item["line"], scores["score"], scores["visible"], scores["thermal"], None if track is None else int(track)
    )
