"""The pairs in a bag: the pairing of the node, run over the recording's own clock, and the pictures that belong to it.

Nothing here depends on the speed of the machine: the time of recording of each message plays the part of the clock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_ros.bags.reader import Bag
from rscmd_ros.cameras.camera import Camera
from rscmd_ros.cameras.conversions import Limits, check_header, stamp_ns
from rscmd_ros.node.pairing_options import PairingOptions
from rscmd_ros.node.parameters import Settings
from rscmd_ros.pairing.frames import COUNTERS, STREAMS, Stream


@dataclass(frozen=True)
class BagPair:
    """Two frames of a bag.

    Attributes:
        visible_index: place of the message on its topic, counted from 0.
        thermal_index: the same of the thermal one.
        visible: header stamp, ns.
        thermal: header stamp, ns.
        dt: thermal minus visible stamp, offset taken off, ns.
        wait: from the time of recording of the later frame to the moment the pair was decided, ns.
    """

    visible_index: int
    thermal_index: int
    visible: int
    thermal: int
    dt: int
    wait: int


@dataclass(frozen=True)
class Pairing:
    """How a bag was paired.

    Attributes:
        pairs: in the order in which they were decided.
        ledger: stream -> counter -> frames; sums to `frames`.
        frames: by stream, how many there are.
        visible_frames: by header stamp, (width, height) of every usable visible frame.
        places: stream -> header stamp -> place of the message on its topic.
    """

    pairs: list[BagPair] = field(default_factory=list)
    ledger: dict[str, dict[str, int]] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    visible_frames: dict[int, tuple[int, int]] = field(default_factory=dict)
    places: dict[str, dict[int, int]] = field(default_factory=lambda: {stream: {} for stream in STREAMS})


Frame = tuple[tuple[int, int], "npt.NDArray[Any] | None"]
"""Size (width, height) of a frame and its picture, if it is wanted."""


def _readers(
    bag: Bag, topics: dict[str, str], contract: ThermalContract | None, decode: bool = True
) -> dict[str, Callable[[Any], Frame]]:
    """How each stream's messages are read; what the node refuses with its default limits is refused here too."""
    limits = Limits(Settings.max_image_megapixels * 1e6, Settings.max_decoded_megabytes * 1e6)

    def reader(stream: Stream) -> Callable[[Any], Frame]:
        transport = bag.transport(topics[stream])
        camera = Camera(stream, transport=transport, limits=limits, contract=contract if stream == "thermal" else None)

        def read(message: Any) -> Frame:
            size = camera.check(message)
            if not decode:
                return size, None
            picture = camera.decode(message)
            return (picture.shape[1], picture.shape[0]), picture

        return read

    return {stream: reader(stream) for stream in STREAMS}


Pictures = tuple[BagPair, npt.NDArray[np.uint8], npt.NDArray[Any]]
"""A pair, its visible picture (H,W,3) BGR and its thermal one (H,W)."""


def pair_up(
    bag: Bag,
    topics: dict[str, str],
    options: PairingOptions,
    contract: ThermalContract | None = None,
    progress: Callable[[str], None] | None = None,
) -> Pairing:
    """Pair a whole bag as `read_pairs` does, without decoding a picture.

    Like the node's callback: compressed data that are damaged within show only where they are decoded.

    Args:
        bag, topics, options, contract: as for `read_pairs`.
        progress: called every few seconds with a line that tells how far it is.

    Raises:
        UserError: as `read_pairs`.
    """
    pairing, told = Pairing(), time.monotonic()
    total = sum(bag.count(topic) for topic in topics.values())
    for _ in _paired(bag, topics, options, pairing, _readers(bag, topics, contract, decode=False)):
        if progress is not None and time.monotonic() - told > 5:
            told = time.monotonic()
            progress(f"{sum(pairing.frames.values())} of {total} frames looked through, {len(pairing.pairs)} pairs")
    return pairing


def read_pairs(
    bag: Bag,
    topics: dict[str, str],
    options: PairingOptions,
    pairing: Pairing,
    contract: ThermalContract | None = None,
) -> Iterator[Pictures]:
    """Pair a bag in one reading.

    Pictures are kept as long as their frame waits for a partner, so no more than `queue_size` of each camera. A frame
    that cannot be converted is counted `invalid`, as the node does.

    Args:
        bag: it is read to its end.
        topics: {"visible": ..., "thermal": ...}.
        options: of pairing.
        pairing: an empty one, which grows along and is whole at the end.
        contract: of the model, if known.

    Yields:
        Each pair with its pictures as soon as it is decided.

    Raises:
        UserError: the bag cannot be read, or no frame of a camera can be used: then the first fault, at the end.
    """
    for pair, visible, thermal in _paired(bag, topics, options, pairing, _readers(bag, topics, contract)):
        assert visible is not None
        assert thermal is not None
        yield pair, visible, thermal


