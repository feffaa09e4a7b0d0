"""The measured gradients on disk and on paper: gradients.csv, the plot, and what the figures say in words."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rscmd_model.config import MODALITIES
from rscmd_model.diagnosis.gradients import BACKBONE, REFERENCES, GradientRow
from rscmd_model.errors import UserError
from rscmd_model.evaluation.curves import lay_out_beside, plain
from rscmd_model.files import whole_file
from rscmd_model.network.model import STRIDES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACES = (*(str(s) for s in STRIDES), BACKBONE)
_COLUMNS = [field.name for field in fields(GradientRow)]
_KINDS = {"int": int, "float": float, "str": str}
_STYLES = {"visible": ("-", "o"), "thermal": ("--", "s")}  # of lines and points


def write_rows(path: str | Path, rows: Iterable[GradientRow]) -> None:
    """Write gradients.csv whole, so that a reader never meets half of it.

    Args:
        path: the file.
        rows: in the order to write them.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(r).items()} for r in rows)


def read_rows(path: str | Path) -> list[GradientRow]:
    """Read gradients.csv; further columns are ignored.

    Raises:
        UserError: no such file, or not one of ours.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file))
        return [
            GradientRow(**{f.name: _KINDS[str(f.type)](line[f.name]) for f in fields(GradientRow)}) for line in table
        ]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a gradients.csv of rscmd_model.train --diagnose ({error!r})") from None


def common_reference(courses: Mapping[str, Sequence[GradientRow]]) -> str:
    """The best reference that every course has, so that they can be compared: probe, own or alone.

    Raises:
        UserError: they have none in common.
    """
    for reference in REFERENCES:
        if all(any(row.reference == reference for row in rows) for rows in courses.values()):
            return reference
    raise UserError("these have no unimodal reference in common")


def plot(courses: Mapping[str, Sequence[GradientRow]], path: str | Path, part: str = "all") -> None:
    """Draw ratio and cosine over epochs.

    A column of the picture for each place, a colour for each course; solid for visible, dashed for thermal. Courses of
    a single epoch (finished models) stand side by side instead.

    Args:
        courses: rows by the name of their run or model.
        path: .png, .svg or .pdf.
        part: of the loss, one of `gradients.PARTS`; over the backbone's parameters there is "all" alone.

    Raises:
        UserError: the courses have no reference in common, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reference = common_reference(courses)
    over_time = any(len({row.epoch for row in rows}) > 1 for rows in courses.values())
    figure = Figure(figsize=(12, 5.6))
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(PLACES), sharex=True, sharey="row", squeeze=False)
    for number, (name, rows) in enumerate(courses.items()):
        for column, place in enumerate(PLACES):
            for modality in MODALITIES:
                here = _at(rows, reference, part if place != BACKBONE else "all", modality, place)
                label = plain(f"{name}, {modality}") if column == 0 else None
                for axis, quantity in zip(axes[:, column], ("ratio", "cosine")):
                    if over_time:
                        _draw_course(axis, here, quantity, number, modality, label)
                    else:
                        _draw_point(axis, here, quantity, number, modality, label)
                    label = None  # once in the legend
    for column, place in enumerate(PLACES):
        title = "backbone's parameters" if place == BACKBONE else f"features at stride {place}"
        axes[0, column].set_title(title, fontsize=10)
        _scale_ratio(axes[0, column])
        _scale_cosine(axes[1, column], None if over_time else list(courses))
    axes[0, 0].set_ylabel("|fused| / |unimodal| gradient")
    axes[1, 0].set_ylabel("cosine of the two")
    figure.supxlabel(f"unimodal loss: {reference} ({REFERENCES[reference]})", fontsize=8)
    legend = figure.legend(loc="upper center", ncol=max(2, len(courses)), fontsize=9, frameon=False)
    lay_out_beside(figure, legend)
    with whole_file(path) as aside:
        try:
            figure.savefig(aside, dpi=90)
        except ValueError as error:  # matplotlib knows no such format
            raise UserError(f"cannot draw {path}: {error}") from None


def _draw_course(
    axis: Axes, rows: Sequence[GradientRow], quantity: str, number: int, modality: str, label: str | None
) -> None:
    """One quantity of course `number` over its epochs: a line, and a shade for the deviation between batches."""
    epochs = [row.epoch for row in rows]
    mean, deviation = _values(rows, quantity)
    style, marker = _STYLES[modality]
    axis.plot(epochs, mean, style, color=f"C{number}", label=label, marker=marker, markersize=2.5, lw=1.4)
    low, high = [m - d for m, d in zip(mean, deviation)], [m + d for m, d in zip(mean, deviation)]
    axis.fill_between(epochs, low, high, color=f"C{number}", alpha=0.08, lw=0)


