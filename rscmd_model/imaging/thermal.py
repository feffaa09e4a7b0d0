"""The thermal contract: what the numbers of a thermal image mean, and their way to the network's 8-bit plane.

A model is trained on one contract and carries it in its file. Whatever reads thermal images (training, evaluation, the
node, a bag) comes through `ThermalContract.apply`, so that training and robot agree. `docs/thermal.md` says which
contract suits which camera.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from rscmd_model.errors import UserError, quoted

_SOURCES: dict[str, np.dtype[Any]] = {"mono8": np.dtype(np.uint8), "mono16": np.dtype(np.uint16)}

_FORM = "{source: mono8, scale: [0, 255]} or {source: mono16, scale: {percentile: [1, 99]}}"
_WIDEST, _NARROWEST = 1e6, 1e-3  # counts; beyond them the arithmetic of the table ends


class PaletteError(UserError):
    """A thermal image is in a colour palette, and nobody said that this is known and wanted."""


@dataclass(frozen=True)
class ThermalContract:
    """How a thermal image becomes numbers from 0 to 255.

    Attributes:
        source: "mono8" (uint8 counts) or "mono16" (uint16 counts).
        scale: (low, high), mapped linearly to 0 and 255 and clipped. Counts of the source, or percentiles of the image
            at hand (0 to 100) when `percentile` is true.
        percentile: scale each image by its own percentiles. Convenient for cameras whose counts drift; it gives up
            the absolute level, so a warm scene and a cold one look alike.
        palette_ok: take pictures in a colour palette too, by their luma. The luma of a palette is no temperature, and
            may not even rise with it; a model trained so needs the same palette ever after. Source mono8 only.

    Raises:
        UserError: unknown source, low not below high, a scale that leaves nothing to see, or a palette of 16-bit
            counts.
    """

    source: str = "mono8"
    scale: tuple[float, float] = (0.0, 255.0)
    percentile: bool = False
    palette_ok: bool = False

    def __post_init__(self) -> None:
        if self.source not in _SOURCES:
            raise UserError(f"thermal contract: source {quoted(self.source)} is not one of {', '.join(_SOURCES)}")
        low, high = self.scale
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise UserError(f"thermal contract: scale ({low}, {high}) needs its first number below its second")
        if self.percentile and not (low >= 0 and high <= 100):
            raise UserError(f"thermal contract: percentiles ({low}, {high}) lie outside 0 to 100")
        largest = np.iinfo(_SOURCES[self.source]).max
        if not self.percentile and not (low < largest and high > 0):
            raise UserError(
                f"thermal contract: scale ({low}, {high}) leaves out every count of {self.source}, 0 to {largest}: all "
                "images would be one grey"
            )
        if not self.percentile and not (low >= -_WIDEST and high <= _WIDEST and high - low >= _NARROWEST):
            raise UserError(
                f"thermal contract: scale ({low}, {high}) shows nothing: its numbers lie within {_WIDEST:g} of 0 and "
                f"{_NARROWEST:g} or more apart"
            )
        if self.palette_ok and self.source != "mono8":
            raise UserError(f"thermal contract: palette_ok goes with source mono8, and this one is {self.source}")

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ThermalContract:
        """Read `{source: mono8, scale: [0, 255]}` or `{source: mono16, scale: {percentile: [1, 99]}}`.

        `palette_ok: true` may stand beside them.

        Raises:
            UserError: the mapping has another form; the message names the key.
        """
        if not isinstance(data, Mapping) or not {"source", "scale"} <= set(data) <= {"source", "scale", "palette_ok"}:
            raise UserError(f"thermal contract: expected the keys source and scale, as in {_FORM}, got {quoted(data)}")
        scale = data["scale"]
        percentile = isinstance(scale, Mapping)
        if percentile:
            if set(scale) != {"percentile"}:
                raise UserError(
                    "thermal contract: scale has the form [low, high] or {percentile: [low, high]}, got "
                    f"{quoted(scale)}"
                )
            scale = scale["percentile"]
        try:
            if not isinstance(scale, list | tuple) or any(isinstance(x, bool) for x in scale):
                raise TypeError
            low, high = (float(x) for x in scale)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"thermal contract: scale needs two numbers, got {quoted(scale)}") from None
        palette_ok = data.get("palette_ok", False)
        if not isinstance(palette_ok, bool):
            raise UserError(f"thermal contract: palette_ok is true or false, got {quoted(palette_ok)}")
        return ThermalContract(str(data["source"]), (low, high), percentile, palette_ok)

    def to_dict(self) -> dict[str, Any]:
        """The form `from_dict` reads, of plain JSON types. `palette_ok` is there only when it is true."""
        scale = list(self.scale)
        plain: dict[str, Any] = {"source": self.source, "scale": {"percentile": scale} if self.percentile else scale}
        return {**plain, "palette_ok": True} if self.palette_ok else plain

    def reads_as(self, other: ThermalContract) -> bool:
        """Whether both make the same of an image; what they take in does not matter."""
        return replace(self, palette_ok=False) == replace(other, palette_ok=False)

    def counts(self, image: np.ndarray) -> np.ndarray:
        """The counts of an image as cameras and files deliver it: one plane of this contract's type, unscaled.

        Args:
            image: (H, W) uint8 for source mono8, uint16 (either byte order) for mono16. Three equal channels are one
                plane; three different ones are a colour palette, which only `palette_ok` takes (BGR).

        Returns:
            (H, W) uint8 or uint16 in the machine's byte order; where possible the image itself.

        Raises:
            UserError: a colour palette, or a type or shape that is not the contract's.
        """
        plane = thermal_plane(image, self.palette_ok)
        wanted = _SOURCES[self.source]
        if plane.dtype.newbyteorder("=") == wanted:
            return plane.astype(wanted, copy=False)
        if plane.dtype == np.uint8:
            advice = (
                "8 bits cannot hold raw counts, and a JPEG never has more: store 16-bit PNG or TIFF and publish "
                "mono16, or train with source mono8"
            )
        elif plane.dtype.kind == "u" and plane.itemsize == 2:
            advice = "train with source mono16 and the counts to show, or convert the images to 8 bit on a fixed scale"
        else:
            advice = "store and publish counts as unsigned integers of 8 or 16 bit"
        raise UserError(
            f"thermal image has dtype {plane.dtype}, and the thermal contract is {self.source} ({wanted}): {advice}"
        )

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Map a thermal image to the plane the network sees.

        Args:
            image: as for `counts`.

        Returns:
            (H, W) uint8, which rises with the counts.

        Raises:
            UserError: as `counts`.
        """
        image = self.counts(image)
        low, high = self.scale
        if self.percentile:
            low, high = _percentiles(image, low, high)
            high = max(high, low + 1)  # a flat image stays flat instead of dividing by nothing
            return _table(low, high, image.itemsize).take(image)
        if self.source == "mono8" and (low, high) == (0, 255):
            return image
        return _fixed_table(low, high, image.itemsize).take(image)

    def misses(self, image: np.ndarray) -> bool:
        """Whether a fixed scale shows nothing of an image: every count lies below it, or every one above.

        Args:
            image: as for `counts`.
        """
        if self.percentile:
            return False
        counts = self.counts(image)
        return bool(counts.max() < self.scale[0] or counts.min() > self.scale[1])


