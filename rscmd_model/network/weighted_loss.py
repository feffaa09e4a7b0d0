"""YOLOv8's detection loss where labels teach more or less, or nothing: weights of objects, and regions to ignore."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.tal import make_anchors

_ROWS = ("batch_idx", "cls", "bboxes")


class WeightedLoss(v8DetectionLoss):
    """The parent's loss, which a batch may weigh by "weights" (R,) within 0 to 1, one for each row of its labels.

    A row with a weight above 0 is an object: the box, class and distribution losses of the anchors that are assigned
    to it are multiplied by the weight. A row with the weight 0 is a region to ignore: an anchor whose centre lies in
    it bears no class loss, of any class, unless an object has been assigned to it. The losses are divided by the same
    number as the parent's, which is of the objects alone and knows no weights. Without "weights" the parent's own code
    runs.
    """

    def get_assigned_targets_and_loss(
        self, preds: dict[str, Any], batch: dict[str, Any], **options: Any
    ) -> tuple[Any, Any, Any]:
        """As the parent's; the objects that it counts are the rows with a weight above 0.

        Args:
            preds: "boxes", "scores" and "feats", as a head gives them in training.
            batch: "batch_idx", "cls" and "bboxes" of R rows, and "weights" where they differ.
            options: the parent's.
        """
        if "weights" not in batch:
            return super().get_assigned_targets_and_loss(preds, batch, **options)
        teaches = batch["weights"] > 0
        objects = {**batch, **{key: batch[key][teaches] for key in _ROWS}}
        regions = {**batch, **{key: batch[key][~teaches] for key in _ROWS}}
        of_object = self._by_image(preds, objects, batch["weights"][teaches])[..., 0]  # (B, most objects)
        elsewhere = 1 - self._inside(preds, regions).to(of_object)  # (B, N)
        weights = elsewhere

        # The parent assigns objects to anchors, and then asks for the losses: in between it is known who weighs what.
        def assigner(*args: Any, **kwargs: Any) -> Any:
            nonlocal weights
            assigned = self.assigner(*args, **kwargs)
            positive, which = assigned[3].bool(), assigned[4].long()
            if of_object.shape[1]:
                weights = torch.where(positive, of_object.gather(1, which), elsewhere)
            return assigned

        def bce(logits: Tensor, targets: Tensor) -> Tensor:
            return self.bce(logits, targets) * weights[..., None]

        def bbox_loss(
            boxes: Tensor, decoded: Tensor, anchors: Tensor, targets: Tensor, scores: Tensor, *more: Any
        ) -> Any:
            return self.bbox_loss(boxes, decoded, anchors, targets, scores * weights[..., None], *more)

        weighed = copy(self)
        weighed.assigner, weighed.bce, weighed.bbox_loss = assigner, bce, bbox_loss
        return super(WeightedLoss, weighed).get_assigned_targets_and_loss(preds, objects, **options)

    def _by_image(self, preds: dict[str, Any], rows: dict[str, Any], values: Tensor) -> Tensor:
        """(B, most rows of an image, 5): value, left, top, right, bottom in px, in the parent's order; 0 elsewhere."""
        size = torch.tensor(preds["feats"][0].shape[2:], device=self.device) * self.stride[0]  # height, width
        table = torch.cat((rows["batch_idx"].view(-1, 1), values.view(-1, 1), rows["bboxes"]), 1)
        return self.preprocess(table.to(self.device), len(preds["boxes"]), scale_tensor=size[[1, 0, 1, 0]])

    def _inside(self, preds: dict[str, Any], regions: dict[str, Any]) -> Tensor:
        """(B, N) bool: the anchors whose centre lies in a region."""
        boxes = self._by_image(preds, regions, torch.ones_like(regions["batch_idx"]))[:, None, :, 1:]
        points, strides = make_anchors(preds["feats"], self.stride, 0.5)
        centres = (points * strides)[:, None]
        inside: Tensor = ((centres > boxes[..., :2]) & (centres < boxes[..., 2:])).all(3).any(2)
        return inside
