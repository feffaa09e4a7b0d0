"""From a pair of messages to a published answer: what runs in the worker's thread.

Nothing here holds on to the node. A computation that nothing can interrupt may be left behind when the process ends,
and the middleware takes its leave of the others only when nobody holds the node any more.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.registration import load_registration
from rscmd_model.thermal import ThermalContract
from rscmd_ros.conversions import (
    ConversionError,
    check_thermal,
    check_visible,
    detections_to_msg,
    image_to_thermal,
    image_to_visible,
    stamp_ns,
    visible_to_image,
)
from rscmd_ros.diagnostics import Throttle
from rscmd_ros.overlay import draw_overlay
from rscmd_ros.pairing import Frame, Pair, Stream
from rscmd_ros.parameters import Settings, wanted_classes
from rscmd_ros.tracking import LOW_SCORE, Tracker
from rscmd_ros.worker import Latencies

if TYPE_CHECKING:
    from rscmd_model.inference import Predictor


@dataclass(frozen=True)
class Arrival:
    """What travels through pairing: the message, and when it came, in ns of the steady clock."""

    msg: Image
    at: int


def check_arrival(msg: Image, stream: Stream, contract: ThermalContract) -> None:
    """Make sure that a message can be paired, decoded and answered, without reading its picture.

    Raises ConversionError.
    """
    if stream == "visible":
        check_visible(msg)
    elif (source := check_thermal(msg, contract.palette_ok)) != contract.source:
        raise ConversionError(
            f"thermal image has encoding '{msg.encoding}' ({source}), and the model was trained on {contract.source}"
        )
    if stamp_ns(msg.header) <= 0:
        raise ConversionError(f"{stream} image has no stamp (0); the driver has to set header.stamp")


def load_predictor(settings: Settings) -> Predictor:
    """Import torch, load the model and run it once. Takes seconds.

    Raises UserError for a bad model or registration file or an absent device.
    """
    from rscmd_model.inference import Predictor

    predictor = Predictor(
        Path(settings.model).expanduser(),
        device=settings.device,
        half=None if settings.half else False,
        registration=load_registration(Path(settings.registration).expanduser()) if settings.registration else None,
    )
    predictor.warm_up()
    return predictor


STAGES = ("wait", "decode", "preprocess", "inference", "postprocess", "publish")
"""What a pair goes through. wait: from the arrival of its later image until the worker takes it."""

_MOST = 10000


class PairDetector:
    """Finds what is in a pair, or in the frame of the camera that is left, and publishes it.

    predictor  answers
    publisher  of vision_msgs/Detection2DArray
    logger     told of pairs that fail
    settings   the live ones are read anew for every pair; replaced whole when one changes
    stopping   once set, nothing more is said of failures
    overlay    publisher of sensor_msgs/Image, or None; drawn for only while somebody subscribes
    """

    def __init__(
        self,
        predictor: Predictor,
        publisher: Any,
        logger: Any,
        settings: Settings,
        stopping: threading.Event,
        overlay: Any = None,
    ) -> None:
        self.predictor = predictor
        self.settings = settings
        self.latency = Latencies()
        """From the arrival of a pair's later image to the publishing of the answer."""
        self.stages = {stage: Latencies() for stage in STAGES}
        self.mode = "none"
        """Shown on the overlay; set from outside."""
        self.published_at: float | None = None
        """When the last answer was published, in s of the steady clock."""
        self.failure: tuple[float, str] | None = None
        """When something last failed, in s of the steady clock, and what."""
        self._publisher = publisher
        self._overlay = overlay
        self._logger = logger
        self._stopping = stopping
        self._errors = Throttle(10.0)
        self._tracker = Tracker() if settings.tracker == "bytetrack" else None
        self._held: Detection2DArray | None = None
        self._visible_frame: tuple[str, tuple[int, int]] | None = None

    def reset(self) -> None:
        """Forget tracks and the answer to hold, as when the cameras have been off. Not while a pair is worked on."""
        self._held = None
        if self._tracker is not None:
            self._tracker.reset()

    def detect(self, job: Pair | Frame) -> None:
        """Answer a pair, or a lone frame by its own branch. Payloads are `Arrival`s.

        A pair is answered under the header of the visible image. So is a lone visible frame. A lone thermal frame is
        answered in the pixels and under the frame_id of the last visible image, as before the loss, with the thermal
        stamp; where there was none yet, in its own pixels and under its own header.
        """
        frames = (job.visible, job.thermal) if isinstance(job, Pair) else (job,)
        arrivals: dict[Stream, Arrival] = {}
        for frame in frames:
            assert isinstance(frame.payload, Arrival)
            arrivals[frame.stream] = frame.payload
        came = max(arrival.at for arrival in arrivals.values())
        self.stages["wait"].add(came)
        started = time.monotonic_ns()
        pictures = {stream: self._decode(arrival, stream) for stream, arrival in arrivals.items()}
        self.stages["decode"].add(started)
        visible, thermal = pictures.get("visible"), pictures.get("thermal")
        header, size = self._frame_of(arrivals, visible)
        found, identities = self._find(visible, thermal, size, stamp_ns(header) / 1e9)
        started = time.monotonic_ns()
        answer = detections_to_msg(found, self.predictor.names, header)
        for detection, identity in zip(answer.detections, identities):
            detection.id = identity
        self._publisher.publish(answer)
        self.stages["publish"].add(started)
        self.latency.add(came)
        self.published_at = time.monotonic()
        if len(pictures) == 2:
            self._held = answer
        if self._overlay is not None and self._overlay.get_subscription_count():
            self._draw(visible, thermal, found, identities, header, size)

    def hold(self) -> None:
        """Publish the last fused answer again, under its old stamp."""
        if self._held is not None:
            self._publisher.publish(self._held)
            self.published_at = time.monotonic()

    def failed(self, error: Exception) -> None:
        """Say, once in a while, that a pair failed. Called while the exception is being handled."""
        if self._stopping.is_set():  # what it needs is being taken down
            return
        said = f"inference failed: {one_line(error)}"
        if out_of_memory(error):
            said = (
                f"inference failed, {self.predictor.device} has no memory left ({one_line(error)}): free some, or use "
                "a smaller model or smaller images"
            )
            self._free()
        self.failure = time.monotonic(), said
        if self._errors.allows(type(error).__name__):
            self._logger.error(said)
            self._logger.debug(traceback.format_exc())

    def device(self) -> dict[str, str]:
        """The device in words and, on a CUDA GPU, this process's memory there in MB."""
        device = self.predictor.device
        if getattr(device, "type", "cpu") != "cuda":
            return {"device": str(device)}
        import torch

        return {
            "device": f"{device} ({torch.cuda.get_device_name(device)})",
            "gpu_memory_allocated_mb": f"{torch.cuda.memory_allocated(device) / 1e6:.0f}",
            "gpu_memory_reserved_mb": f"{torch.cuda.memory_reserved(device) / 1e6:.0f}",
        }

    def _decode(self, arrival: Arrival, stream: Stream) -> np.ndarray:
        """The picture in a message that has been checked."""
        if stream == "visible":
            return image_to_visible(arrival.msg)
        return image_to_thermal(arrival.msg, self.predictor.thermal.palette_ok)

    def _frame_of(
        self, arrivals: Mapping[Stream, Arrival], visible: np.ndarray | None
    ) -> tuple[Header, tuple[int, int] | None]:
        """The header of the answer, and the (width, height) in whose pixels it is; None for the Predictor's own."""
        if visible is not None:
            header = arrivals["visible"].msg.header
            self._visible_frame = header.frame_id, (visible.shape[1], visible.shape[0])
            return header, None
        own = arrivals["thermal"].msg.header
        if self._visible_frame is not None:
            return Header(stamp=own.stamp, frame_id=self._visible_frame[0]), self._visible_frame[1]
        # With a registration the boxes are in the visible image even so, and the name of its frame is not known yet.
        return (own if self.predictor.registration is None else Header(stamp=own.stamp)), None

    def _find(
        self, visible: np.ndarray | None, thermal: np.ndarray | None, size: tuple[int, int] | None, stamp: float
    ) -> tuple[Detections, list[str]]:
        """What is to be published, and the identity of each, empty where there is none."""
        settings, tracker = self.settings, self._tracker
        wanted = wanted_classes(settings.classes)
        confidence = settings.confidence_threshold
        found = self.predictor.predict(
            visible,
            thermal,
            conf=min(confidence, LOW_SCORE) if tracker else confidence,
            iou=settings.iou_threshold,
            max_det=_MOST if wanted or tracker else settings.max_detections,  # those left out take nobody's place
            size=size,
        )
        for stage, ms in self.predictor.stages.items():
            self.stages[stage].note(ms)
        if wanted:
            indexes = [index for index, name in self.predictor.names.items() if name in wanted]
            found = _take(found, np.isin(found.classes, indexes))
        identities = tracker.update(found, confidence, stamp) if tracker else [""] * len(found)
        shown = np.flatnonzero(found.scores >= confidence)[: settings.max_detections]
        return _take(found, shown), [identities[i] for i in shown]

    def _draw(
        self,
        visible: np.ndarray | None,
        thermal: np.ndarray | None,
        found: Detections,
        identities: list[str],
        header: Header,
        size: tuple[int, int] | None,
    ) -> None:
        branches = self.predictor.config.branches
        branch = (
            branches[0] if visible is not None and thermal is not None else "thermal" if visible is None else "visible"
        )
        plane = None if thermal is None else self.predictor.thermal_view(visible, thermal)
        if plane is not None and size is not None:
            plane = cv2.resize(plane, size)
        by = "" if branch == self.mode else f", answered by {branch}"  # the mode may have changed since
        title = f"mode {self.mode}{by}, {len(found)} found"
        picture = draw_overlay(visible, plane, found, self.predictor.names, branch, title, identities)
        self._overlay.publish(visible_to_image(picture, header))

    def _free(self) -> None:
        """Give back what torch keeps of the GPU's memory, for the next pair."""
        if getattr(self.predictor.device, "type", "cpu") == "cuda":
            import torch

            torch.cuda.empty_cache()


def _take(found: Detections, which: np.ndarray) -> Detections:
    return Detections(found.boxes[which], found.scores[which], found.classes[which])


def out_of_memory(error: Exception) -> bool:
    """Whether this is torch's, Python's or the CPU allocator's word for no memory left."""
    kinds = ("OutOfMemoryError", "MemoryError", "_ArrayMemoryError")
    return type(error).__name__ in kinds or "can't allocate memory" in str(error)


def one_line(error: Exception) -> str:
    """What an exception says, on one line; with its kind, unless it is a user's mistake, which says everything."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"
