"""The picture of an ablation: a line for each method, and how well it answers with both cameras and with either one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rscmd_model.config import MODALITIES, other_modality
from rscmd_model.evaluation.answers import is_lost, lost_answer
from rscmd_model.evaluation.curves import COLOURS, lay_out_beside, plain
from rscmd_model.files import whole_file

# What is drawn where: the answers of a panel, each with its own mark, and the answer that all have to beat there.
PANELS = {"both cameras": (("fused", "ensemble"), ("sum", "fused"))} | {
    f"{lost} camera lost": ((other_modality(lost), lost_answer(lost)), (other_modality(lost), other_modality(lost)))
    for lost in MODALITIES
}
MARKS = {
    "fused": ("o", COLOURS[0], "fused head"),
    "ensemble": ("D", COLOURS[5], "ensemble"),
    "branch": ("o", COLOURS[1], "branch of the other camera"),
    "lost": ("x", "#666666", "fused head, one image black"),
}


def plot_ablation(
    path: Path, rows: Sequence[Mapping[str, Any]], title: str, table: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Draw the mAP50:95 of an ablation: the mean over seeds, each seed as a dot, and the interval as a line.

    Args:
        path: of the picture.
        rows: for each run and answer its method, branch and mAP50_95 (0 to 1), in the order to draw them.
        title: above the picture.
        table: for each method and answer the ends of the interval in points, mAP50_95_low and mAP50_95_high, where
            there is one.

    Raises:
        UserError: the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    methods = list(dict.fromkeys(row["method"] for row in rows))
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        values.setdefault((row["method"], row["branch"]), []).append(100 * row["mAP50_95"])
    ends = {(line["method"], line["branch"]): line for line in table}
    height = 1.5 + 0.34 * len(methods)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(12, height), sharey=True)
    marks: dict[str, Any] = {}
    for axis, (name, (answers, control)) in zip(axes, PANELS.items()):
        for y, method in enumerate(methods):
            for answer, up in zip(answers, (-0.15, 0.15)):
                if (here := values.get((method, answer))) is None:
                    continue
                kind = "lost" if is_lost(answer) else "branch" if answer in MODALITIES else answer
                mark, colour, label = MARKS[kind]
                line = ends.get((method, answer), {})
                if (low := line.get("mAP50_95_low")) is not None:
                    axis.plot([low, line["mAP50_95_high"]], [y + up] * 2, "-", color=colour, linewidth=1, alpha=0.6)
                if len(here) > 1:
                    axis.plot(here, [y + up] * len(here), ".", color="black", markersize=3, zorder=3)
                (marks[label],) = axis.plot(statistics.mean(here), y + up, mark, color=colour, markersize=6)
        if control in values:
            axis.axvline(statistics.mean(values[control]), color="black", linestyle=":", linewidth=1)
            name += f"\n(dotted: {control[0]})"
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("mAP50:95")
        axis.grid(axis="y", alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    figure.suptitle(plain(title), fontsize=10)
    legend = figure.legend(marks.values(), marks.keys(), loc="lower center", ncol=len(marks), fontsize=9, frameon=False)
    lay_out_beside(figure, legend)
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=110)
    plt.close(figure)
