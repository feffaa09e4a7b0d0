"""From what a user writes after --data to a `DataConfig`.

    llvip                      a published set, with its folder as root
    data.yaml                  a description in a file; the keys below
    {reader: llvip, root: /d}  the same description on one line, which is how a training hands it on

Keys: `reader` (yolo by default, coco, or a published set), `path` or `root` (its folder; relative to the file's),
`names`, `thermal_contract`, `registration` (a file, relative to this one, or what it would hold), `split_file`
(published sets), and the folders of each split, which docs/datasets/own.md shows.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rscmd_model.datasets.coco import CocoPairs, load_coco
from rscmd_model.datasets.pairs import DataConfig, PairFiles, split_hash
from rscmd_model.datasets.published import PUBLISHED, open_published
from rscmd_model.datasets.yolo import YoloFolders
from rscmd_model.errors import UserError
from rscmd_model.files import whole_file
from rscmd_model.registration import Registration, load_registration
from rscmd_model.thermal import ThermalContract

_COMMON = ("reader", "path", "root", "names", "thermal_contract", "registration")
_PALETTE = "--palette-ok"  # of the command line, on its way into the thermal contract; no key of a file
_UNUSED = ("nc", "channels", "download", "license")  # ultralytics' own files have these


def data_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --data, --root and --split-file, which `open_data` takes."""
    parser.add_argument(
        "--data", required=required, help=f"data.yaml of the pairs, or a published set: {', '.join(PUBLISHED)}"
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="the folder a published set was unpacked to")
    parser.add_argument("--split-file", type=Path, metavar="FILE", help="another split of flir or m3fd")


