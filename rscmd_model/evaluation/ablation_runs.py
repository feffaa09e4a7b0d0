"""The trainings of an ablation: their names, their command lines, and how far they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rscmd_model.config import COMPLETE, MODALITIES, Incomplete
from rscmd_model.datasets.pairs import DataConfig
from rscmd_model.evaluation.answers import ANSWERS, lost_answer
from rscmd_model.evaluation.folds import Folds
from rscmd_model.methods import needs_teachers, parse_method
from rscmd_model.options import word

RECIPE = {"val": False, "plots": False, "verbose": False}  # what an ablation adds to ultralytics' defaults
OWN_OPTIONS = ("seed", "project", "name", "resume", "exist_ok")  # set for each run


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        method: as it is written on the command line, such as "rscmd+md=map".
        seed: 0 or more.
        fold: that is held out; None without folds.
    """

    method: str
    seed: int
    fold: str | None = None

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.method}-seed{self.seed}" + (f"-fold{self.fold}" if self.fold is not None else "")


@dataclass(frozen=True)
class Ablation:
    """What all trainings of an ablation share.

    Attributes:
        out: folder of everything.
        data: the data set.
        split: what is scored; with folds both it and train are folded.
        scale: of both streams.
        family: of the layers of both streams.
        options: ultralytics' options, without `OWN_OPTIONS`.
        weights: checkpoint that each training starts from; None for random weights.
        folds: which pairs are held out together; None to train on train and score `split`.
        lost: also score the fused head with each camera's image black.
        frozen_statistics: whether BatchNorm keeps the statistics of `weights`.
        incomplete: the pairs of each training that have lost one camera for good.
    """

    out: Path
    data: DataConfig
    split: str
    scale: str
    family: str
    options: Mapping[str, Any]
    weights: Path | None = None
    folds: Folds | None = None
    lost: bool = False
    frozen_statistics: bool = False
    incomplete: Incomplete = COMPLETE

    def runs(self, methods: Sequence[str], seeds: int) -> list[Run]:
        """All trainings, also those of teachers. Seed by seed: an ablation that is interrupted has whole seeds to show.

        Args:
            methods: as they are written on the command line.
            seeds: the seeds are 0 to `seeds` - 1.
        """
        folds = self.folds.names if self.folds else [None]
        every = with_teachers(methods)
        return [Run(method, seed, fold) for seed in range(seeds) for fold in folds for method in every]

    def teachers(self, run: Run) -> list[Run]:
        """The trainings that a run needs finished: of its method's teachers, of the same seed and fold."""
        taught = needs_teachers(parse_method(run.method))
        return [replace(run, method=modality) for modality in MODALITIES] if taught else []

    def command(self, run: Run) -> list[str]:
        """The command line of one run, which anybody can repeat by hand; a run that was interrupted is resumed."""
        start = [sys.executable, "-m", "rscmd_model.train", "--score", self.split if run.fold is None else "val"]
        start += ["--lost"] if self.lost else []
        last = self.out / run.name / "weights" / "last.pt"
        if last.is_file():
            return [*start, f"resume={last}"]
        words = [word(key, value) for key, value in self.options.items()]
        words += [f"project={self.out}", f"name={run.name}", f"seed={run.seed}", "exist_ok=True"]
        model = ["--scale", self.scale, "--family", self.family]
        if self.weights:
            kind = "frozen" if self.frozen_statistics else "batch"
            model += ["--weights", str(self.weights), "--batchnorm", kind]
        if teachers := self.teachers(run):
            model += ["--teachers", *(str(self.out / teacher.name / "model.safetensors") for teacher in teachers)]
        if self.incomplete.rate:
            model += ["--incomplete", str(self.incomplete)]
        data = self.data.spec if run.fold is None else str(self.out / "folds" / f"fold{run.fold}.yaml")
        return [*start, "--data", data, "--method", run.method, *model, *words]

    def is_finished(self, run: Run) -> bool:
        """Whether a run is trained, and all of it is scored. One whose checkpoint is gone cannot be scored again."""
        folder = self.out / run.name
        if not (folder / "scores.json").is_file():
            return False
        answers = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["branches"]
        lacking = self.lost and "fused" in answers and lost_answer("visible") not in answers
        return not (lacking or not (folder / ANSWERS).is_file()) or not (folder / "weights" / "last.pt").is_file()

    def epochs(self, run: Run) -> int:
        """How many epochs of a run are done."""
        results = self.out / run.name / "results.csv"
        return max(0, len(results.read_text().splitlines()) - 1) if results.is_file() else 0


def with_teachers(methods: Sequence[str]) -> list[str]:
    """The methods, after the single-camera controls where one of them learns from these and they are not among them."""
    taught = any(needs_teachers(parse_method(method)) for method in methods)
    return [*(m for m in MODALITIES if taught and m not in methods), *methods]
