"""The folder of a labelled set: pairs of pictures, their label files and sidecars, and the data.yaml by which it opens.

`visible/SPLIT/STEM.jpg`, `thermal/SPLIT/STEM.png`, `labels/SPLIT/STEM.txt` and `sidecars/SPLIT/STEM.json`. A thermal
picture has the camera's own counts, whatever their bits; nothing in the folder is laid over anything.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from rscmd_model.datasets.sidecars import Sidecar, label_text, read_sidecar, write_sidecar
from rscmd_model.errors import UserError
from rscmd_model.files import whole_file
from rscmd_model.imaging.images import IMAGE_SUFFIXES
from rscmd_model.imaging.registration import Registration
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.text import read_text

SPLITS = ("train", "val")
KINDS = ("visible", "thermal", "labels", "sidecars")
DESCRIPTION = "data.yaml"
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class LabelledPair:
    """Where the files of a pair lie.

    Attributes:
        split: "train" or "val".
        stem: of the names of its files.
        visible, thermal, labels, sidecar: the files; a label file or a sidecar need not be there.
    """

    split: str
    stem: str
    visible: Path
    thermal: Path
    labels: Path
    sidecar: Path

    @property
    def text(self) -> str:
        """What stands in the label file; empty where there is none.

        Raises:
            UserError: it cannot be read.
        """
        return read_text(self.labels) if self.labels.exists() else ""

    @property
    def touched(self) -> bool:
        """Whether a person made or changed its labels. A pair without a sidecar is a person's.

        Raises:
            UserError: its label file or sidecar cannot be read.
        """
        return not self.sidecar.exists() or read_sidecar(self.sidecar).touched(self.text)


class LabelSet:
    """A labelled set in a folder; see the module.

    Args:
        folder: of the set; it is made where something is written.
        png: visible pictures are written as PNG, without loss, and not as JPEG.
    """

    def __init__(self, folder: Path, png: bool = False) -> None:
        self.folder, self.png = folder, png

    def pair(self, split: str, stem: str) -> LabelledPair:
        """Where the files of a pair lie, or will lie."""
        suffixes = (".png" if self.png else ".jpg", ".png", ".txt", ".json")
        files = (self.folder / kind / split / f"{stem}{suffix}" for kind, suffix in zip(KINDS, suffixes))
        return LabelledPair(split, stem, *files)

    def pairs(self) -> Iterator[LabelledPair]:
        """The pairs that are there, by split and stem, whatever the format of their pictures.

        A picture without a partner is passed over.
        """
        for split in SPLITS:
            thermal = _by_stem(self.folder / "thermal" / split)
            for stem, visible in sorted(_by_stem(self.folder / "visible" / split).items()):
                if stem in thermal:
                    usual = self.pair(split, stem)
                    yield LabelledPair(split, stem, visible, thermal[stem], usual.labels, usual.sidecar)

    def write_pictures(self, split: str, stem: str, visible: np.ndarray, thermal: np.ndarray) -> None:
        """Write the pictures of a pair, each whole.

        Args:
            split: "train" or "val".
            stem: of the files.
            visible: (H, W, 3) uint8 BGR.
            thermal: (h, w) uint8 or uint16, the camera's counts.

        Raises:
            UserError: one cannot be written.
        """
        pair = self.pair(split, stem)
        quality = [] if self.png else [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        for file, picture, options in ((pair.visible, visible, quality), (pair.thermal, thermal, [])):
            done, data = cv2.imencode(file.suffix, picture, options)
            if not done:
                raise UserError(f"cannot write {file}: a picture of {picture.shape[1]}x{picture.shape[0]} px")
            with whole_file(file) as aside:
                aside.write_bytes(data.tobytes())

    def write_labels(self, split: str, stem: str, sidecar: Sidecar) -> None:
        """Write the label file of a pair and its sidecar, each whole.

        Raises:
            UserError: one cannot be written.
        """
        pair = self.pair(split, stem)
        with whole_file(pair.labels) as aside:
            aside.write_text(label_text(sidecar), encoding="utf-8")
        write_sidecar(pair.sidecar, sidecar)

    def write_description(
        self, names: Mapping[int, str], contract: ThermalContract, registration: Registration | None
    ) -> None:
        """Write data.yaml, by which the set is opened.

        Args:
            names: class names by number.
            contract: of the thermal pictures.
            registration: where thermal pixels lie in the visible pictures; None: both show the same view.

        Raises:
            UserError: it cannot be written.
        """
        content: dict[str, Any] = {
            "path": ".",
            **{split: f"visible/{split}" for split in SPLITS},
            "thermal": {split: f"thermal/{split}" for split in SPLITS},
            "names": dict(names),
            "thermal_contract": contract.to_dict(),
            "sidecars": "sidecars",
        }
        if registration is not None:
            content["registration"] = registration.to_dict()
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
        with whole_file(self.folder / DESCRIPTION) as aside:
            aside.write_text(text, encoding="utf-8")

    def tidy(self, stems: Mapping[str, str]) -> None:
        """Make the folders, and remove what a run that was broken off has left in them.

        Args:
            stems: the pairs that belong to the set, stem -> split; files of others are removed.

        Raises:
            UserError: a folder cannot be made, or a file not removed.
        """
        try:
            for aside in self.folder.glob(".*.partial*"):
                aside.unlink()
            for kind in KINDS:
                for split in SPLITS:
                    folder = self.folder / kind / split
                    folder.mkdir(parents=True, exist_ok=True)
                    for file in folder.iterdir():
                        if stems.get(file.stem) != split:
                            file.unlink()
        except OSError as error:
            raise UserError(f"cannot write into {self.folder}: {error.strerror or error}") from None

    def take(self, pair: LabelledPair) -> None:
        """Take over a pair of another set with all its files, in place of this set's pair of that stem.

        Args:
            pair: of the other set, on the same file system or not.

        Raises:
            UserError: it cannot be read or written.
        """
        ours = self.pair(pair.split, pair.stem)
        for split in SPLITS:
            for kind in KINDS:
                if old := _by_stem(self.folder / kind / split, any_suffix=True).get(pair.stem):
                    old.unlink()
        for theirs, to in (
            (pair.visible, ours.visible.with_suffix(pair.visible.suffix)),
            (pair.thermal, ours.thermal.with_suffix(pair.thermal.suffix)),
            (pair.labels, ours.labels),
            (pair.sidecar, ours.sidecar),
        ):
            if theirs.exists():
                link_or_copy(theirs, to)


def stem_of(stamp: int) -> str:
    """The stem of a pair: the header stamp of its visible frame in ns, 19 digits."""
    return f"{stamp:019d}"


def link_or_copy(file: Path, to: Path) -> None:
    """Give a file a second name, or copy it where the file system has one name for each.

    Raises:
        UserError: it cannot be written.
    """
    with whole_file(to) as aside:
        try:
            os.link(file, aside)
        except OSError:
            shutil.copyfile(file, aside)


def _by_stem(folder: Path, any_suffix: bool = False) -> dict[str, Path]:
    """The pictures in a folder, or all its files, by stem; hidden ones are passed over."""
    if not folder.is_dir():
        return {}
    return {
        file.stem: file
        for file in sorted(folder.iterdir())
        if not file.name.startswith(".") and (any_suffix or file.suffix.lower() in IMAGE_SUFFIXES)
    }
