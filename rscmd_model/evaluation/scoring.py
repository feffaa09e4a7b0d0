"""COCO average precision of detections against truth, by faster-coco-eval.

COCO's rules: IoU 0.50 to 0.95 in steps of 0.05, 101 recall points, at most 100 detections per image, boxes of any size.
Detections should come with a very low confidence threshold (0.001): a threshold cuts the curve and lowers the score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError

MAX_DETECTIONS = 100


@dataclass(frozen=True, eq=False)
class Truth:
    """What is really in one picture.

    Attributes:
        boxes: (N, 4) float32 left, top, right, bottom in px.
        classes: (N,) int64.

    Raises:
        ValueError: the shapes do not fit together.
    """

    boxes: np.ndarray
    classes: np.ndarray

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, np.float32)
        classes = np.asarray(self.classes, np.int64)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"truth boxes: expected shape (N, 4), got {boxes.shape}")
        if classes.shape != (len(boxes),):
            raise ValueError(f"truth classes: expected shape ({len(boxes)},), got {classes.shape}")
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "classes", classes)

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class Score:
    """Average precision, 0 to 1.

    Attributes:
        mAP50: at IoU 0.5, mean over the classes that occur in the truth.
        mAP50_95: at IoU 0.50 to 0.95, mean over the classes that occur in the truth.
        per_class: by class name {"mAP50", "mAP50_95", "truths"}; both figures are None where the class does not occur.
        curve: recall (101,) and precision (101,) at IoU 0.5, mean over the classes that occur.
    """

    mAP50: float
    mAP50_95: float
    per_class: dict[str, dict[str, float | int | None]]
    curve: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: mAP50, mAP50_95, per_class."""
        return {"mAP50": self.mAP50, "mAP50_95": self.mAP50_95, "per_class": self.per_class}


def score(
    truths: Sequence[Truth],
    predictions: Sequence[Detections],
    names: Mapping[int, str],
    sizes: Sequence[tuple[int, int]],
) -> Score:
    """Score one prediction per picture.

    Args:
        truths: of each picture.
        predictions: of each picture.
        names: class names by number.
        sizes: (width, height) of each picture in px, which COCO's files carry.

    Raises:
        ValueError: lengths or class numbers do not fit together.
        UserError: there is no truth at all.
    """
    ids = sorted(names)
    counts = _checked(truths, predictions, names, sizes).sum(axis=0)
    if not counts.any():
        raise UserError(f"none of the {len(truths)} pictures has a truth box: there is nothing to score against")
    evaluation = _evaluation(truths, predictions, names, sizes)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"], np.float64).reshape(10, 101, len(ids))
    per_class: dict[str, dict[str, float | int | None]] = {}
    for column, number in enumerate(ids):
        truths_here = int(counts[column])
        table = precision[:, :, column]
        per_class[names[number]] = {
            "mAP50": float(table[0].mean()) if truths_here else None,
            "mAP50_95": float(table.mean()) if truths_here else None,
            "truths": truths_here,
        }
    occurring = precision[:, :, counts > 0]
    curve = (np.linspace(0.0, 1.0, 101), occurring[0].mean(axis=1))
    return Score(float(occurring[0].mean()), float(occurring.mean()), per_class, curve)


@dataclass(frozen=True, eq=False)
class Matches:
    """Which detections of one class are right: what COCO's figures are made of, before they are put together.

    Attributes:
        pictures: (D,) int64, the picture of each detection, by falling score.
        right: (10, D) bool, whether it found a truth box, at IoU 0.50 to 0.95.
        truths: (N,) int64, the truth boxes in each picture.
    """

    pictures: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    truths: npt.NDArray[np.int64]


def match(
    truths: Sequence[Truth],
    predictions: Sequence[Detections],
    names: Mapping[int, str],
    sizes: Sequence[tuple[int, int]],
) -> list[Matches]:
    """Match detections to truth boxes as `score` does, picture by picture.

    Args:
        truths, predictions, names, sizes: as for `score`.

    Returns:
        one for each class, in order of its number.

    Raises:
        ValueError: lengths or class numbers do not fit together.
    """
    counts = _checked(truths, predictions, names, sizes)
    evaluation = _evaluation(truths, predictions, names, sizes, separate_eval=True)
    evaluation.evaluate()
    # By class, then by picture: which truth box each detection found, by IoU and falling score; and these scores.
    seen = [one.__getstate__() for one in evaluation._evalImgs_cpp]
    found = []
    for column in range(len(names)):
        here = [(state[0], state[2]) for state in seen[column * len(truths) : (column + 1) * len(truths)]]
        scores = np.concatenate([np.array(s, np.float64) for _, s in here])
        right = np.concatenate([np.array(m, np.int64).reshape(10, len(s)) for m, s in here], axis=1) > 0
        order = np.argsort(-scores, kind="stable")
        pictures = np.repeat(np.arange(len(truths)), [len(s) for _, s in here])
        found.append(Matches(pictures[order], right[:, order], counts[:, column]))
    return found


def _checked(
    truths: Sequence[Truth],
    predictions: Sequence[Detections],
    names: Mapping[int, str],
    sizes: Sequence[tuple[int, int]],
) -> npt.NDArray[np.int64]:
    """The number of truth boxes of each picture and class, (N, classes). Raises `ValueError`, see `score`."""
    if not len(truths) == len(predictions) == len(sizes):
        raise ValueError(f"got {len(truths)} truths, {len(predictions)} predictions and {len(sizes)} sizes; must agree")
    columns = {number: column for column, number in enumerate(sorted(names))}
    counts = np.zeros((len(truths), len(names)), np.int64)
    for number, (truth, found) in enumerate(zip(truths, predictions)):
        unknown = (set(truth.classes.tolist()) | set(found.classes.tolist())) - set(names)
        if unknown:
            raise ValueError(f"picture {number} has class {min(unknown)}, which is not among {dict(names)}")
        np.add.at(counts[number], [columns[label] for label in truth.classes.tolist()], 1)
    return counts


def _evaluation(
    truths: Sequence[Truth],
    predictions: Sequence[Detections],
    names: Mapping[int, str],
    sizes: Sequence[tuple[int, int]],
    **options: Any,
) -> Any:
    """A `COCOeval_faster` that is ready to evaluate; classes in order of their numbers."""
    from faster_coco_eval import COCO, COCOeval_faster  # here, so that the types above need no compiled module

    def quiet(*args: object) -> None:
        """The library prints its progress; ours is told elsewhere."""

    images = [{"id": n, "width": int(w), "height": int(h)} for n, (w, h) in enumerate(sizes, 1)]
    annotations: list[dict[str, Any]] = []
    for image, truth in enumerate(truths, 1):
        for box, label in zip(truth.boxes.tolist(), truth.classes.tolist(), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": label + 1, "iscrowd": 0}
            annotations.append({**entry, **_box(box)})
    results: list[dict[str, Any]] = []
    for image, found in enumerate(predictions, 1):
        rows = zip(found.boxes.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True)
        results.extend({"image_id": image, "category_id": c + 1, "score": s, **_box(b)} for b, c, s in rows)
    categories = [{"id": number + 1, "name": names[number]} for number in sorted(names)]  # COCO numbers from 1
    data = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    truth_set = COCO(data, print_function=quiet)
    evaluation = COCOeval_faster(truth_set, truth_set.loadRes(results), "bbox", print_function=quiet, **options)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [MAX_DETECTIONS]
    return evaluation


def _box(box: list[float]) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
