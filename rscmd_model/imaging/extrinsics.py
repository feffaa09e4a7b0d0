"""A registration from where the two cameras stand, for what is at one depth: the homography that a plane induces.

Hartley and Zisserman, "Multiple View Geometry", result 13.1. The plane is parallel to the visible (rectified) image, at
`depth` in front of that camera. With X_v = R X_t + t and n = (0, 0, 1), a point of the plane has n.X_v = depth, so
n.(R X_t) = depth - t_z, and X_v = (R + t n^T R / (depth - t_z)) X_t. Between pixels: H = K_v (...) K_t^-1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.imaging.lens import Lens
from rscmd_model.imaging.registration import Registration


def rotation(quaternion: Sequence[float]) -> np.ndarray:
    """The rotation matrix (3, 3) of a unit quaternion (x, y, z, w).

    Raises:
        UserError: its length is not 1 (within 1 %).
    """
    length = float(np.linalg.norm(quaternion))
    if not abs(length - 1) <= 0.01:
        raise UserError(f"a rotation is a quaternion x, y, z, w of length 1, and this one has {length:g}")
    x, y, z, w = np.asarray(quaternion, np.float64) / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def registration_at_depth(visible: Lens, thermal: Lens, pose: Sequence[float], depth: float) -> Registration:
    """The registration that is right for everything at one depth; images must be rectified.

    Args:
        visible, thermal: the calibrations.
        pose: (x, y, z, qx, qy, qz, qw) of the thermal camera's optical frame in the visible one's, m: what
            `tf2_echo VISIBLE_FRAME THERMAL_FRAME` prints.
        depth: distance of the plane from the visible camera along its axis, m.

    Raises:
        UserError: `pose` is no pose, the plane is not in front of both cameras, or they hardly share a view.
    """
    if len(pose) != 7 or not np.isfinite(pose).all():
        raise UserError(f"extrinsics are the seven numbers x, y, z, qx, qy, qz, qw, got {list(pose)}")
    # From the frames of the lenses to those of the rectified images.
    turn = visible.turn() @ rotation(pose[3:]) @ thermal.turn().T
    shift = visible.turn() @ np.asarray(pose[:3], np.float64)
    if not depth - shift[2] > 0:
        raise UserError(f"a plane at {depth:g} m from the visible camera lies behind the thermal one")
    plane = turn + np.outer(shift, turn[2]) / (depth - shift[2])
    matrix = visible.matrix(visible.size) @ plane @ np.linalg.inv(thermal.matrix(thermal.size))
    return Registration(tuple(map(tuple, matrix.tolist())), thermal.size, visible.size)
