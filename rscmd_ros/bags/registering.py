"""The registration of the two cameras of a bag, from the pairs that the node would make of it.

Pairs that show something new are kept, spread over the drive; their number bounds the memory, however long the bag.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rscmd_model.datasets.near_copies import NEAR, perceptual_hash
from rscmd_model.errors import UserError, shown
from rscmd_model.imaging.estimate_registration import Estimate, from_images
from rscmd_model.imaging.patch_matching import GreyPair, grey_pair
from rscmd_model.imaging.registration import Registration, corners, map_points
from rscmd_model.imaging.registration_agreement import LEAST_FRAMES, agreement
from rscmd_ros.bags.pairs import BagPair, Pairing, read_pairs
from rscmd_ros.bags.reader import Bag, open_bag
from rscmd_ros.bags.topics import CAMERA_INFO, IMAGE
from rscmd_ros.cameras.camera import Camera
from rscmd_ros.cameras.conversions import stamp_ns
from rscmd_ros.cameras.rig import Rig
from rscmd_ros.node.pairing_options import PairingOptions
from rscmd_ros.pairing.clock_offset import LATENCY_DOUBT, ClockOffset
from rscmd_ros.pairing.frames import STREAMS, Stream

_LOOK = 200_000_000  # ns; pairs nearer to each other in time are not looked at: cameras show little new within it
_STILL = 8  # pairs of a scene that does not move; more of them tell nothing else
_FEW = 5  # pairs that show something new; with fewer the scene is said not to move
_SAME_CLOCK_MS = 1000  # stamps that are farther apart are no matter of a larger slop
_LARGEST_OFFSET_MS = 10_000  # that the node's parameter takes
_FLAT = 0.5  # grey levels or counts; a picture whose brightness varies less, noise averaged away, shows nothing


@dataclass(frozen=True)
class Extrinsics:
    """Where the thermal camera stands by the calibration, as the node's parameters say it.

    Attributes:
        pose: (x, y, z, qx, qy, qz, qw) of the thermal optical frame in the visible one, m: `extrinsics` of the node.
        depth: distance of what is laid over each other, m: `registration_depth_m` of the node.
        topics: stream -> topic of its camera_info.
    """

    pose: tuple[float, ...]
    depth: float
    topics: dict[Stream, str]


@dataclass(frozen=True)
class Registered:
    """What a bag gave.

    Attributes:
        estimate: the registration and its own figures.
        chosen: which pairs were used, for a person to read; told on the way already.
        lines: what was found, for a person to read.
        pairs: some that were used, as pictures.
        problem: why it should not be used, with the figure; None where it can.
    """

    estimate: Estimate
    chosen: list[str]
    lines: list[str]
    pairs: list[GreyPair]
    problem: str | None


def register(
    path: Path,
    topics: dict[str, str],
    options: PairingOptions,
    *,
    most: int,
    extrinsics: Extrinsics | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Registered:
    """Estimate the registration of a bag's cameras.

    Args:
        path: of the bag.
        topics: {"visible": ..., "thermal": ...}.
        options: of pairing.
        most: pairs to use.
        extrinsics: compare with the registration that these give.
        progress: told of each step.

    Raises:
        UserError: the bag cannot be used, its frames never pair, show nothing or change their size, or nothing is
            found that both cameras show.
    """
    with open_bag(path) as bag:
        for stream in STREAMS:
            bag.require(topics[stream], IMAGE, f"--{stream}-topic")
        calibrated = by_extrinsics(bag, extrinsics) if extrinsics else None
        drive = choose_pairs(bag, topics, options, most, progress)
        notes = bag.notes()
    for line in [*(f"note: {note}" for note in notes), *drive.lines()]:
        progress(line)
    pairs = [pair for _, pair in drive.chosen]
    moments = [(known.visible - drive.start) / 1e9 for known, _ in drive.chosen]
    estimate = from_images(pairs, progress)
    agreed = agreement(pairs, estimate, progress)
    lines = [*estimate.lines(), *agreed.lines()]
    if calibrated and extrinsics:
        lines.append(compared(calibrated, estimate.registration, extrinsics.depth))
    problem = agreed.problem(moments) or estimate.problem
    if len(agreed.judged) < LEAST_FRAMES:  # single pairs say nothing, so the estimate's own fault is the better word
        problem = estimate.problem or problem
    return Registered(estimate, drive.lines(), lines, pairs, problem)


@dataclass
class Spaced:
    """At most `most` pairs of a drive of unknown length, evenly spread in time.

    When there is one too many, the one goes whose neighbours are nearest to each other.
    """

    most: int
    kept: list[tuple[BagPair, GreyPair]] = field(default_factory=list)

    def offer(self, pair: BagPair, pictures: GreyPair) -> None:
        """Take in a pair that is later than those before."""
        self.kept.append((pair, pictures))
        if len(self.kept) > self.most:
            stamps = [known.visible for known, _ in self.kept]
            gaps = [after - before for before, after in zip(stamps, stamps[2:])]
            del self.kept[1 + gaps.index(min(gaps)) if gaps else 0]


class Choice:
    """The pairs of a drive that show something new.

    Attributes:
        moving: pairs that differ from the one before; few are kept.
        still: some of the others, as long as hardly anything is new.
        new: how many differed.
        shows: stream -> whether any of its pictures showed something.
    """

    def __init__(self, most: int) -> None:
        self.moving, self.still = Spaced(most), Spaced(min(most, _STILL))
        self.new = 0
        self.shows = dict.fromkeys(STREAMS, False)
        self._looked: int | None = None
        self._sizes: tuple[tuple[int, int], tuple[int, int]] | None = None
        self._hashes: tuple[np.uint64, np.uint64] | None = None

    def look(self, pair: BagPair, visible: npt.NDArray[np.uint8], thermal: npt.NDArray[Any]) -> None:
        """Look at a pair and keep it, or not.

        Raises:
            UserError: its pictures have another size than those before.
        """
        sizes = _size(visible), _size(thermal)
        self._sizes = self._sizes or sizes
        for stream, (width, height), (w, h) in zip(STREAMS, sizes, self._sizes):
            if (width, height) != (w, h):
                raise UserError(
                    f"the {stream} images change their size on the way, from {w}x{h} to {width}x{height}: record each "
                    "size in a bag of its own"
                )
        if self._looked is not None and 0 <= pair.visible - self._looked < _LOOK:
            return
        self._looked = pair.visible
        grey = cv2.cvtColor(visible, cv2.COLOR_BGR2GRAY)
        shows = {"visible": _shows_something(grey), "thermal": _shows_something(thermal)}
        self.shows = {stream: self.shows[stream] or shows[stream] for stream in STREAMS}
        if not all(shows.values()):
            return
        hashes = perceptual_hash(grey), perceptual_hash(thermal)
        differs = self._hashes is None or any(
            int(now ^ before).bit_count() > NEAR for now, before in zip(hashes, self._hashes)
        )
        if differs:
            self._hashes = hashes
            self.new += 1
        if differs or self.new < _FEW:
            (self.moving if differs else self.still).offer(pair, grey_pair(visible, thermal))

    def chosen(self) -> list[tuple[BagPair, GreyPair]]:
        """What was kept, in the order of time; where hardly anything is new, pairs that are alike as well."""
        kept = self.moving.kept if self.new >= _FEW else self.moving.kept + self.still.kept
        return sorted(kept, key=lambda item: item[0].visible)


@dataclass(frozen=True)
class Drive:
    """The pairs of a bag from which its registration is estimated.

    Attributes:
        chosen: in the order of time.
        start: stamp of the first visible frame in a pair, ns.
        pairs: in the bag.
        new: how many of those looked at show something else than the one before.
    """

    chosen: list[tuple[BagPair, GreyPair]]
    start: int
    pairs: int
    new: int

    def lines(self) -> list[str]:
        """What a person should know of the choice."""
        apart = np.abs([pair.dt for pair, _ in self.chosen]) / 1e6
        stamps = [pair.visible for pair, _ in self.chosen]
        lines = [
            f"{len(self.chosen)} of {self.pairs} pairs used, spread over {(stamps[-1] - stamps[0]) / 1e9:.1f} s; |dt| "
            f"{np.median(apart):.1f} ms (median), {apart.max():.1f} ms at most"
        ]
        if self.new < _FEW:
            lines.append(
                f"the scene does not move: only {self.new} of them show something new, so the registration is known "
                "only where this one scene has edges; record while driving"
            )
        return lines


def choose_pairs(
    bag: Bag, topics: dict[str, str], options: PairingOptions, most: int, progress: Callable[[str], None]
) -> Drive:
    """The pairs of a bag that show something new, spread over all of it.

    Args:
        bag: it is read to its end.
        topics: {"visible": ..., "thermal": ...}.
        options: of pairing.
        most: pairs that are kept.
        progress: told now and then how far it is.

    Raises:
        UserError: frames never pair, show nothing or change their size.
    """
    pairing, choice, told = Pairing(), Choice(most), time.monotonic()
    for pair, visible, thermal in read_pairs(bag, topics, options, pairing):
        choice.look(pair, visible, thermal)
        if time.monotonic() - told > 5:
            told = time.monotonic()
            progress(f"{len(pairing.pairs)} pairs read, {(pair.visible - pairing.pairs[0].visible) / 1e9:.0f} s")
    if not pairing.pairs:
        raise never_paired(bag, topics, options, pairing)
    for stream in STREAMS:
        if not choice.shows[stream]:
            raise UserError(
                f"there is nothing to see on {shown(topics[stream])} in {bag.path}: its images are of one grey all "
                "over; is the lens covered, or the shutter closed?"
            )
    chosen = choice.chosen()
    if len(chosen) < LEAST_FRAMES:
        raise UserError(
            f"{bag.path} has {len(pairing.pairs)} pairs, of which {len(chosen)} can be used (at most one in "
            f"{_LOOK / 1e9:g} s, with something to see in both images), and {LEAST_FRAMES} are needed: record a longer "
            "drive"
        )
    return Drive(chosen, pairing.pairs[0].visible, len(pairing.pairs), choice.new)


def never_paired(bag: Bag, topics: dict[str, str], options: PairingOptions, pairing: Pairing) -> UserError:
    """Why the frames of a bag never pair: how far apart they are, and which option would bring them together."""
    clocks = ClockOffset()
    of = {topics[stream]: stream for stream in STREAMS}
    for topic, recorded, message in bag.messages(of):
        clocks.add(of[topic], stamp_ns(message.header), recorded)
    stamps = {stream: sorted(pairing.places[stream]) for stream in STREAMS}
    corrected = [stamp - options.thermal_offset for stamp in stamps["thermal"]]
    apart = sorted(stamp - _nearest(stamps["visible"], stamp) for stamp in corrected)
    middle = apart[len(apart) // 2] / 1e6
    late = clocks.estimate()
    if late is not None and abs(late - options.thermal_offset) > max(LATENCY_DOUBT, options.slop):
        advice = f"by their arrival they are {late / 1e6:.0f} ms late, so "
        reach = 1e6 * _LARGEST_OFFSET_MS
        advice += f"try --thermal-offset-ms {late / 1e6:.0f}" if abs(late) <= reach else "set that camera's clock"
    elif options.pairing_policy == "exact":
        advice = "--pairing-policy nearest takes stamps that differ"
    elif abs(middle) < _SAME_CLOCK_MS:
        advice = f"if they belong together, --slop-ms {np.ceil(abs(middle)) + 1:.0f} takes them"
    else:
        advice = "if it is one clock that is wrong, --thermal-offset-ms says by how much"
    return UserError(
        f"no frame of {shown(topics['thermal'])} pairs with one of {shown(topics['visible'])} in {bag.path}: thermal "
        f"stamps are {middle:+.1f} ms from the nearest visible one (median), and --slop-ms is {options.slop_ms:g}; "
        f"{advice}"
    )


def by_extrinsics(bag: Bag, extrinsics: Extrinsics) -> Registration:
    """The registration that the node would make of both camera_infos and the extrinsics.

    Args:
        bag: with both camera_infos.
        extrinsics: and their topics.

    Raises:
        UserError: a camera_info is missing or cannot be used, or the extrinsics make no registration.
    """
    for stream in STREAMS:
        bag.require(extrinsics.topics[stream], CAMERA_INFO, f"--{stream}-info-topic")
    cameras: dict[Stream, Camera] = {stream: Camera(stream) for stream in STREAMS}
    rig = Rig(cameras, pose=extrinsics.pose, depth=extrinsics.depth)
    waiting = {topic: stream for stream, topic in extrinsics.topics.items()}
    for topic, _, message in bag.messages(list(waiting)):
        if topic in waiting:
            rig.info(message, waiting.pop(topic))
        if not waiting:
            break
    registration = rig.registration(None)
    assert registration is not None  # a depth was given
    return registration


def compared(calibrated: Registration, estimated: Registration, depth: float) -> str:
    """How far the registration by the calibration is from the estimated one, at the corners and in the middle.

    Raises:
        UserError: the camera_infos are for images of another shape.
    """
    size, to = estimated.thermal_size, estimated.visible_size
    points = np.vstack([corners(size), [(size[0] - 1) / 2, (size[1] - 1) / 2]])
    there = map_points(calibrated.matrix(size, to), points) - map_points(estimated.homography, points)
    *ends, middle = (f"{length:.1f}" for length in np.hypot(*there.T))
    return (
        f"the extrinsics at {depth:g} m put the corners of the thermal image (clockwise from the upper left) "
        f"{', '.join(ends)} px from the estimate and its middle {middle} px; that holds for rectified images"
    )


def _size(picture: npt.NDArray[Any]) -> tuple[int, int]:
    return picture.shape[1], picture.shape[0]


def _shows_something(plane: npt.NDArray[Any]) -> bool:
    """Whether a grey picture (H, W) has brighter and darker parts, beyond its noise."""
    small = cv2.resize(plane.astype(np.float32), (32, 24), interpolation=cv2.INTER_AREA)
    return float(small.std()) > _FLAT


def _nearest(stamps: Sequence[int], stamp: int) -> int:
    """The one of some sorted stamps that is nearest."""
    at = bisect.bisect_left(stamps, stamp)
    return min(stamps[max(at - 1, 0) : at + 1], key=lambda other: abs(other - stamp))
