"""The training objective: the detection loss of each answer, and the sum of what a method names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.utils.loss import v8DetectionLoss

from rscmd_model.config import MODALITIES

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


PARTS = ("box", "cls", "dfl")
"""Of an answer's loss: CIoU, class, distribution focal loss."""


@dataclass(frozen=True)
class Scored:
    """How one answer does on a batch of B pairs with N anchors each.

    Attributes:
        parts: the losses `PARTS`, each a scalar with a gradient, mean over the batch, with ultralytics' gains.
        positives: (B, N) bool, the anchors that are assigned to an object.
        objects: (B, N) int64, which of its pair's objects each positive anchor is assigned to; anything elsewhere.
    """

    parts: dict[str, Tensor]
    positives: Tensor
    objects: Tensor


class Detection:
    """YOLOv8's detection loss (CIoU, distribution focal loss, BCE) with its assignment of objects to anchors.

    Args:
        model: its `args`, when the trainer has set them, give the gains of the three parts.
    """

    def __init__(self, model: RscmdModel) -> None:
        if not hasattr(model, "args"):
            model.args = get_cfg()
        # The heads agree in classes, strides and bins, which is all that the criterion takes from one.
        self.criterion = v8DetectionLoss(model)

    def __call__(self, answer: Any, batch: Mapping[str, Any]) -> Scored:
        """Score one answer.

        Args:
            answer: what a head gives, in training or evaluation mode.
            batch: "batch_idx", "cls" and "bboxes" (normalised centre and size) of all objects.
        """
        output = self.criterion.parse_output(answer)
        (positives, objects, *_), parts, _ = self.criterion.get_assigned_targets_and_loss(output, batch)
        return Scored(dict(zip(PARTS, parts)), positives, objects)

    def losses(self, answers: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
        """The parts of each answer's loss, by the answers' names."""
        return {name: self(answer, batch).parts for name, answer in answers.items()}


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
        """What `method.losses` names, weighted by `method.weights`.

        Args:
            model: the network.
            answers: those that are taught.
            features: of each modality, per stride (B, C, H, W).
            batch: "img" and the objects.

        Returns:
            the weighted losses times the batch size, to be summed, and each loss by name, unweighted ("box_loss").
        """
        scored = {name: self.detection(answer, batch) for name, answer in answers.items()}
        losses = model.method.losses(model, answers, scored, features, batch)
        weights = model.method.weights
        total = torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]) * len(batch["img"])
        return total, {f"{name}_loss": loss.detach() for name, loss in losses.items()}

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
