"""What training on pseudo-labels gives: true labels serve for scoring alone.

    python benchmarks/pseudo_labels.py --data data.yaml --split train --folds frames.csv --weights yolov8n.pt \\
        --methods rscmd --imgsz 320 epochs=8 batch=8 nbs=8 optimizer=AdamW lr0=0.0002

The model that `rscmd_model.assemble` makes of the checkpoint labels every pair, as `rscmd_ros.label_bag` does but for
tracks, since the pairs are no recording. For each variant of the labels `rscmd_model.ablate` trains on all folds but
one and answers that one. All answers are scored together with the true labels, with intervals over drives:

    truth        the true labels
    labels       the sure pseudo-labels; everything else is background
    ignore       as label_bag writes them: doubtful boxes are regions that teach nothing
    confidence   and each label weighs as much as its score
    own          and a camera's own answer learns nothing of what the other one alone has seen
    looser, stricter   as ignore, with labels of precision 0.7 and 0.9

What is finished lies in --out and is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ablation import run

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import DataConfig, PairFiles, find_pairs, pixel_boxes
from rscmd_model.datasets.sidecars import Sidecar, label_text, numbers, write_sidecar
from rscmd_model.errors import run_cli
from rscmd_model.evaluation.ablation import times_of
from rscmd_model.evaluation.answers import ANSWERS, Answers
from rscmd_model.evaluation.faults import Fault
from rscmd_model.evaluation.folds import Drives, read_folds
from rscmd_model.evaluation.resampling import interval, scores
from rscmd_model.evaluation.scoring import Truth, match, score
from rscmd_model.evaluation.sweep import answer_pairs
from rscmd_model.imaging.images import read_thermal, read_visible
from rscmd_model.inference.late_fusion import overlaps
from rscmd_model.inference.predictor import Predictor
from rscmd_model.labelling.pseudo_labels import FAINT, PRECISION, Limits, candidates, pseudo_labels, sure_from

SETS = {"labels": PRECISION, "ignore": PRECISION, "confidence": PRECISION, "own": PRECISION}
SETS |= {"looser": 0.7, "stricter": 0.9}
KEYS: dict[str, dict[str, Any]] = {
    "ignore": {"confidence": False, "teach": "both"},
    "confidence": {"confidence": True, "teach": "both"},
    "own": {"confidence": False, "teach": "own"},
}
WHO = {(True, True): "both cameras", (True, False): "visible alone", (False, True): "thermal alone"}
WHO |= {(False, False): "neither alone"}
RESAMPLES = 1000


def main() -> None:
    """Parse the command line, label, train what is missing, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="labelled pairs in YOLO folders")
    parser.add_argument("--split", default="train", help="whose pairs are folded (default: %(default)s)")
    parser.add_argument("--folds", type=Path, required=True, help="columns name, fold, and block: the drive")
    parser.add_argument("--weights", type=Path, required=True, help="the checkpoint, for teacher and trainings")
    parser.add_argument("--methods", default="rscmd", help="as rscmd_model.ablate takes them (default: %(default)s)")
    parser.add_argument("--variants", default="truth,ignore", help="of the labels (default: %(default)s)")
    parser.add_argument("--imgsz", type=int, default=640, help="of the trained model, px (default: %(default)s)")
    parser.add_argument("--label-size", type=int, default=640, help="of the labelling model, px (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/pseudo_labels"), help="(default: %(default)s)")
    parser.add_argument("options", nargs="*", metavar="key=value", help="ultralytics' options")
    args = parser.parse_intermixed_args()
    data = open_data(args.data)
    pairs = find_pairs(data, args.split)
    folds, drives = read_folds(data, ("train", args.split), args.folds)
    variants = args.variants.split(",")
    teacher, student = (_assembled(args, data, size) for size in (args.label_size, args.imgsz))
    predictor = Predictor(student, conf=0.001, max_det=100)
    rows = {f"assembled, {a}": v for a, v in _answers(predictor, data, pairs).items()}
    truths = dict(zip(rows["assembled, fused"].stems, rows["assembled, fused"].truths))
    if set(variants) - {"truth"}:
        found = _found(Predictor(teacher, conf=FAINT, max_det=300), pairs)
        for precision in sorted({SETS[variant] for variant in variants if variant != "truth"}):
            _write_set(args.out / f"set{precision:g}", data, pairs, found, precision, truths)
    for variant in variants:
        out = args.out / f"{variant}-{args.folds.stem}"
        described = args.data if variant == "truth" else _description(args.out, variant, data)
        words = [f"imgsz={args.imgsz}", *args.options, "device=cpu", "workers=0"]
        command = ["--data", described, "--split", args.split, "--folds", args.folds, "--weights", args.weights]
        command += ["--methods", args.methods, "--seeds", "1", "--jobs", str(args.jobs), "--out", out, "--resamples", 0]
        run("rscmd_model.ablate", *command, *words)
        for method in args.methods.split(","):
            parts = [Answers.load(out / f"{method}-seed0-fold{name}" / ANSWERS) for name in folds.names]
            for answer, answers in _by_answer(Answers.together(parts)).items():
                rows[f"{variant}, {method}, {answer}"] = answers
    _tell(rows, truths, data.names, drives)


