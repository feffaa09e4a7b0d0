"""The report of an evaluation: one HTML file that needs nothing else; charts and boxes are SVG, pictures inlined.

What it looks like stands in the template report.html.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import numpy.typing as npt

from rscmd_model.detections import Detections
from rscmd_model.evaluation.scoring import Truth
from rscmd_model.files import whole_file
from rscmd_model.imaging.draw import colour
from rscmd_ros.bags.charts import curve, histogram, stacked_bars

LEDGER_COLOURS = {
    "paired": "#2a9d8f",
    "alone": "#4f8fcf",
    "too_far": "#e76f51",
    "superseded": "#8d99ae",
    "late": "#e9c46a",
    "duplicate": "#b08968",
    "frozen": "#7f5539",
    "invalid": "#c1121f",
    "reset": "#7b5ea7",
    "pending": "#cbd5e1",
    "lost on the way": "#111827",
}
LEDGER_MEANING = {
    "paired": "is part of a pair",
    "alone": "the other camera was lost; answered by its own branch",
    "too_far": "no frame of the other camera within the slop",
    "superseded": "the partner went to a nearer frame: the surplus of the faster camera",
    "late": "older than a frame already received",
    "duplicate": "its stamp was there before",
    "frozen": "its camera repeated one and the same picture",
    "invalid": "could not be used: encoding, size or stamp",
    "reset": "was waiting when time jumped back",
    "pending": "was still waiting for a partner at the end",
    "lost on the way": "sent, but the node never received it",
}


@dataclass(frozen=True)
class Sample:
    """One pair to show. Boxes are in px of the visible picture.

    Attributes:
        visible: (H, W, 3) uint8 BGR.
        thermal: (h, w) uint8, of the same view.
        detections: what was found; None shows nothing.
        truth: what is there; None where that is not known.
        title: the line below.
    """

    visible: npt.NDArray[np.uint8]
    thermal: npt.NDArray[np.uint8]
    detections: Detections | None
    truth: Truth | None
    title: str


@dataclass(frozen=True)
class ReportData:
    """Everything that the report shows.

    Attributes:
        title: of the page.
        summary: the JSON's content.
        names: class names by index.
        dt_ms: |dt| of each pair, ms.
        latency_ms: of each pair, ms.
        latency_title: what that latency is called.
        latency_meaning: from when to when it runs.
        model: what is known of the model, by what it is called.
        curve: recall and precision, each 0 to 1, in rising order of recall; None where there is no truth.
        samples: pairs to show.
        notes: sentences that the figures need to be read rightly.
    """

    title: str
    summary: Mapping[str, Any]
    names: Mapping[int, str]
    dt_ms: Sequence[float]
    latency_ms: Sequence[float]
    latency_title: str
    latency_meaning: str
    model: Mapping[str, Any]
    curve: tuple[Sequence[float], Sequence[float]] | None = None
    samples: Sequence[Sample] = ()
    notes: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Label:
    """The text over a box: left upper corner and width, px."""

    x: float
    y: float
    width: float
    text: str


@dataclass(frozen=True)
class _Box:
    """A box in px of the picture; `paint` is a CSS colour."""

    x: float
    y: float
    width: float
    height: float
    paint: str = ""
    label: _Label | None = None


@dataclass(frozen=True)
class _Shown:
    """A sample as the template wants it: pictures as data URLs; line width and font size in px of the picture."""

    width: int
    height: int
    thin: float
    font: float
    visible: str
    thermal: str
    truth: Sequence[_Box]
    found: Sequence[_Box]
    title: str


def write_report(path: str | Path, data: ReportData, drawn_from: float) -> None:
    """Write the report.

    Args:
        path: of the HTML file.
        data: what it shows.
        drawn_from: boxes of a lower score are not drawn, 0 to 1.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(path) as aside:
        # A file name that is not UTF-8 holds surrogates, which have no place in a page.
        aside.write_text(_page(data, drawn_from), encoding="utf-8", errors="backslashreplace")


def _page(data: ReportData, drawn_from: float) -> str:
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template.filters |= {"share": _share, "ms": _ms, "px": _px, "paint": _paint, "plain": _plain}
    ledger = _ledger(data.summary)
    return template.get_template("report.html").render(
        data=data,
        live=data.summary.get("config", {}).get("mode") == "live",
        drawn_from=drawn_from,
        samples=[_shown(sample, data.names, drawn_from) for sample in data.samples],
        ledger=ledger,
        parts=_parts(ledger, data.summary),
        colours=LEDGER_COLOURS,
        meanings=LEDGER_MEANING,
        curve=curve,
        histogram=histogram,
        stacked_bars=stacked_bars,
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"


def _px(value: float) -> str:
    return f"{value:.1f}"


def _paint(number: int) -> str:
    b, g, r = colour(number)
    return f"#{r:02x}{g:02x}{b:02x}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _ledger(summary: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The ledger by stream, with the frames that never reached the node."""
    rows: dict[str, dict[str, int]] = {stream: dict(counts) for stream, counts in summary["ledger"].items()}
    for stream, count in summary.get("lost", {}).items():
        rows[stream]["lost on the way"] = count
    return rows


def _parts(ledger: Mapping[str, Mapping[str, int]], summary: Mapping[str, Any]) -> list[str]:
    """The rows of the ledger's table: every counter of the pairing, and of the others those that are not 0."""
    used = {part for counts in ledger.values() for part, count in counts.items() if count}
    return [part for part in LEDGER_COLOURS if part in used or part in summary["ledger"]["visible"]]


def _shown(sample: Sample, names: Mapping[int, str], drawn_from: float) -> _Shown:
    height, width = sample.visible.shape[:2]
    thermal = sample.thermal
    if thermal.shape != (height, width):
        thermal = np.asarray(cv2.resize(thermal, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    font = max(width, height) / 36
    return _Shown(
        width=width,
        height=height,
        thin=max(width, height) / 320,
        font=font,
        visible=_data_url(sample.visible),
        thermal=_data_url(thermal),
        truth=[_box(*corners) for corners in sample.truth.boxes.tolist()] if sample.truth is not None else [],
        found=_found(sample.detections, names, drawn_from, width, font) if sample.detections is not None else [],
        title=sample.title,
    )


def _found(found: Detections, names: Mapping[int, str], drawn_from: float, width: int, font: float) -> list[_Box]:
    """Detections as boxes with class and score above them; in a box at the upper edge, within it."""
    boxes = []
    for corners, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist()):
        if score < drawn_from:
            continue
        text = f"{names[label]} {score:.2f}"
        wide = 0.56 * font * len(text)
        left, top = max(min(corners[0], width - wide), 0.0), corners[1] - font if corners[1] >= font else corners[1]
        boxes.append(_box(*corners, paint=_paint(label), label=_Label(left, top, wide, text)))
    return boxes


def _box(x0: float, y0: float, x1: float, y1: float, **more: Any) -> _Box:
    return _Box(x0, y0, x1 - x0, y1 - y0, **more)


def _data_url(picture: npt.NDArray[np.uint8]) -> str:
    """A picture as a data URL; a large one goes as JPEG, so that the report stays small enough to send."""
    kind = ".png" if picture.size <= 400_000 else ".jpg"
    done, data = cv2.imencode(kind, picture)
    if not done:
        raise RuntimeError("a picture of the report could not be encoded")
    mime = "image/png" if kind == ".png" else "image/jpeg"
    return f"data:{mime};base64,{base64.b64encode(np.asarray(data).tobytes()).decode('ascii')}"
