"""What can go wrong with a visible-thermal pair: each fault a pure function, and the setting that puts them together.

`Fault.apply` applies them in one order: the thermal camera stands askew (shift), the scene is dark (dark), the sensors
are noisy (noise), a camera fails (drop). A thermal image of another instant (time offset) is a matter of which file is
read, so it comes before all of them, see `with_neighbours`. So does the image that a frozen camera goes on sending, see
`frames_before`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from rscmd_model.config import MODALITIES
from rscmd_model.datasets.pairs import PairFiles
from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.text import utf_8

# Noise of a sensor in linear light of 0 to 1: variance = SHOT_NOISE * light + READ_NOISE**2. The shot noise is the
# middle of the range, and the read noise goes with it, that Brooks et al. found for cameras (Unprocessing Images for
# Learned Raw Denoising, CVPR 2019: 0.0001 to 0.012, log variance of reading 2.18 log(shot) + 1.2).
SHOT_NOISE = 0.0011
READ_NOISE = 0.0011
LOST_ANSWERS = ("branch", "zeros")
STAND_INS = ("zeros", "frozen", "noise")  # what the fused head is fed in place of a lost image
PAIR_ANSWERS = ("fused", "ensemble")


@dataclass(frozen=True)
class Fault:
    """One setting of everything that can go wrong; the default is a sound pair.

    Attributes:
        time_offset: frames by which the thermal image is later than the visible one (negative: earlier).
        shift: (right, down), pixels of the visible image by which the thermal image is moved.
        dark: factor on the exposure of the visible image, 0 to 1.
        noise: standard deviation in grey levels of what is added to the images that `noise_on` names.
        noise_on: "visible", "thermal" or "both".
        drop: the lost camera, "visible" or "thermal", or None.
        answer: who answers. For a lost camera "branch" (the other camera's own), or the fused head with something in
            place of the lost image: "zeros" (a black one, as published methods do), "frozen" (the frame before it) or
            "noise" (a grey level drawn evenly for each pixel). For a whole pair "fused" or "ensemble" (see
            `Predictor`), while the others leave it to the predictor.

    Raises:
        UserError: a value is out of range, or says who answers a whole pair where a camera is lost.
    """

    time_offset: int = 0
    shift: tuple[float, float] = (0.0, 0.0)
    dark: float = 1.0
    noise: float = 0.0
    noise_on: str = "both"
    drop: str | None = None
    answer: str = "branch"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("noise_on", (*MODALITIES, "both")),
            ("drop", (None, *MODALITIES)),
            ("answer", ("branch", *STAND_INS, *PAIR_ANSWERS)),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r} is not one of {', '.join(map(str, allowed))}")
        if self.drop is not None and self.answer in PAIR_ANSWERS:
            raise UserError(f"drop {self.drop}: answer {self.answer} is a whole pair's; give branch or zeros")
        if not 0 <= self.dark <= 1:
            raise UserError(f"dark {self.dark:g}: give a factor from 0 (no light) to 1 (as it is)")
        if not 0 <= self.noise <= 255:
            raise UserError(f"noise {self.noise:g}: give a standard deviation from 0 to 255 grey levels")
        if not np.isfinite(self.shift).all():
            raise UserError(f"shift {self.shift}: give two finite numbers of pixels")

    @property
    def pair_answer(self) -> str | None:
        """Who answers what arrives as a whole pair, as `Predictor` takes it; None leaves it to the predictor."""
        if self.drop is not None and self.answer in STAND_INS:
            return "fused"
        return self.answer if self.answer in PAIR_ANSWERS else None

    def apply(
        self,
        visible: np.ndarray,
        thermal: np.ndarray,
        contract: ThermalContract,
        seed: int,
        stem: str,
        before: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The pair as it arrives with this fault; the time offset is the caller's, who reads the files.

        Args:
            visible: (H, W, 3) uint8 BGR.
            thermal: (h, w) uint8 or uint16, raw counts.
            contract: says how many counts a grey level is.
            seed, stem: the noise of a pair follows from these two alone, so it is the same in every sweep.
            before: visible and thermal image of the frame before, for the answer "frozen"; where there is none the
                lost image is black.

        Returns:
            the two images, new arrays where something changed; None for a lost one that its branch shall answer for.
        """
        frozen = self.drop if self.answer == "frozen" and before is not None else None
        if frozen is not None and before is not None:
            visible, thermal = (before[0], thermal) if frozen == "visible" else (visible, before[1])
        if self.shift != (0, 0):
            thermal = shift_thermal(thermal, self.shift, visible.shape[:2])
        if self.dark != 1:
            visible = darken(visible, self.dark, _random(seed, stem, "dark"))
        if self.noise and self.noise_on != "thermal":
            visible = add_noise(visible, self.noise, _random(seed, stem, "visible"))
        if self.noise and self.noise_on != "visible":
            sigma = self.noise * counts_per_level(contract, thermal)
            thermal = add_noise(thermal, sigma, _random(seed, stem, "thermal"))
        if self.drop is None or frozen is not None:
            return visible, thermal
        lost = visible if self.drop == "visible" else thermal
        left: np.ndarray | None = None
        if self.answer == "noise":
            left = grey_noise(lost, contract, _random(seed, stem, f"lost {self.drop}"))
        elif self.answer != "branch":
            left = np.zeros_like(lost)
        return (left, thermal) if self.drop == "visible" else (visible, left)


def describe(fault: Fault, leave_out: str | None = None) -> str:
    """A fault in words.

    Args:
        fault: what goes wrong.
        leave_out: a field of it that is not told; None tells all.

    Returns:
        "sound" where nothing goes wrong.
    """
    words = [
        ("time_offset", fault.time_offset != 0, f"offset {fault.time_offset:+d}"),
        ("shift", fault.shift != (0, 0), f"shift {fault.shift[0]:g},{fault.shift[1]:g}"),
        ("dark", fault.dark != 1, f"dark {fault.dark:g}"),
        ("noise", fault.noise != 0, f"noise {fault.noise:g}" + f" on {fault.noise_on}" * (fault.noise_on != "both")),
        ("drop", fault.drop is not None, f"{fault.drop} lost"),
        (
            "answer",
            fault.drop is not None or fault.answer in PAIR_ANSWERS,
            f"{fault.answer} in its place" if fault.answer in STAND_INS else f"{fault.answer} answers",
        ),
    ]
    return ", ".join(text for name, told, text in words if told and name != leave_out) or "sound"


def _random(seed: int, stem: str, what: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(utf_8(f"{what} {stem}"))])


