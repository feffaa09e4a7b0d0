"""What labels teach that no person drew: from a pair's sidecar to the weights of its boxes and regions to ignore."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rscmd_model.config import MODALITIES
from rscmd_model.datasets.folders import walk
from rscmd_model.datasets.pairs import Labels, PairFiles, Problem, tidy
from rscmd_model.datasets.sidecars import Found, Sidecar, numbers, read_sidecar
from rscmd_model.errors import UserError
from rscmd_model.text import read_text

CHOICES = ("own", "both")
# What holds where data.yaml and the command line say nothing.
TEACH = "both"
CONFIDENCE = False


@dataclass(frozen=True)
class Teaching:
    """How the labels of a data set are taken that no person drew.

    Attributes:
        folder: of the sidecars: SPLIT/STEM.json in it.
        confidence: whether a box teaches as much as its score says; otherwise each teaches fully.
        teach: what an answer of one camera learns from: "both" (every box), or "own" (those that its camera saw; the
            others are for it regions to ignore).
    """

    folder: Path
    confidence: bool = CONFIDENCE
    teach: str = TEACH

    def sidecars(self, split: str, stems: Collection[str]) -> tuple[dict[str, Path], list[Problem]]:
        """The sidecars of a split by the stem of their pair.

        Args:
            split: without a folder of its own in `folder` its labels are those of a person.
            stems: of its pairs.

        Returns:
            the files, and a problem when there are some and none of them belongs to a pair.

        Raises:
            UserError: `folder` is not there.
        """
        if not self.folder.is_dir():
            raise UserError(f"{split}: no folder {self.folder}, which the key 'sidecars' of data.yaml names")
        folder = self.folder / split
        if not folder.is_dir():
            return {}, []
        names = [name for name in walk(folder) if name.endswith(".json") and not os.path.basename(name).startswith(".")]
        found = {name.removesuffix(".json"): folder / name for name in names}
        known = {stem: found[stem] for stem in stems if stem in found}
        if known or not found:
            return known, []
        text = f"none of the {len(found)} sidecars in {folder} belongs to an image of {split}, such as {names[0]}"
        return {}, [Problem("foreign_labels", folder, text)]

    def of(self, labels: Labels, pair: PairFiles) -> Labels:
        """The labels of a pair with what its sidecar says of them.

        Args:
            labels: as its label file has them.
            pair: its files.

        Returns:
            `labels` with weights and regions to ignore. Where a person made or changed them, every box teaches fully,
            and the regions are those that the person left. A sidecar that cannot be read is a problem.
        """
        if pair.sidecar is None:
            return labels
        try:
            sidecar = read_sidecar(pair.sidecar)
        except UserError as error:
            return replace(labels, problems=(*labels.problems, Problem("bad_label", pair.sidecar, str(error))))
        try:
            text = read_text(pair.label) if pair.label else ""
        except UserError:  # is among the problems of the labels
            return labels
        ignore = _boxes([found.line for found in sidecar.regions(text)])
        weights = None if sidecar.touched(text) else self._weights(labels.boxes, sidecar)
        if weights is not None and (weights == 1).all():
            weights = None
        return replace(labels, weights=weights, ignore=ignore if len(ignore) else None)

    def _weights(self, boxes: np.ndarray, sidecar: Sidecar) -> np.ndarray:
        """(N, 3) float32, as in `Labels`, of boxes (N, 5). Of equal ones the surest counts, as it stands there once."""
        known: dict[bytes, np.ndarray] = {}
        for found in sidecar.labels:
            for box in _boxes([found.line]):
                weight = self._weight(found)
                known[box.tobytes()] = np.maximum(known.get(box.tobytes(), weight), weight)
        rows = [known[box.tobytes()] for box in boxes]
        return np.array(rows, np.float32).reshape(-1, 1 + len(MODALITIES))

    def _weight(self, found: Found) -> np.ndarray:
        score = found.score if self.confidence else 1.0
        own = [score if self.teach == "both" or found.seen_by(modality) else 0.0 for modality in MODALITIES]
        return np.array([score, *own], np.float32)


def _boxes(lines: list[str]) -> np.ndarray:
    """(N, 5) float32: the boxes of a sidecar's lines, brought into the image as those of a label file are."""
    rows = []
    for line in lines:
        cls, cx, cy, w, h = numbers(line)
        rows.append((cls, cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    return tidy(rows, Path(), [""] * len(rows)).boxes
