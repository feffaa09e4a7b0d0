"""What a model answered to every pair of a split, kept beside its scores, so that they can be pooled and resampled."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rscmd_model.config import MODALITIES
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError, first_line
from rscmd_model.evaluation.scoring import Truth
from rscmd_model.files import whole_file

ANSWERS = "answers.npz"  # the file's name in the folder of a run


def lost_answer(camera: str) -> str:
    """The name of what the fused head answers with a camera's image black: "visible" or "thermal"."""
    return f"fused, {camera} lost"


def is_lost(answer: str) -> bool:
    """Whether an answer is one of `lost_answer`."""
    return answer in map(lost_answer, MODALITIES)


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers to pairs, and what is really there.

    Attributes:
        stems: of the pairs.
        sizes: (width, height) in px of each visible image, in whose pixels all boxes are.
        truths: of each pair.
        found: by the name of an answer its detections in each pair.
    """

    stems: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    truths: tuple[Truth, ...]
    found: Mapping[str, Sequence[Detections]]

    def save(self, file: Path) -> None:
        """Write an .npz: for N pairs and A answers

        - stems (N,) and sizes (N, 2);
        - truth_counts (N,), and for all T boxes of them truth_boxes (T, 4) float32 and truth_classes (T,) int16;
        - answers (A,), counts (A, N), and for all D detections, answer by answer and pair by pair, boxes (D, 4) float32
          left, top, right, bottom in px, scores (D,) float32 and classes (D,) int16.

        Raises:
            UserError: the file cannot be written.
        """
        detections = [found for answer in self.found.values() for found in answer]
        with whole_file(file) as aside:
            np.savez_compressed(
                aside,
                stems=np.array(self.stems),
                sizes=np.array(self.sizes, np.int32).reshape(-1, 2),
                truth_counts=np.array([len(truth) for truth in self.truths], np.int32),
                truth_boxes=np.concatenate([truth.boxes for truth in self.truths]),
                truth_classes=np.concatenate([truth.classes for truth in self.truths]).astype(np.int16),
                answers=np.array(list(self.found)),
                counts=np.array([len(found) for found in detections], np.int32).reshape(len(self.found), -1),
                boxes=np.concatenate([found.boxes for found in detections]),
                scores=np.concatenate([found.scores for found in detections]),
                classes=np.concatenate([found.classes for found in detections]).astype(np.int16),
            )

    @staticmethod
    def load(file: Path) -> Answers:
        """Read what `save` wrote.

        Raises:
            UserError: it is not there, or is no such file.
        """
        try:
            with np.load(file, allow_pickle=False) as kept:
                arrays = {name: kept[name] for name in kept.files}
            truths = zip(*(_parts(arrays, "truth_counts", f"truth_{what}") for what in ("boxes", "classes")))
            found = zip(*(_parts(arrays, "counts", what) for what in ("boxes", "scores", "classes")))
            detections = [Detections(*parts) for parts in found]
            count = len(arrays["stems"])
            return Answers(
                tuple(map(str, arrays["stems"])),
                tuple((int(width), int(height)) for width, height in arrays["sizes"]),
                tuple(Truth(*parts) for parts in truths),
                {str(a): detections[n * count : (n + 1) * count] for n, a in enumerate(arrays["answers"])},
            )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{file} holds no answers that can be read: {first_line(error)}") from None

    @staticmethod
    def together(parts: Sequence[Answers]) -> Answers:
        """The answers to several sets of pairs as those to one, in order of the stems.

        Args:
            parts: of models that have the same answers, to different pairs. An answer with a black image that not all
                of them were asked for is left out.

        Raises:
            ValueError: a pair is in two of them, or they have different answers.
        """
        stems = [stem for part in parts for stem in part.stems]
        every = [set(part.found) for part in parts]
        left_out = {a for a in every[0].union(*every) - every[0].intersection(*every) if is_lost(a)}
        if len(set(stems)) < len(stems) or any(names - left_out != every[0] - left_out for names in every):
            raise ValueError("expected the same answers to different pairs")
        order = sorted(range(len(stems)), key=stems.__getitem__)
        sizes = [size for part in parts for size in part.sizes]
        truths = [truth for part in parts for truth in part.truths]
        names = [answer for answer in parts[0].found if answer not in left_out]
        found = {answer: [one for part in parts for one in part.found[answer]] for answer in names}
        return Answers(
            tuple(stems[n] for n in order),
            tuple(sizes[n] for n in order),
            tuple(truths[n] for n in order),
            {answer: [detections[n] for n in order] for answer, detections in found.items()},
        )


def _parts(arrays: Mapping[str, np.ndarray], counts: str, what: str) -> list[np.ndarray]:
    """An array cut into the parts of each pair."""
    return np.split(arrays[what], np.cumsum(arrays[counts].ravel())[:-1])
