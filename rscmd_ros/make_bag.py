"""Write a split of a paired data set as a rosbag2 bag, as two cameras would have been recorded.

    python -m rscmd_ros.make_bag --data data.yaml --split val --out BAG --rate-visible 30 --rate-thermal 9 \\
        --thermal-offset-ms 20 --jitter-ms 5 --drop 0.02 --seed 0 --storage mcap

Topics: /visible/image (bgr8), /thermal/image (mono8 or mono16, as the files are) and /ground_truth (the labels of each
recorded visible frame, under its header). The pairs of the split are the instants of the world, in the order of their
names, --rate-visible of them per second. Each camera takes pictures at its own rate; each picture is that of the
instant nearest in time. Jitter moves the moment a picture is taken; the offset moves only the thermal stamps, not the
pictures. A dropped frame is not recorded. The same seed gives the same bag.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer

from rscmd_model.datasets.opening import data_arguments, open_data, palette_argument
from rscmd_model.datasets.pairs import DataConfig, PairFiles, find_pairs, read_labels
from rscmd_model.errors import UserError, run_cli
from rscmd_model.images import read_thermal, read_visible
from rscmd_ros.bags import DETECTIONS, IMAGE, THERMAL_TOPIC, TRUTH_TOPIC, VISIBLE_TOPIC, typestore

START = 1_700_000_000 * 10**9  # ns; a fixed day, so that the same seed gives the same bytes
MS = 1_000_000
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


@dataclass(frozen=True)
class Timing:
    """How the two cameras run. Rates in Hz, offset and jitter in ms, drop a share 0..1 of either camera's frames.

    jitter_ms: each picture is taken up to so much before or after its time, evenly spread; order is kept.
    """

    rate_visible: float = 10.0
    rate_thermal: float = 10.0
    thermal_offset_ms: float = 0.0
    jitter_ms: float = 0.0
    drop: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value in (("--rate-visible", self.rate_visible), ("--rate-thermal", self.rate_thermal)):
            if not 0 < value <= 1000:
                raise UserError(f"{option} must be above 0 and at most 1000 Hz, got {value}")
        if not 0 <= self.drop < 1:
            raise UserError(f"--drop is a share of the frames and must be within 0..1 (1 excluded), got {self.drop}")
        if not 0 <= self.jitter_ms <= 10_000:
            raise UserError(f"--jitter-ms must be within 0..10000, got {self.jitter_ms}")
        if not abs(self.thermal_offset_ms) <= 10_000:
            raise UserError(f"--thermal-offset-ms must be within -10000..10000, got {self.thermal_offset_ms}")
        if self.seed < 0:
            raise UserError(f"--seed must be 0 or more, got {self.seed}")


@dataclass(frozen=True)
class Shot:
    """One recorded frame: the index of its pair, its header stamp and its time of recording (ns)."""

    stream: str
    pair: int
    stamp: int
    recorded: int


def plan(pairs: int, timing: Timing) -> list[Shot]:
    """Who takes which picture when, dropped frames left out, in the order of recording."""
    shots: list[Shot] = []
    duration = pairs / timing.rate_visible
    for number, (stream, rate) in enumerate((("visible", timing.rate_visible), ("thermal", timing.rate_thermal))):
        rng = np.random.default_rng((timing.seed, number))
        count = max(1, math.floor(duration * rate + 1e-9))
        jitter = rng.uniform(-timing.jitter_ms, timing.jitter_ms, count)
        dropped = rng.uniform(size=count) < timing.drop
        offset = round(timing.thermal_offset_ms * MS) if stream == "thermal" else 0
        before = -(10**18)
        for k in range(count):
            taken = max(round(k / rate * 1e9 + jitter[k] * MS), before + MS)  # no camera steps back in time
            before = taken
            if dropped[k]:
                continue
            pair = min(max(round(taken * timing.rate_visible / 1e9), 0), pairs - 1)
            if stream == "visible":
                pair = k  # one visible picture per instant, whatever the jitter
            stamp = START + taken + offset
            shots.append(Shot(stream, pair, stamp, max(stamp, START + taken)))
    return sorted(shots, key=lambda shot: (shot.recorded, shot.stream != "visible"))


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
    """Write `pairs` to the bag folder `out`; returns the number of messages by topic.

    The bag grows in `out` + ".partial" and is renamed when complete. An existing `out` is a UserError; with `force`
    an earlier bag there is replaced, but nothing else is. Where the bag cannot be written (full disk, missing
    permission) nothing of it stays, and a UserError says why.
    """
    out = Path(out)
    if storage == "sqlite3" and set("?#%") & set(str(out)):
        raise UserError(f"{out}: a sqlite3 bag cannot be written where a name has ?, # or %; choose another --out")
    if out.exists() or out.is_symlink():
        if not force:
            raise UserError(f"{out} exists already; choose another --out, or replace that bag with --force")
        if out.is_symlink() or not (out / "metadata.yaml").is_file():
            raise UserError(f"{out} is no bag, so --force leaves it alone; choose another --out")
    shots = plan(len(pairs), timing)
    for stream in ("visible", "thermal"):
        if not any(shot.stream == stream for shot in shots):
            raise UserError(f"--drop {timing.drop} left no {stream} frame of {len(pairs)} pairs; drop fewer")
    partial = out.with_name(out.name + ".partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        # The storage file takes its name from the folder, so the folder has its final name from the start.
        counts = _write(data, pairs, partial / out.name, shots, storage, progress)
        if out.exists():
            shutil.rmtree(out)
        (partial / out.name).rename(out)
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"cannot write {out}: {reason}; nothing of it was kept") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


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


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_ros.make_bag",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Timing()
    data_arguments(parser)
    palette_argument(parser)
    parser.add_argument("--split", default="val", help="which split (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new bag")
    parser.add_argument("--rate-visible", type=float, default=default.rate_visible, metavar="HZ")
    parser.add_argument("--rate-thermal", type=float, default=default.rate_thermal, metavar="HZ")
    parser.add_argument("--thermal-offset-ms", type=float, default=0.0, metavar="MS", help="thermal stamps are late by")
    parser.add_argument(
        "--jitter-ms", type=float, default=0.0, metavar="MS", help="each picture up to MS early or late"
    )
    parser.add_argument("--drop", type=float, default=0.0, metavar="FRACTION", help="share of frames not recorded")
    parser.add_argument("--seed", type=int, default=0, help="of jitter and drops (default %(default)s)")
    parser.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap")
    parser.add_argument("--force", action="store_true", help="replace an earlier bag at --out")
    args = parser.parse_args(argv)
    timing = Timing(args.rate_visible, args.rate_thermal, args.thermal_offset_ms, args.jitter_ms, args.drop, args.seed)
    data = open_data(args.data, args.root, args.split_file, palette_ok=args.palette_ok)
    counts = write_bag(
        data,
        find_pairs(data, args.split),
        args.out,
        timing,
        storage=args.storage,
        force=args.force,
        progress=lambda line: print(line, flush=True),
    )
    print(f"wrote {args.out}: " + ", ".join(f"{count} on {topic}" for topic, count in counts.items()))


def cli() -> NoReturn:
    """What the installed command runs: a user's mistake is one line and exit code 2."""
    run_cli(main)


if __name__ == "__main__":
    cli()
