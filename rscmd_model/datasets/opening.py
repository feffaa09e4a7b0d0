"""From what a user writes after --data to a `DataConfig`.

    llvip                      a published set, with its folder as root
    data.yaml                  a description in a file; the keys below. A folder means the data.yaml in it
    {reader: llvip, root: /d}  the same description on one line, which is how a training hands it on

The keys are those of `description.py`; docs/datasets/own.md shows them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rscmd_model.datasets.description import PALETTE, describe, parse_description
from rscmd_model.datasets.pairs import DataConfig, PairFiles, split_hash
from rscmd_model.datasets.published import PUBLISHED
from rscmd_model.datasets.replay import PAIRS
from rscmd_model.datasets.teaching import CHOICES
from rscmd_model.errors import UserError
from rscmd_model.files import whole_file
from rscmd_model.text import read_text


def data_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --data, --root and --split-file, which `open_given` reads.

    Args:
        parser: of a command.
        required: whether --data must be given.
    """
    parser.add_argument(
        "--data", required=required, help=f"data.yaml of the pairs, or a published set: {', '.join(PUBLISHED)}"
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="the folder a published set was unpacked to")
    parser.add_argument("--split-file", type=Path, metavar="FILE", help="another split of flir or m3fd")


def camera_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --registration and --palette-ok, which `open_given` reads."""
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


def teaching_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --teach and --confidence, which `open_given` reads."""
    parser.add_argument(
        "--teach",
        choices=CHOICES,
        help="what an answer of one camera learns from where no person drew the labels: those that its own camera saw, "
        "or those of both (default: as data.yaml has it)",
    )
    parser.add_argument(
        "--confidence",
        choices=("on", "off"),
        help="whether labels that no person drew teach as much as their scores say (default: as data.yaml has it)",
    )


def replay_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --replay and --replay-pairs, which `open_given` reads."""
    parser.add_argument(
        "--replay", metavar="DATA", help="data.yaml of an earlier site, some of whose train pairs are trained on, too"
    )
    parser.add_argument("--replay-pairs", type=int, metavar="N", help=f"with --replay: how many (default: {PAIRS})")


def open_given(args: argparse.Namespace) -> DataConfig:
    """Open the data that a command line names by `data_arguments` and the other functions here that add arguments.

    Args:
        args: parsed; it may lack all but those of `data_arguments`.

    Raises:
        UserError: as `open_data`; or a number of pairs to replay without a set, or less than 1.
    """
    replay, count = getattr(args, "replay", None), getattr(args, "replay_pairs", None)
    if count is not None and (replay is None or count < 1):
        raise UserError("--replay-pairs says how many pairs of --replay DATA are trained on, 1 or more: give both")
    replayed = None if replay is None else (replay, PAIRS if count is None else count)
    registration, palette_ok = getattr(args, "registration", None), getattr(args, "palette_ok", False)
    teach, confidence = getattr(args, "teach", None), getattr(args, "confidence", None)
    sure = None if confidence is None else confidence == "on"
    return open_data(args.data, args.root, args.split_file, registration, palette_ok, teach, sure, replayed)


def open_data(
    spec: str | Path,
    root: Path | None = None,
    split_file: Path | None = None,
    registration: Path | None = None,
    palette_ok: bool = False,
    teach: str | None = None,
    confidence: bool | None = None,
    replay: tuple[str, int] | None = None,
) -> DataConfig:
    """Open a data set.

    Args:
        spec: name of a published set, path of a data.yaml or of its folder, or a mapping on one line that begins with
            "{".
        root: the folder of the set, instead of the one that `spec` names.
        split_file: a list of splits instead of the published one.
        registration: a registration file instead of what `spec` says.
        palette_ok: take colour-palette thermal images, whatever `spec` says.
        teach, confidence: as in `Teaching`, instead of what `spec` says.
        replay: `spec` of an earlier site's data and how many of its pairs, instead of what `spec` says.

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
        given[PALETTE] = True
    if teach is not None:
        given["teach"] = teach
    if confidence is not None:
        given["confidence"] = confidence
    if replay is not None:
        earlier = replay[0] if replay[0].lstrip().startswith("{") else str(Path(replay[0]).resolve())
        given["replay"] = {"data": earlier, "pairs": replay[1]}
    if spec in PUBLISHED:
        if root is None:
            raise UserError(f"--data {spec} needs --root DIR, the folder the set was unpacked to")
        return describe({"reader": spec, **given}, Path(), f"--data {spec}", None)
    if spec.lstrip().startswith("{"):
        where = f"--data {spec}" if len(spec) < 200 and spec.isprintable() else "--data {...}"
        return describe({**_parse(spec, where), **given}, Path(), where, None)
    within = os.path.join(spec, "data.yaml")
    file = Path(within if os.path.isfile(within) else spec)
    try:
        text = read_text(file)
    except UserError as error:
        hint = "" if file.suffix or os.path.exists(file) else f"; published sets are {', '.join(PUBLISHED)}"
        raise UserError(f"{error}{hint}") from None
    mapping = _parse(text, str(file))
    if given:
        mapping = {k: v for k, v in mapping.items() if k != "path" or "root" not in given}
    return describe({**mapping, **given}, file.resolve().parent, str(file), None if given else file.resolve())


def write_description(data: DataConfig, pairs: Mapping[str, Sequence[PairFiles]], file: Path) -> None:
    """Keep beside results what they were made of.

    Args:
        data: the data set.
        pairs: by split.
        file: a data.yaml that opens the same data. Comments in it count the pairs of each split.

    Raises:
        UserError: the file cannot be written.
    """
    lines = ["# The data of this run, resolved; --data takes this file."]
    lines += [f"# {split}: {len(found)} pairs, split hash {split_hash(found)}" for split, found in pairs.items()]
    lines += [f"# classes: {', '.join(data.names.values())}", yaml.safe_dump(data.resolved, sort_keys=False)]
    with whole_file(file) as aside:
        aside.write_text("\n".join(lines), encoding="utf-8")


def _parse(text: str, where: str) -> dict[str, Any]:
    data = parse_description(text, where)
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected keys such as path, train, val, thermal and names")
    return data
