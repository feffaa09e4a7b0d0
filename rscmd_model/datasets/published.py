"""The four published data sets as they unpack: FLIR-aligned, LLVIP, M3FD and MFAD. docs/datasets/ has a page for each.

Layouts and names were checked against public loaders: voc2coco's FLIR and M3FD conversions, LLVIP's own toolbox,
DAMSDet's lists and EI2Det, which published MFAD. All four hold 8-bit thermal images (grey PNG or JPEG, one channel or
three equal ones), scaled by their authors; so the default contract takes the counts as they are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rscmd_model.datasets.folders import images_in
from rscmd_model.datasets.pairs import DataConfig, Labels, Listing, PairFiles, Place, Problem, match
from rscmd_model.datasets.voc import read_voc
from rscmd_model.datasets.yolo import YoloFolders
from rscmd_model.errors import UserError, quoted
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.text import read_text

# SHA-256 of the lists that come with this package.
_SHIPPED = {
    "m3fd": "80479828fdd2111b0db553c132081efc7324f527c828b05bb9dbec9fdf3e8ff3",
    "m3fd-damsdet": "1564ce3e926e1525c577bb1e5b5b68cb977b6d2a5f2fe9aaf87dbfb2ee250b60",
}
_MOST_OF_A_RUN = 100_000
_FOLDER = Path(__file__).parent / "splits"


@dataclass(frozen=True)
class VocPairs:
    """Images in folders, one VOC XML file for each pair (`Reader`).

    Attributes:
        folders: per split the visible and the thermal folder; both may be the same where suffixes tell them apart.
        annotations: the folder of the XML files.
        suffixes: what follows the pair's stem in the names of the visible image, the thermal image and the XML file.
        lists: per split the stems it holds; empty where the folders are the split.
    """

    folders: tuple[tuple[str, Path, Path], ...]
    annotations: Path
    suffixes: tuple[str, str, str] = ("", "", "")
    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def places(self) -> tuple[Place, ...]:
        """The folders of each split, and that of the XML files, which all splits share."""
        found = [Place(s, kind, f) for s, *pair in self.folders for kind, f in zip(("visible", "thermal"), pair)]
        return (*found, Place("", "labels", self.annotations, ".xml"))

    def unlisted(self) -> tuple[str, bool]:
        """A list leaves pairs out on purpose."""
        return "in the list of no split" if self.lists else "its name ends otherwise than those of the set", False

    def pairs(self, split: str) -> Listing:
        """The pairs of a split's list, or of its folders; each needs its XML file."""
        _, visible_folder, thermal_folder = next(row for row in self.folders if row[0] == split)
        visible, doubled = self._stems(visible_folder, self.suffixes[0])
        thermal, doubled_too = self._stems(thermal_folder, self.suffixes[1])
        problems = doubled if visible_folder == thermal_folder else [*doubled, *doubled_too]
        listed = dict(self.lists).get(split)
        if listed is not None:
            wanted = set(listed)
            visible, thermal = ({s: p for s, p in found.items() if s in wanted} for found in (visible, thermal))
            problems += [
                Problem("missing", visible_folder / stem, f"{stem} is listed, and neither of its images is there")
                for stem in sorted(wanted - set(visible) - set(thermal))
            ]
        stems, missing = match(visible, thermal)
        problems += missing
        pairs = []
        for stem in stems:
            label = self.annotations / f"{stem}{self.suffixes[2]}.xml"
            if label.is_file():
                pairs.append(PairFiles(stem, visible[stem], thermal[stem], label))
            else:
                problems.append(Problem("no_label", label, f"{label} is not there"))
        return Listing(tuple(pairs), tuple(problems))

    def labels(self, pair: PairFiles, names: Mapping[int, str]) -> Labels:
        """As `Reader.labels`, from the pair's XML file."""
        assert pair.label is not None
        return read_voc(pair.label, names)

    @staticmethod
    def _stems(folder: Path, suffix: str) -> tuple[dict[str, Path], list[Problem]]:
        images, problems = images_in(folder, deep=False)
        return {s.removesuffix(suffix): p for s, p in images.items() if s.endswith(suffix)}, problems


