"""The report of an evaluation: one HTML file that needs nothing else; charts and boxes are SVG, pictures inlined."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rscmd_model.detections import Detections
from rscmd_model.draw import colour
from rscmd_model.files import whole_file
from rscmd_model.scoring import Truth
from rscmd_ros.charts import curve, histogram, stacked_bars

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
    """One pair to show: visible (H,W,3) uint8 BGR, thermal (h,w) uint8, boxes in px of the visible picture."""

    visible: npt.NDArray[np.uint8]
    thermal: npt.NDArray[np.uint8]
    detections: Detections | None
    truth: Truth | None
    title: str


@dataclass(frozen=True)
class ReportData:
    """Everything the report shows. summary: the JSON's content; dt_ms, latency_ms: one value per pair."""

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


def write_report(path: str | Path, data: ReportData, drawn_from: float) -> None:
    """Write the report. drawn_from: boxes of a lower score are not drawn, 0..1. Raises UserError if not writable."""
    with whole_file(path) as aside:
        aside.write_text(_page(data, drawn_from), encoding="utf-8")


def _page(data: ReportData, drawn_from: float) -> str:
    summary = data.summary
    sections = [_cards(summary)]
    if data.notes:
        sections.append('<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in data.notes) + "</ul>")
    if data.samples:
        strip = "".join(_sample(sample, data.names, drawn_from) for sample in data.samples)
        key = "".join(
            f'<span><i style="background:{_css(n)}"></i>{escape(name)}</span>' for n, name in data.names.items()
        )
        key += '<span><i class="truth"></i>truth</span>'
        lead = f"Visible beside thermal, the same boxes on both; drawn from score {drawn_from:g}."
        sections.append(f'<h2>Pairs</h2><p>{lead}</p><p class="key">{key}</p><div class="strip">{strip}</div>')
    charts = []
    if data.curve is not None:
        chart = curve(data.curve[0], data.curve[1], "recall", "precision")
        charts.append(_figure("Precision and recall", chart, "At IoU 0.5, mean over the classes that occur."))
    if data.dt_ms:
        chart = histogram(data.dt_ms, "|dt| in ms", "pairs")
        charts.append(_figure("Time between the frames of a pair", chart, "Thermal offset taken off."))
    if data.latency_ms:
        chart = histogram(data.latency_ms, "latency in ms", "pairs")
        charts.append(_figure(data.latency_title, chart, data.latency_meaning))
    sections.append(f'<div class="charts">{"".join(charts)}</div>')
    if summary.get("per_class"):
        sections.append(_classes(summary["per_class"]))
    if summary.get("bags"):
        sections.append(_bags(summary["bags"]))
    sections.append(_ledger(summary))
    sections.append(_details("Model", data.model) + _details("Configuration", summary.get("config", {})))
    return _TEMPLATE.format(title=escape(data.title), style=_STYLE, body="\n".join(sections))


def _figure(title: str, chart: str, text: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}<small>{escape(text)}</small></figure>"


def _cards(summary: Mapping[str, Any]) -> str:
    cards = []
    if "mAP50" in summary:
        cards += [("mAP50", _share(summary["mAP50"]), ""), ("mAP50:95", _share(summary["mAP50_95"]), "")]
    frames, latency, dt = summary["frames"], summary["latency_ms"], summary["dt_ms"]
    cards.append(("pairs", str(summary["pairs"]), f"of {frames['visible']} visible and {frames['thermal']} thermal"))
    delay = "latency p50" if summary.get("config", {}).get("mode") == "live" else "pairing delay p50"
    cards.append((delay, _ms(latency["p50"]), f"p95 {_ms(latency['p95'])}, p99 {_ms(latency['p99'])}"))
    cards.append(("|dt| p50", _ms(dt["p50"]), f"p95 {_ms(dt['p95'])}, max {_ms(dt['max'])}"))
    tiles = "".join(f"<div><b>{a}</b><strong>{b}</strong><small>{escape(c)}</small></div>" for a, b, c in cards)
    return f'<div class="cards">{tiles}</div>'


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"


def _classes(per_class: Mapping[str, Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{figures['truths']}</td><td>{_share(figures['mAP50'])}</td>"
        f"<td>{_share(figures['mAP50_95'])}</td></tr>"
        for name, figures in per_class.items()
    )
    head = "<tr><th>class</th><th>objects</th><th>mAP50</th><th>mAP50:95</th></tr>"
    return f"<h2>Classes</h2><table>{head}{rows}</table>"


def _bags(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each bag; a failed one says why."""
    lines = ""
    for row in rows:
        name = f'<td class="name-of">{escape(row["bag"])}</td>'
        if "failed" in row:
            lines += f'<tr>{name}<td class="text" colspan="6">failed: {escape(row["failed"])}</td></tr>'
            continue
        frames, scores = row["frames"], (_share(row.get("mAP50")), _share(row.get("mAP50_95")))
        numbers = (frames["visible"], frames["thermal"], row["pairs"], row.get("frames_scored", 0), *scores)
        lines += f"<tr>{name}" + "".join(f"<td>{number}</td>" for number in numbers) + "</tr>"
    columns = ("bag", "visible", "thermal", "pairs", "scored", "mAP50", "mAP50:95")
    head = "<tr>" + "".join(f"<th>{column}</th>" for column in columns) + "</tr>"
    lead = "The score at the top is over the frames of all bags together, not the mean of this column."
    return f"<h2>Bags</h2><p>{lead}</p><table>{head}{lines}</table>"


def _ledger(summary: Mapping[str, Any]) -> str:
    rows: dict[str, dict[str, int]] = {stream: dict(counts) for stream, counts in summary["ledger"].items()}
    for stream, count in summary.get("lost", {}).items():
        rows[stream]["lost on the way"] = count
    used = [part for part in LEDGER_COLOURS if any(counts.get(part) for counts in rows.values())]
    lines = "".join(
        f'<tr><td><i style="background:{LEDGER_COLOURS[part]}"></i>{escape(part)}</td>'
        + "".join(f"<td>{counts.get(part, 0)}</td>" for counts in rows.values())
        + f'<td class="text">{escape(LEDGER_MEANING[part])}</td></tr>'
        for part in LEDGER_COLOURS
        if part in used or part in summary["ledger"]["visible"]
    )
    total = "".join(f"<td>{summary['frames'][stream]}</td>" for stream in rows)
    head = "<tr><th>what became of it</th>" + "".join(f"<th>{stream}</th>" for stream in rows) + "<th></th></tr>"
    foot = f'<tr class="total"><td>frames recorded</td>{total}<td></td></tr>'
    chart = stacked_bars(rows, LEDGER_COLOURS)
    return f'<h2>Every frame accounted for</h2>{chart}<table class="ledger">{head}{lines}{foot}</table>'


def _details(title: str, content: Mapping[str, Any]) -> str:
    if not content:
        return ""
    rows = "".join(
        f"<tr><td>{escape(str(key))}</td><td class='text'>{escape(_plain(value))}</td></tr>"
        for key, value in content.items()
    )
    return f"<details open><summary>{escape(title)}</summary><table>{rows}</table></details>"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _css(number: int) -> str:
    b, g, r = colour(number)
    return f"#{r:02x}{g:02x}{b:02x}"


def _sample(sample: Sample, names: Mapping[int, str], drawn_from: float) -> str:
    height, width = sample.visible.shape[:2]
    thermal = sample.thermal
    if thermal.shape != (height, width):
        thermal = np.asarray(cv2.resize(thermal, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    boxes = _boxes(sample, names, drawn_from, width, height)
    sides = "".join(
        f'<svg viewBox="0 0 {width} {height}"><image width="{width}" height="{height}" href="{_png(picture)}"/>'
        f"{boxes}</svg>"
        for picture in (sample.visible, thermal)
    )
    return f'<div class="pair"><div>{sides}</div><small>{escape(sample.title)}</small></div>'


def _boxes(sample: Sample, names: Mapping[int, str], drawn_from: float, width: int, height: int) -> str:
    """Truth in dashes below, detections with name and score above; sizes in proportion to the picture."""
    thin, font = max(width, height) / 320, max(width, height) / 36
    body = ""
    if sample.truth is not None:
        for x0, y0, x1, y1 in sample.truth.boxes.tolist():
            body += (
                f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="none" '
                f'stroke="#fff" stroke-width="{1.2 * thin:.2f}" stroke-dasharray="{4 * thin:.2f} {3 * thin:.2f}"/>'
            )
    if sample.detections is None:
        return body
    found = sample.detections
    for (x0, y0, x1, y1), score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist()):
        if score < drawn_from:
            continue
        paint, text = _css(label), f"{names[label]} {score:.2f}"
        wide = 0.56 * font * len(text)
        left, top = max(min(x0, width - wide), 0.0), y0 - font if y0 >= font else y0
        body += (
            f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="none" '
            f'stroke="{paint}" stroke-width="{1.6 * thin:.2f}"/>'
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{font:.1f}" fill="{paint}"/>'
            f'<text x="{left + 0.15 * font:.1f}" y="{top + 0.8 * font:.1f}" font-size="{0.85 * font:.1f}" '
            f'font-family="ui-monospace,monospace" fill="#000" textLength="{0.5 * font * len(text):.1f}">'
            f"{escape(text)}</text>"
        )
    return body


def _png(picture: npt.NDArray[np.uint8]) -> str:
    """A data URL; a large picture goes as JPEG, so that the report stays small enough to send."""
    kind = ".png" if picture.size <= 400_000 else ".jpg"
    done, data = cv2.imencode(kind, picture)
    if not done:
        raise RuntimeError("a picture of the report could not be encoded")
    mime = "image/png" if kind == ".png" else "image/jpeg"
    return f"data:{mime};base64,{base64.b64encode(np.asarray(data).tobytes()).decode('ascii')}"


_STYLE = """
:root{--page:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#667085;--rule:#e3e7ed;--blue:#2563a8}
@media(prefers-color-scheme:dark){:root{--page:#12161c;--card:#1b212a;--ink:#e8ecf2;--soft:#97a3b4;--rule:#2d3641;
--blue:#6aa9e9}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1040px;margin:0 auto;padding:32px 20px 60px}h1{font-size:24px;margin:0 0 18px}
h2{font-size:18px;margin:34px 0 8px}p{margin:4px 0 10px;color:var(--soft)}small{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px}
.cards div,figure,details,.pair,.notes{background:var(--card);border:1px solid var(--rule);border-radius:10px}
.cards div{padding:12px 16px}.cards b{display:block;color:var(--soft);font-weight:500;font-size:13px}
.cards strong{display:block;font-size:27px;line-height:1.3;font-variant-numeric:tabular-nums}
.notes{padding:12px 18px 12px 34px;margin:14px 0 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:14px;margin-top:26px}
figure{margin:0;padding:14px}figcaption{font-weight:600;margin-bottom:6px}svg{display:block;width:100%;height:auto}
.grid{stroke:var(--rule)}.tick{font-size:11px;fill:var(--soft)}.axis{font-size:12px;fill:var(--soft)}
.line{fill:none;stroke:var(--blue);stroke-width:2}.area{fill:var(--blue);opacity:.12}.bar{fill:var(--blue)}
.name{font-size:14px;fill:var(--ink)}.count{font-size:13px;fill:#fff}
.strip{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:14px}
.pair{padding:8px}.pair>div{display:grid;grid-template-columns:1fr 1fr;gap:4px;margin-bottom:4px}
.pair image{image-rendering:auto}.key span{margin-right:16px;color:var(--ink)}
i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px}
i.truth{border:1.5px dashed var(--soft)}
table{border-collapse:collapse;width:100%;background:var(--card);border:1px solid var(--rule);border-radius:10px;
overflow:hidden;font-variant-numeric:tabular-nums}
th,td{padding:7px 14px;text-align:right;border-top:1px solid var(--rule)}
th{color:var(--soft);font-weight:500;border-top:0}th:first-child,td:first-child,.text{text-align:left}
.text{color:var(--soft);overflow-wrap:anywhere}.name-of{overflow-wrap:anywhere}
.total td{font-weight:600}.wide{margin:4px 0 10px}
details{margin-top:14px;padding:10px 16px}summary{font-weight:600;cursor:pointer}
details table{border:0;margin-top:8px}details td:first-child{white-space:nowrap;vertical-align:top}
@media print{body{background:#fff}}
"""

_TEMPLATE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><main><h1>{title}</h1>
{body}
</main></body></html>
"""
