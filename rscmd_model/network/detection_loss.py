"""YOLOv8's detection loss, of several answers at once, and where labels teach more or less, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.tal import bbox2dist, make_anchors

MOST = "most"
"""Of a batch: how many rows of labels the sample with most of them has. The host knows it when it puts the batch
together, and without it has to wait until the device has counted."""


class Assigned(NamedTuple):
    """What the N anchors of S samples are to find.

    Attributes:
        boxes: (S, N, 4), left, top, right and bottom in strides, of the positive anchors.
        scores: (S, N, classes).
        positives: (S, N) bool, the anchors that are assigned to an object.
        objects: (S, N) int64, to which of their sample's objects; anything elsewhere.
        weights: (S, N), what each anchor's losses are multiplied by; None where all count alike.
    """

    boxes: Tensor
    scores: Tensor
    positives: Tensor
    objects: Tensor
    weights: Tensor | None

    def samples(self, start: int, end: int) -> Assigned:
        """Those of some samples."""
        boxes, scores, positives, objects = (of[start:end] for of in self[:4])
        return Assigned(boxes, scores, positives, objects, None if self.weights is None else self.weights[start:end])


class _Grid(NamedTuple):
    """What depends on the size of the images alone.

    Attributes:
        points: (N, 2), the anchors' centres in strides.
        strides: (N, 1), in px.
        size: (4,), width, height, width and height of the images in px.
    """

    points: Tensor
    strides: Tensor
    size: Tensor


class DetectionLoss(v8DetectionLoss):
    """The parent's loss and assignment, for several answers as for one batch: on a GPU most of their time goes to the
    start of some hundred small operations, however many samples these are of. For the same reason the host waits for
    the device as seldom as can be: where the parent looks for the anchors within objects, and for the assigned ones.

    Labels may have "weights" (R,) within 0 to 1. A row with a weight above 0 is an object: the box, class and
    distribution losses of the anchors that are assigned to it are multiplied by the weight. A row with the weight 0 is
    a region to ignore: an anchor whose centre lies in it bears no class loss, of any class, unless an object has been
    assigned to it. The losses are divided by the same number as the parent's, which is of the objects alone and knows
    no weights.

    Everything is computed in 32 bits, in mixed precision, too, where the parent has coordinates in 16: bfloat16 places
    a box at 640 px to within 4 px.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._grids: dict[tuple[Any, ...], _Grid] = {}

    def of(
        self, answers: Sequence[Mapping[str, Any]], batches: Sequence[Mapping[str, Any]], apart: bool = False
    ) -> list[tuple[Assigned, tuple[Tensor, Tensor, Tensor]]]:
        """Score answers, each on its own batch.

        Args:
            answers: "boxes" (B, 4 bins, N) and "scores" (B, classes, N), both logits, and "feats", as a head gives
                them in training. N is the same for all, B need not be.
            batches: for each of them "batch_idx", "cls" and "bboxes" (normalised centre and size) of R rows, in the
                order of the samples; and "weights", which all of them have, or none.
            apart: compute the losses answer by answer, so that each reaches its own alone. Together, the loss of one
                reaches the others with gradients of 0: the same where one sum of all is differentiated.

        Returns:
            for each answer what its anchors are to find, and its box, class and distribution loss, mean over its batch,
            times the gains.
        """
        with torch.autocast(self.device.type, enabled=False):
            return self._of(answers, batches, apart)

    def _of(
        self, answers: Sequence[Mapping[str, Any]], batches: Sequence[Mapping[str, Any]], apart: bool
    ) -> list[tuple[Assigned, tuple[Tensor, Tensor, Tensor]]]:
        sizes = [len(answer["boxes"]) for answer in answers]
        ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
        points, strides, size_px = self._grid_of(answers[0]["feats"])
        # (S, N, 4 bins) and (S, N, classes) for each tensor that losses are computed of
        sides, scores = (
            [of.float().contiguous() for of in parts] if apart else [torch.cat(parts).float()]
            for parts in ([answer[key].permute(0, 2, 1) for answer in answers] for key in ("boxes", "scores"))
        )
        decoded = [self.bbox_decode(points, of) for of in sides]
        with torch.no_grad():
            assigned = self._assign(
                torch.cat(scores).sigmoid(),
                torch.cat(decoded) * strides,
                points * strides,
                self._rows(batches, sizes),
                size_px,
                max(batch[MOST] for batch in batches) if all(MOST in batch for batch in batches) else 0,
            )
            assigned = assigned._replace(boxes=assigned.boxes / strides)
        each = [assigned.samples(end - size, end) for size, end in zip(sizes, ends)]
        if apart:
            parts = [self._losses(*of, points, [len(of[0])])[0] for of in zip(sides, scores, decoded, each)]
        else:
            parts = self._losses(sides[0], scores[0], decoded[0], assigned, points, sizes)
        return list(zip(each, parts))

    def _grid_of(self, features: Sequence[Tensor]) -> _Grid:
        """Made once for each size of image: it is made on the host, and the device has to be waited for."""
        key = (*(of.shape[2:] for of in features), features[0].device)
        if key not in self._grids:
            with torch.inference_mode(False):  # a validation may come first, and a training may not use what it made
                points, strides = make_anchors([of[:1, :1].float() for of in features], self.stride, 0.5)
                height, width = (n * float(self.stride[0]) for n in features[0].shape[2:])
                size = torch.tensor([width, height, width, height], device=self.device)
            self._grids = {key: _Grid(points, strides, size)}
        return self._grids[key]

    def _rows(self, batches: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> Tensor:
        """(R, 6 or 7), the labels of all batches as of one: sample, class, box, and weight where there are some."""
        tables, start = [], 0
        for batch, size in zip(batches, sizes):
            columns = [batch["batch_idx"].view(-1, 1) + start, batch["cls"].view(-1, 1), batch["bboxes"]]
            if "weights" in batch:
                columns.append(batch["weights"].view(-1, 1))
            tables.append(torch.cat(columns, 1))
            start += size
        return torch.cat(tables).to(self.device)

    def _padded(self, rows: Tensor, count: int, size: Tensor, most: int) -> Tensor:
        """(S, most rows of a sample, 5 or 6), as the parent's `preprocess` gives them: class, box in px, and weight.

        Args:
            rows: as `_rows` gives them, or some of them.
            count: S.
            size: as `_Grid` has it.
            most: no sample has more rows; 0 if that is not known.
        """
        if not (most and len(rows)):
            padded: Tensor = self.preprocess(rows, count, size)
            return padded
        sample = rows[:, 0].long()
        starts = sample.new_zeros(count + 1).scatter_add_(0, sample + 1, torch.ones_like(sample)).cumsum(0)
        padded = rows.new_zeros(count, most, rows.shape[1] - 1)
        padded[sample, torch.arange(len(rows), device=rows.device) - starts[sample]] = rows[:, 1:]
        padded[..., 1:5] = xywh2xyxy(padded[..., 1:5].mul_(size))
        return padded

    def _assign(
        self, scores: Tensor, boxes: Tensor, centres: Tensor, rows: Tensor, size: Tensor, most: int
    ) -> Assigned:
        """Assign objects to anchors.

        Args:
            scores: (S, N, classes) within 0 to 1.
            boxes: (S, N, 4) in px.
            centres: (N, 2) in px.
            rows: as `_rows` gives them.
            size: as `_Grid` has it.
            most: as `_padded` takes it.

        Returns:
            what the anchors are to find, boxes in px.
        """
        weighs, count = rows.shape[1] > 6, len(scores)
        # (S, most objects of a sample, 5 or 6): class, box and weight
        objects = self._padded(rows[rows[:, 6] > 0] if weighs else rows, count, size, most)
        labels, found = objects[..., :1], objects[..., 1:5]
        there = found.sum(2, keepdim=True).gt_(0.0)
        _, *targets = self.assigner(scores, boxes.type(found.dtype), centres, labels, found, there)
        # Where no sample has an object, the assigner gives the last two as zeros of the scores' type.
        positives, which = targets[2].bool(), targets[3].long()
        weights = None
        if weighs:
            regions = self._padded(rows[rows[:, 6] == 0], count, size, most)[:, None, :, 1:5]
            inside = ((centres[:, None] > regions[..., :2]) & (centres[:, None] < regions[..., 2:])).all(3).any(2)
            weights = 1 - inside.to(objects)
            if objects.shape[1]:
                weights = torch.where(positives, objects[..., 5].gather(1, which), weights)
        return Assigned(targets[0], targets[1], positives, which, weights)

    def _losses(
        self, sides: Tensor, scores: Tensor, boxes: Tensor, to_find: Assigned, points: Tensor, sizes: list[int]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Box, class and distribution loss of runs of samples, each a mean over its own.

        Args:
            sides: (S, N, 4 bins), logits.
            scores: (S, N, classes), logits.
            boxes: (S, N, 4) in strides, of `sides`.
            to_find: by the S samples.
            points: (N, 2), the anchors' centres in strides.
            sizes: how many samples each run has.
        """
        bce = self.bce(scores, to_find.scores.to(scores.dtype))
        if self.class_weights is not None:
            bce = bce * self.class_weights
        at = to_find.positives.nonzero(as_tuple=True)  # asked once: it waits for the device
        weight = to_find.scores[at].sum(-1)
        if to_find.weights is not None:
            bce = bce * to_find.weights[..., None]
            weight = weight * to_find.weights[at]
        iou = bbox_iou(boxes[at], to_find.boxes[at], xywh=False, CIoU=True).squeeze(-1)
        distances = bbox2dist(points[at[1]], to_find.boxes[at], self.reg_max - 1)
        dfl = self.bbox_loss.dfl_loss(sides[at].view(-1, self.reg_max), distances).squeeze(-1)
        of_anchors = torch.stack(((1.0 - iou) * weight, dfl * weight), 1).float()
        of_samples = of_anchors.new_zeros(len(scores), 2).index_add(0, at[0], of_anchors)
        of_samples = torch.cat((of_samples, bce.sum((1, 2), dtype=torch.float)[:, None]), 1)
        box, side, cls = torch.stack([of.sum(0) for of in of_samples.split(sizes)]).unbind(1)
        divisor = torch.stack([of.sum(dtype=torch.float) for of in to_find.scores.split(sizes)]).clamp(min=1)
        gains = ((box, self.hyp.box), (cls, self.hyp.cls), (side, self.hyp.dfl))
        return list(zip(*((of * gain / divisor).unbind() for of, gain in gains)))