def _assembled(args: argparse.Namespace, data: DataConfig, size: int) -> Path:
    file: Path = args.out / f"assembled{size}.safetensors"
    if not file.exists():
        words = ["--weights", args.weights, "--classes", ",".join(data.names.values()), "--image-size", str(size)]
        run("rscmd_model.assemble", *words, "--out", file)
    return file


def _answers(predictor: Predictor, data: DataConfig, pairs: Sequence[PairFiles]) -> dict[str, Answers]:
    whole = {answer: Fault(answer=answer) for answer in predictor.config.pair_answers}
    return _by_answer(answer_pairs(predictor, data, pairs, whole))


def _by_answer(answers: Answers) -> dict[str, Answers]:
    return {
        name: Answers(answers.stems, answers.sizes, answers.truths, {name: found})
        for name, found in answers.found.items()
    }


def _found(predictor: Predictor, pairs: Sequence[PairFiles]) -> list[tuple[tuple[int, int], Any]]:
    """Of each pair the size (width, height) of its visible image, and the candidates."""
    found = []
    for pair in pairs:
        visible, thermal = read_visible(pair.visible), read_thermal(pair.thermal, predictor.thermal)
        (each,) = predictor.predict_each([visible], [thermal])
        found.append(((visible.shape[1], visible.shape[0]), candidates(each)))
    return found


def _write_set(
    out: Path,
    data: DataConfig,
    pairs: Sequence[PairFiles],
    found: Sequence[tuple[tuple[int, int], Any]],
    precision: float,
    truths: Mapping[str, Truth],
) -> None:
    """Labels and sidecars of every pair; the pictures are links. Tells how good they are."""
    joint = [given.found for _, given in found]
    of_class = {
        name: np.concatenate([one.scores[one.classes == number] for one in joint])
        for number, name in data.names.items()
    }
    limits = Limits(sure_from(of_class, precision))
    told = ", ".join(f"{name} {value:.2f}" for name, value in limits.sure.items())
    print(f"\nlabels of precision {precision:g}: sure from {told}")
    sidecars = {}
    for pair, (size, given) in zip(pairs, found):
        sidecars[pair.stem] = sidecar = pseudo_labels(given, data.names, size, limits)
        for kind, file in (("visible", pair.visible), ("thermal", pair.thermal)):
            link = out / kind / "train" / f"{pair.stem}{file.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(file.resolve())
        label = out / "labels/train" / f"{pair.stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(label_text(sidecar), encoding="utf-8")
        write_sidecar(out / "sidecars/train" / f"{pair.stem}.json", sidecar)
    _tell_quality(sidecars, {pair.stem: size for pair, (size, _) in zip(pairs, found)}, truths, data.names)


