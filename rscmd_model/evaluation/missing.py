"""The protocol of a lost camera: how well a model does where a share of the pairs has lost one.

The tables of `datasets/incomplete.py` say which pairs have lost which camera, at each rate. All pairs are scored
together: the answers to pairs that have both cameras and to those that have lost one compete by their scores. At a rate
of 100 % the same camera is lost always, or one of the two.

A lost camera is answered for by the other camera's own branch, which is told of the loss; or by the fused head, which
is not, and is fed an image in its place: a black one, the frame before it, or noise. The published protocols that we
know do not say which they mean. Each pair is answered once for each of them; a cell of the protocol is a selection of
these answers.

A collapse rate is the share of the figure of whole pairs that is gone: PCR = (both - lost) / both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rscmd_model.config import MODALITIES
from rscmd_model.datasets.incomplete import WHICH, lost_cameras, table_digest, write_table
from rscmd_model.datasets.pairs import DataConfig, PairFiles, split_hash
from rscmd_model.errors import UserError
from rscmd_model.evaluation.classes import shared_classes
from rscmd_model.evaluation.faults import Fault, frames_before
from rscmd_model.evaluation.scoring import score
from rscmd_model.evaluation.sweep import answer_pairs
from rscmd_model.inference.predictor import Predictor

RATES = (30.0, 50.0, 70.0)
ALWAYS = 100.0
LOOKS = {"black": "zeros", "frozen": "frozen", "noise": "noise"}  # how a lost image looks: `Fault.answer`
METRICS = ("mAP50", "mAP50_95")


@dataclass(frozen=True)
class Answerer:
    """Who answers where a camera is lost.

    Attributes:
        answer: "branch" or "fused".
        lost_as: what the fused head is fed in place of the lost image, one of `LOOKS`; None for a branch.
    """

    answer: str
    lost_as: str | None = None

    @property
    def title(self) -> str:
        """In words: "branch", or "fused, black"."""
        return f"{self.answer}, {self.lost_as}" if self.lost_as else self.answer

    def fault(self, camera: str) -> Fault:
        """The loss of a camera, and this answer to it."""
        return Fault(drop=camera, answer=LOOKS[self.lost_as] if self.lost_as else self.answer)


@dataclass(frozen=True)
class Cell:
    """The score of one answerer on the pairs of one table.

    Attributes:
        who: answers for the lost camera.
        which: camera is lost, one of `WHICH`.
        rate: percentage of the pairs that have lost it.
        figures: mAP50, mAP50_95 (0 to 1) and per_class.
    """

    who: Answerer
    which: str
    rate: float
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class ProtocolScores:
    """What the protocol gave.

    Attributes:
        pairs: of the split.
        seed: of the tables, and of the noise.
        rates: percentages of the pairs with a lost camera that the means are over, rising.
        sound_answer: what answers whole pairs, "fused" or "ensemble".
        both: figures of the pairs with both cameras, as plain evaluation gives them.
        tables: by rate (those of `rates`, and `ALWAYS`) and camera the table of `lost_cameras`.
        cells: for each answerer, camera and rate of the tables, in this order.
        notes: in words, what was left out and what a frozen camera sends.
    """

    pairs: tuple[PairFiles, ...]
    seed: int
    rates: tuple[float, ...]
    sound_answer: str
    both: Mapping[str, Any]
    tables: Mapping[tuple[float, str], Mapping[str, str]]
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]

    @property
    def answerers(self) -> list[Answerer]:
        """Who answers for lost cameras, each once."""
        return list(dict.fromkeys(cell.who for cell in self.cells))

    def figure(self, who: Answerer, which: str, rate: float, metric: str) -> float:
        """A figure of one cell, 0 to 1."""
        wanted = (who, which, rate)
        return float(next(c.figures[metric] for c in self.cells if (c.who, c.which, c.rate) == wanted))

    def mean(self, who: Answerer, metric: str) -> float:
        """The mean of a figure over the cells of `rates`, all of one weight."""
        figures = [self.figure(who, which, rate, metric) for rate in self.rates for which in WHICH]
        return sum(figures) / len(figures)

    def mean_of_three(self, who: Answerer, metric: str) -> float:
        """The mean of a figure over both cameras, the visible one lost always, and the thermal one lost always."""
        lost = [self.figure(who, camera, ALWAYS, metric) for camera in MODALITIES]
        return float(sum([self.both[metric], *lost]) / 3)

    def collapse(self, lost: float, metric: str) -> float | None:
        """The share (of 1) that is gone of the figure of whole pairs; None where that figure is 0."""
        both = float(self.both[metric])
        return (both - lost) / both if both else None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: everything but the tables themselves, of which it has the digests."""
        stems = [pair.stem for pair in self.pairs]
        return {
            "pairs": len(stems),
            "split_hash": split_hash(self.pairs),
            "seed": self.seed,
            "rates": list(self.rates),
            "sound_answer": self.sound_answer,
            "notes": list(self.notes),
            "both": dict(self.both),
            "tables": [
                {
                    "which": which,
                    "rate": rate,
                    **{f"{camera}_lost": list(lost.values()).count(camera) for camera in MODALITIES},
                    "digest": table_digest(stems, lost),
                    "file": table_name(which, rate),
                }
                for (rate, which), lost in self.tables.items()
            ],
            "cells": [
                {
                    "answer": cell.who.answer,
                    "lost_as": cell.who.lost_as,
                    "which": cell.which,
                    "rate": cell.rate,
                    **cell.figures,
                    **self._collapses({metric: cell.figures[metric] for metric in METRICS}),
                }
                for cell in self.cells
            ],
            "means": [
                {
                    "answer": who.answer,
                    "lost_as": who.lost_as,
                    "cells": (mean := {metric: self.mean(who, metric) for metric in METRICS}) | self._collapses(mean),
                    "both_visible_thermal": {metric: self.mean_of_three(who, metric) for metric in METRICS},
                }
                for who in self.answerers
            ],
        }

    def _collapses(self, figures: Mapping[str, float]) -> dict[str, float | None]:
        """The collapse rates PCR50 and PCR50_95 of figures by their names."""
        return {metric.replace("mAP", "PCR"): self.collapse(figures[metric], metric) for metric in METRICS}

    def write_tables(self, folder: Path) -> None:
        """Write the tables, a CSV for each.

        Raises:
            UserError: one cannot be written.
        """
        for (rate, which), lost in self.tables.items():
            write_table(folder / table_name(which, rate), (pair.stem for pair in self.pairs), lost)


