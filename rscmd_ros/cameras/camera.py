"""One camera as the node and the bags see it: which messages it sends, whether one can be used, and its picture.

`check` is cheap and belongs into the callback; `decode` does the work and belongs into the worker. Neither knows ROS:
a message is anything with the attributes that its definition names.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rscmd_model.errors import UserError, shown
from rscmd_model.imaging.lens import MOST_COEFFICIENTS, Lens
from rscmd_model.imaging.pictures import PictureHeader
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_ros.cameras.compressed import (
    check_compressed_thermal,
    check_compressed_visible,
    compressed_to_thermal,
    compressed_to_visible,
)
from rscmd_ros.cameras.conversions import (
    NO_LIMITS,
    ConversionError,
    Limits,
    check_thermal,
    check_visible,
    image_to_thermal,
    image_to_visible,
)
from rscmd_ros.pairing.frames import Stream

TRANSPORTS = ("raw", "compressed")


def image_topic(base: str, transport: str) -> str:
    """The topic of a transport, as image_transport names it: the base topic itself, or `<base>/compressed`."""
    return base if transport == "raw" else f"{base}/{transport}"


def info_topic(base: str) -> str:
    """The topic of the CameraInfo that goes with a base topic, as image_transport names it: its sibling."""
    return f"{base.rpartition('/')[0]}/camera_info" if "/" in base else "camera_info"


class Camera:
    """One camera; see the module.

    Args:
        stream: "visible" or "thermal".
        transport: "raw" for sensor_msgs/Image, "compressed" for sensor_msgs/CompressedImage.
        rectify: take the lens distortion out, by the camera_info that `info` was given.
        calibrated: refuse images until a camera_info has come; rectifying does so too.
        limits: the largest image that is taken.
        contract: of the model: what thermal images have to be; None takes every thermal one.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        transport: str = "raw",
        rectify: bool = False,
        calibrated: bool = False,
        limits: Limits = NO_LIMITS,
        contract: ThermalContract | None = None,
    ) -> None:
        self.stream = stream
        self.transport = transport
        self.rectify = rectify
        self.calibrated = calibrated or rectify
        self.lens: Lens | None = None
        """What the last camera_info told; replaced whole, so the worker may read it while the callback writes."""
        self.info_topic = ""
        """Where its camera_info is waited for, for the words of a refusal; empty where that is not known."""
        self._limits = limits
        self._contract = contract
        self._fault = ""
        self._told: tuple[Any, ...] = ()

    def check(self, msg: Any) -> tuple[int, int]:
        """Make sure that an image can be used, without decoding it.

        Args:
            msg: the message, of the type of the transport.

        Returns:
            Its size (width, height) in px.

        Raises:
            ConversionError: encoding, format, amount of data, size, or a depth that is not the contract's; or a
                camera_info is needed and none has come, or one that cannot be used.
        """
        size = self._check_visible(msg) if self.stream == "visible" else self._check_thermal(msg)
        if self.calibrated:
            self._fitting_lens(size)
        return size

    def decode(self, msg: Any) -> np.ndarray:
        """The picture of a message, rectified if wanted.

        Args:
            msg: the message, of the type of the transport.

        Returns:
            (H, W, 3) uint8 BGR, or thermal counts (H, W) uint8 or uint16. It may share its memory with the message, so
            do not write to it.

        Raises:
            ConversionError: as `check`; or compressed data are damaged.
        """
        palette_ok = self._contract is not None and self._contract.palette_ok
        if self.transport == "raw":
            image = image_to_visible(msg) if self.stream == "visible" else image_to_thermal(msg, palette_ok)
        elif self.stream == "visible":
            image = compressed_to_visible(msg, self._limits)
        else:
            image = compressed_to_thermal(msg, self._limits, palette_ok)
        if self.rectify:
            image = self._fitting_lens(image.shape[1::-1]).rectify(image)
        return image

    def info(self, msg: Any) -> None:
        """Take in what the camera says of itself; the same as before costs next to nothing.

        Args:
            msg: a sensor_msgs/CameraInfo.

        Raises:
            ConversionError: it cannot be used. Images that need it are refused from now on.
        """
        d = msg.d[: MOST_COEFFICIENTS + 1]  # enough to see that there are too many
        told = (msg.width, msg.height, msg.distortion_model, *map(tuple, (d, msg.k, msg.r, msg.p)), _roi(msg.roi))
        if told == self._told:
            return
        self._told = told
        try:
            self.lens = _lens(msg)  # the one before stays until this one is made, for the worker reads it meanwhile
        except UserError as error:
            self._fault = f"camera_info of the {self.stream} camera cannot be used: {error}"
            self.lens = None
            raise ConversionError(self._fault) from None

    def known_lens(self) -> Lens:
        """The calibration.

        Raises:
            ConversionError: no camera_info has come yet, or it cannot be used.
        """
        if (lens := self.lens) is None:
            where = f" on {self.info_topic}" if self.info_topic else ""
            raise ConversionError(self._fault or f"no camera_info of the {self.stream} camera has come yet{where}")
        return lens

    def _fitting_lens(self, size: tuple[int, int]) -> Lens:
        lens = self.known_lens()
        try:
            lens.matrix(size)
        except UserError as error:
            raise ConversionError(f"{self.stream} image does not fit its camera_info: {error}") from None
        return lens

    def _refuse_turned(self, header: PictureHeader) -> None:
        if self.calibrated and header.orientation != 1:
            raise ConversionError(
                f"{self.stream} image is turned by its EXIF orientation ({header.orientation}), and camera_info is of "
                "the picture as the sensor gave it: let the driver write no orientation"
            )

    def _check_visible(self, msg: Any) -> tuple[int, int]:
        if self.transport == "raw":
            check_visible(msg, self._limits)
            return msg.width, msg.height
        header = check_compressed_visible(msg, self._limits)
        self._refuse_turned(header)
        return header.width, header.height

    def _check_thermal(self, msg: Any) -> tuple[int, int]:
        palette_ok = self._contract is not None and self._contract.palette_ok
        if self.transport == "raw":
            depth, size = check_thermal(msg, palette_ok, self._limits), (msg.width, msg.height)
            kind = f"encoding '{shown(msg.encoding)}'"
        else:
            depth, header = check_compressed_thermal(msg, self._limits, palette_ok)
            self._refuse_turned(header)
            kind, size = f"format '{shown(msg.format)}'", (header.width, header.height)
        if self._contract is not None and depth != self._contract.source:
            hint = ""
            if self.transport == "compressed" and header.codec == "jpeg":
                hint = "; JPEG has 8 bits, so set the publisher's parameter <image topic>.compressed.format to png"
            raise ConversionError(
                f"thermal image has {kind} ({depth}), and the model was trained on {self._contract.source}{hint}"
            )
        return size


def _roi(roi: Any) -> tuple[int, int, int, int]:
    return roi.x_offset, roi.y_offset, roi.width, roi.height


def _lens(msg: Any) -> Lens:
    size, region = (int(msg.width), int(msg.height)), _roi(msg.roi)
    if region not in ((0, 0, 0, 0), (0, 0, *size)):
        raise UserError(f"its image is a part of the sensor (roi {region}), which is not supported: read out all of it")
    if len(msg.d) > MOST_COEFFICIENTS:
        raise UserError(f"it has {len(msg.d)} coefficients d; no model takes more than {MOST_COEFFICIENTS}")
    d, k, r = (tuple(float(x) for x in values) for values in (msg.d, msg.k, msg.r))
    projection = np.array(msg.p, np.float64).reshape(3, 4)[:, :3]
    return Lens(size, msg.distortion_model, d, k, r, tuple(projection.ravel().tolist()))
