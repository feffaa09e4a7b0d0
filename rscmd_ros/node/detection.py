"""From a pair of messages to a published answer: what runs in the worker's thread.

Nothing here holds on to the node. A computation that nothing can interrupt may be left behind when the process ends,
and the middleware takes its leave of the others only when nobody holds the node any more.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from rscmd_model.detections import Detections
from rscmd_model.errors import one_line, out_of_memory
from rscmd_model.imaging.registration import Registration, load_registration
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_ros.cameras.camera import Camera
from rscmd_ros.cameras.conversions import ConversionError, Limits, detections_to_msg, time_msg, visible_to_image
from rscmd_ros.cameras.rig import Rig
from rscmd_ros.node.diagnostics import Throttle
from rscmd_ros.node.overlay import draw_overlay
from rscmd_ros.node.parameters import Settings, wanted_classes
from rscmd_ros.node.tracking import LOW_SCORE, Tracker
from rscmd_ros.node.worker import Latencies
from rscmd_ros.pairing.frames import STREAMS, Arrival, Frame, Pair, Stream

if TYPE_CHECKING:
    from rscmd_model.inference.predictor import Predictor


def make_rig(settings: Settings, contract: ThermalContract | None) -> Rig:
    """The rig that the node's parameters describe; `contract` is that of the model."""
    limits = Limits(settings.max_image_megapixels * 1e6, settings.max_decoded_megabytes * 1e6)
    depth = settings.registration_depth_m
    cameras: dict[Stream, Camera] = {
        stream: Camera(
            stream,
            transport=getattr(settings, f"{stream}_transport"),
            rectify=getattr(settings, f"{stream}_rectify"),
            calibrated=depth > 0,
            limits=limits,
            contract=contract if stream == "thermal" else None,
        )
        for stream in STREAMS
    }
    frame: Stream = "thermal" if settings.output_frame == "thermal" else "visible"
    return Rig(cameras, pose=settings.extrinsics, depth=depth, frame=frame)


def load_predictor(settings: Settings) -> Predictor:
    """Load the model, with backend "auto" on a CPU choose the fastest by a trial, and run it once. Takes seconds.

    Raises:
        UserError: a bad model or registration file, an answer that the model does not have, or a device or backend that
            is not there.
    """
    from rscmd_model.inference.predictor import Predictor

    predictor = Predictor(
        Path(settings.model).expanduser(),
        device=settings.device,
        half=None if settings.half else False,
        backend=settings.backend,
        registration=load_registration(Path(settings.registration).expanduser()) if settings.registration else None,
        answer=None if settings.answer == "auto" else settings.answer,
    )
    predictor.warm_up()
    return predictor


STAGES = ("wait", "decode", "preprocess", "inference", "postprocess", "publish")
"""What a pair goes through. wait: from the arrival of its later image until the worker takes it."""

_MOST = 10000
_MOST_SIZES = 4  # of images that the model is made ready for: of a camera that changes all the time, no more


