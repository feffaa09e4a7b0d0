"""An ablation: several methods trained with one recipe and several seeds, each scored, and the tables of it.

With folds each method and seed is trained once for each fold, without that fold's pairs; the answers to all folds are
scored as one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rscmd_model.config import LINEAR_SPPF
from rscmd_model.datasets.pairs import PairFiles, find_pairs, list_pairs, split_hash
from rscmd_model.datasets.telling import left_out_line, trained_on_line
from rscmd_model.errors import UserError, quoted
from rscmd_model.evaluation.ablation_runs import Ablation, Run
from rscmd_model.evaluation.ablation_tables import Row, median_cost, write_results
from rscmd_model.evaluation.answers import ANSWERS, Answers, is_lost
from rscmd_model.evaluation.folds import Drives
from rscmd_model.evaluation.resampling import draw, scores
from rscmd_model.evaluation.scoring import match
from rscmd_model.evaluation.sweep import score_all
from rscmd_model.evaluation.trainings import train_here, train_with_ray
from rscmd_model.files import lock_folder, sha256_of, write_json


def ablate(
    ablation: Ablation,
    methods: Sequence[str],
    seeds: int,
    jobs: int | None = 1,
    progress: Callable[[str], None] = lambda line: None,
    *,
    ray: str | None = None,
    drives: Drives | None = None,
    resamples: int = 1000,
) -> None:
    """Train what is missing, score it, and write the tables of what there is.

    Args:
        ablation: what all runs share.
        methods: as they are written on the command line.
        seeds: the seeds are 0 to `seeds` - 1.
        jobs: trainings side by side; with `ray`, None is one for each GPU or processor of the cluster.
        progress: called with lines to show, the tables at last.
        ray: "local", or HOST:PORT of a running cluster, whose machines train; None: this machine trains.
        drives: of the scored pairs, for intervals; None for none. Of one drive alone there are none either: whatever is
            drawn is that drive.
        resamples: of the drives; 0 for no intervals.

    Raises:
        UserError: the data are wrong; the folder is in use, cannot be written or holds another ablation; or a run
            failed, after all others were trained.
    """
    about, title = _about(ablation)
    with lock_folder(ablation.out, "ablation"):
        claim(ablation)
        if ablation.folds:
            ablation.folds.write(ablation.data, ablation.out / "folds")
        runs = ablation.runs(methods, seeds)
        missing = [run for run in runs if not ablation.is_finished(run)]
        progress(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished before; {about}")
        for line in _warnings(ablation):
            progress(line)
        failed: dict[Run, str] = {}
        taught = [run for run in missing if ablation.teachers(run)]
        for part in ([run for run in missing if run not in taught], taught):  # teachers before those they teach
            if ray is None:
                failed |= train_here(part, ablation, jobs or 1, progress)
            else:
                failed |= train_with_ray(part, ablation, ray, jobs, progress)
        drives, note = drives if resamples else None, ""
        if drives and drives.count < 2:
            note = "No intervals: all scored pairs are of one drive, which says nothing of how far drives differ."
            progress(note)
            drives = None
        elif drives:
            progress(f"intervals of 95 % from {resamples} resamples: {drives}")
            also = "; of the seeds some are drawn as well" if seeds > 1 else ""
            note = f"Intervals of 95 % by bootstrap, {resamples} resamples: {drives}{also}."
        rows = read_rows([run for run in runs if run not in failed], ablation, drives, resamples)
        if rows:
            write_results(ablation.out, rows, title, note)
            progress("\n" + (ablation.out / "table.md").read_text(encoding="utf-8"))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(run.name for run in failed)}; the first one said: "
            f"{next(iter(failed.values()))}; see {ablation.out}/RUN.log, then call this again"
        )


def _about(ablation: Ablation) -> tuple[str, str]:
    """The pairs in a few words, and the title of the picture."""
    if ablation.folds:
        pooled = f"{len(ablation.folds.of)} pairs in {len(ablation.folds.names)} folds"
        return pooled, f"{ablation.data.name}: {pooled}, each scored by a model that did not see it"
    counts = {split: len(find_pairs(ablation.data, split)) for split in ("train", ablation.split)}
    return f"{counts} pairs", f"{ablation.data.name}, {ablation.split}: {counts[ablation.split]} pairs"


def _warnings(ablation: Ablation) -> list[str]:
    """Lines about pairs that are not used, and about scored ones that are trained on as well."""
    listings = {split: list_pairs(ablation.data, split) for split in _splits(ablation)}
    lines = [left_out_line(split, listing) for split, listing in listings.items()]
    if not ablation.folds:
        lines.append(trained_on_line(ablation.split, listings[ablation.split].pairs, listings["train"].pairs))
    return [line for line in lines if line]


def _splits(ablation: Ablation) -> list[str]:
    """The splits that are trained on or scored, each once."""
    return list(dict.fromkeys(("train", ablation.split)))


def claim(ablation: Ablation) -> None:
    """Take the folder for this ablation: its recipe is written there, or stands there already.

    Raises:
        UserError: it holds an ablation of another recipe, whose runs must not be mixed with these.
    """
    pairs = {split: find_pairs(ablation.data, split) for split in _splits(ablation)}
    data = {
        "description": ablation.data.resolved,
        "pairs": {split: split_hash(found) for split, found in pairs.items()},
        "labels": _labels_digest([pair for found in pairs.values() for pair in found]),
    }
    recipe = {
        "data": ablation.data.spec,
        **data,
        "split": ablation.split,
        "model": ablation.scale,
        "family": ablation.family,
        "options": dict(ablation.options),
        "weights": digest(ablation.weights) if ablation.weights else None,
        "batchnorm": "frozen" if ablation.frozen_statistics else "batch",
        "folds": ablation.folds.digest() if ablation.folds else None,
        "incomplete": str(ablation.incomplete),
    }
    recipe = json.loads(json.dumps(recipe))  # as it is read again
    file = ablation.out / "recipe.json"
    if not file.is_file():
        write_json(file, recipe)
        return
    try:
        # Earlier ablations do not name what there was no choice of, nor what their data were. Their yolov8 was another.
        before = json.loads(file.read_text(encoding="utf-8"))
        if "weights" not in before and before.get("family", "yolov8") == "yolov8":
            before["family"] = LINEAR_SPPF
        usual = {"weights": None, "folds": None, "batchnorm": "batch", "incomplete": "0"}
        before = {**usual, **{key: recipe[key] for key in data}, **before}
    except (TypeError, ValueError):
        raise UserError(f"{file} is no recipe of an ablation: choose another --out") from None
    if before != recipe:
        changed = sorted(k for k in before.keys() | recipe.keys() if before.get(k) != recipe.get(k))
        words = " and ".join("scale" if key == "model" else key for key in changed)
        raise UserError(f"{ablation.out} holds an ablation with another {words}: choose another --out")


def _labels_digest(pairs: Sequence[PairFiles]) -> str:
    """SHA-256 over the label files and sidecars of pairs.

    Raises:
        UserError: one cannot be read.
    """
    known: dict[Path, str] = {}  # one file may hold the labels of all
    lines = []
    for pair in pairs:
        for file in (pair.label, pair.thermal_label, pair.sidecar):
            if file is not None and file not in known:
                known[file] = digest(file)
            lines.append("" if file is None else known[file])
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def digest(file: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return sha256_of(file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


def read_rows(runs: Sequence[Run], ablation: Ablation, drives: Drives | None, resamples: int) -> list[Row]:
    """Gather the scores and costs of finished runs; with folds, of what all folds of a method and seed answered.

    Args:
        runs: all of them finished. A method and seed that lacks a fold is left out.
        ablation: what they share.
        drives: of the scored pairs; None for no intervals.
        resamples: how many.

    Returns:
        a row for each method, seed and answer.

    Raises:
        UserError: what a run answered cannot be read, is about other pairs than those of the folds or drives, or has no
            score, since no pair has an object.
    """
    together: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        together.setdefault((run.method, run.seed), []).append(run)
    rows: list[Row] = []
    for (method, seed), parts in together.items():
        if ablation.folds and len(parts) < len(ablation.folds.names):
            continue
        folders = [ablation.out / run.name for run in parts]
        cost = median_cost([_cost(ablation, run) for run in parts])
        answers = None
        if ablation.folds or drives:
            answers = Answers.together([Answers.load(folder / ANSWERS) for folder in folders])
            wanted = ablation.folds.of if ablation.folds else drives.of if drives else {}
            if other := sorted(set(answers.stems) ^ set(wanted)):
                raise UserError(
                    f"{folders[0]} was scored on other pairs than the data have now, {quoted(other[0])} among them: "
                    "choose another --out"
                )
        if ablation.folds and answers:
            figures = score_all(answers, ablation.data.names)
        else:
            figures = json.loads((folders[0] / "scores.json").read_text(encoding="utf-8"))["branches"]
        for branch, its in figures.items():
            if is_lost(branch) and not ablation.lost:
                continue
            if its["mAP50"] is None:
                raise UserError(f"{folders[0]} has no score, since none of the scored pairs has an object")
            resampled = None
            if answers and drives:
                matches = match(answers.truths, answers.found[branch], ablation.data.names, answers.sizes)
                resampled = scores(matches, times_of(answers.stems, drives, resamples))
            rows.append(Row(method, seed, branch, its["mAP50"], its["mAP50_95"], cost, resampled))
    return rows


def _cost(ablation: Ablation, run: Run) -> dict[str, Any]:
    """What a run cost, and a step of its teachers' trainings beside it.

    Of a run that was killed after its last checkpoint and before its cost.json nothing is known.
    """
    files = [ablation.out / one.name / "cost.json" for one in (run, *ablation.teachers(run))]
    cost, *teachers = (json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {} for file in files)
    steps = [teacher.get("step_ms") for teacher in teachers]
    return {**cost, "teachers_ms": sum(steps) if teachers and None not in steps else None}


def times_of(stems: Sequence[str], drives: Drives, resamples: int) -> npt.NDArray[np.int64]:
    """How often each pair counts in each resample of the drives.

    Args:
        stems: of the pairs, N.
        drives: theirs.
        resamples: how many, R.

    Returns:
        (R, N) int64. It depends on nothing else, so that the same drives are drawn for every model.
    """
    number = {drive: n for n, drive in enumerate(sorted({drives.of[stem] for stem in stems}))}
    return draw(len(number), resamples, "drives")[:, [number[drives.of[stem]] for stem in stems]]
