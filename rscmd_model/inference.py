"""`Predictor`: a pair of numpy images in, `Detections` out. No ROS, no files but the model's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes

from rscmd_model.config import ModelConfig
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.images import stack_pair
from rscmd_model.model_file import load_model
from rscmd_model.registration import Registration

with contextlib.suppress(ImportError, RuntimeError):  # a build of torchvision that does not fit torch's: do without
    import torchvision  # noqa: F401  (ultralytics' NMS uses the compiled one once it is imported)


def select_device(device: str) -> torch.device:
    """A torch device from "auto" (the first CUDA GPU, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: no such device here; the message names those that are.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda:0" if count else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type == "cpu" or (chosen.type == "cuda" and (chosen.index or 0) < count):
        return chosen
    there = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(count))])
    raise UserError(f"device {device!r} is not there; this machine has {there}")


class Predictor:
    """A trained model, ready to answer.

    Args:
        model: path of a model.safetensors.
        device: "auto", "cpu" or "cuda:N".
        half: half precision; None means on CUDA and only there.
        conf: lowest score that is answered, 0 to 1.
        iou: boxes of one class that overlap more than this are one object (NMS), 0 to 1.
        max_det: most boxes per image.
        registration: where thermal pixels lie in the visible image; None means as the model's training data had it.
        palette_ok: take the luma of colour-palette thermal images although the model was not trained on them.

    Attributes:
        header: what the model file says of itself.
        names: class names by index.
        thermal: the thermal contract; thermal images must be of its source type.
        registration: the one in use, or None when both images are taken to show the same field of view.
        stages: ms that preprocess, inference and postprocess took in the last call. On a CUDA device the wait for
            inference is in postprocess, which asks for its result.
        modalities: the cameras it can answer for alone when the other is lost.

    Raises:
        UserError: a bad model file or an absent device.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        half: bool | None = None,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        registration: Registration | None = None,
        palette_ok: bool = False,
    ) -> None:
        self.device = select_device(device)
        network, self.header = load_model(model)
        self.half = self.device.type == "cuda" if half is None else half
        if self.half and self.device.type == "cpu":
            raise UserError("half precision needs a CUDA device; leave half unset on the CPU")
        self.network = network.fuse().to(self.device, torch.float16 if self.half else torch.float32).eval()
        self.conf, self.iou, self.max_det = conf, iou, max_det
        self.stages: dict[str, float] = {}
        self.registration = registration or self.header.registration
        self.thermal = replace(self.header.thermal, palette_ok=True) if palette_ok else self.header.thermal

    @property
    def names(self) -> dict[int, str]:
        """Class names by index."""
        return self.header.names

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.header.config

    @property
    def modalities(self) -> tuple[str, ...]:
        """The cameras whose own branch can answer alone."""
        return tuple(b for b in self.config.branches if b != "fused")

    def predict(
        self,
        visible: np.ndarray | None,
        thermal: np.ndarray | None,
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Detections:
        """Objects in one pair, or in the image that is left of it.

        Args:
            visible: (H, W, 3) uint8 BGR, or None: then the thermal branch answers.
            thermal: (h, w) uint8 or uint16 as the thermal contract says, or None: then the visible branch answers. Its
                size may differ from the visible image's; without a registration both are taken to show the same field
                of view.
            conf, iou, max_det: in place of the predictor's own.
            size: (width, height) in whose pixels boxes are wanted; by default those of the visible image. Without a
                visible image those of the registration's `visible_size`, or without one of the thermal image.

        Returns:
            detections by falling score, boxes clipped to the image.

        Raises:
            UserError: both images are None, one has the wrong type or shape (of its own, or for the registration), or
                the branch needed is not in the model.
        """
        return self.predict_batch([visible], [thermal], conf=conf, iou=iou, max_det=max_det, size=size)[0]

    def predict_batch(
        self,
        visibles: Sequence[np.ndarray | None],
        thermals: Sequence[np.ndarray | None],
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[Detections]:
        """As `predict` for many pairs; those answered by one branch at one network size run as one batch."""
        if len(visibles) != len(thermals):
            raise ValueError(f"expected as many thermal as visible images, got {len(thermals)} and {len(visibles)}")
        started, self.stages = time.perf_counter(), {}
        groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        stacks: list[np.ndarray] = []
        frames: list[tuple[int, int]] = []
        for i, (visible, thermal) in enumerate(zip(visibles, thermals)):
            branch, stack = self._stack(visible, thermal)
            frames.append(stack.shape[:2])
            stacks.append(self._letterbox(stack))
            groups.setdefault((branch, stacks[-1].shape), []).append(i)
        started = self._lap("preprocess", started)
        results: list[Detections | None] = [None] * len(stacks)
        for (branch, shape), members in groups.items():
            batch = torch.from_numpy(np.stack([stacks[i].transpose(2, 0, 1) for i in members])).to(self.device)
            with torch.inference_mode():
                raw = self.network.answers(batch.to(torch.float16 if self.half else torch.float32) / 255, [branch])
                started = self._lap("inference", started)
                kept = non_max_suppression(
                    raw[branch][0].float(),
                    self.conf if conf is None else conf,
                    self.iou if iou is None else iou,
                    max_det=self.max_det if max_det is None else max_det,
                    max_time_img=10.0,  # its clock must not cut an answer short on a loaded machine
                )
            for i, found in zip(members, kept):
                results[i] = _detections(found, shape, frames[i], size)
            started = self._lap("postprocess", started)
        return [r for r in results if r is not None]

    def _lap(self, stage: str, started: float) -> float:
        """Add the time since `started` to a stage; the time now."""
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + 1000 * (now - started)
        return now

    def thermal_view(self, visible: np.ndarray | None, thermal: np.ndarray) -> np.ndarray:
        """The thermal image as the network sees it, in the pixels that boxes are in; for drawing.

        Args:
            visible, thermal: as for `predict`.

        Returns:
            (H, W) uint8.
        """
        return self._stack(visible, thermal)[1][..., 3]

    def warm_up(self) -> None:
        """Run every branch once at the trained size, so that the first real answer is not a slow one."""
        side = self.header.image_size
        depth = np.uint16 if self.thermal.source == "mono16" else np.uint8
        visible, thermal = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), depth)
        if self.registration is not None:  # made for images of these sizes
            visible = np.zeros((*self.registration.visible_size[::-1], 3), np.uint8)
            thermal = np.zeros(self.registration.thermal_size[::-1], depth)
        for branch in self.config.branches:
            self.predict(None if branch == "thermal" else visible, None if branch == "visible" else thermal)

    def _stack(self, visible: np.ndarray | None, thermal: np.ndarray | None) -> tuple[str, np.ndarray]:
        """The branch that answers, and its (H, W, 4) uint8 stack, black where there is no image (it is not read)."""
        if visible is not None and (visible.ndim != 3 or visible.shape[2] != 3 or visible.dtype != np.uint8):
            raise UserError(
                f"visible image has shape {visible.shape} and dtype {visible.dtype}; "
                "expected (height, width, 3) uint8 BGR"
            )
        if visible is None and thermal is None:
            raise UserError("neither a visible nor a thermal image was given")
        lone = "visible" if thermal is None else "thermal" if visible is None else None
        if lone is None:
            branch = self.config.branches[0]  # for a single-camera control its own modality
        elif lone in self.modalities:
            branch = lone
        else:
            raise UserError(
                f"only the {lone} image was given, and this model has no {lone} branch of its own (it answers for: "
                f"{', '.join(self.config.branches)}); models trained with method rsc or rscmd have both"
            )
        if thermal is None:
            assert visible is not None
            return branch, stack_pair(visible, np.zeros(visible.shape[:2], np.uint8))
        plane = self.thermal.apply(thermal)
        if visible is None:
            # The thermal branch learned on planes laid over the visible image, and its boxes are in that frame.
            width, height = self.registration.visible_size if self.registration else plane.shape[::-1]
            visible = np.zeros((height, width, 3), np.uint8)
        return branch, stack_pair(visible, plane, self.registration)

    def _letterbox(self, stack: np.ndarray) -> np.ndarray:
        """To the trained size: the longer side resized, the shorter padded in grey to a multiple of 32."""
        side = self.header.image_size
        return LetterBox((side, side), auto=True, stride=32)(image=stack)


def _detections(
    found: Tensor, network: tuple[int, ...], frame: tuple[int, int], size: tuple[int, int] | None
) -> Detections:
    """From network pixels to those of the frame (height, width), then to `size` (width, height)."""
    found = found.cpu().clone()  # scale_boxes writes in place, which inference tensors refuse
    boxes = scale_boxes(network[:2], found[:, :4], frame).numpy()
    if size is not None:
        boxes = boxes * np.tile(np.array(size, np.float32) / np.array(frame[::-1], np.float32), 2)
    return Detections(boxes, found[:, 4].numpy().clip(0, 1), found[:, 5].numpy().astype(np.int64))
