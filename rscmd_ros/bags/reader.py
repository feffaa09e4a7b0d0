"""rosbag2 files in and out, without a ROS installation: message types, opening with clear errors, ground truth.

Messages are read and written by the `rosbags` library. It brings the message types of ROS 2 Jazzy except vision_msgs,
whose definitions stand here; the test holds them to upstream's type hashes. Files are read by files.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from heapq import merge
from itertools import chain
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from rscmd_model.errors import UserError, first_line, shown
from rscmd_ros.bags.files import Announced, find_files, open_file
from rscmd_ros.bags.storage import ZSTD, DamagedError, Storage, Topic, unzstd
from rscmd_ros.bags.topics import COMPRESSED_IMAGE, IMAGE

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

    def __init__(self, path: Path, storages: Mapping[Path, Storage], announced: Announced, notes: Sequence[str]):
        self.path = path
        self._storages = sorted(storages.items(), key=lambda item: item[1].start)
        self._announced = announced
        self._topics: dict[str, list[Topic]] = {}
        self._read: dict[str, int] = {}
        for _, storage in self._storages:
            for topic in storage.topics:
                self._topics.setdefault(topic.name, []).append(topic)
        self._notes = [*notes, *self._whole()]

    def has(self, topic: str) -> bool:
        """Whether the bag holds this topic, in whatever type."""
        return topic in self._topics

    def holds(self, topic: str, msgtype: str) -> bool:
        """Whether the bag has messages of a type on this topic. What else is there stands in `notes` from now on."""
        if not self.has(topic):
            return False
        if (types := self._types(topic)) == {msgtype} and self.count(topic):
            return True
        what = "has no messages" if types == {msgtype} else f"is {', '.join(map(shown, sorted(types)))}, not {msgtype}"
        self._notes.append(f"{topic} {what}: it is left aside.")
        return False

    def count(self, topic: str) -> int:
        """Messages recorded on the topic, by the index of the files."""
        return sum(part.count for part in self._topics.get(topic, ()))

    def transport(self, topic: str) -> str:
        """Of an image topic: "raw", or "compressed" for one of CompressedImage."""
        return "compressed" if self._types(topic) == {COMPRESSED_IMAGE} else "raw"

    def counts(self) -> dict[str, dict[str, int]]:
        """Of each topic that was read to its end: how many messages were announced, and how many were there.

        What metadata.yaml announces goes before what the files' own index does.
        """
        announced = self._announced.by_topic
        return {t: {"announced": announced.get(t, self.count(t)), "read": read} for t, read in self._read.items()}

    def notes(self) -> list[str]:
        """What was left aside, mended or not as announced, so far; each a sentence to show to the user."""
        notes = [*self._notes, *(note for _, storage in self._storages for note in storage.notes)]
        for topic, read in self._read.items():
            announced = self._announced.by_topic.get(topic, read)
            if announced != read:
                notes.append(f"{topic}: metadata.yaml announces {announced} messages, and {read} were read.")
            if self.count(topic) != read:
                notes.append(f"{topic}: the files' index announces {self.count(topic)} messages, and {read} were read.")
        return notes

    def require(self, topic: str, msgtype: str, option: str) -> None:
        """Make sure that a topic is there. One of compressed images does for one of images.

        Args:
            topic: its name.
            msgtype: what it has to hold.
            option: with which the user chooses the topic.

        Raises:
            UserError: it is not there with that type, or cannot be read; it names the topics that would do.
        """
        wanted = {IMAGE, COMPRESSED_IMAGE} if msgtype == IMAGE else {msgtype}
        announced = self._announced.by_topic.get(topic, 0)
        though = f", though metadata.yaml announces {announced} messages" if announced else ""
        if topic not in self._topics:
            raise UserError(
                f"{self.path} has no topic {topic} of type {msgtype}{though}; {self._offer(wanted)} "
                f"(choose with {option})"
            )
        types = self._types(topic)
        if len(types) > 1 or not types <= wanted:
            raise UserError(
                f"{topic} in {self.path} is {', '.join(map(shown, sorted(types)))}, not {msgtype}; "
                f"{self._offer(wanted)} (choose with {option})"
            )
        formats = {part.serialization for part in self._topics[topic]} - {"cdr"}
        if formats:
            raise UserError(
                f"{topic} in {self.path} is serialised as {', '.join(map(shown, sorted(formats)))}; only cdr is read"
            )
        if self.count(topic) == 0:
            raise UserError(f"{topic} in {self.path} has no messages{though}")
        for kind in types:
            self._check_definition(kind)

    def _offer(self, types: set[str]) -> str:
        """The topics of these types, in words."""
        fitting = sorted(shown(name) for name in self._topics if self._types(name) <= types)
        return f"its topics of that type: {', '.join(fitting)}" if fitting else "it has no topic of that type"

    def raw(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """(topic, time of recording in ns, serialised message) of the given topics, in the order of recording."""
        read = dict.fromkeys((topic for topic in topics if topic in self._topics), 0)
        files = [self._of_file(file, storage, topics) for file, storage in self._storages]
        for time, topic, data in merge(*files, key=itemgetter(0)):
            if topic is not None:
                read[topic] += 1
                yield topic, time, data
        self._read.update(read)

    def deserialise(self, topic: str, data: bytes) -> Any:
        """The message of a `raw` entry, with the field names of ROS; arrays are numpy."""
        msgtype = self._topics[topic][0].msgtype
        try:
            return typestore().deserialize_cdr(data, msgtype)
        except Exception as error:  # whatever the library stumbles over in bytes of unknown origin
            raise UserError(f"{self.path} holds an unreadable message on {topic}: {first_line(error)}") from None

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        """As `raw`, deserialised."""
        for topic, stamp, data in self.raw(topics):
            yield topic, stamp, self.deserialise(topic, data)

    def _types(self, topic: str) -> set[str]:
        return {part.msgtype for part in self._topics.get(topic, ())}

    def _whole(self) -> list[str]:
        """Notes on the bag as a whole: what it announces, and what its files hold."""
        notes = []
        held = {file.name: storage.total for file, storage in self._storages}
        total, announced = sum(held.values()), self._announced
        if announced.messages is not None and announced.messages != total:
            notes.append(
                f"metadata.yaml announces {announced.messages} messages, and {total} are in the files it lists."
            )
        for name, messages in announced.by_file.items():
            if held.get(name, messages) != messages:
                notes.append(f"{name}: metadata.yaml announces {messages} messages, and {held[name]} are in it.")
        for topic, messages in announced.by_topic.items():
            if messages and topic not in self._topics:
                notes.append(
                    f"{shown(topic)}: metadata.yaml announces {messages} messages, and no file has this topic."
                )
        for file, storage in self._storages:
            strays = storage.total - sum(topic.count for topic in storage.topics)
            if strays:
                notes.append(f"{file.name}: {strays} of its {storage.total} messages are on no topic that it names.")
        return notes

    def _of_file(
        self, file: Path, storage: Storage, topics: Collection[str]
    ) -> Iterator[tuple[int, str | None, bytes]]:
        """First when the file begins, so that it is only read from when its time has come."""
        names = {topic.number: topic.name for topic in storage.topics if topic.name in topics}
        if not names:
            return
        yield storage.start, None, b""
        try:
            for number, time, data in storage.messages(names):
                # Bags that are compressed by message; what is no zstd begins otherwise.
                yield time, names[number], unzstd(data) if data.startswith(ZSTD) else data
        except (DamagedError, OSError) as error:
            raise damaged(file, error) from None

    def _check_definition(self, msgtype: str) -> None:
        """Make sure that the bag's own definition of a type has the fields of the one used here.

        Raises:
            UserError: it has others.
        """
        for topic in chain.from_iterable(self._topics.values()):
            if topic.msgtype != msgtype or topic.encoding not in _DEFINITIONS or not topic.definition.strip():
                continue
            try:
                recorded = _recorded_types(topic)
            except Exception as error:  # the parser has many, and the text is of unknown origin
                note = f"The recorded definition of {msgtype} cannot be parsed ({first_line(error)}); ROS 2's is used."
                if note not in self._notes:
                    self._notes.append(note)
                continue
            ours = typestore().fielddefs
            for name, (_, fields) in recorded.items():
                if name in ours and fields != ours[name][1]:
                    raise UserError(
                        f"{topic.name} in {self.path} was recorded with another version of {msgtype} than is read: "
                        f"its {name} has the fields {', '.join(field for field, _ in fields)}"
                    )


_DEFINITIONS = ("ros2msg", "ros2idl", "omgidl")


def _recorded_types(topic: Topic) -> dict[str, Any]:
    """The types that a topic's definition tells, as `Typestore.fielddefs` has them."""
    line = "=" * 80 + "\n"
    if topic.encoding == "ros2msg":
        return dict(get_types_from_msg(topic.definition, topic.msgtype))
    types: dict[str, Any] = {}
    parts = topic.definition.split(line)[1:] if topic.definition.startswith(f"{line}IDL: ") else [topic.definition]
    for part in parts:
        types.update(get_types_from_idl(part.split("\n", 1)[1] if part.startswith("IDL: ") else part))
    return types


def damaged(path: Path, error: BaseException) -> UserError:
    """How a file that cannot be read is told."""
    return UserError(f"{path} cannot be read; it is damaged, cut short or no rosbag2 bag ({first_line(error)})")


@contextmanager
def open_bag(path: str | Path) -> Iterator[Bag]:
    """Open a rosbag2 folder, or a lone .mcap or .db3 file.

    Nothing in the bag's folder is changed. What could not be read, or is not as announced, stands in `Bag.notes`.

    Raises:
        UserError: it is none, or cannot be read at all.
    """
    path = Path(path)
    files = find_files(path)
    with ExitStack() as stack:
        room = Path(stack.enter_context(TemporaryDirectory(prefix="rscmd_bag_")))
        storages: dict[Path, Storage] = {}
        notes = list(files.notes)
        for file in files.paths:
            try:
                storages[file] = storage = open_file(file, room)
            except DamagedError as error:
                if len(files.paths) == 1:
                    raise damaged(file, error) from None
                notes.append(f"{file.name} cannot be read and is left out: {error}.")
                continue
            stack.callback(storage.close)
        if not storages:
            raise UserError(f"{path} cannot be read: {' '.join(notes)}")
        yield Bag(path, storages, files.announced or Announced(), notes)