def _tell_quality(
    sidecars: Mapping[str, Sidecar],
    sizes: Mapping[str, tuple[int, int]],
    truths: Mapping[str, Truth],
    names: Mapping[int, str],
) -> None:
    """Precision and recall of pseudo-labels at IoU 0.5, of each class and by who has seen them."""
    right: dict[str, list[bool]] = {}
    covered = 0
    for stem, sidecar in sidecars.items():
        truth, (width, height) = truths[stem], sizes[stem]
        rows = np.array([numbers(found.line) for found in sidecar.labels], np.float32).reshape(-1, 5)
        regions = np.array([numbers(found.line) for found in sidecar.ignore], np.float32).reshape(-1, 5)
        boxes, known = pixel_boxes(rows, width, height), np.zeros(len(truth), bool)
        overlap = overlaps(np.atleast_2d(boxes).reshape(-1, 4), truth.boxes.reshape(-1, 4))
        for i, found in enumerate(sidecar.labels):
            free = np.where((truth.classes == rows[i, 0]) & ~known, overlap[i], 0) if len(truth) else np.zeros(1)
            hit = bool(free.max() >= 0.5)
            if hit:
                known[int(free.argmax())] = True
            who = WHO[found.seen_by("visible"), found.seen_by("thermal")]
            for group in (names[int(rows[i, 0])], who, "all"):
                right.setdefault(group, []).append(hit)
        if len(truth) and len(regions):
            covered += int((~known & (overlaps(pixel_boxes(regions, width, height), truth.boxes).max(0) >= 0.5)).sum())
    totals = {name: sum(int((truths[s].classes == n).sum()) for s in sidecars) for n, name in names.items()}
    totals["all"] = sum(totals.values())
    print("| labels | number | precision | recall |\n|---|---|---|---|")
    for group, hits in sorted(right.items(), key=lambda item: -len(item[1])):
        recall = f"{sum(hits) / totals[group]:.2f}" if totals.get(group) else ""
        print(f"| {group} | {len(hits)} | {np.mean(hits):.2f} | {recall} |")
    ignored = sum(len(sidecar.ignore) for sidecar in sidecars.values())
    print(f"{ignored} regions to ignore hold {covered} of the {totals['all'] - sum(right['all'])} objects not labelled")


def _description(out: Path, variant: str, data: DataConfig) -> Path:
    folder = out / f"set{SETS[variant]:g}"
    kept = ("names", "thermal_contract", "registration")
    described = {key: data.resolved[key] for key in kept if key in data.resolved}
    described |= {"path": str(folder.resolve()), "train": "visible/train", "val": "visible/train"}
    described |= {"thermal": dict.fromkeys(("train", "val"), "thermal/train")}
    described |= {"labels": dict.fromkeys(("train", "val"), "labels/train")}
    if variant != "labels":
        described |= {"sidecars": "sidecars", **KEYS.get(variant, KEYS["ignore"])}
    file = out / f"{variant}.yaml"
    file.write_text(yaml.safe_dump(described), encoding="utf-8")
    return file


def _tell(rows: Mapping[str, Answers], truths: Mapping[str, Truth], names: Mapping[int, str], drives: Drives) -> None:
    """Scores by true labels with intervals, and the gain over the assembled model's ensemble with paired ones."""
    drawn: dict[str, np.ndarray] = {}
    print("\n| answers | mAP50 | mAP50:95 | more than assembled, ensemble |\n|---|---|---|---|")
    for name, answers in rows.items():
        (found,) = answers.found.values()
        true = [truths[stem] for stem in answers.stems]
        its = score(true, found, names, answers.sizes)
        times = times_of(answers.stems, drives, RESAMPLES)
        drawn[name] = scores(match(true, found, names, answers.sizes), times)
        cells = []
        for n, figure in enumerate((its.mAP50, its.mAP50_95)):
            low, high = interval(drawn[name][:, n])
            cells.append(f"{100 * figure:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        base = drawn.get("assembled, ensemble")
        more = ""
        if base is not None and not name.startswith("assembled") and len(base) == len(drawn[name]):
            low, high = interval(drawn[name][:, 1] - base[:, 1])
            more = f"{100 * low:+.1f} to {100 * high:+.1f}"
        print(f"| {name} | {' | '.join(cells)} | {more} |", flush=True)


if __name__ == "__main__":
    run_cli(main)
