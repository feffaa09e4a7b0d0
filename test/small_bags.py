"""Bags of a few tiny pictures, written in every way that rosbag2 knows, for the tests of reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from rscmd_ros.bags.reader import typestore
from rscmd_ros.bags.topics import DETECTIONS, IMAGE, THERMAL_TOPIC, TRUTH_TOPIC, VISIBLE_TOPIC

START = 1_700_000_000 * 10**9
STEP = 100_000_000  # ns
TOPICS = (VISIBLE_TOPIC, THERMAL_TOPIC, TRUTH_TOPIC)
KINDS = {VISIBLE_TOPIC: IMAGE, THERMAL_TOPIC: IMAGE, TRUTH_TOPIC: DETECTIONS}

Message = tuple[str, int, bytes]
"""Topic, time of recording, serialised message."""
Extra = tuple[str, str, str, bytes]
"""Topic, type, definition and one message of a topic that nobody asks for."""


def messages(instants: int, size: int = 24) -> list[Message]:
    """Both cameras and the truth (without a box) at each instant."""
    store, found = typestore(), []
    for k in range(instants):
        time = START + k * STEP
        stamp = store.types["builtin_interfaces/msg/Time"](sec=time // 10**9, nanosec=time % 10**9)
        header = store.types["std_msgs/msg/Header"](stamp=stamp, frame_id="visible")
        for topic, encoding, channels in ((VISIBLE_TOPIC, "bgr8", 3), (THERMAL_TOPIC, "mono8", 1)):
            data = np.random.default_rng(k).integers(0, 255, size * size * channels, dtype=np.uint8)
            image = store.types[IMAGE](header, size, size, encoding, 0, size * channels, data)
            found.append((topic, time, bytes(store.serialize_cdr(image, IMAGE))))
        found.append((TRUTH_TOPIC, time, bytes(store.serialize_cdr(store.types[DETECTIONS](header, []), DETECTIONS))))
    return found


def write(
    folder: Path,
    recorded: Sequence[Message],
    plugin: str = "MCAP",
    compression: str | None = None,
    extra: Iterable[Extra] = (),
    kinds: Mapping[str, str] = KINDS,
) -> Path:
    """Write a bag with topics of these types; returns its storage file."""
    writer = Writer(folder, version=9, storage_plugin=StoragePlugin[plugin])
    if compression:
        writer.set_compression(CompressionMode[compression], CompressionFormat.ZSTD)
    with writer:
        known = {}
        for topic, time, data in recorded:
            if topic not in known:
                known[topic] = writer.add_connection(topic, kinds[topic], typestore=typestore())
            writer.write(known[topic], time, data)
        for topic, kind, definition, data in extra:
            to = writer.add_connection(topic, kind, msgdef=definition, rihs01="RIHS01_" + "0" * 64)
            writer.write(to, START, data)
    return next(file for file in folder.iterdir() if file.name != "metadata.yaml")


def content(folder: Path) -> dict[str, tuple[str, int]]:
    """Checksum and time of change of every file below a folder; equal means that nothing was touched."""
    return {
        str(file.relative_to(folder)): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
