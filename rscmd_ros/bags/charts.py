"""Small charts as SVG text for the report: no scripts, no fonts of their own; colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 350, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 38


def curve(x: Sequence[float], y: Sequence[float], x_title: str, y_title: str) -> str:
    """A line over the unit square. x and y: points in 0..1."""
    points = [(_px(a, 1.0), _py(b, 1.0)) for a, b in zip(x, y)]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    area = f"{_px(x[0], 1):.1f},{_py(0, 1):.1f} {line} {_px(x[-1], 1):.1f},{_py(0, 1):.1f}"
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    body = _axes(ticks, 1.0, ticks, 1.0, x_title, y_title)
    body += f'<polygon class="area" points="{area}"/><polyline class="line" points="{line}"/>'
    return _svg(body, f"{y_title} over {x_title}")


def histogram(values: Sequence[float], x_title: str, y_title: str, bins: int = 24) -> str:
    """Bars from 0 to a round number above the largest value; values: 0 or more."""
    top = _round_up(max(values, default=0.0) or 1.0)
    counts = [0] * bins
    for value in values:
        counts[min(int(value / top * bins), bins - 1)] += 1
    high = 4 * max(1, math.ceil(max(counts) / 4))  # so that four steps are whole numbers
    body = _axes([top * i / 4 for i in range(5)], top, [high * i / 4 for i in range(5)], high, x_title, y_title)
    for i, count in enumerate(counts):
        if count:
            x0, x1 = _px(top * i / bins, top) + 1, _px(top * (i + 1) / bins, top) - 1
            title = f"{top * i / bins:.3g} to {top * (i + 1) / bins:.3g}: {count}"
            body += (
                f'<rect class="bar" x="{x0:.1f}" y="{_py(count, high):.1f}" width="{x1 - x0:.1f}" '
                f'height="{_py(0, high) - _py(count, high):.1f}" rx="1.5"><title>{escape(title)}</title></rect>'
            )
    return _svg(body, f"{y_title} over {x_title}")


def stacked_bars(rows: Mapping[str, Mapping[str, int]], colours: Mapping[str, str]) -> str:
    """One horizontal bar per row, its parts in proportion. rows: row -> part -> count; colours: part -> CSS colour."""
    step, left, length = 40, 70, 820
    longest = max((sum(parts.values()) for parts in rows.values()), default=0) or 1
    body = ""
    for number, (name, parts) in enumerate(rows.items()):
        y, x = 8 + number * step, float(left)
        body += f'<text class="name" x="{left - 10}" y="{y + 17}" text-anchor="end">{escape(name)}</text>'
        for part, count in parts.items():
            if not count:
                continue
            wide = length * count / longest
            body += (
                f'<rect x="{x:.1f}" y="{y}" width="{max(wide - 1, 1):.1f}" height="26" rx="2" fill="{colours[part]}">'
                f"<title>{escape(name)}: {escape(part)} {count}</title></rect>"
            )
            if wide > 36:
                body += f'<text class="count" x="{x + wide / 2:.1f}" y="{y + 17}" text-anchor="middle">{count}</text>'
            x += wide
    high = 8 + len(rows) * step
    return (
        f'<svg class="wide" viewBox="0 0 {left + length + 10} {high}" role="img" aria-label="frame ledger">{body}</svg>'
    )


def _svg(body: str, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _px(value: float, top: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / top


def _py(value: float, top: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / top


def _axes(
    x_ticks: Sequence[float], x_top: float, y_ticks: Sequence[float], y_top: float, x_title: str, y_title: str
) -> str:
    body = ""
    for tick in y_ticks:
        y = _py(tick, y_top)
        body += f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        body += f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.3g}</text>'
    for tick in x_ticks:
        x = _px(tick, x_top)
        body += f'<text class="tick" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 15}" text-anchor="middle">{tick:.3g}</text>'
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    body += f'<text class="axis" x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">'
    body += f'{escape(x_title)}</text><text class="axis" x="11" y="{middle}" text-anchor="middle" '
    return body + f'transform="rotate(-90 11 {middle})">{escape(y_title)}</text>'


def _round_up(value: float) -> float:
    """The next number that a quarter of reads well."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))
