"""The earlier name of `rscmd_ros.cameras.camera`."""

from rscmd_ros.cameras.camera import Camera

__all__ = ["Camera"]
