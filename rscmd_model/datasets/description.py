"""From the keys of a data.yaml to a `DataConfig`.

`reader` (yolo by default, coco, cvat, label_studio, or a published set), `path` or `root` (its folder; relative to the
file's), `names`, `thermal_contract`, `registration` (a file, relative to this one, or what it would hold), `split_file`
(published sets), `boxes` and `match_iou` (where each camera has labels of its own), `sidecars`, `confidence` and
`teach` (labels that no person drew, see `teaching.py`), `fold` (one fold held out, see `folds.py`), `replay` (pairs of
an earlier site among those of `train`, see `replay.py`), and the folders or lists of each split, which
docs/datasets/own.md shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rscmd_model.datasets.folds import fold_of
from rscmd_model.datasets.listed import FORMS, ListedPairs, load
from rscmd_model.datasets.lists import ImageLists
from rscmd_model.datasets.pairs import DataConfig, Reader
from rscmd_model.datasets.published import PUBLISHED, open_published
from rscmd_model.datasets.replay import replay_of
from rscmd_model.datasets.teaching import CHOICES as TEACH_CHOICES
from rscmd_model.datasets.teaching import CONFIDENCE, TEACH, Teaching
from rscmd_model.datasets.two_labels import CHOICES, Boxes
from rscmd_model.datasets.yolo import YoloFolders
from rscmd_model.errors import UserError, did_you_mean, quoted
from rscmd_model.imaging.registration import Registration, load_registration
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.text import is_path, parse_yaml

_COMMON = ("reader", "path", "root", "names", "thermal_contract", "registration", "fold", "replay")
_BOXES = ("boxes", "match_iou")
_SIDECARS = ("sidecars", "confidence", "teach")
_TRUTH = {"true": True, "false": False}
PALETTE = "--palette-ok"  # of the command line, on its way into the thermal contract; no key of a file
_UNUSED = ("nc", "channels", "download", "license")  # ultralytics' own files have these
_READERS = ("yolo", *FORMS, *PUBLISHED)
_CAMERAS = {"visible": "rgb", "thermal": "ir"}  # ends of CFT's and ICAFusion's keys, as train_rgb


def parse_description(text: str, where: str) -> Any:
    """Read the keys and values of a description.

    Names and paths stay the text that was written: `on` and `007` are names.

    Args:
        text: YAML.
        where: names it in messages.

    Raises:
        UserError: as `parse_yaml`.
    """
    return parse_yaml(text, where, words=True, typed=("thermal_contract", "registration"))


def describe(data: Mapping[str, Any], base: Path, where: str, file: Path | None) -> DataConfig:
    """Make a `DataConfig`.

    Args:
        data: the keys, as `parse_description` gives them.
        base: what relative folders start from.
        where: for messages.
        file: the data.yaml when it says it all.

    Raises:
        UserError: names what is missing, unknown or wrong.
    """
    palette_ok = PALETTE in data
    data = {k: v for k, v in data.items() if k != PALETTE}
    reader = _text(data.get("reader") or "yolo", f"{where}: reader")
    if reader not in _READERS:
        hint = did_you_mean(reader, _READERS, f"there are {', '.join(_READERS)}")
        raise UserError(f"{where}: no reader {quoted(reader)}{hint}")
    if "path" in data and "root" in data:
        raise UserError(f"{where}: path and root mean the same; give one of them")
    given_root = data.get("root") or data.get("path")
    try:
        root = (base / _path(given_root or ".", f"{where}: path")).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise UserError(f"{where}: path {quoted(given_root)} leads nowhere: {error}") from None
    registration = _registration(data.get("registration"), base, where)
    if "sidecars" not in data and (lone := [key for key in ("confidence", "teach") if key in data]):
        raise UserError(
            f"{where}: {lone[0]} is about labels that no person drew, and these data have no 'sidecars', the folder "
            "that tells which those are"
        )
    if reader in PUBLISHED:
        _known(data, (*_COMMON, "split_file"), where)
        if "names" in data:
            raise UserError(f"{where}: {reader} has its own class names, so 'names' does not belong here")
        if given_root is None:
            raise UserError(f"{where}: {reader} needs root, the folder it was unpacked to")
        split_file = None
        if data.get("split_file"):
            split_file = (base / _path(data["split_file"], f"{where}: split_file")).resolve()
            data = {**data, "split_file": str(split_file)}
        config = open_published(reader, root, split_file)
    elif reader in FORMS:
        config = _listed(reader, data, root, where, registration)
    else:
        config = _yolo(data, root, where, registration)
    contract = config.thermal_contract
    if "thermal_contract" in data:
        try:
            contract = ThermalContract.from_dict(data["thermal_contract"])
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if palette_ok:
        contract = replace(contract, palette_ok=True)
    config = replace(config, thermal_contract=contract, registration=registration)
    if isinstance(config.reader, YoloFolders) and config.reader.teaching:  # also where a default was taken
        teaching = config.reader.teaching
        data = {**data, "confidence": str(teaching.confidence).lower(), "teach": teaching.teach}
    rest = {k: v for k, v in data.items() if k not in (*_COMMON, *_UNUSED) or k == "names"}
    resolved = {"reader": reader, "root": str(config.root), **rest, "thermal_contract": contract.to_dict()}
    if registration is not None:
        resolved["registration"] = registration.to_dict()
    if "fold" in data:
        config, resolved["fold"] = fold_of(config, data["fold"], base, where)
    if "replay" in data:
        config, resolved["replay"] = replay_of(config, data["replay"], base, where)
    line = yaml.safe_dump(resolved, default_flow_style=True, width=10**9, sort_keys=False).strip()
    return replace(config, spec=str(file) if file else line, resolved=resolved)


def _registration(given: Any, base: Path, where: str) -> Registration | None:
    if given is None:
        return None
    if isinstance(given, str):
        return load_registration(base / _path(given, f"{where}: registration"))
    try:
        return Registration.from_dict(given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _yolo(data: dict[str, Any], root: Path, where: str, registration: Registration | None) -> DataConfig:
    names = _names(data.get("names"), where)
    thermal, used = _sources(data, "thermal", where), [*_COMMON, *_BOXES, *_SIDECARS, "labels"]
    if not isinstance(thermal, dict) or not thermal:
        raise UserError(
            f"{where}: thermal must give a folder for each split, as in 'thermal: {{train: thermal/train}}'"
        )
    visible = _sources(data, "visible", where)
    keys = ("thermal", "train", "val", "test", *map(str, thermal), *_ends())
    _known(data, (*used, *keys), where)
    for split in ("train", "val", "test"):
        if visible.get(split) is not None and split not in thermal:
            raise UserError(f"{where}: split {split!r} has a visible folder and no thermal one")
    sources: list[tuple[str, Path, Path]] = []
    for split, folder in thermal.items():
        if not isinstance(visible.get(split), str) or not isinstance(folder, str):
            raise UserError(
                f"{where}: split {quoted(split)} needs a visible folder or list ('train: ...') and a thermal one; "
                "several of them go into one .txt list of images"
            )
        at = f"{where}: {quoted(split)}"
        row = _text(split, f"{where}: a split"), root / _path(visible[split], at), root / _path(folder, at)
        sources.append(row)
    labels = _labels(data.get("labels"), [row[0] for row in sources], root, where)
    thermal_labels = tuple((split, both["thermal"]) for split, both in labels.items() if "thermal" in both)
    visible_labels = tuple((split, both["visible"]) for split, both in labels.items() if "visible" in both)
    choice = data.get("boxes")
    if choice is None and thermal_labels:
        if visible_labels:
            raise UserError(
                f"{where}: labels of both cameras need 'boxes: visible', 'boxes: thermal' or 'boxes: union'"
            )
        choice = "thermal"
    boxes = _boxes(data, choice, where, registration)
    lists = [path.suffix.lower() == ".txt" for _, one, other in sources for path in (one, other)]
    if any(lists) and not all(lists):
        raise UserError(f"{where}: give folders for every split and camera, or .txt lists for every one")
    if not all(lists) and boxes.choice != "visible":
        lacking = [split for split, *_ in sources if split not in dict(thermal_labels)]
        if lacking:
            raise UserError(f"{where}: 'boxes: {boxes.choice}' needs labels of the thermal images of {lacking[0]}")
    teaching = _teaching(data, root, where)
    if teaching and (all(lists) or boxes.choice != "visible"):
        raise UserError(
            f"{where}: sidecars belong to labels of the visible images in folders: leave out "
            + ("the .txt lists" if all(lists) else f"'boxes: {boxes.choice}'")
        )
    reader: Reader
    if all(lists):
        reader = ImageLists(root, tuple(sources), visible_labels, thermal_labels, boxes)
    else:
        folders = []
        for split, one, other in sources:
            label_folder = labels.get(split, {}).get("visible", root / "labels" / split)
            if boxes.choice == "thermal":  # the visible images need no labels
                label_folder = dict(thermal_labels)[split]
            folders.append((split, one, other, label_folder))
        reader = YoloFolders(tuple(folders), thermal_labels, boxes, teaching)
    return _own(root, names, tuple(row[0] for row in sources), reader)


def _ends() -> tuple[str, ...]:
    return tuple(f"{split}_{end}" for split in ("train", "val", "test") for end in _CAMERAS.values())


def _sources(data: Mapping[str, Any], camera: str, where: str) -> Any:
    """Per split what the description says of a camera's images: this project's keys, or CFT's (train_rgb, train_ir)."""
    own = data.get("thermal") if camera == "thermal" else {k: v for k, v in data.items() if k not in _ends()}
    theirs = {
        split: data[key]
        for split in ("train", "val", "test")
        if data.get(key := f"{split}_{_CAMERAS[camera]}") is not None
    }
    if twice := [split for split in theirs if isinstance(own, dict) and own.get(split) is not None]:
        raise UserError(f"{where}: {twice[0]} and {twice[0]}_{_CAMERAS[camera]} mean the same; give one of them")
    return {**own, **theirs} if isinstance(own, dict) else theirs or own