def shift_thermal(thermal: np.ndarray, shift: tuple[float, float], visible_size: tuple[int, int]) -> np.ndarray:
    """Move a thermal image to the right and down; its edge is repeated into what becomes free.

    Args:
        thermal: (h, w) uint8 or uint16.
        shift: (right, down) in px of the visible image. Parts of a pixel are interpolated.
        visible_size: (height, width) of the visible image, which is taken to show the same view.

    Returns:
        the same shape and type.
    """
    height, width = thermal.shape
    dx, dy = shift[0] * width / visible_size[1], shift[1] * height / visible_size[0]
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    # Replicated and not grey: counts of any type have an edge, and no camera delivers a grey bar.
    return cv2.warpAffine(thermal, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def darken(visible: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    """The picture that the same camera takes with less light and no gain turned up.

    The grey levels are taken for sRGB and made linear, light L in 0 to 1. The picture has its noise already, of
    variance aL + b (a is `SHOT_NOISE`, b the square of `READ_NOISE`). Scaled by the factor f it keeps f^2 of that,
    while a picture of light fL has afL + b. The difference, af(1-f)L + b(1-f^2), is added as Gaussian noise, so that
    factor 1 changes nothing. Then light becomes sRGB and whole grey levels again.

    Args:
        visible: (H, W, 3) uint8.
        factor: of the light, 0 to 1.
        random: draws the noise.

    Returns:
        the same shape and type.
    """
    level = np.arange(256) / 255
    light = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)[visible]
    variance = SHOT_NOISE * factor * (1 - factor) * light + READ_NOISE**2 * (1 - factor**2)
    light = np.clip(factor * light + np.sqrt(variance) * random.standard_normal(visible.shape), 0, 1)
    level = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * level).astype(np.uint8)


