"""Pictures of a sweep: average precision over the size of a fault, a curve for each way to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.evaluation.faults import Fault, describe
from rscmd_model.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
# Colours that stay apart for colour-blind readers (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LABELS = {
    "time_offset": "thermal image later by (frames)",
    "dark": "exposure of the visible image (factor)",
}
_PRECISION = "mAP50:95 (%)"
Point = tuple[Fault, Mapping[str, Any]]


def horizontal(faults: Sequence[Fault], axis: str) -> tuple[np.ndarray, str]:
    """Where the points of a sweep lie on the horizontal axis.

    Args:
        faults: of the sweep.
        axis: the field of `Fault` that varies.

    Returns:
        (N,) the positions, and the label of the axis with its unit.
    """
    if axis == "noise":
        on = "both images" if faults[0].noise_on == "both" else f"the {faults[0].noise_on} image"
        return np.array([fault.noise for fault in faults]), f"noise added to {on} (standard deviation, grey levels)"
    if axis != "shift":
        return np.array([float(getattr(fault, axis)) for fault in faults]), _LABELS[axis]
    shifts = np.array([fault.shift for fault in faults], np.float64)
    for column, way in enumerate(("right", "down")):
        if not shifts[:, 1 - column].any():
            return shifts[:, column], f"thermal image moved {way} by (px of the visible image)"
    return np.hypot(*shifts.T), "thermal image moved by (px of the visible image, length)"


def draw_curves(axes: Axes, points: Sequence[Point], axis: str, name: str = "", first_colour: int = 0) -> None:
    """Draw mAP50:95 in percent over `axis`, a curve for each setting of everything else.

    Args:
        axes: of matplotlib.
        points: what `evaluate.sweep` was given and returned.
        axis: field of `Fault` that is swept.
        name: what stands before each curve's own words in the legend.
        first_colour: index of the first curve's colour.
    """
    where, label = horizontal([fault for fault, _ in points], axis)
    curves: dict[str, list[tuple[float, float]]] = {}
    for x, (fault, figures) in zip(where, points):
        curves.setdefault(describe(fault, leave_out=axis), []).append((x, 100 * figures["mAP50_95"]))
    for number, (words, curve) in enumerate(curves.items()):
        words = "both cameras" if words == "sound" else words
        legend = name if name and len(curves) == 1 else f"{name}, {words}" if name else words
        colour = COLOURS[(first_colour + number) % len(COLOURS)]
        axes.plot(*zip(*sorted(curve)), "o-", color=colour, label=plain(legend), markersize=4)
    if axis == "time_offset":
        axes.set_xticks(where)
    if axis == "dark":
        axes.xaxis.set_inverted(True)  # the fault grows to the right
        if where.min() > 0:
            axes.set_xscale("log")
            axes.set_xticks(where, [f"{factor:g}" for factor in where])
            axes.minorticks_off()
    axes.set(xlabel=label, ylabel=_PRECISION)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def plot_sweep(path: Path, points: Sequence[Point], axis: str | None, title: str) -> None:
    """Draw one sweep.

    Args:
        path: of the picture; its suffix chooses the format.
        points: each fault with the figures of its score.
        axis: the field of `Fault` that varies; None draws a bar for each point.
        title: above the picture.

    Raises:
        UserError: a file type that is not drawn, or the file cannot be written.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system is looked for

    check_plot(path)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    if axis is None:
        for number, (_, figures) in enumerate(points):
            axes.barh(number, 100 * figures["mAP50_95"], color=COLOURS[number % len(COLOURS)])
        axes.set_yticks(range(len(points)), [describe(fault).replace(", ", "\n") for fault, _ in points])
        axes.invert_yaxis()  # the first on top
        axes.set_xlabel(_PRECISION)
    else:
        draw_curves(axes, points, axis)
        axes.legend()
    axes.set_title(plain(title))
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=120)


def check_plot(path: Path) -> None:
    """Check, before the scoring, that the picture can be drawn.

    Raises:
        UserError: the suffix of the path is none that is drawn.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UserError(f"--plot {path}: give a file that ends in {', '.join(PLOT_SUFFIXES)}")


def plain(name: str) -> str:
    """A name as matplotlib shows it unchanged: between two dollars it sets formulas, and what begins with _ it leaves
    out of a legend, unless a blank stands before it."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def lay_out_beside(figure: Figure, legend: Legend) -> None:
    """Give the axes what a legend at the top or bottom of the figure leaves.

    loc="outside ..." would see to it from matplotlib 3.7 on; Ubuntu 24.04 has 3.6.

    Args:
        figure: on an Agg canvas.
        legend: of the figure, in its place.
    """
    canvas: Any = figure.canvas
    box, height = legend.get_window_extent(canvas.get_renderer()), figure.bbox.height
    below = box.y1 < height / 2
    figure.tight_layout(rect=(0, box.y1 / height, 1, 1) if below else (0, 0, 1, box.y0 / height))
