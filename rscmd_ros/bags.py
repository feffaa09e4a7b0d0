"""rosbag2 files in and out, without a ROS installation: message types, opening with clear errors, ground truth.

Bags are read and written by the `rosbags` library. It brings the message types of ROS 2 Jazzy except vision_msgs, whose
definitions stand here; the test holds them to upstream's type hashes.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PosixPath
from typing import Any

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag2 import ReaderError
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from rscmd_model.errors import UserError, first_line

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
DETECTIONS = "vision_msgs/msg/Detection2DArray"
VISIBLE_TOPIC, THERMAL_TOPIC, TRUTH_TOPIC = "/visible/image", "/thermal/image", "/ground_truth"

_VISION_MSGS = {
    "Point2D": "float64 x\nfloat64 y\n",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta\n",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n",
    "ObjectHypothesis": "string class_id\nfloat64 score\n",
    "ObjectHypothesisWithPose": "ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n",
    "Detection2D": (
        "std_msgs/Header header\nObjectHypothesisWithPose[] results\nvision_msgs/BoundingBox2D bbox\nstring id\n"
    ),
    "Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections\n",
}

# What a damaged file makes the reader stumble over, beside its own errors.
_DAMAGE = (
    ReaderError,
    AnyReaderError,
    SerdeError,
    TypesysError,
    sqlite3.Error,
    struct.error,
    AssertionError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    ValueError,
)


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """The message types of ROS 2 Jazzy and the vision_msgs ones used here."""
    store = get_typestore(Stores.ROS2_JAZZY)
    types: dict[str, Any] = {}
    for name, text in _VISION_MSGS.items():
        types.update(get_types_from_msg(text, f"vision_msgs/msg/{name}"))
    store.register(types)
    return store


class Bag:
    """An open bag. Iterate `messages`; everything that goes wrong on the way is a UserError naming the bag."""

    def __init__(self, path: Path, reader: AnyReader):
        self.path = path
        self._reader = reader
        self._types: dict[str, set[str]] = {}
        self._counts: dict[str, int] = {}
        for connection in reader.connections:
            self._types.setdefault(connection.topic, set()).add(connection.msgtype)
            self._counts[connection.topic] = self._counts.get(connection.topic, 0) + connection.msgcount

    def has(self, topic: str) -> bool:
        """Whether the bag holds this topic, in whatever type."""
        return topic in self._types

    def count(self, topic: str) -> int:
        """Messages recorded on the topic, by the bag's own index."""
        return self._counts.get(topic, 0)

    def transport(self, topic: str) -> str:
        """Of an image topic: "raw", or "compressed" for one of CompressedImage."""
        return "compressed" if self._types.get(topic) == {COMPRESSED_IMAGE} else "raw"

    def require(self, topic: str, msgtype: str, option: str) -> None:
        """Raise a UserError unless `topic` is there with `msgtype`; it names the topics that would do.

        A topic of compressed images does for one of images.
        """
        wanted = {IMAGE, COMPRESSED_IMAGE} if msgtype == IMAGE else {msgtype}
        if topic not in self._types:
            fitting = sorted(name for name, types in self._types.items() if types <= wanted)
            offer = f"its topics of that type: {', '.join(fitting)}" if fitting else "it has no topic of that type"
            raise UserError(f"{self.path} has no topic {topic} of type {msgtype}; {offer} (choose with {option})")
        types = self._types[topic]
        if len(types) > 1 or not types <= wanted:
            raise UserError(f"{topic} in {self.path} is {', '.join(sorted(types))}, not {msgtype}")
        if self._counts[topic] == 0:
            raise UserError(f"{topic} in {self.path} has no messages")

    def raw(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """(topic, time of recording in ns, serialised message) of the given topics, in the order of recording."""
        wanted = [connection for connection in self._reader.connections if connection.topic in topics]
        if not wanted:
            return
        try:
            for connection, stamp, data in self._reader.messages(connections=wanted):
                yield connection.topic, stamp, data
        except _DAMAGE as error:
            raise _damaged(self.path, error) from None

    def deserialise(self, topic: str, data: bytes) -> Any:
        """The message of a `raw` entry, with the field names of ROS; arrays are numpy."""
        try:
            return self._reader.deserialize(data, next(iter(self._types[topic])))
        except _DAMAGE as error:
            raise UserError(f"{self.path} holds an unreadable message on {topic}: {first_line(error)}") from None

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        """As `raw`, deserialised."""
        for topic, stamp, data in self.raw(topics):
            yield topic, stamp, self.deserialise(topic, data)


class _Rosbag2Path(PosixPath):
    """A path that `AnyReader` takes for rosbag2 even where a folder is called something.bag, as ROS 1 files are."""

    @property
    def suffix(self) -> str:
        own = super().suffix
        return "" if own == ".bag" else own


@contextmanager
def open_bag(path: str | Path) -> Iterator[Bag]:
    """Open a rosbag2 folder, or a lone .mcap or .db3 file. Raises UserError when it is none, or damaged."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a rosbag2 folder, or a .mcap or .db3 file")
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        if any(path.glob("*.mcap")) or any(path.glob("*.db3")):
            raise UserError(f"{path} has no metadata.yaml: its recording did not end cleanly; run `ros2 bag reindex`")
        raise UserError(f"{path} is not a rosbag2 bag: it has no metadata.yaml")
    if path.is_file() and path.suffix not in (".mcap", ".db3"):
        raise UserError(f"{path} is not a rosbag2 bag; give its folder, or a .mcap or .db3 file")
    try:
        reader = AnyReader([_Rosbag2Path(path)], default_typestore=typestore())
        reader.open()
    except _DAMAGE as error:
        raise _damaged(path, error) from None
    try:
        yield Bag(path, reader)
    finally:
        reader.close()


def _damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} cannot be read; it is damaged, cut short or no rosbag2 bag ({first_line(error)})")