def open_flir(root: Path, lists: dict[str, tuple[str, ...]] | None) -> DataConfig:
    """FLIR-aligned of Zhang et al.; its boxes are drawn on the thermal images.

    Args:
        root: the unpacked set.
        lists: stems by split, in place of those that come with the set; or None.

    Raises:
        UserError: the folder does not hold that set, or its lists cannot be used.
    """
    root = _unpacked(root, "FLIR-aligned", "flir", "JPEGImages", "Annotations")
    images = root / "JPEGImages"
    if lists is None:
        files = {"train": root / "align_train.txt", "val": root / "align_validation.txt"}
        lists = {split: _flir_list(file) for split, file in files.items()}
        _disjoint(lists, str(root))
    reader = VocPairs(
        tuple((split, images, images) for split in lists),
        root / "Annotations",
        ("_RGB", "_PreviewData", "_PreviewData"),
        tuple(lists.items()),
    )
    # Its author counts 4128 pairs in train, the list and most papers 4129.
    return _published("flir", root, ("person", "car", "bicycle"), reader, tuple(lists))


def open_llvip(root: Path, lists: dict[str, tuple[str, ...]] | None) -> DataConfig:
    """LLVIP of Jia et al., split by folders; the folder test is the split val.

    Args:
        root: the unpacked set.
        lists: must be None.

    Raises:
        UserError: the folder does not hold that set, or lists are given.
    """
    root = _unpacked(root, "LLVIP", "llvip", "Annotations", "visible", "infrared")
    folders = tuple((s, root / "visible" / f, root / "infrared" / f) for s, f in (("train", "train"), ("val", "test")))
    if lists is not None:
        raise UserError("llvip is split by its folders, so --split-file is not for it")
    return _published(
        "llvip",
        root,
        ("person",),
        VocPairs(folders, root / "Annotations"),
        ("train", "val"),
        # The counts of the README that came with the set before 2023-02-21.
        old_boxes=(("train", 33648), ("val", 7931)),
    )


def open_m3fd(root: Path, lists: dict[str, tuple[str, ...]] | None, split: str = "m3fd") -> DataConfig:
    """M3FD of Liu et al., which has no official split.

    Args:
        root: the unpacked set.
        lists: stems by split, in place of a shipped list; or None.
        split: name of the shipped list.

    Raises:
        UserError: the folder does not hold that set, or the shipped list was changed.
    """
    root = _unpacked(root, "M3FD", "m3fd", "Vis", "Ir", "Annotation")
    if lists is None:
        lists = read_split_file(_FOLDER / f"{split.replace('-', '_')}.txt", _SHIPPED[split])
    folders = tuple((s, root / "Vis", root / "Ir") for s in lists)
    reader = VocPairs(folders, root / "Annotation", lists=tuple(lists.items()))
    names = ("People", "Car", "Bus", "Lamp", "Motorcycle", "Truck")
    return _published(split, root, names, reader, tuple(lists))


def open_mfad(root: Path, lists: dict[str, tuple[str, ...]] | None) -> DataConfig:
    """MFAD of Hu et al., split by folders; the folder test is the split val.

    Args:
        root: the unpacked set.
        lists: must be None.

    Raises:
        UserError: the folder does not hold that set, or lists are given.
    """
    root = _unpacked(root, "MFAD", "mfad", "visible", "infrared", "labels")
    if lists is not None:
        raise UserError("mfad is split by its folders, so --split-file is not for it")
    visible, infrared, labels = root / "visible", root / "infrared", root / "labels"
    folders = tuple(
        (split, visible / folder, infrared / folder, labels / folder)
        for split, folder in (("train", "train"), ("val", "test"))
    )
    # The order is that of the set's own yaml file, since its labels are numbers.
    names = ("Car", "Bus", "Truck", "Pedestrian", "Ebikerider", "Cyclist")
    return _published("mfad", root, names, YoloFolders(folders), ("train", "val"))


PUBLISHED = ("flir", "llvip", "m3fd", "m3fd-damsdet", "mfad")
_PAIRS = {
    "flir": (("train", (4129, 4128)), ("val", (1013,))),
    "llvip": (("train", (12025,)), ("val", (3463,))),
    "mfad": (("train", (9751,)), ("val", (2443,))),
}


def open_published(name: str, root: Path, split_file: Path | None = None) -> DataConfig:
    """One of `PUBLISHED` as it lies in `root` (or in the one folder that `root` holds).

    Args:
        name: which one; m3fd takes our scene-contiguous split, m3fd-damsdet that of DAMSDet's authors.
        root: the folder the set was unpacked to.
        split_file: a list of one's own, see `read_split_file`; for flir, m3fd and m3fd-damsdet.

    Raises:
        UserError: the folder does not hold that set; names what was looked for.
    """
    lists = read_split_file(split_file) if split_file else None
    if name.startswith("m3fd"):
        return open_m3fd(root, lists, name)
    return {"flir": open_flir, "llvip": open_llvip, "mfad": open_mfad}[name](root, lists)