def _paired(
    bag: Bag,
    topics: dict[str, str],
    options: PairingOptions,
    pairing: Pairing,
    readers: Mapping[str, Callable[[Any], Frame]],
) -> Iterator[tuple[BagPair, npt.NDArray[Any] | None, npt.NDArray[Any] | None]]:
    """See `read_pairs`."""
    try:
        pairer = options.make_pairer()
    except ValueError as error:
        raise UserError(str(error)) from None
    except ImportError as error:
        raise UserError(f"pairing policy '{options.pairing_policy}' needs message_filters of ROS 2: {error}") from None
    stream_of: dict[str, Stream] = {topics[stream]: stream for stream in STREAMS}
    if len(stream_of) < len(STREAMS):
        raise UserError(
            f"both cameras are to be read from {topics['visible']}: give --visible-topic or --thermal-topic"
        )
    recorded: dict[tuple[str, int], int] = {}
    faults: dict[str, str] = {}
    deadlines: deque[int] = deque()
    now = 0

    def take(found: list[Any]) -> Iterator[tuple[BagPair, npt.NDArray[Any] | None, npt.NDArray[Any] | None]]:
        for pair in found:
            (v, visible), (t, thermal) = pair.visible.payload, pair.thermal.payload
            later = max(recorded["visible", v], recorded["thermal", t])
            known = BagPair(v, t, pair.visible.stamp, pair.thermal.stamp, pair.dt, max(now - later, 0))
            pairing.pairs.append(known)
            yield known, visible, thermal

    for topic, moment, data in bag.raw(stream_of):
        # A deadline comes a fixed time after some frame's arrival, so those moments are the only ones worth asking at.
        while deadlines and deadlines[0] < moment:
            now = deadlines.popleft()
            yield from take(pairer.poll(now))
        now = moment
        stream = stream_of[topic]
        index = pairing.frames[stream]
        pairing.frames[stream] += 1
        recorded[stream, index] = moment
        try:
            message = bag.deserialise(topic, data)
            check_header(message.header, stream)
            size, picture = readers[stream](message)
        except UserError as error:
            faults.setdefault(stream, str(error))
            pairer.invalid(stream)
            continue
        stamp = stamp_ns(message.header)
        pairing.places[stream].setdefault(stamp, index)
        if stream == "visible":
            pairing.visible_frames[stamp] = size
        deadlines.append(moment + options.deadline)
        yield from take(pairer.add(stream, stamp, (index, picture), now))
    for moment in deadlines:
        now = moment
        yield from take(pairer.poll(now))
    yield from take(pairer.flush())
    book = pairer.ledger.as_dict()
    pairing.ledger.update({s: {name: book[s][name] for name in COUNTERS} for s in STREAMS})
    for camera, fault in faults.items():
        if pairing.ledger[camera]["invalid"] == pairing.frames[camera]:
            raise UserError(f"no frame of {topics[camera]} in {bag.path} can be used: {fault}")


def load_pictures(
    bag: Bag,
    topics: dict[str, str],
    pairs: Sequence[BagPair],
    contract: ThermalContract | None = None,
    faults: dict[BagPair, str] | None = None,
) -> Iterator[Pictures]:
    """Read the pictures of some pairs that are known. They are kept only as long as a pair still needs them.

    Args:
        bag, topics, contract: as for `read_pairs`.
        pairs: the pairs.
        faults: pairs with a picture that cannot be decoded are passed over, and the reason is put here; without it such
            a picture is an error.

    Yields:
        Each pair with its pictures as soon as both have been read.

    Raises:
        UserError: the bag cannot be read, or a picture of it.
    """
    waiting: dict[tuple[str, int], list[BagPair]] = {}
    for pair in pairs:
        waiting.setdefault(("visible", pair.visible_index), []).append(pair)
        waiting.setdefault(("thermal", pair.thermal_index), []).append(pair)
    stream_of = {topic: stream for stream, topic in topics.items()}
    readers = _readers(bag, topics, contract)
    counts = {"visible": 0, "thermal": 0}
    held: dict[tuple[str, int], npt.NDArray[Any]] = {}

    def done(pair: BagPair) -> None:
        for end in (("visible", pair.visible_index), ("thermal", pair.thermal_index)):
            waiting[end].remove(pair)
            if not waiting[end]:
                held.pop(end, None)

    for topic, _, data in bag.raw(stream_of):
        stream = stream_of[topic]
        key = (stream, counts[stream])
        counts[stream] += 1
        if not waiting.get(key):
            continue
        try:
            picture = readers[stream](bag.deserialise(topic, data))[1]
        except UserError as error:
            if faults is None:
                raise
            for pair in list(waiting[key]):
                faults[pair] = str(error)
                done(pair)
            continue
        assert picture is not None
        held[key] = picture
        for pair in list(waiting[key]):
            ends = (("visible", pair.visible_index), ("thermal", pair.thermal_index))
            if all(end in held for end in ends):
                yield pair, held[ends[0]], held[ends[1]]
                done(pair)
