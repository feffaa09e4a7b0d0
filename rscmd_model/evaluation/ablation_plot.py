"""The picture of an ablation: a bar for each method's mean, a dot for each seed, a whisker for the interval."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rscmd_model.evaluation.answers import is_lost
from rscmd_model.files import whole_file
from rscmd_model.methods import parse_method

LABELS = {"mAP50": "mAP50", "mAP50_95": "mAP50:95"}


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


def plot_ablation(
    path: Path, rows: Sequence[Mapping[str, Any]], title: str, table: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Draw the scores of an ablation.

    Args:
        path: of the picture.
        rows: for each run and answer its method, branch, mAP50 and mAP50_95 (0 to 1), in the order to draw them.
        title: above the picture.
        table: for each method and answer the ends of the interval in points, such as mAP50_low and mAP50_high, where
            there is one.

    Raises:
        UserError: the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys((row["method"], row["branch"]) for row in rows))
    names = [answer_name(*group) for group in groups]
    # The answers to whole pairs and the controls stand out; a branch alone is the same method's part.
    colours = ["#2f6f9f" if b == "fused" else "#b65c2a" if m == b else "#c9c9c9" for m, b in groups]
    ends = {(line["method"], line["branch"]): line for line in table}
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.9 + 0.36 * len(groups)), sharey=True)
    for axis, column in zip(axes, LABELS):
        for y, (group, colour) in enumerate(zip(groups, colours)):
            values = [100 * r[column] for r in rows if (r["method"], r["branch"]) == group]
            mean = statistics.mean(values)
            axis.barh(y, mean, color=colour, height=0.7)
            axis.plot(values, [y] * len(values), "o", color="black", markersize=3)
            right = max(values)
            if (low := ends.get(group, {}).get(f"{column}_low")) is not None:
                high = ends[group][f"{column}_high"]
                axis.plot([low, high], [y, y], "|-", color="black", linewidth=1, markersize=8)
                right = max(right, high)
            axis.text(right + 1, y, f"{mean:.1f}", va="center", fontsize=8)
        axis.set_xlabel(LABELS[column])
        axis.set_xlim(0, 108)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(groups)), names)
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=110)
    plt.close(figure)
