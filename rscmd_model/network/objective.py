"""The training objective: the detection loss of each answer, and the sum of what a method names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from ultralytics.cfg import get_cfg

from rscmd_model.config import MODALITIES
from rscmd_model.network.lost import labels_of, rows_with
from rscmd_model.network.weighted_loss import WeightedLoss

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


@dataclass(frozen=True)
class TrainingStep:
    """The forward pass of a training step: what a method names losses of.

    Attributes:
        batch: "img" (B, 4, H, W) in [0, 1], "batch_idx", "cls", "bboxes" (normalised centre and size). Labels that no
            person drew have "weights" (R, 3) as well, for the answers fused, visible and thermal; where all three are 0
            the row is no object but a region to ignore. Where pairs have lost a camera for good it has "lost" (B,)
            int64, the camera of each: 0 none, 1 visible, 2 thermal. Then an answer of `Method.unimodal` is to the
            samples that have its camera, and so is its score; its losses are the mean over the batch all the same, in
            which the others count as 0. Where no sample has the camera the answer is missing, and the score is of no
            anchors.
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
        self.criterion = WeightedLoss(model)

    def __call__(self, answer: Any, batch: Mapping[str, Any]) -> Scored:
        """Score one answer.

        Args:
            answer: what a head gives, in training or evaluation mode.
            batch: "batch_idx", "cls" and "bboxes" (normalised centre and size) of all objects; and "weights" as
                `WeightedLoss` takes them, where they differ.
        """
        output = self.criterion.parse_output(answer)
        (positives, objects, *_), parts, _ = self.criterion.get_assigned_targets_and_loss(output, dict(batch))
        # Where a batch has no object at all, the assigner gives both as zeros of the scores' type.
        return Scored(dict(zip(PARTS, parts)), positives.bool(), objects.long())

    def losses(self, answers: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
        """The parts of each answer's loss, by the answers' names."""
        return {name: self(answer, seen_by(name, batch)).parts for name, answer in answers.items()}


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
        if "lost" in batch:
            scored = {name: self._left(model, name, answers, batch) for name in model.method.taught}
        else:
            scored = {name: self.detection(answer, seen_by(name, batch)) for name, answer in answers.items()}
        losses = model.method.losses(model, TrainingStep(batch, features, answers, scored))
        total = model.method.total(model, losses) * len(batch["img"])
        if model.old is not None:  # beside whatever rule a method has for its own losses
            losses["old"] = model.old.loss(answers, batch["img"], model.args)
            total = torch.cat([total.reshape(-1), losses["old"].reshape(1) * len(batch["img"])])
        figures = model.method.figures(features)
        return total, {**{f"{name}_loss": loss.detach() for name, loss in losses.items()}, **figures}

    def _left(self, model: RscmdModel, name: str, answers: dict[str, Any], batch: dict[str, Any]) -> Scored:
        """How an answer does where samples have lost a camera: one camera's own on the samples that have it.

        Its losses are the mean over the whole batch, in which the others have none.
        """
        seen = seen_by(name, batch)
        if name not in model.method.unimodal:
            return self.detection(answers[name], seen)
        rows, images = rows_with(name, batch["lost"]), batch["img"]
        if not len(rows):
            nowhere = images.new_zeros(0, 0)
            return Scored({part: images.new_zeros(()) for part in PARTS}, nowhere.bool(), nowhere.long())
        scored = self.detection(answers[name], labels_of(rows, seen))
        return replace(scored, parts={part: loss * (len(rows) / len(images)) for part, loss in scored.parts.items()})

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
