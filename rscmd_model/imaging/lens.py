"""The lens of a calibrated camera: from its raw pixels to those of a distortion-free (rectified) image, and back.

Models and names are those of sensor_msgs/CameraInfo and OpenCV. Pixel (0, 0) is the centre of the upper left one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from rscmd_model.errors import UserError, shown
from rscmd_model.imaging.registration import FILL, rescaling

MOST_COEFFICIENTS = 14
_MOST_SKEW = 1e-3
_WORST_CONDITION = 1e12
_COEFFICIENTS = {
    "plumb_bob": (0, 4, 5),
    "rational_polynomial": (0, 4, 5, 8, 12, 14),
    "equidistant": (0, 4),
    "fisheye": (0, 4),
    "": (0,),
    "none": (0,),
}


@dataclass(frozen=True)
class Lens:
    """A calibration, as a CameraInfo tells it.

    Attributes:
        size: (width, height) in px of the image it was made for; images of the same shape are taken for scaled copies.
        model: plumb_bob, rational_polynomial, equidistant (also called fisheye), or "" for no distortion.
        distortion: the coefficients D of that model; all zeros are no distortion.
        camera: K, 9 numbers by rows: focal lengths and principal point of the raw image, px.
        rotation: R, 9 numbers by rows: from the camera's frame to that of the rectified image.
        rectified: the left three columns of P, 9 numbers by rows: K of the rectified image; all zeros mean K itself.

    Raises:
        UserError: an unknown model, a number of coefficients that it does not have, K that is not calibrated, or
            numbers by which no point can be computed.
    """

    size: tuple[int, int]
    model: str
    distortion: tuple[float, ...]
    camera: tuple[float, ...]
    rotation: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    rectified: tuple[float, ...] = (0,) * 9

    def __post_init__(self) -> None:
        every = (*self.distortion, *self.camera, *self.rotation, *self.rectified)
        if not np.isfinite(every).all():
            raise UserError("it has numbers that are not finite")
        if min(self.size) < 1 or not self.camera[0] > 0 or not self.camera[4] > 0:
            raise UserError("it is not calibrated: width, height and the focal lengths in k must be larger than 0")
        if not any(self.distortion):
            object.__setattr__(self, "distortion", ())
        if self.model not in _COEFFICIENTS:
            raise UserError(
                f"its distortion_model is '{shown(self.model)}'; known are {', '.join(filter(None, _COEFFICIENTS))}"
            )
        if len(self.distortion) not in _COEFFICIENTS[self.model]:
            wanted = " or ".join(map(str, _COEFFICIENTS[self.model]))
            raise UserError(
                f"its distortion_model '{self.model}' takes {wanted} coefficients d, and it has {len(self.distortion)}"
            )
        if not any(self.rectified):
            object.__setattr__(self, "rectified", self.camera)
        if not any(self.rotation):  # left empty by drivers of single cameras
            object.__setattr__(self, "rotation", tuple(np.eye(3).ravel()))
        for name, numbers in (("k", self.camera), ("p", self.rectified)):
            if not _projects(_matrix(numbers)):
                raise UserError(
                    f"its {name} projects nothing: expected f_x 0 c_x, 0 f_y c_y, 0 0 1 in its left columns"
                )
        if not _rotates(self.turn()):
            raise UserError("its r is no rotation")
        across, down = np.meshgrid(np.linspace(0, self.size[0] - 1, 5), np.linspace(0, self.size[1] - 1, 5))
        if not np.isfinite(self.raw_points(np.stack([across, down], -1).reshape(-1, 2), self.size)).all():
            raise UserError("its coefficients d put points of the image nowhere")

    @property
    def plain(self) -> bool:
        """Whether rectifying would change nothing: no distortion, no rotation, the same matrix."""
        return not self.distortion and np.allclose(self.turn(), np.eye(3)) and self.camera == self.rectified

    def turn(self) -> np.ndarray:
        """R as (3, 3) float64: from the camera's frame to that of the rectified image."""
        return _matrix(self.rotation)

    def matrix(self, size: tuple[int, int], rectified: bool = True) -> np.ndarray:
        """The camera matrix for images of a size.

        Args:
            size: (width, height) in px.
            rectified: of the rectified image; False: of the raw one.

        Returns:
            (3, 3) float64.

        Raises:
            UserError: `size` has another shape than the calibration's.
        """
        to_size = np.linalg.inv(rescaling(size, self.size, "the camera_info is for"))
        return np.asarray(to_size @ _matrix(self.rectified if rectified else self.camera))

    def rectify(self, image: np.ndarray) -> np.ndarray:
        """Take the distortion out of an image.

        Args:
            image: (H, W) or (H, W, 3), uint8 or uint16, raw.

        Returns:
            the same shape and type, bilinear. Where the camera does not look: `FILL` in a colour image, the mean of a
            grey one, since counts have no grey of their own.

        Raises:
            UserError: as `matrix`.
        """
        if self.plain:
            return image
        fill = (FILL,) * 3 if image.ndim == 3 else cv2.mean(image)
        across, down = _maps(self, image.shape[1::-1])
        return cv2.remap(image, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)

    def raw_points(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Where points of the rectified image lie in the raw one.

        Args:
            points: (N, 2) px.
            size: (width, height) of both images, px.

        Returns:
            (N, 2) float64, px.

        Raises:
            UserError: as `matrix`.
        """
        rays = np.hstack((points, np.ones((len(points), 1)))) @ np.linalg.inv(self.matrix(size)).T @ self.turn()
        rays, camera = rays[:, None, :], self.matrix(size, rectified=False)
        zero = np.zeros(3)
        if self._fisheye:
            found, _ = cv2.fisheye.projectPoints(rays, zero, zero, camera, np.array(self.distortion))
        else:
            found, _ = cv2.projectPoints(rays, zero, zero, camera, np.array(self.distortion))
        return np.asarray(found).reshape(-1, 2)

    @property
    def _fisheye(self) -> bool:
        return self.model in ("equidistant", "fisheye") and bool(self.distortion)

    def _make_maps(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        raw, rectified = self.matrix(size, rectified=False), self.matrix(size)
        make = cv2.fisheye.initUndistortRectifyMap if self._fisheye else cv2.initUndistortRectifyMap
        across, down = make(raw, np.array(self.distortion), self.turn(), rectified, size, cv2.CV_16SC2)
        return across, down


@lru_cache(maxsize=4)
def _maps(lens: Lens, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The maps of a lens for images of this size; made once, since that takes longer than using them."""
    return lens._make_maps(size)


def _projects(matrix: np.ndarray) -> bool:
    """Whether a camera matrix (3, 3) is one: of the form that sensor_msgs/CameraInfo prescribes, and invertible."""
    focal = min(matrix[0, 0], matrix[1, 1])
    straight = max(abs(matrix[0, 1]), abs(matrix[1, 0])) <= _MOST_SKEW * focal  # OpenCV knows no skew
    sound = focal > 0 and straight and np.allclose(matrix[2], (0, 0, 1), rtol=0, atol=1e-6)
    with np.errstate(all="ignore"):
        return bool(sound and np.linalg.cond(matrix) < _WORST_CONDITION)


def _rotates(matrix: np.ndarray) -> bool:
    """Whether a matrix (3, 3) is a rotation, as far as a driver's rounding goes."""
    with np.errstate(all="ignore"):
        return bool(np.allclose(matrix @ matrix.T, np.eye(3), atol=0.01) and np.linalg.det(matrix) > 0)


def _matrix(numbers: Sequence[float]) -> np.ndarray:
    return np.array(numbers, np.float64).reshape(3, 3)
