"""The tables of an ablation: results.csv, table.csv, differences.csv, table.md and ablation.png."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rscmd_model.config import MODALITIES, other_modality
from rscmd_model.evaluation.ablation_plot import plot_ablation
from rscmd_model.evaluation.answers import is_lost, lost_answer
from rscmd_model.evaluation.resampling import interval, over_seeds
from rscmd_model.files import whole_file
from rscmd_model.methods import parse_method

FIGURES = ("mAP50", "mAP50_95")
COSTS = ("parameters", "gflops", "step_ms", "teachers_ms", "memory_mb")

Answer = tuple[str, str]
"""A method and which of its answers, such as ("rscmd+md=map", "thermal")."""


@dataclass(frozen=True, eq=False)
class Row:
    """What one method and seed reached with one answer.

    Attributes:
        method: as it is written on the command line.
        seed: 0 or more.
        branch: the name of the answer.
        mAP50: 0 to 1.
        mAP50_95: 0 to 1.
        cost: what the run cost, by the names in `COSTS`; None for what is not known.
        resampled: (R, 2), both figures in each resample of the drives, the same drives for all rows; None without.
    """

    method: str
    seed: int
    branch: str
    mAP50: float
    mAP50_95: float
    cost: Mapping[str, Any]
    resampled: npt.NDArray[np.float64] | None = None

    def line(self) -> dict[str, Any]:
        """The row of results.csv; its intervals are over drives alone."""
        figures = {column: getattr(self, column) for column in FIGURES}
        line = {"method": self.method, "seed": self.seed, "branch": self.branch, **figures}
        if self.resampled is not None:
            for n, column in enumerate(FIGURES):
                line |= _bounds(column, self.resampled[:, n])
        return {**line, **self.cost}


@dataclass(frozen=True, eq=False)
class Difference:
    """What an answer gains over another one of the same seeds.

    Attributes:
        answer: this one.
        over: the other one.
        gains: by seed both figures' differences in points, -100 to 100.
        resampled: (R, 2) the same in each resample, drives and seeds drawn alike for both; None without.
    """

    answer: Answer
    over: Answer
    gains: Mapping[int, tuple[float, float]]
    resampled: npt.NDArray[np.float64] | None = None

    def line(self) -> dict[str, Any]:
        """The row of differences.csv, in points."""
        names = {"method": self.answer[0], "branch": self.answer[1], "over": self.over[0], "over_branch": self.over[1]}
        line: dict[str, Any] = {**names, "seeds": len(self.gains)}
        for n, column in enumerate(FIGURES):
            line[column] = statistics.mean(gain[n] for gain in self.gains.values())
            if self.resampled is not None:
                line |= _bounds(column, self.resampled[:, n])
        return line


def answer_name(method: str, branch: str) -> str:
    """The name of an answer in tables and pictures.

    Args:
        method: as it is written on the command line.
        branch: which of its answers, "fused" or a modality.

    Returns:
        the method alone for what answers its pairs; else the method and the answer, or which camera is lost.

    Raises:
        UserError: there is no such method.
    """
    if is_lost(branch):
        return f"{method}, {branch.removeprefix('fused, ')}"
    usual, *_ = parse_method(method).pair_answers
    if branch in (usual, "ensemble"):
        return method if branch == usual else f"{method}, {branch}"
    return f"{method}, {branch} branch alone"


def median_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several trainings cost in the middle, by the names in `COSTS`; None for what none of them knows."""
    known = {column: [cost[column] for cost in costs if cost.get(column) is not None] for column in COSTS}
    return {column: statistics.median(values) if values else None for column, values in known.items()}


def by_answer(rows: Sequence[Row]) -> dict[Answer, list[Row]]:
    """The rows of each method and answer, in the order in which these come first."""
    found: dict[Answer, list[Row]] = {}
    for row in rows:
        found.setdefault((row.method, row.branch), []).append(row)
    return found


