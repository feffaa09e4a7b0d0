"""What the protocol of a lost camera gave, as a table of text and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rscmd_model.config import MODALITIES
from rscmd_model.datasets.incomplete import WHICH
from rscmd_model.evaluation.curves import COLOURS, check_plot, plain
from rscmd_model.evaluation.missing import ALWAYS, METRICS, ProtocolScores
from rscmd_model.files import whole_file


def table(scores: ProtocolScores) -> str:
    """The cells, and their means with the collapse rates; figures are mAP50 / mAP50:95.

    Args:
        scores: of the protocol.

    Returns:
        lines of text.
    """
    shown = sorted({*scores.rates, ALWAYS})
    cells = [["who answers", "lost", *(f"{rate:g} %" for rate in shown)]]
    means = [["who answers", f"mean of {len(scores.rates) * len(WHICH)} cells", "PCR", "mean of 3"]]
    means[0] += [f"PCR {camera}" for camera in MODALITIES]
    for who in scores.answerers:
        for which in WHICH:
            figures = [[scores.figure(who, which, rate, metric) for metric in METRICS] for rate in shown]
            cells.append([who.title * (which == WHICH[0]), which, *map(_pair, figures)])
        mixed = [scores.mean(who, metric) for metric in METRICS]
        lost = [[scores.figure(who, camera, ALWAYS, metric) for metric in METRICS] for camera in MODALITIES]
        three = [scores.mean_of_three(who, metric) for metric in METRICS]
        means.append([who.title, _pair(mixed), _gone(scores, mixed), _pair(three), *(_gone(scores, f) for f in lost)])
    rates = ", ".join(f"{rate:g}" for rate in scores.rates)
    lines = [f"  both cameras: {_pair([scores.both[metric] for metric in METRICS])}, {scores.sound_answer} answers"]
    lines += [f"  {note}" for note in scores.notes]
    lines += [f"mAP50/mAP50:95 where so many of the pairs have lost a camera (tables of seed {scores.seed})"]
    lines += _aligned(cells)
    lines += [f"their means over the cells of {rates} %, and over 3: both cameras, visible lost, thermal lost (100 %)"]
    lines += ["PCR: how much of the figure of both cameras is gone, in %", *_aligned(means)]
    return "\n".join(lines)


def plot(path: Path, scores: ProtocolScores, title: str) -> None:
    """Draw mAP50:95 over the rate: a panel for each lost camera, a curve for each answerer.

    Args:
        path: of the picture; its suffix chooses the format.
        scores: of the protocol.
        title: above the picture.

    Raises:
        UserError: a file type that is not drawn, or the file cannot be written.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system is looked for

    check_plot(path)
    shown = sorted({*scores.rates, ALWAYS} - {0.0})
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, len(WHICH), sharey=True)
    for axes, which in zip(panels, WHICH):
        for who, colour, marker in zip(scores.answerers, COLOURS, "os^D"):
            curve = [scores.both["mAP50_95"], *(scores.figure(who, which, rate, "mAP50_95") for rate in shown)]
            axes.plot([0, *shown], [100 * y for y in curve], f"{marker}-", color=colour, label=who.title, markersize=4)
        axes.set_title(f"{which} camera lost", fontsize="medium")
        axes.set(xlabel="pairs that have lost it (%)", xticks=[0, *shown])
        axes.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("mAP50:95 of all pairs (%)")
    panels[0].legend(title="who answers")
    figure.suptitle(plain(title))
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=120)


def _pair(figures: Sequence[float]) -> str:
    return "/".join(f"{figure:.3f}" for figure in figures)


def _gone(scores: ProtocolScores, figures: Sequence[float]) -> str:
    """The collapse rates of mAP50 and mAP50:95 in percent; a dash where whole pairs have a figure of 0."""
    rates = [scores.collapse(figure, metric) for figure, metric in zip(figures, METRICS)]
    return "/".join("-" if rate is None else f"{100 * rate:.1f}" for rate in rates)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as lines with columns of one width."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  " + "  ".join(f"{word:{width}}" for word, width in zip(row, widths)).rstrip() for row in rows]
