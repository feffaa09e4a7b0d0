"""Writers of the four published layouts in tiny form, names and folders exactly as the sets unpack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import DataConfig

Object = tuple[str, float, float, float, float]  # class name, xmin, ymin, xmax, ymax in px
TRAIN = ("00011", "00012", "00013", "00014")
VAL = ("00021", "00022")


def picture(name: str, size: tuple[int, int], channels: int) -> np.ndarray:
    """A smooth picture that `name` alone decides, so that no two pairs are alike; `size` is (width, height)."""
    rng = np.random.default_rng(np.frombuffer(f"{name:>24}".encode(), np.uint8))
    coarse = rng.integers(0, 256, (6, 8, channels), np.uint8)
    image = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    return image.reshape(size[1], size[0], channels)


def write_image(file: Path, name: str, size: tuple[int, int] = (40, 32), grey: bool = False) -> None:
    """A visible image, or a thermal one as these sets have it: grey in three equal channels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = picture(f"t{name}", size, 1).repeat(3, axis=2) if grey else picture(f"v{name}", size, 3)
    assert cv2.imwrite(str(file), image)


def voc(objects: Sequence[Object], size: tuple[int, int] = (40, 32)) -> str:
    """A VOC XML file."""
    parts = [f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"]
    for name, *box in objects:
        edges = zip(("xmin", "ymin", "xmax", "ymax"), box)
        corners = "".join(f"<{edge}>{value:g}</{edge}>" for edge, value in edges)
        parts.append(f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>")
    return f"<annotation><filename>x.jpg</filename>{''.join(parts)}</annotation>"


def write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def flir(root: Path) -> Path:
    """FLIR-aligned; the two lists differ in how they name an image, as copies of the set do."""
    for stem in (*TRAIN, *VAL):
        write_image(root / f"JPEGImages/FLIR_{stem}_RGB.jpg", stem)
        write_image(root / f"JPEGImages/FLIR_{stem}_PreviewData.jpeg", stem, grey=True)
        objects = [("car", 4, 4, 20, 14), ("person", 24, 8, 30, 28)]
        write_text(root / f"Annotations/FLIR_{stem}_PreviewData.xml", voc(objects))
    write_text(root / "align_train.txt", "".join(f"FLIR_{stem}_PreviewData\n" for stem in TRAIN))
    write_text(root / "align_validation.txt", "".join(f"FLIR_{stem}\r\n" for stem in VAL))
    return root


def llvip(root: Path) -> Path:
    """LLVIP: one XML for both images of a pair, in one folder for both splits."""
    for folder, stems in (("train", TRAIN), ("test", VAL)):
        for stem in stems:
            write_image(root / f"visible/{folder}/0{stem}.jpg", stem)
            write_image(root / f"infrared/{folder}/0{stem}.jpg", stem, grey=True)
            write_text(root / f"Annotations/0{stem}.xml", voc([("person", 4, 4, 12, 28), ("person", 20, 2, 30, 30)]))
    return root


def m3fd(root: Path) -> Path:
    """M3FD: one folder, no split; two sizes, one of them small."""
    for number, stem in enumerate((*TRAIN, *VAL)):
        size = (40, 30) if number % 2 else (25, 18)
        write_image(root / f"Vis/{stem}.png", stem, size)
        write_image(root / f"Ir/{stem}.png", stem, size, grey=True)
        objects = [("Lamp", 2, 2, 10, 12), ("People", 12, 4, 20, 16)]
        write_text(root / f"Annotation/{stem}.xml", voc(objects, size))
    return root


def mfad(root: Path) -> Path:
    """MFAD: YOLO text files, whose numbers go by the order of the set's own yaml file."""
    for folder, stems in (("train", TRAIN), ("test", VAL)):
        for stem in stems:
            write_image(root / f"visible/{folder}/{stem}.png", stem, (40, 30))
            write_image(root / f"infrared/{folder}/{stem}.png", stem, (40, 30), grey=True)
            write_text(root / f"labels/{folder}/{stem}.txt", "0 0.3 0.4 0.4 0.5\n4 0.7 0.5 0.2 0.6\n")
    return root


WRITERS = {"flir": flir, "llvip": llvip, "m3fd": m3fd, "mfad": mfad}


def open_tiny(name: str, root: Path) -> DataConfig:
    """Write the layout `name` into `root` and open it; M3FD with a list of its few pairs, outside its folder."""
    WRITERS[name](root)
    split_file = None
    if name == "m3fd":
        split_file = root.parent / "m3fd_split.txt"
        lines = [f"train {TRAIN[0]} {TRAIN[-1]}", *(f"val {stem}" for stem in VAL)]
        write_text(split_file, "\n".join(lines))
    return open_data(name, root, split_file)