def camera_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --registration and --palette-ok, which `open_data` takes."""
    parser.add_argument(
        "--registration", type=Path, metavar="FILE", help="registration.yaml of the pairs, see rscmd_model.register"
    )
    palette_argument(parser)


def palette_argument(parser: argparse.ArgumentParser) -> None:
    """Add --palette-ok."""
    parser.add_argument(
        "--palette-ok",
        action="store_true",
        help="take thermal images in a colour palette by their luma, which is no temperature (docs/thermal.md)",
    )


def open_data(
    spec: str | Path,
    root: Path | None = None,
    split_file: Path | None = None,
    registration: Path | None = None,
    palette_ok: bool = False,
) -> DataConfig:
    """Open a data set.

    Args:
        spec: name of a published set, path of a data.yaml, or a mapping on one line that begins with "{".
        root: the folder of the set, instead of the one that `spec` names.
        split_file: a list of splits instead of the published one.
        registration: a registration file instead of what `spec` says.
        palette_ok: take colour-palette thermal images, whatever `spec` says.

    Returns:
        its `spec` alone opens the same data again, from any folder.

    Raises:
        UserError: names what is missing or wrong.
    """
    spec = str(spec)
    given: dict[str, Any] = {}
    if root is not None:
        given["root"] = str(root.resolve())
    if split_file is not None:
        given["split_file"] = str(split_file.resolve())
    if registration is not None:
        given["registration"] = str(registration.resolve())
    if palette_ok:
        given[_PALETTE] = True
    if spec in PUBLISHED:
        if root is None:
            raise UserError(f"--data {spec} needs --root DIR, the folder the set was unpacked to")
        return _from_mapping({"reader": spec, **given}, Path(), f"--data {spec}", None)
    if spec.lstrip().startswith("{"):
        return _from_mapping({**_parse(spec, f"--data {spec}"), **given}, Path(), f"--data {spec}", None)
    file = Path(spec)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        hint = "" if file.suffix or file.exists() else f"; published sets are {', '.join(PUBLISHED)}"
        raise UserError(f"cannot read {file}: {error.strerror}{hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not YAML: {error}") from None
    mapping = _parse(text, str(file))
    if given:
        mapping = {k: v for k, v in mapping.items() if k != "path" or "root" not in given}
    return _from_mapping({**mapping, **given}, file.resolve().parent, str(file), None if given else file.resolve())


def write_description(data: DataConfig, pairs: Mapping[str, Sequence[PairFiles]], file: Path) -> None:
    """Keep beside results what they were made of: a data.yaml that opens the same data, and the count of each split."""
    lines = ["# The data of this run, resolved; --data takes this file."]
    lines += [f"# {split}: {len(found)} pairs, split hash {split_hash(found)}" for split, found in pairs.items()]
    lines += [f"# classes: {', '.join(data.names.values())}", yaml.safe_dump(data.resolved, sort_keys=False)]
    with whole_file(file) as aside:
        aside.write_text("\n".join(lines), encoding="utf-8")


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected keys such as path, train, val, thermal and names")
    return data


def _from_mapping(data: dict[str, Any], base: Path, where: str, file: Path | None) -> DataConfig:
    """`base`: what relative folders start from; `where`: for messages; `file`: the data.yaml when it says it all."""
    palette_ok = _PALETTE in data
    data = {k: v for k, v in data.items() if k != _PALETTE}
    reader = str(data.get("reader", "yolo"))
    if reader not in ("yolo", "coco", *PUBLISHED):
        near = difflib.get_close_matches(reader, ("yolo", "coco", *PUBLISHED), 1)
        hint = f"did you mean {near[0]}?" if near else f"there are yolo, coco, {', '.join(PUBLISHED)}"
        raise UserError(f"{where}: no reader {reader!r}; {hint}")
    if "path" in data and "root" in data:
        raise UserError(f"{where}: path and root mean the same; give one of them")
    root = (base / str(data.get("root", data.get("path", ".")))).resolve()
    if reader in PUBLISHED:
        _known(data, (*_COMMON, "split_file"), where)
        if "names" in data:
            raise UserError(f"{where}: {reader} has its own class names, so 'names' does not belong here")
        if "root" not in data and "path" not in data:
            raise UserError(f"{where}: {reader} needs root, the folder it was unpacked to")
        split_file = (base / str(data["split_file"])).resolve() if data.get("split_file") else None
        if split_file:
            data = {**data, "split_file": str(split_file)}
        config = open_published(reader, root, split_file)
    elif reader == "coco":
        config = _coco(data, root, where)
    else:
        config = _yolo(data, root, where)
    contract = config.thermal_contract
    if "thermal_contract" in data:
        contract = ThermalContract.from_dict(data["thermal_contract"])
    if palette_ok:
        contract = replace(contract, palette_ok=True)
    registration = _registration(data.get("registration"), base, where)
    config = replace(config, thermal_contract=contract, registration=registration)
    rest = {k: v for k, v in data.items() if k not in (*_COMMON, *_UNUSED) or k == "names"}
    resolved = {"reader": reader, "root": str(config.root), **rest, "thermal_contract": contract.to_dict()}
    if registration is not None:
        resolved["registration"] = registration.to_dict()
    line = yaml.safe_dump(resolved, default_flow_style=True, width=10**9, sort_keys=False).strip()
    return replace(config, spec=str(file) if file else line, resolved=resolved)


def _registration(given: Any, base: Path, where: str) -> Registration | None:
    if given is None:
        return None
    if isinstance(given, str):
        return load_registration(base / given)
    try:
        return Registration.from_dict(given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _yolo(data: dict[str, Any], root: Path, where: str) -> DataConfig:
    names = _names(data.get("names"), where)
    thermal = data.get("thermal")
    if not isinstance(thermal, dict) or not thermal:
        raise UserError(
            f"{where}: thermal must give a folder for each split, as in 'thermal: {{train: thermal/train}}'"
        )
    _known(data, (*_COMMON, "thermal", "train", "val", "test", *map(str, thermal)), where)
    for split in ("train", "val", "test"):
        if data.get(split) is not None and split not in thermal:
            raise UserError(f"{where}: split {split!r} has a visible folder and no thermal one")
    folders = []
    for split, folder in thermal.items():
        if not isinstance(data.get(split), str) or not isinstance(folder, str):
            raise UserError(f"{where}: split {split!r} needs a visible folder ('{split}: ...') and a thermal one")
        folders.append((str(split), root / data[split], root / folder, root / "labels" / str(split)))
    return _own(root, names, tuple(row[0] for row in folders), YoloFolders(tuple(folders)))


def _coco(data: dict[str, Any], root: Path, where: str) -> DataConfig:
    _known(data, (*_COMMON, "visible", "thermal", "annotations"), where)
    parts = [data.get(key) for key in ("visible", "thermal", "annotations")]
    same = all(isinstance(part, dict) and part and part.keys() == (parts[0] or {}).keys() for part in parts)
    if not same or not all(isinstance(value, str) for part in parts for value in (part or {}).values()):
        raise UserError(
            f"{where}: visible, thermal and annotations each need an entry for the same splits, as in "
            "'annotations: {train: train.json, val: val.json}'"
        )
    visible, thermal, files = (part or {} for part in parts)
    splits = tuple((str(s), root / visible[s], root / thermal[s], root / files[s]) for s in files)
    names = data.get("names")
    if names is None:  # of the first file; another order of ids elsewhere does no harm, since names decide
        names = list(load_coco(splits[0][3])[1])
    return _own(root, _names(names, where), tuple(row[0] for row in splits), CocoPairs(splits))


def _own(root: Path, names: dict[int, str], splits: tuple[str, ...], reader: YoloFolders | CocoPairs) -> DataConfig:
    return DataConfig("", root.name, root, names, ThermalContract(), splits, reader)


def _names(names: Any, where: str) -> dict[int, str]:
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or sorted(names, key=str) != sorted(range(len(names)), key=str) or not names:
        raise UserError(f"{where}: names must list the classes, as in 'names: {{0: person, 1: car}}'")
    named = {int(number): str(names[number]) for number in range(len(names))}
    if len(set(named.values())) < len(named):
        raise UserError(f"{where}: names has a class twice: {', '.join(named.values())}")
    return named


def _known(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in map(str, data):
        if key not in known and key not in _UNUSED:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