def _draw_point(
    axis: Axes, rows: Sequence[GradientRow], quantity: str, number: int, modality: str, label: str | None
) -> None:
    """One quantity of a finished model, the course `number`: a point with its deviation, thermal beside visible."""
    beside = 0.1 if modality == "thermal" else -0.1
    mean, deviation = _values(rows, quantity)
    marker = _STYLES[modality][1]
    axis.errorbar(
        [number + beside] * len(rows), mean, deviation, fmt=marker, color=f"C{number}", label=label, capsize=3
    )


def _values(rows: Sequence[GradientRow], quantity: str) -> tuple[list[float], list[float]]:
    """The means of a quantity and their standard deviations."""
    return [getattr(row, quantity) for row in rows], [getattr(row, f"{quantity}_sd") for row in rows]


def _scale_ratio(axis: Axes) -> None:
    """A logarithmic axis with plain numbers, and a line at 1: both gradients of one size."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.axhline(1, color="black", lw=0.8)


def _scale_cosine(axis: Axes, names: Sequence[str] | None) -> None:
    """A line at 0, and below it epochs, or the names of finished models."""
    from matplotlib.ticker import MaxNLocator

    axis.axhline(0, color="black", lw=0.8)
    if names is None:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axis.set_xticks(range(len(names)), [plain(name) for name in names])


def _at(rows: Sequence[GradientRow], reference: str, part: str, modality: str, place: str) -> list[GradientRow]:
    wanted = (reference, part, modality, place)
    return [row for row in rows if (row.reference, row.part, row.modality, row.stride) == wanted]


def describe(name: str, rows: Sequence[GradientRow], reference: str) -> str:
    """Say in words what the last epoch of a course shows.

    Args:
        name: of the run or model.
        rows: of one course, in order of the epochs.
        reference: a key of `REFERENCES` that the rows have.

    Returns:
        a table of ratios and cosines, and a sentence for each of the paper's two claims.
    """
    last = max(row.epoch for row in rows)
    here = {m: {p: found[-1] for p in PLACES if (found := _at(rows, reference, "all", m, p))} for m in MODALITIES}
    batches = next(iter(here["visible"].values())).batches
    when = f"epoch {last}" if last else "finished model"
    title = f"{name}, {when}, {batches} batches; unimodal loss: {reference}"
    at_strides = {m: [row for place, row in places.items() if place != BACKBONE] for m, places in here.items()}
    return "\n".join([title, *_table(here), _suppression(at_strides), _imbalance(at_strides)])


def _table(here: Mapping[str, Mapping[str, GradientRow]]) -> list[str]:
    """Ratio and cosine of each modality (rows) at each place (columns), with the deviation between batches."""
    lines = [" " * 18 + "".join(f"{place if place == BACKBONE else f'stride {place}':>17}" for place in PLACES)]
    for modality, places in here.items():
        ratios = [f"{row.ratio:.3g} ± {row.ratio_sd:.2g}" for row in places.values()]
        lines.append(f"  {modality:8s} ratio   " + "".join(f"{text:>17}" for text in ratios))
        cosines = [f"{row.cosine:.2f} ± {row.cosine_sd:.2f}" for row in places.values()]
        lines.append(f"  {modality:8s} cosine  " + "".join(f"{text:>17}" for text in cosines))
    return lines


def _suppression(at_strides: Mapping[str, Sequence[GradientRow]]) -> str:
    """Claim 1: the fused loss sends smaller gradients than the unimodal ones."""
    every = [row for rows in at_strides.values() for row in rows]
    smaller = sum(row.ratio < 1 for row in every)
    sizes = " and ".join(f"{_mean_ratio(rows):.2f} ({modality})" for modality, rows in at_strides.items())
    return (
        f"  claim 1, suppression: the fused gradient is the smaller one at {smaller} of {len(every)} places; "
        f"its size is {sizes} of the unimodal one's (geometric mean over strides)."
    )


def _imbalance(at_strides: Mapping[str, Sequence[GradientRow]]) -> str:
    """Claim 2: the weaker modality, the one with the larger unimodal loss, has the smaller ratio."""
    losses = {modality: rows[0].loss_unimodal for modality, rows in at_strides.items()}
    strong, weak = sorted(MODALITIES, key=lambda modality: losses[modality])
    weak_ratio, strong_ratio = _mean_ratio(at_strides[weak]), _mean_ratio(at_strides[strong])
    word = "lower" if weak_ratio < strong_ratio else "higher"
    return (
        f"  claim 2, imbalance: {weak} is the weaker modality (unimodal loss {losses[weak]:.2f} against "
        f"{losses[strong]:.2f}); its ratio is the {word} one ({weak_ratio:.2f} against {strong_ratio:.2f})."
    )


def _mean_ratio(rows: Sequence[GradientRow]) -> float:
    """The geometric mean of the ratios that are more than 0; nan where none is."""
    usable = [row.ratio for row in rows if row.ratio > 0]
    return math.exp(fmean(math.log(ratio) for ratio in usable)) if usable else math.nan
