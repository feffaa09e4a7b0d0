"""Writes pairs of a data set as a rosbag2 bag, as two cameras would have recorded them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer

from rscmd_model.datasets.pairs import DataConfig, PairFiles, read_labels
from rscmd_model.errors import UserError
from rscmd_model.files import whole_folder
from rscmd_model.imaging.images import read_thermal, read_visible
from rscmd_ros.bags.files import read_metadata
from rscmd_ros.bags.reader import typestore
from rscmd_ros.bags.timing import Shot, Timing, plan
from rscmd_ros.bags.topics import DETECTIONS, IMAGE, THERMAL_TOPIC, TRUTH_TOPIC, VISIBLE_TOPIC

FRAME_ID = {"visible": "visible_optical_frame", "thermal": "thermal_optical_frame"}
_QOS = Qos(
    QosHistory.KEEP_LAST,
    10,
    QosReliability.RELIABLE,
    QosDurability.VOLATILE,
    QosTime(0, 0),
    QosTime(0, 0),
    QosLiveliness.AUTOMATIC,
    QosTime(0, 0),
    False,
)


def write_bag(
    data: DataConfig,
    pairs: Sequence[PairFiles],
    out: Path,
    timing: Timing,
    *,
    storage: str = "mcap",
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, int]:
    """Write pairs to a new bag folder.

    The bag gets its name when it is complete.

    Args:
        data: the data set, for class names and the thermal contract.
        pairs: the instants of the world, in their order.
        out: folder of the new bag.
        timing: of the two cameras.
        storage: mcap or sqlite3.
        force: replace an earlier bag at `out`; nothing else is ever replaced.
        progress: called with a line every 200 frames and at the end.

    Returns:
        The number of messages by topic.

    Raises:
        UserError: `out` exists already, another process writes it, or the bag cannot be written (full disk, missing
            permission); nothing of it stays.
    """
    out = Path(out)
    if storage == "sqlite3" and set("?#%") & set(str(out)):
        raise UserError(f"{out}: a sqlite3 bag cannot be written where a name has ?, # or %; choose another --out")
    _refuse_existing(out, force)
    shots = plan(len(pairs), timing, [pair.stem.rpartition("_")[0] for pair in pairs])
    for stream in ("visible", "thermal"):
        if not any(shot.stream == stream for shot in shots):
            raise UserError(f"--drop {timing.drop} left no {stream} frame of {len(pairs)} pairs; drop fewer")
    try:
        with whole_folder(out) as folder:  # of the final name, from which the storage file takes its own
            counts = _write(data, pairs, folder, shots, storage, progress)
            _refuse_existing(out, force)  # it may have come meanwhile
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"cannot write {out}: {reason}; nothing of it was kept") from None
    return counts


def _refuse_existing(out: Path, force: bool) -> None:
    """Make sure that nothing lies at `out` but, with `force`, a bag and nothing else."""
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise UserError(f"{out} exists already; choose another --out, or replace that bag with --force")
    metadata = out / "metadata.yaml"
    if out.is_symlink() or not metadata.is_file():
        raise UserError(f"{out} is no bag, so --force leaves it alone; choose another --out")
    parts = {metadata.name, *(PurePath(name).name for name in read_metadata(metadata)[0])}
    if others := sorted({path.name for path in out.iterdir()} - parts):
        raise UserError(
            f"{out} holds {others[0]}, no part of that bag, so --force leaves it alone; choose another --out"
        )


def _write(
    data: DataConfig,
    pairs: Sequence[PairFiles],
    folder: Path,
    shots: Sequence[Shot],
    storage: str,
    progress: Callable[[str], None] | None,
) -> dict[str, int]:
    store = typestore()
    plugin = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}[storage]
    counts = {VISIBLE_TOPIC: 0, THERMAL_TOPIC: 0, TRUTH_TOPIC: 0}
    with Writer(folder, version=9, storage_plugin=plugin) as writer:
        types = {VISIBLE_TOPIC: IMAGE, THERMAL_TOPIC: IMAGE, TRUTH_TOPIC: DETECTIONS}
        topics = {
            topic: writer.add_connection(topic, kind, typestore=store, offered_qos_profiles=[_QOS])
            for topic, kind in types.items()
        }

        def record(topic: str, message: Any, recorded: int) -> None:
            writer.write(topics[topic], recorded, store.serialize_cdr(message, types[topic]))
            counts[topic] += 1

        for done, shot in enumerate(shots, 1):
            pair = pairs[shot.pair]
            if shot.stream == "visible":
                picture = read_visible(pair.visible)
                record(VISIBLE_TOPIC, _image(picture, "bgr8", shot), shot.recorded)
                record(TRUTH_TOPIC, _truth(data, pair, picture.shape[1], picture.shape[0], shot), shot.recorded)
            else:
                picture = read_thermal(pair.thermal, data.thermal_contract)
                encoding = "mono16" if picture.dtype == np.uint16 else "mono8"
                record(THERMAL_TOPIC, _image(picture, encoding, shot), shot.recorded)
            if progress and (done % 200 == 0 or done == len(shots)):
                progress(f"{done} of {len(shots)} frames")
    return counts


def _header(shot: Shot) -> Any:
    types = typestore().types
    stamp = types["builtin_interfaces/msg/Time"](sec=shot.stamp // 10**9, nanosec=shot.stamp % 10**9)
    return types["std_msgs/msg/Header"](stamp=stamp, frame_id=FRAME_ID[shot.stream])


def _image(picture: np.ndarray, encoding: str, shot: Shot) -> Any:
    """A sensor_msgs/Image of a (H,W[,3]) uint8 or uint16 array; 16-bit counts are stored little-endian."""
    height, width = picture.shape[:2]
    little = np.ascontiguousarray(picture.astype(picture.dtype.newbyteorder("<"), copy=False))
    data = little.view(np.uint8).reshape(-1)
    return typestore().types[IMAGE](
        header=_header(shot),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=data.size // height,
        data=data,
    )


def _truth(data: DataConfig, pair: PairFiles, width: int, height: int, shot: Shot) -> Any:
    """The labels of a pair as a Detection2DArray in pixels of the visible picture, each with score 1."""
    types = typestore().types
    header = _header(shot)
    origin = types["geometry_msgs/msg/Point"](x=0.0, y=0.0, z=0.0)
    upright = types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0)
    pose = types["geometry_msgs/msg/PoseWithCovariance"](
        pose=types["geometry_msgs/msg/Pose"](position=origin, orientation=upright), covariance=np.zeros(36)
    )
    detections = []
    rows = read_labels(data, pair)
    for label, cx, cy, w, h in rows.astype(np.float64).tolist():
        name = data.names[int(label)]
        hypothesis = types["vision_msgs/msg/ObjectHypothesis"](class_id=name, score=1.0)
        position = types["vision_msgs/msg/Point2D"](x=cx * width, y=cy * height)
        detections.append(
            types["vision_msgs/msg/Detection2D"](
                header=header,
                results=[types["vision_msgs/msg/ObjectHypothesisWithPose"](hypothesis=hypothesis, pose=pose)],
                bbox=types["vision_msgs/msg/BoundingBox2D"](
                    center=types["vision_msgs/msg/Pose2D"](position=position, theta=0.0),
                    size_x=w * width,
                    size_y=h * height,
                ),
                id="",
            )
        )
    return types[DETECTIONS](header=header, detections=detections)
