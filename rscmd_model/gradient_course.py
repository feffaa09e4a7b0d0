"""The measured gradients on disk and on paper: gradients.csv, the plot, and what the figures say in words."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean

from rscmd_model.config import MODALITIES
from rscmd_model.errors import UserError
from rscmd_model.files import whole_file
from rscmd_model.gradients import BACKBONE, REFERENCES, GradientRow
from rscmd_model.model import STRIDES

PLACES = (*(str(s) for s in STRIDES), BACKBONE)
_COLUMNS = [field.name for field in fields(GradientRow)]
_KINDS = {"int": int, "float": float, "str": str}


def write_rows(path: str | Path, rows: Iterable[GradientRow]) -> None:
    """Write gradients.csv whole: a reader never meets half of it. Raises `UserError` when it cannot be written."""
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
    """The best reference that every course has, so that they can be compared: probe, own or alone."""
    for reference in REFERENCES:
        if all(any(row.reference == reference for row in rows) for rows in courses.values()):
            return reference
    raise UserError("these have no unimodal reference in common")


def plot(courses: Mapping[str, Sequence[GradientRow]], path: str | Path, part: str = "all") -> None:
    """Draw ratio and cosine over epochs, a column for each place; one colour per course, thermal dashed.

    Courses of a single epoch (finished models) stand side by side instead.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

    reference = common_reference(courses)
    over_time = any(len({row.epoch for row in rows}) > 1 for rows in courses.values())
    figure = Figure(figsize=(12, 5.6))
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(PLACES), sharex=True, sharey="row", squeeze=False)
    for number, (name, rows) in enumerate(courses.items()):
        for modality, style, marker in zip(MODALITIES, ("-", "--"), ("o", "s")):
            for column, place in enumerate(PLACES):
                here = _at(rows, reference, part if place != BACKBONE else "all", modality, place)
                x = [row.epoch for row in here] if over_time else [number + (0.1 if modality == "thermal" else -0.1)]
                for axis, quantity in zip(axes[:, column], ("ratio", "cosine")):
                    y = [getattr(row, quantity) for row in here]
                    sd = [getattr(row, f"{quantity}_sd") for row in here]
                    label = f"{name}, {modality}" if column == 0 and quantity == "ratio" else None
                    if over_time:
                        axis.plot(x, y, style, color=f"C{number}", label=label, marker=marker, markersize=2.5, lw=1.4)
                        low, high = [a - s for a, s in zip(y, sd)], [a + s for a, s in zip(y, sd)]
                        axis.fill_between(x, low, high, color=f"C{number}", alpha=0.08, lw=0)
                    else:
                        axis.errorbar(x, y, sd, fmt=marker, color=f"C{number}", label=label, capsize=3)
    for axis, place in zip(axes[0], PLACES):
        axis.set_title("backbone's parameters" if place == BACKBONE else f"features at stride {place}", fontsize=10)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.axhline(1, color="black", lw=0.8)
    for axis in axes[1]:
        axis.axhline(0, color="black", lw=0.8)
        axis.set_xlabel("epoch" if over_time else "")
        if over_time:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            axis.set_xticks(range(len(courses)), list(courses))
    axes[0, 0].set_ylabel("|fused| / |unimodal| gradient")
    axes[1, 0].set_ylabel("cosine of the two")
    legend = figure.legend(loc="upper center", ncol=max(2, len(courses)), fontsize=9, frameon=False)
    figure.supxlabel(f"unimodal loss: {reference} ({REFERENCES[reference]})", fontsize=8)
    # The axes end below the legend; loc="outside upper center" would see to it from matplotlib 3.7 on.
    top = legend.get_window_extent(canvas.get_renderer()).y0 / figure.bbox.height
    figure.tight_layout(rect=(0, 0, 1, top))
    with whole_file(path) as aside:
        try:
            figure.savefig(aside, dpi=90)
        except ValueError as error:  # matplotlib knows no such format
            raise UserError(f"cannot draw {path}: {error}") from None


def _at(rows: Sequence[GradientRow], reference: str, part: str, modality: str, place: str) -> list[GradientRow]:
    wanted = (reference, part, modality, place)
    return [row for row in rows if (row.reference, row.part, row.modality, row.stride) == wanted]


def describe(name: str, rows: Sequence[GradientRow], reference: str) -> str:
    """A table of the last epoch, and a sentence for each claim that says what these figures say and no more."""
    last = max(row.epoch for row in rows)
    here = {
        m: {p: found[-1] for p in PLACES if (found := _at(rows, reference, "all", m, p))} for m in MODALITIES
    }  # rows are in order of epochs
    batches = next(iter(here["visible"].values())).batches
    when = f"epoch {last}" if last else "finished model"
    lines = [f"{name}, {when}, {batches} batches; unimodal loss: {reference}"]
    lines.append(" " * 18 + "".join(f"{'stride ' + p if p != BACKBONE else p:>17}" for p in PLACES))
    for m in MODALITIES:
        ratios = [f"{r.ratio:.3g} ± {r.ratio_sd:.2g}" for r in here[m].values()]
        lines.append(f"  {m:8s} ratio   " + "".join(f"{text:>17}" for text in ratios))
        cosines = [f"{r.cosine:.2f} ± {r.cosine_sd:.2f}" for r in here[m].values()]
        lines.append(f"  {m:8s} cosine  " + "".join(f"{text:>17}" for text in cosines))
    strides = {m: [here[m][p] for p in PLACES if p in here[m] and p != BACKBONE] for m in MODALITIES}
    smaller = sum(row.ratio < 1 for m in MODALITIES for row in strides[m])
    count = sum(len(found) for found in strides.values())
    mean = {m: _geometric_mean([row.ratio for row in strides[m]]) for m in MODALITIES}
    lines.append(
        f"  claim 1, suppression: the fused gradient is the smaller one at {smaller} of {count} places; its size is "
        + " and ".join(f"{mean[m]:.2f} ({m})" for m in MODALITIES)
        + " of the unimodal one's (geometric mean over strides)."
    )
    losses = {m: strides[m][0].loss_unimodal for m in MODALITIES}
    weak = max(MODALITIES, key=lambda m: losses[m])
    strong = next(m for m in MODALITIES if m != weak)
    word = "lower" if mean[weak] < mean[strong] else "higher"
    lines.append(
        f"  claim 2, imbalance: {weak} is the weaker modality (unimodal loss {losses[weak]:.2f} against "
        f"{losses[strong]:.2f}); its ratio is the {word} one ({mean[weak]:.2f} against {mean[strong]:.2f})."
    )
    return "\n".join(lines)


def _geometric_mean(values: Sequence[float]) -> float:
    usable = [v for v in values if v > 0]
    return math.exp(fmean(math.log(v) for v in usable)) if usable else math.nan
