"""Scoring a predictor on pairs, sound or with faults played on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rscmd_model.config import other_modality
from rscmd_model.datasets.pairs import DataConfig, PairFiles, pixel_boxes, read_labels
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.evaluation.answers import Answers
from rscmd_model.evaluation.classes import shared_classes
from rscmd_model.evaluation.faults import STAND_INS, Fault, frames_before, with_neighbours
from rscmd_model.evaluation.scoring import Truth, score
from rscmd_model.imaging.images import read_thermal, read_visible
from rscmd_model.inference.predictor import Predictor

LOWEST_SCORE = 0.001  # below it the precision-recall curve has nothing more to gain


def evaluate(
    predictor: Predictor, data: DataConfig, pairs: Sequence[PairFiles], *, drop: str | None = None, batch: int = 16
) -> dict[str, Any]:
    """Score a predictor on pairs.

    Args:
        predictor: its own thresholds are used.
        data: the data set the pairs are of.
        pairs: what to score on.
        drop: "visible" or "thermal" to leave that image out, or None; the other camera's own branch answers.
        batch: pairs per batch.

    Returns:
        mAP50, mAP50_95 (0 to 1), per_class, pairs, and what else `sweep` tells of a point.

    Raises:
        UserError: as `sweep`.
    """
    return sweep(predictor, data, pairs, [Fault(drop=drop)], batch=batch)[0]


def sweep(
    predictor: Predictor,
    data: DataConfig,
    pairs: Sequence[PairFiles],
    faults: Sequence[Fault],
    *,
    seed: int = 0,
    batch: int = 16,
) -> list[dict[str, Any]]:
    """Score a predictor on pairs once for each fault; every image is read once.

    Args:
        predictor: its own thresholds are used.
        data: the data set the pairs are of.
        pairs: what to score on. Where a fault has a time offset, those alone are scored, for every fault, that have a
            frame at each offset.
        faults: what goes wrong, each by itself.
        seed: of the noise, 0 or more.
        batch: pairs per batch.

    Returns:
        per fault: mAP50, mAP50_95 (0 to 1), per_class, pairs, left_out (pairs not scored), and the fields of the fault.

    Raises:
        UserError: the model has no class of the data, it has no such answer, a file is unreadable, or no pair has
            the frames wanted.
    """
    names = shared_classes(predictor.names, data.names, data.name).names
    seen = answer_pairs(predictor, data, pairs, {str(n): f for n, f in enumerate(faults)}, seed=seed, batch=batch)
    return [
        {**figures, "left_out": len(pairs) - len(seen.stems), **asdict(fault)}
        for fault, figures in zip(faults, score_all(seen, names).values())
    ]


def answer_pairs(
    predictor: Predictor,
    data: DataConfig,
    pairs: Sequence[PairFiles],
    faults: Mapping[str, Fault],
    *,
    seed: int = 0,
    batch: int = 16,
) -> Answers:
    """Ask a predictor about pairs once for each fault; every image is read once, and once more as a frozen one.

    Args:
        predictor: its own thresholds are used.
        data: the data set the pairs are of.
        pairs: what to ask about, see `sweep`. A frozen camera sends the image of the frame before among them.
        faults: by the name of an answer what goes wrong for it.
        seed: of the noise, 0 or more.
        batch: pairs per batch.

    Returns:
        the answers by these names, in the order of the pairs: of the classes that model and data share by name, in
        the data's numbers.

    Raises:
        UserError: as `sweep`.
    """
    shared = shared_classes(predictor.names, data.names, data.name)
    for fault in faults.values():
        _check_answer(predictor, fault)
    frozen = any(fault.drop is not None and fault.answer == "frozen" for fault in faults.values())
    earlier = {stem: pair for stem, (pair, _) in frames_before(pairs).items()} if frozen else {}
    offsets = sorted({fault.time_offset for fault in faults.values()})
    thermal_of: Mapping[tuple[str, int], PairFiles] = {(pair.stem, 0): pair for pair in pairs}
    if offsets != [0]:
        pairs, thermal_of = with_neighbours(pairs, offsets)
    truths: list[Truth] = []
    sizes: list[tuple[int, int]] = []
    found: dict[str, list[Detections]] = {name: [] for name in faults}
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        visibles = [read_visible(pair.visible) for pair in part]
        files = {thermal_of[pair.stem, offset].thermal for pair in part for offset in offsets}
        thermals = {file: read_thermal(file, predictor.thermal) for file in files}
        before = {
            pair.stem: (read_visible(last.visible), read_thermal(last.thermal, predictor.thermal))
            for pair in part
            if (last := earlier.get(pair.stem)) is not None
        }
        for pair, visible in zip(part, visibles):
            height, width = visible.shape[:2]
            labels = read_labels(data, pair)
            truth = Truth(pixel_boxes(labels, width, height), labels[:, 0].astype(np.int64))
            truths.append(shared.truth(truth))
            sizes.append((width, height))
        for name, fault in faults.items():
            arrived = [
                fault.apply(
                    visible,
                    thermals[thermal_of[pair.stem, fault.time_offset].thermal],
                    predictor.thermal,
                    seed,
                    pair.stem,
                    before.get(pair.stem),
                )
                for pair, visible in zip(part, visibles)
            ]
            answers = _predict(predictor, arrived, sizes[start:], fault.pair_answer)
            found[name] += map(shared.found, answers)
    return Answers(tuple(pair.stem for pair in pairs), tuple(sizes), tuple(truths), found)


def score_all(answers: Answers, names: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """Score answers.

    Args:
        answers: to pairs.
        names: class names by number.

    Returns:
        by the name of an answer its mAP50, mAP50_95 (0 to 1), per_class, and how many pairs.

    Raises:
        UserError: there is no truth at all.
    """
    return {
        name: {**score(answers.truths, found, names, answers.sizes).to_dict(), "pairs": len(answers.stems)}
        for name, found in answers.found.items()
    }


def _check_answer(predictor: Predictor, fault: Fault) -> None:
    """Refuse a fault that the model has no answer for (`UserError`)."""
    if fault.drop is None:
        predictor.header.pair_answer(fault.pair_answer)
        return
    left = other_modality(fault.drop)
    there = ", ".join(predictor.config.answers)
    if fault.answer == "branch" and left not in predictor.modalities:
        hint = "; --answer zeros asks its fused head" if "fused" in predictor.config.answers else ""
        raise UserError(f"{fault.drop} lost: this model has no {left} branch to answer (it has {there}){hint}")
    if fault.answer in STAND_INS and "fused" not in predictor.config.answers:
        raise UserError(
            f"--answer {fault.answer}: this model has no fused head to feed {fault.answer} to (it has {there})"
        )


def _predict(
    predictor: Predictor,
    arrived: Sequence[tuple[np.ndarray | None, np.ndarray | None]],
    sizes: list[tuple[int, int]],
    answer: str | None,
) -> list[Detections]:
    """The answers to pairs in the pixels of their visible images, (width, height) each, also where these are lost.

    Whole pairs are answered by `answer`.
    """
    found: dict[int, Detections] = {}
    for size in set(sizes[: len(arrived)]):
        members = [i for i in range(len(arrived)) if sizes[i] == size]
        visibles, thermals = zip(*(arrived[i] for i in members))
        found.update(zip(members, predictor.predict_batch(visibles, thermals, size=size, answer=answer)))
    return [found[i] for i in range(len(arrived))]