def _labels(given: Any, splits: list[str], root: Path, where: str) -> dict[str, dict[str, Path]]:
    """Per split the folder of the labels of the visible images, the thermal ones, or both, as far as they are named."""
    where = f"{where}: labels"
    if given is None:
        return {}
    if isinstance(given, str):
        return {split: {"visible": root / _path(given, where) / split} for split in splits}
    if not isinstance(given, dict) or not set(given) <= set(splits):
        raise UserError(f"{where} gives a folder for each split, as in 'labels: {{train: labels/train}}'")
    found: dict[str, dict[str, Path]] = {}
    for split, folder in given.items():
        both = folder if isinstance(folder, dict) else {"visible": folder}
        if not both or not set(both) <= set(_CAMERAS):
            raise UserError(f"{where} of {split}: give a folder, or {{visible: FOLDER, thermal: FOLDER}}")
        found[split] = {camera: root / _path(path, where) for camera, path in both.items()}
    return found


def _teaching(data: Mapping[str, Any], root: Path, where: str) -> Teaching | None:
    """What the keys `_SIDECARS` say; None without them."""
    if "sidecars" not in data:
        return None
    folder = root / _path(data["sidecars"], f"{where}: sidecars")
    confidence = data.get("confidence", CONFIDENCE)
    if str(confidence).lower() not in _TRUTH:
        raise UserError(f"{where}: confidence is true or false, got {quoted(confidence)}")
    teach = data.get("teach", TEACH)
    if teach not in TEACH_CHOICES:
        raise UserError(f"{where}: teach is one of {', '.join(TEACH_CHOICES)}, got {quoted(teach)}")
    return Teaching(folder, _TRUTH[str(confidence).lower()], teach)


