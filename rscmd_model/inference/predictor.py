"""`Predictor`: a pair of numpy images in, `Detections` out. No ROS, no files but the model's.

Neither torch nor ultralytics is imported here: an exported model does without them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rscmd_model.config import ModelConfig
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.imaging.preprocess import Placement, place
from rscmd_model.imaging.registration import Registration
from rscmd_model.inference.late_fusion import suppress_and_join
from rscmd_model.inference.opening import open_backend
from rscmd_model.inference.prepared import Prepared
from rscmd_model.inference.suppression import suppress


@dataclass(frozen=True)
class StageTimes:
    """Where the time of one call of the predictor went, in ms.

    Attributes:
        preprocess: from the images to the network's input.
        inference: the network; on a GPU with the upload and the wait for the answer. Where threads share a predictor,
            with the wait for the others' turn.
        postprocess: from the network's answer to `Detections`.
    """

    preprocess: float
    inference: float
    postprocess: float


class Predictor:
    """A trained model, ready to answer.

    Threads may share one. No call leaves anything behind in it, and the network answers one call at a time.

    Args:
        model: path of a model.safetensors, or of what `rscmd_model.export` made of one (.onnx, .openvino, .engine).
        device: "auto", "cpu" or "cuda:N". "auto" is the first GPU where torch or TensorRT runs the model, and the CPU
            where ONNX Runtime or OpenVINO does; a model.onnx takes "cuda:N" where onnxruntime-gpu is installed.
        half: half precision; None means on CUDA and only there. On a CPU OpenVINO alone can (bfloat16). An exported
            file has its precision already.
        backend: for a model.safetensors: "torch", which None means as well; "onnxruntime" or "openvino", which it is
            converted to in memory; or "auto": on a CPU the fastest of those in a short trial, which takes seconds. An
            exported file has its own, and no other.
        conf: lowest score that is answered, 0 to 1.
        iou: boxes of one class that overlap more than this are one object (NMS), 0 to 1.
        max_det: most boxes per image.
        registration: where thermal pixels lie in the visible image; None means as the model's training data had it.
        palette_ok: take the luma of colour-palette thermal images although the model was not trained on them.
        answer: what answers a whole pair: "fused", or "ensemble", all answers of the model joined by `late_fusion`;
            None means as the model file says. A lone camera is answered by its own branch in any case.

    Attributes:
        header: what the model file says of itself.
        backend: what runs the network; its `name` and `device` say so.
        device: "cpu" or "cuda:N".
        trial: what "auto" measured, one line to log; empty when there was no trial.
        conf, iou, max_det: as given.
        answer: what answers a whole pair: "fused", "ensemble", or for a single-camera control its modality.
        names: class names by index.
        thermal: the thermal contract; thermal images must be of its source type.
        registration: the one in use, or None when both images are taken to show the same field of view.
        modalities: the cameras it can answer for alone when the other is lost.

    Raises:
        UserError: a bad model file, an answer that it does not have, an absent device, or a package that is needed and
            not installed. Damage that only answers show is told by the first of them; `warm_up` asks for one of each.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        half: bool | None = None,
        backend: str | None = None,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        registration: Registration | None = None,
        palette_ok: bool = False,
        answer: str | None = None,
    ) -> None:
        self._file = Path(model)
        self.backend, self.trial = open_backend(self._file, device, half, backend, answer)
        self._turn = threading.Lock()
        self.header, self.device = self.backend.header, self.backend.device
        self.answer = self.header.pair_answer(answer)
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
        """The cameras it can answer for alone."""
        return tuple(answer for answer in self.config.answers if answer != "fused")

    def predict(
        self,
        visible: np.ndarray | None,
        thermal: np.ndarray | None,
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        size: tuple[int, int] | None = None,
        registration: Registration | None = None,
        answer: str | None = None,
    ) -> Detections:
        """Find the objects in one pair, or in the image that is left of it.

        Args:
            visible: (H, W, 3) uint8 BGR, or None: then the thermal camera's own answer is given.
            thermal: (h, w) uint8 or uint16 as the thermal contract says, or None: then the visible camera's own answer
                is given. Its size may differ from the visible image's; without a registration both are taken to show
                the same field of view.
            conf, iou, max_det: in place of the predictor's own.
            size: (width, height) in whose pixels boxes are wanted; by default those of the visible image. Without a
                visible image those of the registration's `visible_size`, or without one of the thermal image.
            registration, answer: in place of the predictor's own.

        Returns:
            detections by falling score, boxes clipped to the image.

        Raises:
            UserError: both images are None, one has the wrong type or shape (of its own, or for the registration), the
                model has no such answer, or what it answers is none (NaN, or of another shape).
        """
        return self.predict_batch(
            [visible],
            [thermal],
            conf=conf,
            iou=iou,
            max_det=max_det,
            size=size,
            registration=registration,
            answer=answer,
        )[0]

    def predict_batch(
        self,
        visibles: Sequence[np.ndarray | None],
        thermals: Sequence[np.ndarray | None],
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        size: tuple[int, int] | None = None,
        registration: Registration | None = None,
        answer: str | None = None,
    ) -> list[Detections]:
        """As `predict` for many pairs. Those of the same answers and one network size run as one batch."""
        return self.predict_timed(
            visibles,
            thermals,
            conf=conf,
            iou=iou,
            max_det=max_det,
            size=size,
            registration=registration,
            answer=answer,
        )[0]

    def predict_timed(
        self,
        visibles: Sequence[np.ndarray | None],
        thermals: Sequence[np.ndarray | None],
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        size: tuple[int, int] | None = None,
        registration: Registration | None = None,
        answer: str | None = None,
    ) -> tuple[list[Detections], StageTimes]:
        """As `predict_batch`, and where its time went."""
        _same_length(visibles, thermals)
        conf = self.conf if conf is None else conf
        iou = self.iou if iou is None else iou
        max_det = self.max_det if max_det is None else max_det
        started = time.perf_counter()
        inference = postprocess = 0.0
        answer = self.answer if answer is None else self.header.pair_answer(answer)
        pairs = [self._prepare(visible, thermal, registration, answer) for visible, thermal in zip(visibles, thermals)]
        results = [Detections.empty()] * len(pairs)
        for members in self._batches(pairs):
            batch = self.backend.take([pairs[i] for i in members])
            begun = time.perf_counter()
            given = self._forward(batch, pairs[members[0]].answers, len(members))
            answered = time.perf_counter()
            for i, found in zip(members, suppress_and_join(given, conf, iou, max_det)):
                results[i] = _detections(found, pairs[i].placement, size)
            inference += answered - begun
            postprocess += time.perf_counter() - answered
        preprocess = time.perf_counter() - started - inference - postprocess
        return results, StageTimes(1e3 * preprocess, 1e3 * inference, 1e3 * postprocess)

    def predict_each(
        self,
        visibles: Sequence[np.ndarray],
        thermals: Sequence[np.ndarray],
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        registration: Registration | None = None,
    ) -> list[dict[str, Detections]]:
        """What each answer of the model finds in whole pairs, before anything is joined.

        Args:
            visibles, thermals: of each pair the two images, as for `predict`.
            conf, iou, max_det: for each answer, in place of the predictor's own.
            registration: in place of the predictor's own.

        Returns:
            for each pair the detections by the name of the answer, the model's main one first; boxes in pixels of the
            visible image.

        Raises:
            UserError: as `predict`.
        """
        _same_length(visibles, thermals)
        conf = self.conf if conf is None else conf
        iou = self.iou if iou is None else iou
        max_det = self.max_det if max_det is None else max_det
        pairs = [self._prepare(v, t, registration, self.answer) for v, t in zip(visibles, thermals)]
        results: list[dict[str, Detections]] = [{} for _ in pairs]
        for members in self._batches(pairs):
            batch = self.backend.take([pairs[i] for i in members])
            for name, values in zip(self.config.answers, self._forward(batch, self.config.answers, len(members))):
                for i, found in zip(members, suppress(values, conf, iou, max_det)):
                    results[i][name] = _detections(found, pairs[i].placement, None)
        return results

    def thermal_view(
        self, visible: np.ndarray | None, thermal: np.ndarray, *, registration: Registration | None = None
    ) -> np.ndarray:
        """The thermal image as the network sees it, in the pixels that boxes are in; for drawing.

        Args:
            visible, thermal, registration: as for `predict`.

        Returns:
            (H, W) uint8.

        Raises:
            UserError: as `predict`.
        """
        pair = self._prepare(visible, thermal, registration, self.answer)
        return pair.laid_over()

    def warm_up(self) -> None:
        """Ask once for all that may be asked for: it loads libraries, and tells damage that only answers show.

        Images are of the sizes of the registration, and without one squares of the trained size.

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
        self.predict(visible, thermal)
        self._ask_alone(visible, thermal, None)

    def get_ready(self, visible: np.ndarray, thermal: np.ndarray, *, registration: Registration | None = None) -> None:
        """Ask for what either image of a pair would be answered alone, so that no answer is late when a camera is lost.

        OpenVINO compiles for a size when it first comes, and a GPU's launches are recorded when it comes again. Nothing
        is done where no call is slower than others.

        Args:
            visible, thermal, registration: as for `predict`.

        Raises:
            UserError: as `predict`.
        """
        for _ in range(self.backend.slow_calls):
            self._ask_alone(visible, thermal, registration)

    def _ask_alone(self, visible: np.ndarray, thermal: np.ndarray, registration: Registration | None) -> None:
        if len(self.config.modalities) == 2:  # a control was asked for the same by the pair
            for alone in self.modalities:
                given = visible if alone == "visible" else None, thermal if alone == "thermal" else None
                self.predict(*given, registration=registration)

    def _prepare(
        self, visible: np.ndarray | None, thermal: np.ndarray | None, registration: Registration | None, answer: str
    ) -> Prepared:
        """Check a pair, choose who answers it (`answer`, if it is whole) and place it; see `predict`."""
        if visible is not None and (visible.ndim != 3 or visible.shape[2] != 3 or visible.dtype != np.uint8):
            raise UserError(
                f"visible image has shape {visible.shape} and dtype {visible.dtype}; "
                "expected (height, width, 3) uint8 BGR"
            )
        answers = self._answers_for(visible is not None, thermal is not None, answer)
        plane = None if thermal is None else self.thermal.apply(thermal)
        registration = registration or self.registration
        if visible is not None:
            frame = visible.shape[:2]
        elif registration:  # the thermal answer was learned on planes laid over the visible image
            frame = registration.visible_size[::-1]
        else:
            assert plane is not None
            frame = plane.shape
        fixed = self.backend.fixed
        placement = place((frame[0], frame[1]), self.header.image_size, (fixed[1], fixed[2]) if fixed else None)
        return Prepared(answers, visible, plane, placement, registration)

    def _answers_for(self, visible: bool, thermal: bool, answer: str) -> tuple[str, ...]:
        """Which answers a pair gets that has these images. Raises `UserError` where the model has none for it."""
        if visible and thermal:
            return self.config.made_of(answer)  # for a single-camera control its own modality
        if not (visible or thermal):
            raise UserError("neither a visible nor a thermal image was given")
        lone = "visible" if visible else "thermal"
        if lone not in self.modalities:
            raise UserError(
                f"only the {lone} image was given, and this model has no {lone} branch of its own (it answers for: "
                f"{', '.join(self.config.answers)}); models trained with method rsc or rscmd have both"
            )
        return (lone,)

    def _batches(self, pairs: Sequence[Prepared]) -> Iterator[list[int]]:
        """The pairs, by index, that go through the network together: those of the same answers and one network size."""
        groups: dict[tuple[tuple[str, ...], tuple[int, int]], list[int]] = {}
        for i, pair in enumerate(pairs):
            groups.setdefault((pair.answers, pair.placement.network), []).append(i)
        for members in groups.values():
            most = self.backend.largest_batch or len(members)
            for start in range(0, len(members), most):
                yield members[start : start + most]

    def _forward(self, batch: Any, answers: tuple[str, ...], count: int) -> list[np.ndarray]:
        """The network's answers to a batch, as the backend took it, of `count` pairs, each (count, 4 + classes, N).

        One thread at a time: torch's heads keep the anchors of the last size, sessions and CUDA graphs are made when
        they are first needed, and OpenVINO's requests and CUDA graphs have one buffer each.

        Raises:
            UserError: one is no answer. A damaged model would find nothing, for ever.
        """
        with self._turn:
            found = self.backend.forward(batch, answers)
        for answer, values in zip(answers, found, strict=True):
            self._check(answer, values, self.backend.fixed[0] if self.backend.fixed else count)
        return [values[:count] for values in found]

    def _check(self, answer: str, found: np.ndarray, count: int) -> None:
        """Raises `UserError` where what a network gave for an answer to `count` pairs is none."""
        shape = (count, 4 + len(self.names))
        if found.ndim != 3 or found.shape[:2] != shape:
            raise UserError(
                f"{self._file}: its {answer} answer has shape {found.shape}; its header says {shape} and boxes: copy "
                "or export the file again"
            )
        if not np.isfinite(found).all():
            less = "; half precision may be too little for it" if getattr(self.backend, "half", False) else ""
            raise UserError(
                f"{self._file}: its {answer} answer is not finite (NaN or infinite numbers){less}: copy or export the "
                "file again, or train the model again"
            )


def _same_length(visibles: Sequence[Any], thermals: Sequence[Any]) -> None:
    if len(visibles) != len(thermals):
        raise ValueError(f"expected as many thermal as visible images, got {len(thermals)} and {len(visibles)}")


def _detections(found: np.ndarray, placement: Placement, size: tuple[int, int] | None) -> Detections:
    """The rows of `suppress`, (M, 6), from network pixels to those of the frame, then to `size` (width, height)."""
    boxes = placement.to_frame(found[:, :4])
    if size is not None:
        boxes = boxes * np.tile(np.array(size, np.float32) / np.array(placement.frame[::-1], np.float32), 2)
    return Detections(boxes, found[:, 4].clip(0, 1), found[:, 5].astype(np.int64))