def table_name(which: str, rate: float) -> str:
    """The file of a table: "either_30.csv"."""
    return f"{which}_{rate:g}.csv"


def run_protocol(
    predictor: Predictor,
    data: DataConfig,
    pairs: Sequence[PairFiles],
    rates: Sequence[float] = RATES,
    looks: Sequence[str] | None = None,
    *,
    seed: int = 0,
    batch: int = 16,
) -> ProtocolScores:
    """Score a predictor by the protocol.

    Args:
        predictor: of a model of both cameras; its own thresholds are used, and its own answer to whole pairs.
        data: the data set the pairs are of.
        pairs: of a split, all of them.
        rates: percentages of the pairs that have lost a camera, 0 to 100.
        looks: what a lost image looks like to the fused head, some of `LOOKS`; None means all that there can be.
        seed: of the tables and the noise, 0 or more.
        batch: pairs per batch.

    Raises:
        UserError: as `sweep`; the model has one camera; a rate is none; or what was asked for by `looks` cannot be.
    """
    if len(predictor.config.modalities) < 2:
        raise UserError(
            f"a lost camera: this model has the {predictor.config.modalities[0]} camera alone, and nothing is left to "
            "answer without it: give a model of both"
        )
    rates = tuple(sorted(set(map(float, rates))))
    if not rates or not all(0 <= rate <= 100 for rate in rates):
        raise UserError(f"rates {', '.join(f'{rate:g}' for rate in rates)}: give percentages from 0 to 100")
    names = shared_classes(predictor.names, data.names, data.name).names
    answerers, notes = _answerers(predictor, pairs, looks)
    stems = [pair.stem for pair in pairs]
    tables = {
        (rate, which): lost_cameras(stems, rate / 100, which, seed)
        for rate in sorted({*rates, ALWAYS})
        for which in WHICH
    }

    def state(who: Answerer, camera: str | None) -> str:
        """The name of the answer to a pair that has lost this camera."""
        return f"{who.title}, {camera} lost" if camera else "both"

    faults = {state(who, camera): who.fault(camera) for who in answerers for camera in MODALITIES}
    seen = answer_pairs(predictor, data, pairs, {"both": Fault(), **faults}, seed=seed, batch=batch)

    def scored(states: Sequence[str]) -> dict[str, Any]:
        found = [seen.found[name][number] for number, name in enumerate(states)]
        return score(seen.truths, found, names, seen.sizes).to_dict()

    cells = tuple(
        Cell(who, which, rate, scored([state(who, tables[rate, which].get(stem)) for stem in seen.stems]))
        for who in answerers
        for which in WHICH
        for rate in sorted({*rates, ALWAYS})
    )
    both = scored(["both"] * len(stems))
    return ProtocolScores(tuple(pairs), seed, rates, predictor.answer, both, tables, cells, tuple(notes))


def _answerers(
    predictor: Predictor, pairs: Sequence[PairFiles], looks: Sequence[str] | None
) -> tuple[list[Answerer], list[str]]:
    """Who can answer for a lost camera, and what is to be said of it. Raises `UserError`, see `run_protocol`."""
    answers, notes = predictor.config.answers, []
    answerers = [Answerer("branch")]
    if lacking := [camera for camera in MODALITIES if camera not in answers]:
        answerers = []
        notes.append(f"branch is left out: this model has no {' and no '.join(lacking)} branch")
    chosen = list(LOOKS if looks is None else dict.fromkeys(looks))
    if "fused" not in answers:
        if looks is not None:
            raise UserError(f"a lost image as {chosen[0]}: this model has no fused head that would see it")
        chosen = []
        notes.append("fused is left out: this model has no fused head")
    if "frozen" in chosen:
        try:
            ages = [age for _, age in frames_before(pairs).values()]
        except UserError as error:
            if looks is not None:
                raise
            chosen.remove("frozen")
            notes.append(f"frozen is left out: {error}")
        else:
            notes.append(f"frozen is the frame before; its age in frames: median {median(ages):g}, at most {max(ages)}")
            if len(ages) < len(pairs):
                notes.append(
                    f"{len(pairs) - len(ages)} of {len(pairs)} pairs have no frame before, and get a black image"
                )
    return answerers + [Answerer("fused", look) for look in chosen], notes
