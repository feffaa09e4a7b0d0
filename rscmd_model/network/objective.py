"""The training objective: the detection loss of each answer, and the sum of what a method names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from ultralytics.cfg import get_cfg

from rscmd_model.config import MODALITIES
from rscmd_model.network.detection_loss import DetectionLoss
from rscmd_model.network.lost import labels_of, rows_with

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


PARTS = ("box", "cls", "dfl")
"""Of an answer's loss: CIoU, class, distribution focal loss."""
_COLUMNS = {answer: column for column, answer in enumerate(("fused", *MODALITIES))}
"""Of a batch's "weights"."""


@dataclass(frozen=True)
class Scored:
    """How one answer does on a batch of B pairs with N anchors each.

    Attributes:
        parts: the losses `PARTS`, each a scalar with a gradient, mean over the batch, with ultralytics' gains.
        positives: (B, N) bool, the anchors that are assigned to an object.
        objects: (B, N) int64, which of its pair's objects each positive anchor is assigned to; anything elsewhere.
            Where labels have weights, those with the weight 0 for this answer are not counted.
    """

    parts: dict[str, Tensor]
    positives: Tensor
    objects: Tensor

    def times(self, share: float) -> Scored:
        """With the losses multiplied."""
        return replace(self, parts={part: loss * share for part, loss in self.parts.items()})


@dataclass(frozen=True)
class TrainingStep:
    """The forward pass of a training step: what a method names losses of.

    Attributes:
        batch: "img" (B, 4, H, W) in [0, 1], "batch_idx", "cls", "bboxes" (normalised centre and size), and from a
            loader `detection_loss.MOST`. Labels that no person drew have "weights" (R, 3) as well, for the answers
            fused, visible and thermal; where all three are 0 the row is no object but a region to ignore. Where pairs
            have lost a camera for good it has "lost" (B,) int64, the camera of each: 0 none, 1 visible, 2 thermal. Then
            an answer of `Method.unimodal` is to the samples that have its camera, and so is its score; its losses are
            the mean over the batch all the same, in which the others count as 0. Where no sample has the camera the
            answer is missing, and the score is of no anchors.
        features: of each modality, per stride (B, C, H, W), as the backbones gave them.
        answers: those of `Method.taught`, as the heads gave them: "boxes" (B, 4 bins, N) and "scores" (B, classes, N),
            both logits, and "feats".
        scored: how each of them does on the batch, with its assignment of objects to anchors.
    """

    batch: dict[str, Any]
    features: dict[str, list[Tensor]]
    answers: dict[str, Any]
    scored: dict[str, Scored]


