"""`Predictor`: a pair of numpy images in, `Detections` out. No ROS, no files but the model's.

Neither torch nor ultralytics is imported here: an exported model does without them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rscmd_model.choice import open_backend
from rscmd_model.config import ModelConfig
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.images import lay_over
from rscmd_model.preprocess import Placement, fill, place
from rscmd_model.registration import Registration
from rscmd_model.suppression import suppress


@dataclass(frozen=True)
class StageTimes:
    """Where the time of one call of `predict` or `predict_batch` went, in ms.

    Attributes:
        preprocess: from the images to the network's input.
        inference: the network; on a GPU with the upload and the wait for the answer.
        postprocess: from the network's answer to `Detections`.
    """

    preprocess: float
    inference: float
    postprocess: float


@dataclass(frozen=True)
class _Prepared:
    """A pair, checked, on its way to the network: the branch that answers it, what it reads, and where it goes."""

    branch: str
    visible: np.ndarray | None
    plane: np.ndarray | None
    placement: Placement


class Predictor:
    """A trained model, ready to answer.

    Args:
        model: path of a model.safetensors, or of what `rscmd_model.export` made of one (.onnx, .openvino, .engine).
        device: "auto", "cpu" or "cuda:N".
        half: half precision; None means on CUDA and only there. On a CPU OpenVINO alone can (bfloat16). An exported
            file has its precision already.
        backend: for a model.safetensors: "torch"; "onnxruntime" or "openvino", which it is converted to in memory; or
            "auto": on a CPU the fastest of those in a short trial, which takes seconds.
        conf: lowest score that is answered, 0 to 1.
        iou: boxes of one class that overlap more than this are one object (NMS), 0 to 1.
        max_det: most boxes per image.
        registration: where thermal pixels lie in the visible image; None means as the model's training data had it.
        palette_ok: take the luma of colour-palette thermal images although the model was not trained on them.

    Attributes:
        header: what the model file says of itself.
        backend: what runs the network; its `name` and `device` say so.
        trial: what "auto" measured, one line to log; empty when there was no trial.
        times: `StageTimes` of the last call; None before it.
        names: class names by index.
        thermal: the thermal contract; thermal images must be of its source type.
        registration: the one in use, or None when both images are taken to show the same field of view.
        modalities: the cameras it can answer for alone when the other is lost.

    Raises:
        UserError: a bad model file, an absent device, or a package that is needed and not installed. Damage that only
            answers show is told by the first of them; `warm_up` asks for one of each branch.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        half: bool | None = None,
        backend: str = "torch",
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        registration: Registration | None = None,
        palette_ok: bool = False,
    ) -> None:
        self._file = Path(model)
        self.backend, self.trial = open_backend(self._file, device, half, backend)
        self.header, self.device = self.backend.header, self.backend.device
        self.times: StageTimes | None = None
        self.conf, self.iou, self.max_det = conf, iou, max_det
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
        return tuple(b for b in self.config.answers if b != "fused")

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
            UserError: both images are None, one has the wrong type or shape (of its own, or for the registration), the
                branch needed is not in the model, or the model's answer is none (NaN, or of another shape).
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
        started = time.perf_counter()
        inference = postprocess = 0.0
        pairs = [self._prepare(visible, thermal) for visible, thermal in zip(visibles, thermals)]
        fixed = self.backend.fixed
        groups: dict[tuple[str, tuple[int, int]], list[int]] = {}
        for i, pair in enumerate(pairs):
            groups.setdefault((pair.branch, pair.placement.network), []).append(i)
        results: list[Detections] = [Detections.empty()] * len(pairs)
        for (branch, network), everyone in groups.items():
            most = fixed[0] if fixed else len(everyone)
            for members in (everyone[start : start + most] for start in range(0, len(everyone), most)):
                batch = np.empty((len(members), *network, 4), np.uint8)
                for out, i in zip(batch, members):
                    fill(out, pairs[i].placement, pairs[i].visible, pairs[i].plane, self.registration)
                if fixed and len(members) < most:
                    batch = np.concatenate((batch, np.zeros((most - len(members), *network, 4), np.uint8)))
                begun = time.perf_counter()
                answer = self._sound(self.backend.forward(batch, branch), len(batch), branch)
                answered = time.perf_counter()
                kept = suppress(
                    answer[: len(members)],
                    self.conf if conf is None else conf,
                    self.iou if iou is None else iou,
                    self.max_det if max_det is None else max_det,
                )
                for i, found in zip(members, kept):
                    results[i] = _detections(found, pairs[i].placement, size)
                inference += answered - begun
                postprocess += time.perf_counter() - answered
        preprocess = time.perf_counter() - started - inference - postprocess
        self.times = StageTimes(1e3 * preprocess, 1e3 * inference, 1e3 * postprocess)
        return results

    def thermal_view(self, visible: np.ndarray | None, thermal: np.ndarray) -> np.ndarray:
        """The thermal image as the network sees it, in the pixels that boxes are in; for drawing.

        Args:
            visible, thermal: as for `predict`.

        Returns:
            (H, W) uint8.
        """
        pair = self._prepare(visible, thermal)
        assert pair.plane is not None
        return lay_over(pair.plane, pair.placement.frame[::-1], self.registration)

    def warm_up(self) -> None:
        """Run every branch once at the trained size, so that the first real answer is not a slow one.

        Raises:
            UserError: an answer is none (NaN, or of another shape): the model is damaged.
        """
        side = self.header.image_size
        depth = np.uint16 if self.thermal.source == "mono16" else np.uint8
        wide, narrow = (side, side), (side, side)
        if self.registration is not None:  # made for images of these sizes
            wide, narrow = self.registration.visible_size[::-1], self.registration.thermal_size[::-1]
        noise = np.random.default_rng(0)  # black would go through many a damaged weight
        visible = noise.integers(0, 256, (*wide, 3), np.uint8)
        thermal = noise.integers(0, np.iinfo(depth).max, narrow, depth)
        for branch in self.config.answers:
            self.predict(None if branch == "thermal" else visible, None if branch == "visible" else thermal)

    def _sound(self, answer: np.ndarray, pairs: int, branch: str) -> np.ndarray:
        """The answer of a branch to so many pairs, if it is one: a damaged model would find nothing, for ever."""
        shape = (pairs, 4 + len(self.names))
        if answer.ndim != 3 or answer.shape[:2] != shape:
            raise UserError(
                f"{self._file}: its {branch} answer has shape {answer.shape}; its header says {shape} and boxes: copy "
                "or export the file again"
            )
        if not np.isfinite(answer).all():
            less = "; half precision may be too little for it" if getattr(self.backend, "half", False) else ""
            raise UserError(
                f"{self._file}: its {branch} answer is not finite (NaN or infinite numbers){less}: copy or export the "
                "file again, or train the model again"
            )
        return answer

    def _prepare(self, visible: np.ndarray | None, thermal: np.ndarray | None) -> _Prepared:
        """Check a pair; see `predict`."""
        if visible is not None and (visible.ndim != 3 or visible.shape[2] != 3 or visible.dtype != np.uint8):
            raise UserError(
                f"visible image has shape {visible.shape} and dtype {visible.dtype}; "
                "expected (height, width, 3) uint8 BGR"
            )
        if visible is None and thermal is None:
            raise UserError("neither a visible nor a thermal image was given")
        lone = "visible" if thermal is None else "thermal" if visible is None else None
        if lone is None:
            branch = self.config.answers[0]  # for a single-camera control its own modality
        elif lone in self.modalities:
            branch = lone
        else:
            raise UserError(
                f"only the {lone} image was given, and this model has no {lone} branch of its own (it answers for: "
                f"{', '.join(self.config.answers)}); models trained with method rsc or rscmd have both"
            )
        plane = None if thermal is None else self.thermal.apply(thermal)
        if visible is not None:
            frame = visible.shape[:2]
        elif self.registration:  # the thermal branch learned on planes laid over the visible image
            frame = self.registration.visible_size[::-1]
        else:
            assert plane is not None
            frame = plane.shape
        fixed = self.backend.fixed
        placement = place((frame[0], frame[1]), self.header.image_size, (fixed[1], fixed[2]) if fixed else None)
        return _Prepared(branch, visible, plane, placement)


def _detections(found: np.ndarray, placement: Placement, size: tuple[int, int] | None) -> Detections:
    """From network pixels to those of the frame, then to `size` (width, height)."""
    boxes = placement.to_frame(found[:, :4])
    if size is not None:
        boxes = boxes * np.tile(np.array(size, np.float32) / np.array(placement.frame[::-1], np.float32), 2)
    return Detections(boxes, found[:, 4].clip(0, 1), found[:, 5].astype(np.int64))
