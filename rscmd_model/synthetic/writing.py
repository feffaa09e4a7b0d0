"""A synthetic world on disk: a paired YOLO data set, written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from rscmd_model.errors import UserError
from rscmd_model.files import whole_folder
from rscmd_model.synthetic.world import CLASS_NAMES, WorldConfig, WorldFrame, generate

MARKER = "world.json"  # the resolved settings; also how a folder is known to be ours to replace
SPLITS = ("train", "val")
_OURS = {MARKER, "data.yaml", "visible", "thermal", "labels"}
_DATA_YAML = """\
path: .
train: visible/train
val: visible/val
thermal: {train: thermal/train, val: thermal/val}
names: {%s}
thermal_contract: {source: mono8, scale: [0, 255]}
"""


def write_world(
    out: Path,
    *,
    train: int,
    val: int,
    size: tuple[int, int],
    seed: int,
    config: WorldConfig | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write a world as a data set.

    An earlier world at `out` is replaced whole. Nothing is left half written: the world gets its name when it is
    complete.

    Args:
        out: folder.
        train: pairs of the train split.
        val: pairs of the val split.
        size: (width, height) of the pictures, px.
        seed: the same one gives the same bytes.
        config: the dials of the world.
        progress: called now and then with a line to show.

    Returns:
        path of its data.yaml.

    Raises:
        UserError: a number is out of range, something else lies at `out`, or another process writes a world there.
    """
    config = config or WorldConfig()
    if train < 1 or val < 1:
        raise UserError(f"--train and --val must be at least 1 pair, got {train} and {val}")
    if not all(64 <= side <= 4096 for side in size):
        raise UserError(f"--size must be within 64..4096 px, got {size[0]} {size[1]}")
    if seed < 0:
        raise UserError(f"--seed must be 0 or more, got {seed}")
    out = Path(out)
    _refuse_foreign(out)
    with whole_folder(out) as folder:
        _write_splits(folder, (train, val), size, seed, config, progress)
        _refuse_foreign(out)  # it may have come meanwhile
    return out / "data.yaml"


def _write_splits(
    folder: Path,
    counts: tuple[int, int],
    size: tuple[int, int],
    seed: int,
    config: WorldConfig,
    progress: Callable[[str], None] | None,
) -> None:
    lengths = {"train": config.train_sequence, "val": config.val_sequence}
    for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
        for kind in ("visible", "thermal", "labels"):
            (folder / kind / split).mkdir(parents=True)
        frames = generate(seed, number, count, size[0], size[1], config, lengths[split])
        for done, (stem, frame) in enumerate(frames, 1):
            _write_frame(folder, split, stem, frame)
            if progress and (done % 100 == 0 or done == count):
                progress(f"{split}: {done} of {count} pairs")
    names = ", ".join(f"{number}: {name}" for number, name in CLASS_NAMES.items())
    (folder / "data.yaml").write_text(_DATA_YAML % names, encoding="utf-8")
    facts = {
        "train": counts[0],
        "val": counts[1],
        "size": list(size),
        "seed": seed,
        "config": dataclasses.asdict(config),
    }
    (folder / MARKER).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _refuse_foreign(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} exists and is not a folder; choose another --out")
    if not out.exists():
        return
    found = {path.name for path in out.iterdir()}
    if found and (MARKER not in found or not found <= _OURS):
        other = sorted(found - _OURS) or sorted(found)
        raise UserError(f"{out} holds something that is no synthetic world ({other[0]}); choose another --out")


def _write_frame(root: Path, split: str, stem: str, frame: WorldFrame) -> None:
    for kind, picture in (("visible", frame.visible), ("thermal", frame.thermal)):
        done, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 2])
        if not done:
            raise RuntimeError(f"PNG encoding failed for {kind}/{split}/{stem}")
        (root / kind / split / f"{stem}.png").write_bytes(np.asarray(data).tobytes())
    lines = [f"{int(row[0])} " + " ".join(f"{value:.6f}" for value in row[1:]) for row in frame.labels]
    (root / "labels" / split / f"{stem}.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