class Detection:
    """YOLOv8's detection loss (CIoU, distribution focal loss, BCE) with its assignment of objects to anchors.

    Args:
        model: its `args`, when the trainer has set them, give the gains of the three parts.
    """

    def __init__(self, model: RscmdModel) -> None:
        if not hasattr(model, "args"):
            model.args = get_cfg()
        # The heads agree in classes, strides and bins, which is all that the criterion takes from one.
        self.criterion = DetectionLoss(model)

    def __call__(self, answer: Any, batch: Mapping[str, Any]) -> Scored:
        """Score one answer; see `each`."""
        return self.each({"": answer}, {"": batch})[""]

    def each(
        self, answers: Mapping[str, Any], batches: Mapping[str, Mapping[str, Any]], apart: bool = False
    ) -> dict[str, Scored]:
        """Score answers, by their names.

        Args:
            answers: what heads give, in training or evaluation mode; of one image size.
            batches: for each of them "batch_idx", "cls" and "bboxes" (normalised centre and size) of all objects, in
                the order of the pairs; and "weights" as `DetectionLoss` takes them, where they differ.
            apart: as in `DetectionLoss.of`, for losses that are differentiated by themselves.
        """
        if not answers:
            return {}
        outputs = [self.criterion.parse_output(answer) for answer in answers.values()]
        found = self.criterion.of(outputs, [batches[name] for name in answers], apart)
        return {
            name: Scored(dict(zip(PARTS, parts)), to_find.positives, to_find.objects)
            for name, (to_find, parts) in zip(answers, found)
        }

    def losses(self, answers: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
        """The parts of each answer's loss, by the answers' names, to be differentiated by themselves."""
        scored = self.each(answers, {name: seen_by(name, batch) for name in answers}, apart=True)
        return {name: of.parts for name, of in scored.items()}


def seen_by(answer: str, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """A batch with the labels as they teach one answer.

    Args:
        answer: "fused", "visible" or "thermal"; another one learns what the fused one does.
        batch: its "weights" (R, 3), if there are any, are for these three.

    Returns:
        the batch itself, or with the answer's own "weights" (R,).
    """
    if "weights" not in batch:
        return batch
    return {**batch, "weights": batch["weights"][:, _COLUMNS.get(answer, 0)]}


class Objective:
    """The total loss of a method, as the ultralytics trainer wants it.

    Args:
        model: the network that is trained.
    """

    def __init__(self, model: RscmdModel) -> None:
        self.detection = Detection(model)

    def __call__(
        self,
        model: RscmdModel,
        answers: dict[str, Any],
        features: dict[str, list[Tensor]],
        batch: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What `method.losses` names, weighted by `method.weights` and made one total by `method.total`; and how far
        the answers are from `model.old`, where it is given.

        Args:
            model: the network.
            answers: those that are taught.
            features: of each modality, per stride (B, C, H, W).
            batch: as `TrainingStep` has it.

        Returns:
            the weighted losses times the batch size, to be summed, and each loss by name, unweighted ("box_loss"), with
            what `method.figures` shows beside them.
        """
        scored = self._scored(model, answers, batch)
        losses = model.method.losses(model, TrainingStep(batch, features, answers, scored))
        total = model.method.total(model, losses) * len(batch["img"])
        if model.old is not None:  # beside whatever rule a method has for its own losses
            losses["old"] = model.old.loss(answers, batch["img"], model.args)
            total = torch.cat([total.reshape(-1), losses["old"].reshape(1) * len(batch["img"])])
        figures = model.method.figures(features)
        return total, {**{f"{name}_loss": loss.detach() for name, loss in losses.items()}, **figures}

    def _scored(self, model: RscmdModel, answers: dict[str, Any], batch: dict[str, Any]) -> dict[str, Scored]:
        """How the answers do. Where samples have lost a camera, one camera's own is scored on those that have it.

        Its losses are the mean over the whole batch, in which the others have none.
        """
        apart = model.method.differentiates_apart
        batches = {name: seen_by(name, batch) for name in model.method.taught}
        if "lost" not in batch:
            return self.detection.each(answers, batches, apart)
        images = batch["img"]
        rows = {name: rows_with(name, batch["lost"]) for name in model.method.unimodal}
        left = {name: labels_of(rows[name], of) if name in rows else of for name, of in batches.items()}
        there = {name: answers[name] for name in left if name not in rows or len(rows[name])}
        nowhere = images.new_zeros(0, 0)
        nothing = Scored({part: images.new_zeros(()) for part in PARTS}, nowhere.bool(), nowhere.long())
        scored = {**dict.fromkeys(left, nothing), **self.detection.each(there, left, apart)}
        return {name: of.times(len(rows[name]) / len(images)) if name in rows else of for name, of in scored.items()}

    def of_main(self, answer: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the main answer alone, or the sum where there are several; a validation watches it.

        Returns as `__call__`.
        """
        raw = answer[1] if isinstance(answer, tuple) else answer
        several = raw.values() if set(raw) <= set(MODALITIES) else [raw]
        losses = [self.detection(one, batch).parts for one in several]
        parts = {name: torch.stack([loss[name] for loss in losses]).sum() for name in PARTS}
        return torch.stack(list(parts.values())) * len(batch["img"]), {
            f"{k}_loss": v.detach() for k, v in parts.items()
        }