def read_split_file(file: Path, sha256: str | None = None) -> dict[str, tuple[str, ...]]:
    """Read a list of splits: lines of "SPLIT STEM", or "SPLIT FIRST LAST" for a run of numbers; "#" begins a comment.

    Args:
        file: the list.
        sha256: what its bytes must hash to, or None.

    Returns:
        per split its stems, sorted.

    Raises:
        UserError: unreadable, changed, of another form, or a stem in two splits or twice in one.
    """
    text = read_text(file)
    if sha256 is not None and hashlib.sha256(text.encode()).hexdigest() != sha256:
        raise UserError(f"{file} is not the list that was shipped (its SHA-256 differs): install the package anew")
    lists: dict[str, list[str]] = {}
    count = 0
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        stems = _stems_of(words)
        if not stems:
            raise UserError(
                f"{file}, line {number}: expected 'SPLIT STEM', or 'SPLIT FIRST LAST' with numbers of as many digits, "
                f"up to {_MOST_OF_A_RUN} apart, got {quoted(line.strip())}"
            )
        lists.setdefault(words[0], []).extend(stems)
        count += len(stems)
        if count > 3 * _MOST_OF_A_RUN:
            raise UserError(f"{file}, line {number}: more than {3 * _MOST_OF_A_RUN} pairs")
    if not lists:
        raise UserError(f"{file} lists nothing")
    found = {split: tuple(sorted(stems)) for split, stems in lists.items()}
    _disjoint(found, str(file))
    return found


def _stems_of(words: list[str]) -> list[str]:
    """The stems that a line of a split list stands for; none for a line of another form."""
    if len(words) == 2:
        return [words[1]]
    if len(words) != 3 or len(words[1]) != len(words[2]):
        return []
    if not all(re.fullmatch(r"[0-9]{1,18}", word) for word in words[1:]):
        return []
    start, end = int(words[1]), int(words[2])
    return [f"{i:0{len(words[1])}d}" for i in range(start, end + 1)] if end - start <= _MOST_OF_A_RUN else []


def _flir_list(file: Path) -> tuple[str, ...]:
    """Stems FLIR_xxxxx of a split list, whose lines stand with or without the suffix of an image."""
    stems = []
    for word in read_text(file).split():
        found = re.fullmatch(r"(FLIR_\d+)(_PreviewData|_RGB)?(\.\w+)?", word)
        if not found:
            raise UserError(f"{file}: {quoted(word)} is no name of a FLIR image, such as FLIR_00002_PreviewData")
        stems.append(found[1])
    if not stems:
        raise UserError(f"{file} lists nothing")
    return tuple(sorted(stems))


def _disjoint(lists: dict[str, tuple[str, ...]], where: str) -> None:
    seen: dict[str, str] = {}
    for split, stems in lists.items():
        for stem in stems:
            if stem in seen:
                raise UserError(f"{where}: {stem} is listed twice (in {seen[stem]} and {split})")
            seen[stem] = split


def _unpacked(root: Path, title: str, page: str, *parts: str) -> Path:
    """The folder that holds `parts`: `root`, or the one folder in it that does."""
    if not root.is_dir():
        raise UserError(f"no folder {root}")
    here = [folder for folder in (root, *sorted(root.iterdir())) if all((folder / part).is_dir() for part in parts)]
    if not here or (here[0] != root and len(here) > 1):
        raise UserError(
            f"{root} does not hold {title} as it unpacks: looked for the folders {', '.join(parts)} "
            f"(docs/datasets/{page}.md shows the layout)"
        )
    return here[0]


def _published(
    name: str,
    root: Path,
    names: tuple[str, ...],
    reader: VocPairs | YoloFolders,
    splits: tuple[str, ...],
    old_boxes: tuple[tuple[str, int], ...] = (),
) -> DataConfig:
    return DataConfig(
        spec=name,
        name=name,
        root=root,
        names=dict(enumerate(names)),
        thermal_contract=ThermalContract("mono8", (0.0, 255.0)),
        splits=splits,
        reader=reader,
        tolerant=True,
        published=_PAIRS.get(name, ()),
        old_boxes=old_boxes,
    )