def _boxes(data: Mapping[str, Any], choice: Any, where: str, registration: Registration | None) -> Boxes:
    if "match_iou" in data and choice != "union":
        raise UserError(f"{where}: match_iou is for 'boxes: union'")
    try:
        iou = float(data.get("match_iou", 0.5))
    except (TypeError, ValueError):
        raise UserError(f"{where}: match_iou is a number such as 0.5, got {quoted(data['match_iou'])}") from None
    if choice not in (None, *CHOICES):
        raise UserError(f"{where}: boxes is one of {', '.join(CHOICES)}, got {quoted(choice)}")
    try:
        return Boxes(choice or "visible", iou, registration)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _listed(form: str, data: dict[str, Any], root: Path, where: str, registration: Registration | None) -> DataConfig:
    _known(data, (*_COMMON, *_BOXES, "visible", "thermal", "annotations"), where)
    parts = [data.get(key) for key in ("visible", "thermal", "annotations")]
    same = all(isinstance(part, dict) and part and part.keys() == (parts[0] or {}).keys() for part in parts)
    if not same or not all(isinstance(value, str) for part in parts for value in (part or {}).values()):
        raise UserError(
            f"{where}: visible, thermal and annotations each need an entry for the same splits, as in "
            "'annotations: {train: train.json, val: val.json}'"
        )
    splits: list[tuple[str, Path, Path, Path]] = []
    for split in parts[0] or {}:
        at = f"{where}: {quoted(split)}"
        visible, thermal, file = (root / _path((part or {})[split], at) for part in parts)
        splits.append((_text(split, f"{where}: a split"), visible, thermal, file))
    names = data.get("names")
    if names is None:  # of the first file; another order of ids elsewhere does no harm, since names decide
        names = list(load(form, splits[0][3]).classes)
        if not names:
            raise UserError(f"{where}: {splits[0][3]} names no classes: give them as names")
    boxes = _boxes(data, data.get("boxes"), where, registration)
    reader = ListedPairs(form, tuple(splits), boxes, data.get("boxes") is not None)
    return _own(root, _names(names, where), tuple(row[0] for row in splits), reader)


def _own(root: Path, names: dict[int, str], splits: tuple[str, ...], reader: Reader) -> DataConfig:
    return DataConfig("", root.name, root, names, ThermalContract(), splits, reader)


def _names(names: Any, where: str) -> dict[int, str]:
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        raise UserError(f"{where}: names must list the classes, as in 'names: {{0: person, 1: car}}'")
    named = {int(number): _text(name, f"{where}: the name of class {number}") for number, name in names.items()}
    if len(set(named.values())) < len(named):
        raise UserError(f"{where}: names has a class twice: {', '.join(named.values())}")
    return dict(sorted(named.items()))


def _text(value: Any, where: str) -> str:
    """A name: some text on one line."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 200:
        raise UserError(f"{where} is {quoted(value)}; a name is wanted, of 1 to 200 letters on one line")
    return value


def _path(value: Any, where: str) -> str:
    """A path that a file system can have."""
    if not isinstance(value, str) or not is_path(value):
        raise UserError(f"{where} is {quoted(value)}, which is no path")
    return value


def _known(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in map(str, data):
        if key not in known and key not in _UNUSED:
            hint = did_you_mean(key, known, f"known are {', '.join(known)}")
            raise UserError(f"{where}: unknown key {quoted(key)}{hint}")
