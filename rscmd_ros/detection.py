"""From a pair of messages to a published answer: what runs in the worker's thread.

Nothing here holds on to the node. A computation that nothing can interrupt may be left behind when the process ends,
and the middleware takes its leave of the others only when nobody holds the node any more.
"""

from __future__ import annotations

import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensor_msgs.msg import Image

from rscmd_model.errors import UserError
from rscmd_model.registration import load_registration
from rscmd_ros.conversions import detections_to_msg, image_to_thermal, image_to_visible
from rscmd_ros.diagnostics import Throttle
from rscmd_ros.pairing import Pair
from rscmd_ros.parameters import Settings
from rscmd_ros.worker import Latencies

if TYPE_CHECKING:
    from rscmd_model.inference import Predictor


@dataclass(frozen=True)
class Arrival:
    """What travels through pairing: the message, and when it came, in ns of the steady clock."""

    msg: Image
    at: int


def load_predictor(settings: Settings) -> Predictor:
    """Load the model, on a CPU choose its fastest backend by a trial, and run it once. Takes seconds.

    Raises UserError for a bad model or registration file or an absent device.
    """
    from rscmd_model.inference import Predictor

    predictor = Predictor(
        Path(settings.model).expanduser(),
        device=settings.device,
        half=None if settings.half else False,
        backend="auto",
        registration=load_registration(Path(settings.registration).expanduser()) if settings.registration else None,
    )
    predictor.warm_up()
    return predictor


class PairDetector:
    """Finds what is in a pair and publishes it under the header of the visible image.

    predictor  answers the pairs
    publisher  of vision_msgs/Detection2DArray
    logger     told of pairs that fail
    settings   the live ones are read anew for every pair; replaced whole when one changes
    stopping   once set, nothing more is said of failures
    """

    def __init__(
        self, predictor: Predictor, publisher: Any, logger: Any, settings: Settings, stopping: threading.Event
    ) -> None:
        self.predictor = predictor
        self.settings = settings
        self.latency = Latencies()
        """From the arrival of a pair's later image to the publishing of the answer."""
        self.inference = Latencies()
        """Of conversion and Predictor alone."""
        self._publisher = publisher
        self._logger = logger
        self._stopping = stopping
        self._errors = Throttle(10.0)

    def detect(self, pair: Pair) -> None:
        """Answer one pair, whose payloads are `Arrival`s."""
        visible, thermal, settings = pair.visible.payload, pair.thermal.payload, self.settings
        assert isinstance(visible, Arrival)
        assert isinstance(thermal, Arrival)
        started = time.monotonic_ns()
        found = self.predictor.predict(
            image_to_visible(visible.msg),
            image_to_thermal(thermal.msg, self.predictor.thermal.palette_ok),
            conf=settings.confidence_threshold,
            iou=settings.iou_threshold,
            max_det=settings.max_detections,
        )
        self.inference.add(started)
        self._publisher.publish(detections_to_msg(found, self.predictor.names, visible.msg.header))
        self.latency.add(max(visible.at, thermal.at))

    def failed(self, error: Exception) -> None:
        """Say, once in a while, that a pair failed. Called while the exception is being handled."""
        if self._stopping.is_set():  # what it needs is being taken down
            return
        if self._errors.allows(type(error).__name__):
            self._logger.error(f"inference failed on a pair: {one_line(error)}")
            self._logger.debug(traceback.format_exc())


def one_line(error: Exception) -> str:
    """What an exception says, on one line; with its kind, unless it is a user's mistake, which says everything."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"