def add_noise(image: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise; the result is rounded, and clipped to the type.

    Args:
        image: of any shape, uint8 or uint16.
        sigma: standard deviation, counts.
        random: draws the noise.

    Returns:
        the same shape and type.
    """
    noisy = image + sigma * random.standard_normal(image.shape)
    return np.clip(np.rint(noisy), 0, np.iinfo(image.dtype).max).astype(image.dtype)


def grey_noise(image: np.ndarray, contract: ThermalContract, random: np.random.Generator) -> np.ndarray:
    """Noise in place of an image: each count is drawn evenly from all that the network tells apart.

    Args:
        image: (H, W, 3) uint8, a visible one, or (h, w) uint8 or uint16, a thermal one; only its shape and type count.
        contract: says which thermal counts the network sees. Where it scales by percentiles, all counts of the type.
        random: draws the noise.

    Returns:
        the same shape and type.
    """
    low, high = 0, int(np.iinfo(image.dtype).max)
    if image.ndim == 2 and not contract.percentile:
        low, high = max(low, round(contract.scale[0])), min(high, round(contract.scale[1]))
    return random.integers(low, high, image.shape, image.dtype, endpoint=True)


def counts_per_level(contract: ThermalContract, thermal: np.ndarray) -> float:
    """Thermal counts that make one of the network's 256 grey levels.

    Args:
        contract: what the counts mean.
        thermal: the image, for a contract whose scale is a percentile of each image.
    """
    low, high = np.percentile(thermal, contract.scale) if contract.percentile else contract.scale
    return float(high - low) / 255


def frame_of(stem: str) -> tuple[str, int] | None:
    """Sequence and number of a frame from its file stem, or None when the stem does not end in digits.

    000012_03 is frame 3 of sequence "000012_". A name of digits alone is read as LLVIP numbers its frames: the last
    four digits are the frame and those before them the sequence, so 190001 is frame 1 of sequence "19". Folders before
    the name are part of the sequence: night/190001 is frame 1 of "night/19".
    """
    folder, slash, name = stem.rpartition("/")
    if name.isdecimal() and len(name) > 4:
        return folder + slash + name[:-4], int(name[-4:])
    match = re.fullmatch(r"(.*?)(\d+)", name)
    return (folder + slash + match[1], int(match[2])) if match else None


def with_neighbours(
    pairs: Sequence[PairFiles], offsets: Sequence[int]
) -> tuple[list[PairFiles], Mapping[tuple[str, int], PairFiles]]:
    """The pairs that have a neighbour in their sequence at every one of the offsets.

    Args:
        pairs: of one split.
        offsets: frames; 0 is the pair itself.

    Returns:
        those pairs, and the neighbours: by (stem, offset) the pair whose thermal image is to be used.

    Raises:
        UserError: two stems name the same frame, or no pair has such neighbours.
    """
    frames = _frames(pairs)
    kept: list[PairFiles] = []
    neighbours: dict[tuple[str, int], PairFiles] = {}
    for (sequence, number), pair in frames.items():
        found = {offset: frames.get((sequence, number + offset)) for offset in offsets}
        if None not in found.values():
            kept.append(pair)
            neighbours.update({(pair.stem, offset): other for offset, other in found.items() if other is not None})
    if not kept:
        raise UserError(
            f"no pair has frames of its sequence at the offsets {', '.join(map(str, offsets))}: stems must end in the "
            "frame's number, as 000012_03 or 190001, and the frames must follow one another"
        )
    return kept, neighbours


def frames_before(pairs: Sequence[PairFiles]) -> dict[str, tuple[PairFiles, int]]:
    """The frame before each pair in its sequence, which a frozen camera would go on sending.

    Args:
        pairs: of one split.

    Returns:
        by stem the pair of the last frame before, and by how many frames it is older. A pair is left out where its
        sequence has no frame before it, or its stem names no frame.

    Raises:
        UserError: two stems name the same frame, or no pair has a frame before it.
    """
    frames = _frames(pairs)
    before = {
        frames[later].stem: (frames[earlier], later[1] - earlier[1])
        for earlier, later in pairwise(sorted(frames))
        if earlier[0] == later[0]
    }
    if not before:
        raise UserError(
            "no pair has a frame of its sequence before it: stems must end in the frame's number, as 000012_03 or "
            "190001"
        )
    return before


def _frames(pairs: Sequence[PairFiles]) -> dict[tuple[str, int], PairFiles]:
    """The pairs whose stems name a frame, by sequence and number. Raises `UserError` where two name the same one."""
    frames: dict[tuple[str, int], PairFiles] = {}
    for pair in pairs:
        frame = frame_of(pair.stem)
        if frame is None:
            continue
        if frame in frames:
            raise UserError(f"{frames[frame].stem} and {pair.stem} are both frame {frame[1]} of {frame[0] or 'one'!r}")
        frames[frame] = pair
    return frames
