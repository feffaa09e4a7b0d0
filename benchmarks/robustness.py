"""What faults cost: models side by side on one split, a lost camera and four sweeps, as tables and one picture.

    python benchmarks/robustness.py --data data.yaml --out runs/robustness plain=a.safetensors dropout=b.safetensors

The points are those of `python -m rscmd_model.evaluate` with --drop, --shift, --noise, --dark and --time-offset, scored
in one pass. Figures of a model that are already in --out are used again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import UserError, run_cli
from rscmd_model.evaluation.curves import draw_curves
from rscmd_model.evaluation.faults import Fault, describe
from rscmd_model.evaluation.sweep import LOWEST_SCORE, sweep
from rscmd_model.files import whole_file, write_json
from rscmd_model.inference.predictor import Predictor

LOST = [
    Fault(),
    *(Fault(drop=drop, answer=answer) for drop in ("visible", "thermal") for answer in ("branch", "zeros")),
]
SWEEPS = {
    "shift": [Fault(shift=(px, 0)) for px in (0, 2, 4, 8, 16)],
    "noise": [Fault(noise=sigma) for sigma in (0, 10, 20, 40)],
    "dark": [Fault(dark=factor) for factor in (1, 0.5, 0.25, 0.1, 0.03)],
    "time_offset": [Fault(time_offset=frames) for frames in (0, 1, 2, 4)],
}
Figures = dict[str, list[dict[str, Any]]]


def score(model: Path, data: Path, split: str, seed: int) -> Figures:
    """The points of a model: of a lost camera under "lost", of each sweep under its fault's name."""
    config = open_data(data)
    pairs = find_pairs(config, split)
    predictor = Predictor(model, conf=LOWEST_SCORE, max_det=100)
    # One pass for everything that is scored on all pairs; a time offset leaves the ends of the sequences out.
    together = list(dict.fromkeys(LOST + SWEEPS["shift"] + SWEEPS["noise"] + SWEEPS["dark"]))
    points = dict(zip(together, sweep(predictor, config, pairs, together, seed=seed)))
    late = SWEEPS["time_offset"]
    points_late = dict(zip(late, sweep(predictor, config, pairs, late, seed=seed)))
    return {
        "lost": [points[fault] for fault in LOST],
        **{name: [(points_late if name == "time_offset" else points)[f] for f in fs] for name, fs in SWEEPS.items()},
    }


def table(title: str, faults: list[Fault], figures: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Markdown: a row for each fault, a column for each model, mAP50 / mAP50:95 in percent."""
    lines = [f"| {title} | {' | '.join(figures)} |", "|---|" + "---|" * len(figures)]
    for number, fault in enumerate(faults):
        cells = [f"{100 * p[number]['mAP50']:.1f} / {100 * p[number]['mAP50_95']:.1f}" for p in figures.values()]
        lines.append(f"| {describe(fault)} | {' | '.join(cells)} |")
    return [*lines, ""]


def main() -> None:
    """Parse the command line, score what is missing, write tables and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FILE", help="model files and what to call them")
    parser.add_argument("--data", type=Path, required=True, help="data.yaml of the pairs")
    parser.add_argument("--split", default="val", help="split to score (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"), help="folder (default: %(default)s)")
    args = parser.parse_args()
    figures: dict[str, Figures] = {}
    for word in args.models:
        name, equals, file = word.partition("=")
        if not equals:
            raise UserError(f"{word!r}: expected NAME=FILE, as in plain=model.safetensors")
        kept = args.out / f"{name}.json"
        if not kept.is_file():
            write_json(kept, score(Path(file), args.data, args.split, args.seed))
        figures[name] = json.loads(kept.read_text())

    lines = table("lost camera", LOST, {name: f["lost"] for name, f in figures.items()})
    for axis, faults in SWEEPS.items():
        first = next(iter(figures.values()))[axis][0]
        lines += table(f"{axis}, {first['pairs']} pairs", faults, {name: f[axis] for name, f in figures.items()})
    with whole_file(args.out / "tables.md") as aside:
        aside.write_text("\n".join(lines))
    draw(args.out / "curves.png", figures)
    print("\n".join(lines) + f"\npicture: {args.out / 'curves.png'}")


def draw(path: Path, figures: dict[str, Figures]) -> None:
    """One panel for each sweep, one curve for each model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.8), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True).flat
    for panel, (axis, faults) in zip(panels, SWEEPS.items()):
        for number, (name, of_model) in enumerate(figures.items()):
            draw_curves(panel, list(zip(faults, of_model[axis])), axis, name, number)
        panel.legend()
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=100)


if __name__ == "__main__":
    run_cli(main)