def summarize(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Summarize rows over their seeds.

    Args:
        rows: all with resamples, or all without.

    Returns:
        a row for each method and answer: method, branch, seeds (how many), mean and sample standard deviation (None for
        one seed) of both figures in points (0 to 100), their interval where there are resamples (of drives, and of
        seeds where there are several), and the medians of what the runs cost.
    """
    table = []
    for (method, branch), here in by_answer(rows).items():
        line: dict[str, Any] = {"method": method, "branch": branch, "seeds": len(here)}
        resampled = _resampled(here)
        for n, column in enumerate(FIGURES):
            values = [100 * getattr(row, column) for row in here]
            line[column] = statistics.mean(values)
            line[f"{column}_spread"] = statistics.stdev(values) if len(values) > 1 else None
            if resampled is not None:
                line |= _bounds(column, 100 * resampled[:, n])
        table.append({**line, **median_cost([row.cost for row in here])})
    return table


def compare(rows: Sequence[Row]) -> list[Difference]:
    """What each answer gains over what it has to beat.

    Both have the same seeds, and so the same first weights. That is for a unimodal answer the detector of that
    modality, for an answer to whole pairs `sum`, for a fused head with a black image that of `sum` with the same one;
    and for a branch that answers for a lost camera the same model's fused head with a black image. Without a run of the
    other there is no difference.
    """
    found = by_answer(rows)
    lines = [_difference(found[answer], found[over]) for answer in found for over in _rivals(answer) if over in found]
    return [line for line in lines if line.gains]


def _rivals(answer: Answer) -> Iterator[Answer]:
    method, branch = answer
    rivals: dict[Answer, None] = {}
    if is_lost(branch):
        rivals[("sum", branch)] = None
    if branch in MODALITIES:
        lost = other_modality(branch)
        rivals |= dict.fromkeys([(branch, branch), (method, lost_answer(lost))])
    if branch == "ensemble" or answer_name(method, branch) == method:
        rivals[("sum", "fused")] = None
    yield from (rival for rival in rivals if rival != answer)


def _difference(mine: Sequence[Row], theirs: Sequence[Row]) -> Difference:
    others = {row.seed: row for row in theirs}
    both = [(row, others[row.seed]) for row in mine if row.seed in others]
    gains = {r.seed: (100 * (r.mAP50 - other.mAP50), 100 * (r.mAP50_95 - other.mAP50_95)) for r, other in both}
    sides = _resampled([row for row, _ in both]), _resampled([other for _, other in both])
    resampled = None if sides[0] is None or sides[1] is None else 100 * (sides[0] - sides[1])
    return Difference((mine[0].method, mine[0].branch), (theirs[0].method, theirs[0].branch), gains, resampled)


def _resampled(rows: Sequence[Row]) -> npt.NDArray[np.float64] | None:
    """The mean over seeds in each resample (R, 2), or None where there are no resamples."""
    known = {row.seed: row.resampled for row in rows if row.resampled is not None}
    return over_seeds(known) if known else None


def _bounds(column: str, resampled: npt.NDArray[np.float64]) -> dict[str, float]:
    low, high = interval(resampled)
    return {f"{column}_low": low, f"{column}_high": high}


def write_results(out: Path, rows: Sequence[Row], title: str, note: str = "") -> None:
    """Write results.csv, table.csv, differences.csv, table.md and ablation.png, each whole.

    Args:
        out: folder.
        rows: one or more.
        title: of the picture.
        note: stands below the tables in table.md: how the intervals were made.

    Raises:
        UserError: a file cannot be written.
    """
    table, differences = summarize(rows), compare(rows)
    files = {
        "results.csv": [row.line() for row in rows],
        "table.csv": table,
        "differences.csv": [difference.line() for difference in differences],
    }
    no_difference = Difference(("", ""), ("", ""), {0: (0.0, 0.0)}, rows[0].resampled).line()  # for its columns
    for name, lines in files.items():
        with whole_file(out / name) as aside, aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0] if lines else no_difference)
            writer.writeheader()
            writer.writerows(lines)
    with whole_file(out / "table.md") as aside:
        below = f"\n{note}\n" if note else ""
        aside.write_text(markdown(table) + markdown_of(differences) + below, encoding="utf-8")
    plot_ablation(out / "ablation.png", [row.line() for row in rows], title, table)


def markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """The table of `summarize` for people. What a run cost stands in the line of its main answer, its step as 90 + 60
    where teachers were trained for it, a step of both of which takes 60 ms. What is not known is left blank."""
    lines = [
        "| method | mAP50 | mAP50:95 | parameters (M) | GFLOPs | step (ms) | memory (MB) |",
        "|---|---|---|---|---|---|---|",
    ]

    def figure(line: Mapping[str, Any], column: str) -> str:
        spread = line[f"{column}_spread"]
        within = f" [{line[f'{column}_low']:.1f}, {line[f'{column}_high']:.1f}]" if f"{column}_low" in line else ""
        return f"{line[column]:.1f}" + (f" ± {spread:.1f}" if spread is not None else "") + within

    def cost(line: Mapping[str, Any], column: str, digits: int, unit: float = 1) -> str:
        return "" if line[column] is None else f"{line[column] / unit:.{digits}f}"

    for line in table:
        name, costs = answer_name(line["method"], line["branch"]), [""] * 4
        if name == line["method"]:
            step = " + ".join(filter(None, (cost(line, ms, 0) for ms in ("step_ms", "teachers_ms"))))
            costs = [cost(line, "parameters", 2, 1e6), cost(line, "gflops", 2), step, cost(line, "memory_mb", 0)]
        lines.append(f"| {name} | {figure(line, 'mAP50')} | {figure(line, 'mAP50_95')} | {' | '.join(costs)} |")
    return "\n".join(lines) + "\n"


def markdown_of(differences: Sequence[Difference]) -> str:
    """The table of `compare` for people; empty without any."""
    lines = []
    within = any(difference.resampled is not None for difference in differences)
    for difference in differences:
        each = ", ".join(f"{gain:+.1f}" for _, gain in difference.gains.values())
        line = difference.line()
        cells = [answer_name(*difference.answer), answer_name(*difference.over), each, f"{line['mAP50_95']:+.1f}"]
        if within:
            cells.append(f"{line['mAP50_95_low']:+.1f} to {line['mAP50_95_high']:+.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    head = ["points of mAP50:95", "over", "seed by seed", "mean", *(["95 % interval"] if within else [])]
    top = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join(["", *top, *lines, ""]) if lines else ""