def thermal_plane(image: np.ndarray, palette_ok: bool = False) -> np.ndarray:
    """The single plane of a thermal image as cameras and files deliver it.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3) BGR. Three channels are taken when they are equal up to the few counts
            that JPEG colour conversion adds.
        palette_ok: make the luma (0.299 R + 0.587 G + 0.114 B) of a uint8 colour palette instead of refusing it.

    Returns:
        (H, W) of the same type.

    Raises:
        PaletteError: the image is in a colour palette, whose colours are no temperatures.
        UserError: it has another shape.
    """
    if image.ndim == 2:
        return image
    if image.ndim == 3 and image.shape[2] == 1:
        return image[..., 0]
    if image.ndim == 3 and image.shape[2] == 3:
        blue, green, red = (image[..., channel] for channel in range(3))
        highest, lowest = np.maximum(np.maximum(blue, green), red), np.minimum(np.minimum(blue, green), red)
        if (highest - lowest).max() <= 4:
            return np.ascontiguousarray(blue)
        if palette_ok and image.dtype == np.uint8:
            return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        raise PaletteError(
            "thermal image is in a colour palette, and colours are not temperatures: set the camera or its driver to "
            "white-hot grey (mono8) or raw counts (mono16); --palette-ok takes the luma instead, see docs/thermal.md"
        )
    raise UserError(f"thermal image has shape {image.shape}; expected (height, width) or three equal channels")


def _percentiles(image: np.ndarray, *percents: float) -> list[float]:
    """What `numpy.percentile` gives, from the histogram: sorting 16-bit counts takes ten times as long."""
    upto = np.cumsum(np.bincount(image.ravel(), minlength=256))
    values = []
    for percent in percents:
        rank = percent / 100 * (image.size - 1)
        below, above = np.searchsorted(upto, [int(rank), min(int(rank) + 1, image.size - 1)], side="right")
        values.append(below + (above - below) * (rank - int(rank)))
    return [float(value) for value in values]


def _table(low: float, high: float, itemsize: int) -> np.ndarray:
    """What each count becomes, (256,) or (65536,) uint8."""
    counts = np.arange(256**itemsize, dtype=np.float64)
    return np.clip((counts - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)


_fixed_table = lru_cache(maxsize=16)(_table)
