"""Results of finished bags in files, so that an evaluation of many bags goes on where it was interrupted.

A result is found again by everything that it depends on: the bag's files (path, size and time of change), the model's
and other files' contents, the settings, and the code. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

import rscmd_model
import rscmd_ros
from rscmd_model.detections import Detections
from rscmd_model.evaluation.scoring import Truth
from rscmd_model.files import sha256_of, whole_file
from rscmd_ros.bags.files import stamp_of
from rscmd_ros.bags.job import LOWEST_SCORE, Job
from rscmd_ros.bags.report import Sample
from rscmd_ros.bags.run import Result
from rscmd_ros.bags.score import Outcome, ScoredFrame

Arrays = dict[str, npt.NDArray[Any]]


def result_file(folder: Path, job: Job, digests: dict[Path, str]) -> Path:
    """Where the result of a job lies, or will lie.

    Args:
        folder: of all results.
        job: the job.
        digests: of files read before, by path; grows.

    Raises:
        FileNotFoundError: a file of the job is not there.
    """
    bag = job.bag.resolve()
    if not (stats := stamp_of(bag)):
        raise FileNotFoundError(bag)
    contents = {
        name: _digest(path, digests) for name in ("model", "truth", "registration") if (path := getattr(job, name))
    }
    settings = {k: v for k, v in asdict(job).items() if k not in ("bag", "model", "truth", "registration")}
    packages = [Path(package.__path__[0]) for package in (rscmd_model, rscmd_ros)]
    code = [_digest(path, digests) for package in packages for path in sorted(package.rglob("*.py"))]
    everything = [str(bag), stats, contents, settings, LOWEST_SCORE, code]
    key = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    return folder / f"{bag.stem}-{key[:20]}.npz"


def _digest(path: Path, digests: dict[Path, str]) -> str:
    if path not in digests:
        digests[path] = sha256_of(path)
    return digests[path]


def save_result(path: Path, result: Result) -> None:
    """Write a result whole.

    Raises:
        UserError: that fails.
    """
    found = result.outcome
    plain = {
        "frames": found.frames,
        "ledger": found.ledger,
        "pairs": found.pairs,
        "unanswered": found.unanswered,
        "has_truth": found.scored is not None,
        "unknown": list(found.unknown),
        "truth": result.truth,
        "seconds": result.seconds,
        "messages": result.messages,
        "notes": list(result.notes),
        "titles": [sample.title for sample in result.samples],
    }
    frames = found.scored or ()
    arrays: Arrays = {
        "plain": np.array(json.dumps(plain)),
        "dt_ms": np.asarray(found.dt_ms, np.float64),
        "latency_ms": np.asarray(found.latency_ms, np.float64),
        "sizes": np.array([frame.size for frame in frames], np.int64).reshape(-1, 2),
        "paired": np.array([frame.paired for frame in frames], bool),
        **_packed("truth", [frame.truth for frame in frames]),
        **_packed("found", [frame.found for frame in frames]),
        **_packed("sample_truth", [s.truth or Truth(np.zeros((0, 4)), np.zeros(0)) for s in result.samples]),
        **_packed("sample_found", [s.detections or Detections.empty() for s in result.samples]),
    }
    for number, sample in enumerate(result.samples):
        for name, picture in (("visible", sample.visible), ("thermal", sample.thermal)):
            arrays[f"{name}_{number}"] = np.asarray(cv2.imencode(".png", picture)[1])
    with whole_file(path) as aside, aside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_result(path: Path) -> Result | None:
    """A result that was kept; None where there is none, or a file that cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: Arrays = dict(file)
        plain = json.loads(str(arrays["plain"]))
        scored = [
            ScoredFrame(truth, found, (int(width), int(height)), bool(paired))
            for truth, found, (width, height), paired in zip(
                _truths("truth", arrays), _found("found", arrays), arrays["sizes"], arrays["paired"], strict=True
            )
        ]
        samples = [
            Sample(
                np.asarray(cv2.imdecode(arrays[f"visible_{n}"], cv2.IMREAD_COLOR), np.uint8),
                np.asarray(cv2.imdecode(arrays[f"thermal_{n}"], cv2.IMREAD_GRAYSCALE), np.uint8),
                found,
                truth if len(truth) else None,
                title,
            )
            for n, (truth, found, title) in enumerate(
                zip(_truths("sample_truth", arrays), _found("sample_found", arrays), plain["titles"], strict=True)
            )
        ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, cv2.error):
        return None  # none yet, or damaged: the bag is evaluated again
    outcome = Outcome(
        plain["frames"],
        plain["ledger"],
        plain["pairs"],
        plain["unanswered"],
        arrays["dt_ms"].tolist(),
        arrays["latency_ms"].tolist(),
        scored if plain["has_truth"] else None,
        plain["unknown"],
    )
    return Result(outcome, samples, plain["truth"], plain["seconds"], plain["messages"], plain["notes"])


def _packed(name: str, rows: list[Any]) -> Arrays:
    """Boxes of many pictures one after another, and how many each has."""
    arrays: Arrays = {
        f"{name}_count": np.array([len(row) for row in rows], np.int64),
        f"{name}_boxes": np.concatenate([np.zeros((0, 4), np.float32), *(row.boxes for row in rows)]),
        f"{name}_classes": np.concatenate([np.zeros(0, np.int64), *(row.classes for row in rows)]),
    }
    scores = [row.scores for row in rows if isinstance(row, Detections)]
    arrays[f"{name}_scores"] = np.concatenate([np.zeros(0, np.float32), *scores])
    return arrays


def _unpacked(name: str, column: str, arrays: Arrays) -> list[npt.NDArray[Any]]:
    return (
        np.split(arrays[f"{name}_{column}"], np.cumsum(arrays[f"{name}_count"])[:-1])
        if len(arrays[f"{name}_count"])
        else []
    )


def _truths(name: str, arrays: Arrays) -> list[Truth]:
    return [Truth(b, c) for b, c in zip(_unpacked(name, "boxes", arrays), _unpacked(name, "classes", arrays))]


def _found(name: str, arrays: Arrays) -> list[Detections]:
    columns = (_unpacked(name, column, arrays) for column in ("boxes", "scores", "classes"))
    return [Detections(boxes, scores, classes) for boxes, scores, classes in zip(*columns)]
