"""Two cameras and how they stand: the registration in use, and boxes in the pixels that were asked for.

The way of a box: found in the visible image that the predictor saw (rectified, if that was on), from there through the
inverse registration into the thermal one, if boxes are wanted there, and at last back through the lens, because boxes
are in pixels of the image as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.imaging.extrinsics import registration_at_depth
from rscmd_model.imaging.lens import Lens
from rscmd_model.imaging.registration import Registration, corners, map_points, scaling
from rscmd_ros.cameras.camera import Camera
from rscmd_ros.cameras.conversions import ConversionError, check_header
from rscmd_ros.pairing.frames import Stream

_STEPS = 8
"""Points on each side of a box that a lens bends."""


class Rig:
    """Two cameras and how they stand; see the module.

    Args:
        cameras: by stream.
        pose: (x, y, z, qx, qy, qz, qw) of the thermal camera in the visible optical frame, m.
        depth: what is at this distance from the visible camera, m, is brought into register, by both camera_infos; 0
            leaves the registration that the predictor has.
        frame: the camera in whose pixels, as published, boxes are given.
    """

    def __init__(
        self, cameras: dict[Stream, Camera], *, pose: Sequence[float], depth: float = 0.0, frame: Stream = "visible"
    ) -> None:
        self.cameras = cameras
        self.frame = frame
        self._pose, self._depth = tuple(pose), depth
        self._made: tuple[tuple[Lens, Lens], Registration | str] | None = None
        """The registration of these lenses, or why there is none."""

    def check(self, msg: Any, stream: Stream) -> None:
        """Make sure that an image can be paired, decoded and answered, with what is known of both cameras.

        Its picture is not decoded.

        Args:
            msg: a sensor_msgs/Image or CompressedImage.
            stream: the camera that it is from.

        Raises:
            ConversionError: see `Camera.check` and `check_header`; or the two camera_infos and the extrinsics make no
                registration.
        """
        self.cameras[stream].check(msg)
        self._check_registration()
        check_header(msg.header, stream)

    def info(self, msg: Any, stream: Stream) -> None:
        """Take in what a camera says of itself.

        Args:
            msg: a sensor_msgs/CameraInfo.
            stream: the camera that it is from.

        Raises:
            ConversionError: see `Camera.info`; or with that of the other camera and the extrinsics it makes no
                registration. Images are refused from now on.
        """
        self.cameras[stream].info(msg)
        self._check_registration()

    def registration(self, otherwise: Registration | None) -> Registration | None:
        """The registration by the extrinsics where a depth was given, `otherwise` where not.

        Raises:
            ConversionError: a camera_info has not come yet or cannot be used, or the extrinsics do not make sense.
        """
        if not self._depth > 0:
            return otherwise
        lenses = self.cameras["visible"].known_lens(), self.cameras["thermal"].known_lens()
        if self._made is None or self._made[0] != lenses:
            try:
                self._made = lenses, registration_at_depth(*lenses, self._pose, self._depth)
            except UserError as error:
                self._made = lenses, f"registration by extrinsics: {error}"
        made = self._made[1]
        if isinstance(made, str):
            raise ConversionError(made)
        return made

    def in_frame(
        self,
        found: Detections,
        visible_size: tuple[int, int],
        thermal_size: tuple[int, int] | None,
        registration: Registration | None,
        frame: Stream | None = None,
    ) -> tuple[Detections, list[int]]:
        """Detections in the pixels of the raw image of a camera, from those of the (rectified) visible image.

        Each box becomes the upright one around where its outline lies. Boxes that the thermal camera does not see are
        left out when boxes are wanted in its pixels.

        Args:
            found: boxes in the pixels of the visible image that the predictor was given.
            visible_size: (width, height) of the visible image.
            thermal_size: (width, height) of the thermal image; None only where its pixels are not asked for.
            registration: the one that the predictor used.
            frame: the camera; None for the rig's own `frame`.

        Returns:
            the detections in those pixels, and which of `found` they are, by index.

        Raises:
            UserError: an image is no scaled copy of those that the registration or the camera_info was made for.
        """
        frame = frame or self.frame
        camera = self.cameras[frame]
        size = visible_size if frame == "visible" else thermal_size
        assert size is not None
        lens = camera.known_lens() if camera.rectify else None
        if frame == "visible":
            if lens is None or lens.plain:
                return found, list(range(len(found)))
            outlines = [_corners(box) for box in found.boxes]
        else:
            to_visible = registration.matrix(size, visible_size) if registration else None
            outlines = _seen_by_thermal(found, visible_size, size, to_visible)
        kept, boxes = [], []
        for index, outline in enumerate(outlines):
            if len(outline) < 3:
                continue
            if lens is not None and not lens.plain:
                outline = lens.raw_points(_dense(outline), size)
            box = _around(outline, size)
            if box[2] > box[0] and box[3] > box[1]:
                kept.append(index)
                boxes.append(box)
        shown = replace(
            found,
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            scores=found.scores[kept],
            classes=found.classes[kept],
        )
        return shown, kept

    def _check_registration(self) -> None:
        if all(camera.lens is not None for camera in self.cameras.values()):
            self.registration(None)


def _seen_by_thermal(
    found: Detections, visible_size: tuple[int, int], thermal_size: tuple[int, int], to_visible: Any
) -> list[np.ndarray]:
    """The part of each box that the thermal camera sees, as a polygon (N, 2) in thermal pixels; N is 0 for none."""
    if to_visible is None:  # both show the same field of view
        to_visible = scaling(thermal_size, visible_size)
    # Cutting it to the view first keeps points away from where the homography goes to infinity.
    view = map_points(to_visible, corners(thermal_size)).astype(np.float32)
    back = np.linalg.inv(to_visible)
    outlines = []
    for box in found.boxes:
        area, polygon = cv2.intersectConvexConvex(_corners(box).astype(np.float32), view)
        outlines.append(map_points(back, polygon.reshape(-1, 2)) if area > 0 else np.empty((0, 2)))
    return outlines


def _corners(box: np.ndarray) -> np.ndarray:
    """The corners of a box in coordinates whose (0, 0) is the centre of a pixel, where boxes have its outer corner."""
    x0, y0, x1, y1 = box.astype(np.float64) - 0.5
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def _dense(outline: np.ndarray) -> np.ndarray:
    """A polygon with more points on its sides."""
    along = np.arange(_STEPS)[:, None] / _STEPS
    return np.concatenate([a + (b - a) * along for a, b in zip(outline, np.roll(outline, -1, axis=0))])


def _around(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The upright box around points, clipped to an image of `size` = (width, height)."""
    low, high = outline.min(axis=0) + 0.5, outline.max(axis=0) + 0.5
    return np.concatenate([low.clip(0, size), high.clip(0, size)])
