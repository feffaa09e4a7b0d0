"""The native layout of image pairs, read and checked: `data.yaml`, `visible/`, `thermal/`, `labels/`, by file stem."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rscmd_model.errors import UserError
from rscmd_model.images import IMAGE_SUFFIXES, read_thermal, read_visible
from rscmd_model.thermal import ThermalContract


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair; `label` is None where there is no label file (an image without objects)."""

    stem: str
    visible: Path
    thermal: Path
    label: Path | None


@dataclass(frozen=True)
class DataConfig:
    """A `data.yaml`, resolved.

    Attributes:
        file: the file itself.
        root: the folder that the other paths are relative to.
        names: class names by index 0, 1, ...
        thermal_contract: what the thermal counts mean.
        splits: per split its (visible, thermal) folders.
    """

    file: Path
    root: Path
    names: dict[int, str]
    thermal_contract: ThermalContract
    splits: dict[str, tuple[Path, Path]]


def load_data_yaml(path: str | Path) -> DataConfig:
    """Read a `data.yaml` of paired YOLO layout.

    Keys: `path` (root, relative to the file's folder), `train`, `val` and further splits (visible folders), `thermal`
    (a mapping of the same splits to thermal folders), `names` (list or mapping), `thermal_contract` (optional).

    Raises:
        UserError: no such file, no YAML, or a key is missing or of the wrong form.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys path, train, val, thermal and names")
    names = data.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or sorted(names) != list(range(len(names))) or not names:
        raise UserError(f"{path}: names must list the classes, as in 'names: {{0: person, 1: car}}'")
    thermal = data.get("thermal")
    if not isinstance(thermal, dict) or not thermal:
        raise UserError(f"{path}: thermal must give a folder for each split, as in 'thermal: {{train: thermal/train}}'")
    root = (path.parent / str(data.get("path", "."))).resolve()
    splits = {}
    for split, folder in thermal.items():
        if not isinstance(data.get(split), str) or not isinstance(folder, str):
            raise UserError(f"{path}: split {split!r} needs a visible folder ('{split}: ...') and a thermal one")
        splits[str(split)] = (root / data[split], root / folder)
    return DataConfig(
        file=path.resolve(),
        root=root,
        names={int(k): str(v) for k, v in names.items()},
        thermal_contract=ThermalContract.from_dict(data.get("thermal_contract", ThermalContract().to_dict())),
        splits=splits,
    )


def find_pairs(data: DataConfig, split: str) -> list[PairFiles]:
    """The pairs of a split, sorted by stem.

    Raises:
        UserError: no such split or folder, no pairs, or images without a partner (their number and the first names).
    """
    if split not in data.splits:
        raise UserError(f"{data.file} has no split {split!r}; it has {', '.join(data.splits)}")
    visible_folder, thermal_folder = data.splits[split]
    visible, thermal = _by_stem(visible_folder), _by_stem(thermal_folder)
    missing = [f"{visible_folder.name}/{s} has no thermal partner" for s in sorted(set(visible) - set(thermal))]
    missing += [f"{thermal_folder.name}/{s} has no visible partner" for s in sorted(set(thermal) - set(visible))]
    if missing:
        raise UserError(
            f"{split}: {len(missing)} of {len(set(visible) | set(thermal))} images have no partner in "
            f"{visible_folder} and {thermal_folder}: {_first(missing)}"
        )
    if not visible:
        raise UserError(f"{split}: no images in {visible_folder} (looked for {', '.join(IMAGE_SUFFIXES)})")
    labels = data.root / "labels" / split
    if not labels.is_dir():
        raise UserError(f"{split}: no folder {labels} with the labels")
    return [
        PairFiles(stem, visible[stem], thermal[stem], label if (label := labels / f"{stem}.txt").is_file() else None)
        for stem in sorted(visible)
    ]


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            if file.stem in found:
                raise UserError(f"{found[file.stem]} and {file} have the same stem, so their partner is ambiguous")
            found[file.stem] = file
    return found


def _first(items: Sequence[str], most: int = 3) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


def read_labels(path: Path | None, classes: int) -> np.ndarray:
    """Read a YOLO label file.

    Args:
        path: lines of "class cx cy w h", centre and size as fractions of the image; None means no objects.
        classes: how many classes there are.

    Returns:
        (N, 5) float32: class, cx, cy, w, h; duplicates removed.

    Raises:
        UserError: names the file and line: not five numbers, an unknown class, or a box outside the image.
    """
    rows: list[list[float]] = []
    for number, line in enumerate(path.read_text().splitlines() if path else [], 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            cls, cx, cy, w, h = (float(x) for x in line.split())
        except ValueError:
            raise UserError(f"{where}: expected 'class cx cy w h', got {line.strip()!r}") from None
        if cls != int(cls) or not 0 <= cls < classes:
            raise UserError(f"{where}: class {cls:g} is unknown; names has classes 0 to {classes - 1}")
        slack = 1e-3  # rounding of the writing tool
        edges = (cx - w / 2, cy - h / 2, 1 - cx - w / 2, 1 - cy - h / 2)
        if not (w > 0 and h > 0 and min(edges) >= -slack):
            raise UserError(f"{where}: the box {cx:g} {cy:g} {w:g} {h:g} is empty or lies outside the image (0 to 1)")
        rows.append([cls, cx, cy, w, h])
    return np.unique(np.array(rows, np.float32).reshape(-1, 5), axis=0)


def check_pairs(pairs: Sequence[PairFiles], classes: int, contract: ThermalContract) -> list[dict[str, Any]]:
    """Decode every file of these pairs once and gather what a training needs to know.

    Returns:
        per pair: {"size": (height, width) of the visible image, "labels": as `read_labels`}.

    Raises:
        UserError: some pairs cannot be used; their number and the first ones with the reason.
    """
    from concurrent.futures import ThreadPoolExecutor

    def check(pair: PairFiles) -> dict[str, Any] | str:
        try:
            contract.apply(read_thermal(pair.thermal)[:1, :1])
            return {"size": read_visible(pair.visible).shape[:2], "labels": read_labels(pair.label, classes)}
        except UserError as error:
            message = str(error)
            return (
                message
                if str(pair.thermal.parent) in message
                or str(pair.visible.parent) in message
                or (pair.label and str(pair.label) in message)
                else f"{pair.thermal}: {message}"
            )

    with ThreadPoolExecutor(8) as pool:  # decoding releases the interpreter lock
        results = list(pool.map(check, pairs))
    faults = [r for r in results if isinstance(r, str)]
    if faults:
        raise UserError(f"{len(faults)} of {len(pairs)} pairs cannot be used: {_first(faults)}")
    return [r for r in results if not isinstance(r, str)]


def split_hash(pairs: Sequence[PairFiles]) -> str:
    """SHA-256 (first 16 hex digits) over the stems of a split, which tells two lists of pairs apart."""
    return hashlib.sha256("\n".join(pair.stem for pair in pairs).encode()).hexdigest()[:16]