class PairDetector:
    """Finds what is in a pair, or in the frame of the camera that is left, and publishes it.

    Args:
        predictor: gives the answers.
        publisher: of vision_msgs/Detection2DArray.
        logger: told of pairs that fail.
        settings: the parameters of the configure.
        stopping: once set, nothing more is said of failures.
        overlay: publisher of sensor_msgs/Image, or None. It is drawn for only while somebody subscribes.
        mode: tells the mode that the overlay shows.

    Attributes:
        predictor: as given.
        settings: the live ones are read anew for every pair. Replaced whole when one changes.
        latency: from the arrival of a pair's later image to the publishing of the answer.
        stages: the times of each of `STAGES`.
        published_at: when the last answer was published, in s of the steady clock; None before it.
        failure: when something last failed, in s of the steady clock, and what; None before it.
        rig: the cameras, by the settings of the configure.
    """

    def __init__(
        self,
        predictor: Predictor,
        publisher: Any,
        logger: Any,
        settings: Settings,
        stopping: threading.Event,
        overlay: Any = None,
        mode: Callable[[], str] = lambda: "none",
    ) -> None:
        self.predictor = predictor
        self.settings = settings
        self.latency = Latencies()
        self.stages = {stage: Latencies() for stage in STAGES}
        self.published_at: float | None = None
        self.failure: tuple[float, str] | None = None
        self.rig = make_rig(settings, predictor.thermal)
        self._publisher = publisher
        self._overlay = overlay
        self._mode = mode
        self._logger = logger
        self._stopping = stopping
        self._errors = Throttle(10.0)
        self._tracker = Tracker() if settings.tracker == "bytetrack" else None
        self._held: Detection2DArray | None = None
        self._seen: dict[Stream, tuple[str, tuple[int, int]]] = {}
        """frame_id and (width, height) of each camera's last image."""
        self._ready_for: set[tuple[tuple[int, ...], tuple[int, ...], bool]] = set()

    def reset(self) -> None:
        """Forget tracks and the answer to hold, as when the cameras have been off. Not while a pair is worked on."""
        self._held = None
        if self._tracker is not None:
            self._tracker.reset()

    @property
    def watched(self) -> bool:
        """Whether somebody subscribes to anything that needs the model to run."""
        return any(topic is not None and topic.get_subscription_count() for topic in (self._publisher, self._overlay))

    def wanted(self) -> bool:
        """Whether an answer is to be made at all."""
        return self.settings.enable and (not self.settings.lazy or self.watched)

    def detect(self, job: Pair | Frame, check: Callable[[], None] = lambda: None) -> None:
        """Answer a pair, or a lone frame by its own branch. Payloads are `Arrival`s.

        A pair is answered in the pixels and under the header of the image of parameter `output_frame`. So is that
        camera's lone frame. The other one's lone frame is answered in the same pixels and under the same frame_id as
        before the loss, with its own stamp brought to the clock of that camera by the offset in use; where there was
        nothing before, in its own pixels under its own header.

        Args:
            job: the pair or frame.
            check: called once the model has answered; what it raises keeps the answer from being published.
        """
        frames = (job.visible, job.thermal) if isinstance(job, Pair) else (job,)
        arrivals: dict[Stream, Arrival] = {}
        for frame in frames:
            assert isinstance(frame.payload, Arrival)
            arrivals[frame.stream] = frame.payload
        came = max(arrival.at for arrival in arrivals.values())
        self.stages["wait"].add(came)
        started = time.monotonic_ns()
        pictures = {stream: self.rig.cameras[stream].decode(arrival.msg) for stream, arrival in arrivals.items()}
        self.stages["decode"].add(started)
        for stream, picture in pictures.items():
            self._seen[stream] = arrivals[stream].msg.header.frame_id, (picture.shape[1], picture.shape[0])
        visible, thermal = pictures.get("visible"), pictures.get("thermal")
        size = self._seen["visible"][1] if visible is None and "visible" in self._seen else None
        registration = self._registration(thermal is not None)
        headers = {stream: arrival.msg.header for stream, arrival in arrivals.items()}
        # Tracks go by the clock of the visible camera, whoever answers.
        seconds = frames[0].stamp_by("visible") / 1e9
        found, identities = self._find(visible, thermal, size, registration, seconds, check)
        started = time.monotonic_ns()
        header, shown, which = self._place(found, frames[0], headers, registration)
        answer = detections_to_msg(shown, self.predictor.names, header)
        for detection, index in zip(answer.detections, which):
            detection.id = identities[index]
        self._publisher.publish(answer)
        self.stages["publish"].add(started)
        self.latency.add(came)
        self.published_at = time.monotonic()
        if len(pictures) == 2:
            self._held = answer
            self._get_ready(visible, thermal, registration)
        if self._overlay is not None and self._overlay.get_subscription_count():
            self._draw(visible, thermal, found, identities, header, size, registration)

    def hold(self) -> None:
        """Publish the last answer to a pair again, under its old stamp."""
        if self._held is not None:
            self._publisher.publish(self._held)
            self.published_at = time.monotonic()

    def failed(self, error: Exception) -> None:
        """Say, once in a while, that a pair failed. Called while the exception is being handled."""
        if self._stopping.is_set():  # what it needs is being taken down
            return
        # What a look at the message alone does not show, or what has changed since: no fault of the inference.
        kind = "a pair cannot be used" if isinstance(error, ConversionError) else "inference failed"
        said = f"{kind}: {one_line(error)}"
        if out_of_memory(error):
            said = (
                f"inference failed, {self.predictor.device} has no memory left ({one_line(error)}): free some, or use "
                "a smaller model or smaller images"
            )
            traceback.clear_frames(error.__traceback__)  # which hold what the network had made by then
            self._free()
        self.failure = time.monotonic(), said
        if self._errors.allows(type(error).__name__):
            self._logger.error(said)
            self._logger.debug(traceback.format_exc())

    def device(self) -> dict[str, str]:
        """Device, backend and precision in words and, where torch rules a GPU's memory, this process's there in MB."""
        device, backend = self.predictor.device, self.predictor.backend
        plain = {"device": device, "backend": backend.name, "precision": backend.precision}
        if not device.startswith("cuda") or backend.name == "onnxruntime":
            return plain
        import torch

        return {
            **plain,
            "device": f"{device} ({torch.cuda.get_device_name(device)})",
            "gpu_memory_allocated_mb": f"{torch.cuda.memory_allocated(device) / 1e6:.0f}",
            "gpu_memory_reserved_mb": f"{torch.cuda.memory_reserved(device) / 1e6:.0f}",
        }

    def _registration(self, for_thermal: bool) -> Registration | None:
        """The registration of the cameras as they stand; None where nothing asks for one."""
        if not for_thermal and self.rig.frame == "visible":
            return None
        return self.rig.registration(self.predictor.registration)

    def _get_ready(
        self, visible: np.ndarray | None, thermal: np.ndarray | None, registration: Registration | None
    ) -> None:
        """With the first pair of some sizes: have the model ready for either of its images alone."""
        assert visible is not None
        assert thermal is not None
        sizes = visible.shape[:2], thermal.shape[:2], registration is None
        never_alone = self.settings.fallback in ("hold", "off") or self._stopping.is_set()
        if never_alone or sizes in self._ready_for or len(self._ready_for) == _MOST_SIZES:
            return
        self._ready_for.add(sizes)
        try:
            self.predictor.get_ready(visible, thermal, registration=registration)
        except Exception as error:  # the pair itself was answered
            self.failed(error)

    def _place(
        self, found: Detections, first: Frame, headers: Mapping[Stream, Header], registration: Registration | None
    ) -> tuple[Header, Detections, list[int]]:
        """The header of the answer, the detections in the pixels that it names, and which of `found` they are.

        `found` is in pixels of the visible image; of the thermal one when no visible image has been seen and there is
        no registration. `first` is the visible frame, or the lone one.
        """
        own, frame = first.stream, self.rig.frame
        stamp = time_msg(first.stamp_by(frame))
        sizes = {stream: size for stream, (_, size) in self._seen.items()}
        if frame in headers:
            header = headers[frame]
        elif frame in self._seen:
            header = Header(stamp=stamp, frame_id=self._seen[frame][0])
        elif own == "thermal" and registration is not None:  # in visible pixels; the name of that frame is not known
            return Header(stamp=stamp), found, list(range(len(found)))
        else:
            frame, header = own, headers[own]
        if "visible" not in sizes:
            sizes["visible"] = registration.visible_size if registration is not None else sizes["thermal"]
        return header, *self.rig.in_frame(found, sizes["visible"], sizes.get("thermal"), registration, frame)

    def _find(
        self,
        visible: np.ndarray | None,
        thermal: np.ndarray | None,
        size: tuple[int, int] | None,
        registration: Registration | None,
        stamp: float,
        check: Callable[[], None],
    ) -> tuple[Detections, list[str]]:
        """What is to be published, and the identity of each, empty where there is none."""
        settings, tracker = self.settings, self._tracker
        wanted = set(wanted_classes(settings.classes))
        confidence = settings.confidence_threshold
        (found,), times = self.predictor.predict_timed(
            [visible],
            [thermal],
            conf=min(confidence, LOW_SCORE) if tracker else confidence,
            iou=settings.iou_threshold,
            max_det=_MOST if wanted or tracker else settings.max_detections,  # those left out take nobody's place
            size=size,
            registration=registration,
        )
        check()  # before the tracker learns of it, which by now may belong to the worker after this one
        for stage, ms in asdict(times).items():
            self.stages[stage].note(ms)
        if wanted:
            indexes = [index for index, name in self.predictor.names.items() if name in wanted]
            found = found.take(np.isin(found.classes, indexes))
        identities = tracker.update(found, confidence, stamp) if tracker else [""] * len(found)
        shown = np.flatnonzero(found.scores >= confidence)[: settings.max_detections]
        return found.take(shown), [identities[i] for i in shown]

    def _draw(
        self,
        visible: np.ndarray | None,
        thermal: np.ndarray | None,
        found: Detections,
        identities: list[str],
        header: Header,
        size: tuple[int, int] | None,
        registration: Registration | None,
    ) -> None:
        lone = "thermal" if visible is None else "visible"
        branch = lone if visible is None or thermal is None else self.predictor.answer
        plane = None if thermal is None else self.predictor.thermal_view(visible, thermal, registration=registration)
        if plane is not None and size is not None:
            plane = cv2.resize(plane, size)
        mode = self._mode()
        by = "" if branch == mode else f", answered by {branch}"  # the mode may have changed since
        title = f"mode {mode}{by}, {len(found)} found"
        picture = draw_overlay(visible, plane, found, self.predictor.names, branch, title, identities)
        self._overlay.publish(visible_to_image(picture, header))

    def _free(self) -> None:
        """Give back what torch keeps of the GPU's memory, for the next pair."""
        if self.predictor.device.startswith("cuda") and self.predictor.backend.name != "onnxruntime":
            import torch

            torch.cuda.empty_cache()
