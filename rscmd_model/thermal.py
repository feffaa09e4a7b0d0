"""The thermal contract: what the numbers of a thermal image mean, and their way to the network's 8-bit plane.

A model is trained on one contract and carries it in its file; the data set reader and the node both apply it with
`ThermalContract.apply`, so that training and robot agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rscmd_model.errors import UserError

_SOURCES = {"mono8": np.dtype(np.uint8), "mono16": np.dtype(np.uint16)}


@dataclass(frozen=True)
class ThermalContract:
    """How a thermal image becomes numbers from 0 to 255.

    Attributes:
        source: "mono8" (uint8 counts) or "mono16" (uint16 counts).
        scale: (low, high), mapped linearly to 0 and 255 and clipped. Counts of the source, or percentiles of the image
            at hand (0 to 100) when `percentile` is true.
        percentile: scale each image by its own percentiles. Convenient for cameras whose counts drift; it gives up
            the absolute level, so a warm scene and a cold one look alike.

    Raises:
        UserError: unknown source, or low not below high.
    """

    source: str = "mono8"
    scale: tuple[float, float] = (0.0, 255.0)
    percentile: bool = False

    def __post_init__(self) -> None:
        if self.source not in _SOURCES:
            raise UserError(f"thermal contract: source {self.source!r} is not one of {', '.join(_SOURCES)}")
        low, high = self.scale
        if not low < high:
            raise UserError(f"thermal contract: scale ({low}, {high}) needs its first number below its second")
        if self.percentile and not (low >= 0 and high <= 100):
            raise UserError(f"thermal contract: percentiles ({low}, {high}) lie outside 0 to 100")

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ThermalContract:
        """Read `{source: mono8, scale: [0, 255]}` or `{source: mono16, scale: {percentile: [1, 99]}}`.

        Raises:
            UserError: the mapping has another form; the message names the key.
        """
        if not isinstance(data, Mapping) or set(data) != {"source", "scale"}:
            raise UserError(
                "thermal contract: expected the keys source and scale, as in {source: mono8, scale: [0, 255]} or "
                f"{{source: mono16, scale: {{percentile: [1, 99]}}}}, got {data!r}"
            )
        scale = data["scale"]
        percentile = isinstance(scale, Mapping)
        if percentile:
            if set(scale) != {"percentile"}:
                raise UserError(
                    f"thermal contract: scale has the form [low, high] or {{percentile: [low, high]}}, got {scale!r}"
                )
            scale = scale["percentile"]
        try:
            low, high = (float(x) for x in scale)
        except (TypeError, ValueError):
            raise UserError(f"thermal contract: scale needs two numbers, got {scale!r}") from None
        return ThermalContract(str(data["source"]), (low, high), percentile)

    def to_dict(self) -> dict[str, Any]:
        """The form `from_dict` reads, of plain JSON types."""
        scale = list(self.scale)
        return {"source": self.source, "scale": {"percentile": scale} if self.percentile else scale}

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Map a thermal image to the plane the network sees.

        Args:
            image: (H, W) uint8 for source mono8, uint16 for mono16.

        Returns:
            (H, W) uint8.

        Raises:
            UserError: the image's type is not the contract's.
        """
        if image.ndim != 2 or image.dtype != _SOURCES[self.source]:
            raise UserError(
                f"thermal image has dtype {image.dtype} and shape {image.shape}; this model's thermal contract is "
                f"{self.source} ({_SOURCES[self.source]}, height x width). Publish that encoding, or train on this one."
            )
        low, high = self.scale
        if self.percentile:
            low, high = np.percentile(image, self.scale)
            high = max(high, low + 1)  # a flat image stays flat instead of dividing by nothing
        elif self.source == "mono8" and (low, high) == (0, 255):
            return image
        table = np.arange(np.iinfo(image.dtype).max + 1, dtype=np.float64)
        return np.clip((table - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)[image]


def thermal_plane(image: np.ndarray) -> np.ndarray:
    """The single plane of a thermal image as cameras and files deliver it.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3) of uint8 or uint16. Three channels are taken only when they are equal up
            to the few counts that JPEG colour conversion adds.

    Returns:
        (H, W) of the same type.

    Raises:
        UserError: the image is a colour palette, whose colours are no temperatures, or has another shape.
    """
    if image.ndim == 2:
        return image
    if image.ndim == 3 and image.shape[2] == 1:
        return image[..., 0]
    if image.ndim == 3 and image.shape[2] == 3:
        channels = image.astype(np.int32)
        if int(np.ptp(channels, axis=2).max()) <= 4:
            return np.ascontiguousarray(image[..., 0])
        raise UserError(
            "thermal image is in a colour palette, and colours are not temperatures: set the camera or its driver to "
            "white-hot grey (mono8) or raw counts (mono16)"
        )
    raise UserError(f"thermal image has shape {image.shape}; expected (height, width) or three equal channels")
