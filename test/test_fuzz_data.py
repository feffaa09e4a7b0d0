"""Spoilt label files, lists and descriptions: each is read, or its problems are listed, or one line names the file.

Never a traceback, never more time or memory than the file's size accounts for.
"""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import examples, mutated, odd_json

from rscmd_model.datasets import coco, cvat, folders, label_studio
from rscmd_model.datasets.entries import Listed
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import Labels, list_pairs
from rscmd_model.datasets.published import read_split_file
from rscmd_model.datasets.unused import find_unused, list_all, problems_of
from rscmd_model.datasets.voc import read_voc
from rscmd_model.datasets.yolo import read_yolo
from rscmd_model.errors import UserError
from rscmd_model.imaging.picked_points import read_points
from rscmd_model.imaging.registration import load_registration
from rscmd_ros.bags.truth import truth_from_file

NAMES = {0: "person", 1: "car"}
YOLO = b"0 0.5 0.5 0.2 0.4\n1 0.25 0.25 0.125 0.5\r\n1 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4\n"
VOC = (
    b"<?xml version='1.0' encoding='utf-8'?><annotation><size><width>40</width><height>32</height></size><object>"
    b"<name>car</name><bndbox><xmin>4</xmin><ymin>4</ymin><xmax>20</xmax><ymax>14.5</ymax></bndbox></object></annotation>"
)
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 32, "stamp": 5}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [4, 4, 16.5, 10], "iscrowd": 0}],
    "categories": [{"id": 3, "name": "car"}],
}
CVAT = (
    b"<annotations><version>1.1</version><meta><task><labels><label><name>car</name></label></labels></task></meta>"
    b"<image id='0' name='a.png' width='40' height='32'>"
    b"<box label='car' xtl='4' ytl='4' xbr='20' ybr='14' rotation='30'/><polygon label='car' points='1,2;5.5,2;3,9'/>"
    b"<ellipse label='car' cx='9' cy='9' rx='3' ry='2'/><mask label='car' left='3' top='4' width='5' height='6'/>"
    b"<points label='car' points='3,4'/></image>"
    b"</annotations>"
)
REGION = {
    "original_width": 40,
    "original_height": 32,
    "to_name": "image",
    "from_name": "label",
    "type": "rectanglelabels",
}
STUDIO = [
    {
        "id": 1,
        "data": {"image": "/data/upload/1/0123abcd-a.png"},
        "annotations": [
            {
                "was_cancelled": False,
                "result": [
                    {
                        **REGION,
                        "value": {
                            "x": 9,
                            "y": 9,
                            "width": 40,
                            "height": 30,
                            "rotation": 20,
                            "rectanglelabels": ["car"],
                        },
                    }
                ],
            }
        ],
    }
]
TREE = {
    "path": ".",
    "train": "visible/train",
    "thermal": {"train": "thermal/train"},
    "labels": {"train": {"visible": "labels/train", "thermal": "labels/train"}},
    "boxes": "union",
    "match_iou": 0.5,
    "names": {"0": "person", "1": "car"},
    "thermal_contract": {"source": "mono16", "scale": {"percentile": [1, 99]}},
    "registration": {
        "homography": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "thermal_size": [32, 24],
        "visible_size": [32, 24],
    },
}
FLIR = b"train 00011 00014\nval 00021  # one\nval 00022\n"
POINTS = b"x_thermal;y_thermal;x_visible;y_visible\n# by hand\n1;2;3;4\n5.5, 6, 7, 8\n"
LISTS = b"visible/train/a.png\n./visible/train/b.png\n"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of two tiny pairs with labels; the tests put their spoilt files beside them."""
    root = tmp_path_factory.mktemp("fuzz")
    for kind in ("visible", "thermal", "labels"):
        (root / kind / "train").mkdir(parents=True)
    for stem in ("a", "b"):
        cv2.imwrite(str(root / f"visible/train/{stem}.png"), np.zeros((24, 32, 3), np.uint8))
        cv2.imwrite(str(root / f"thermal/train/{stem}.png"), np.zeros((24, 32), np.uint16))
        (root / f"labels/train/{stem}.txt").write_bytes(YOLO)
    (root / "thermal.txt").write_text("thermal/train/a.png\nthermal/train/b.png\n")
    return root


def sound_labels(labels: Labels) -> None:
    assert labels.boxes.dtype == np.float32
    assert np.isfinite(labels.boxes).all()
    assert (labels.boxes[:, 1:] >= 0).all()
    assert (labels.boxes[:, 1:] <= 1).all()
    assert set(labels.boxes[:, 0]) <= set(NAMES)
    for problem in labels.problems:
        assert "\n" not in problem.text


def sound_listed(listed: Listed) -> None:
    for entry in listed.images.values():
        assert entry.size is None or min(entry.size) > 0


def opened(file: Path) -> None:
    """A description, and all that is done with it before pictures are decoded."""
    data = open_data(file)
    assert all(name.isprintable() for name in data.names.values())
    assert open_data(data.spec).names == data.names
    listings = list_all(data)
    for listing in listings.values():
        for pair in listing.pairs:
            sound_labels(data.reader.labels(pair, NAMES))
    problems_of(find_unused(data, listings))


def listed_by(form: str) -> Callable[[Path], None]:
    def read(file: Path) -> None:
        images = "visible: {train: visible/train}, thermal: {train: thermal/train}, names: [person, car]"
        text = f"{{reader: {form}, path: {file.parent}, {images}, annotations: {{train: {file.name}}}}}"
        data = open_data(text)
        for pair in list_pairs(data, "train").pairs:
            sound_labels(data.reader.labels(pair, NAMES))

    return read


def from_lists(file: Path) -> None:
    data = open_data(
        f"{{path: {file.parent}, train: {file.name}, thermal: {{train: thermal.txt}}, names: [person, car]}}"
    )
    list_pairs(data, "train")


READERS: dict[str, tuple[str, bytes, Callable[[Path], Any]]] = {
    "yolo": ("x.txt", YOLO, lambda file: sound_labels(read_yolo(file, NAMES))),
    "voc": ("x.xml", VOC, lambda file: sound_labels(read_voc(file, NAMES))),
    "coco": ("coco.json", json.dumps(COCO).encode(), listed_by("coco")),
    "cvat": ("cvat.xml", CVAT, listed_by("cvat")),
    "label_studio": ("studio.json", json.dumps(STUDIO).encode(), listed_by("label_studio")),
    "description": ("data.yaml", json.dumps(TREE).encode(), opened),
    "splits": ("splits.txt", FLIR, read_split_file),
    "lists": ("visible.txt", LISTS, from_lists),
    "registration": ("r.yaml", json.dumps(TREE["registration"]).encode(), load_registration),
    "points": ("points.csv", POINTS, read_points),
    "truth": ("truth.json", json.dumps(COCO).encode(), truth_from_file),
}


def attempt(file: Path, content: bytes, read: Callable[[Path], Any]) -> str | None:
    """What a reader says of this content when it refuses it: one line of bounded length that names the file."""
    file.write_bytes(content)
    try:
        read(file)
    except UserError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 3000
        assert file.name in text or "/" in text  # the file, or the folder that it names
        return text
    return None


@pytest.fixture(autouse=True)
def small_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may turn into that of the whole disk, which is not to be walked through here."""
    monkeypatch.setattr(folders, "_MOST", 500)


def test_the_root_of_a_disk_is_not_walked_through(room: Path) -> None:
    sound = json.dumps({**TREE, "train": "/"}).encode()
    (room / "data.yaml").write_bytes(sound)
    with pytest.raises(UserError, match=r"/ has more than 500 entries below it: is it the folder of the images\?"):
        list_pairs(open_data(room / "data.yaml"), "train")


@pytest.mark.parametrize("kind", READERS)
def test_what_is_sound_is_read(kind: str, room: Path) -> None:
    name, sound, read = READERS[kind]
    for content in (sound, b"\xef\xbb\xbf" + sound, sound.replace(b"\n", b"\r\n")):
        assert attempt(room / name, content, read) is None


@pytest.mark.parametrize("kind", READERS)
@examples(25)
@given(data=st.data())
def test_damaged_text(kind: str, room: Path, data: st.DataObject) -> None:
    name, sound, read = READERS[kind]
    attempt(room / name, data.draw(mutated(sound)), read)


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within a tree of mappings and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


def with_value(tree: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    changed = dict(tree) if isinstance(tree, dict) else list(tree)
    changed[at[0]] = with_value(tree[at[0]], at[1:], value)
    return changed


ODD = (
    odd_json()
    | st.sampled_from(
        ("on", "no", "2026-11-26", "007", "1e3", "~", "../..", "/", "", ".", "\0", "a" * 300, "é\u2028", "x\ny")
    )
    | st.just("\ud800")
    | st.sampled_from((math.nan, math.inf, -math.inf, 1e308, -1e-300, [math.nan] * 4, [1e308] * 4))
)


@pytest.mark.parametrize("kind", ["coco", "label_studio", "description", "registration", "truth"])
@examples(40)
@given(data=st.data())
def test_odd_values(kind: str, room: Path, data: st.DataObject) -> None:
    name, sound, read = READERS[kind]
    tree = json.loads(sound)
    for _ in range(data.draw(st.integers(1, 2))):
        tree = with_value(tree, data.draw(st.sampled_from(places(tree))), data.draw(ODD))
    attempt(room / name, json.dumps(tree).encode(), read)


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)
)
ENTITIES = "<!DOCTYPE a [<!ENTITY e0 'x'>" + "".join(f"<!ENTITY e{i} '{f'&e{i - 1};' * 10}'>" for i in range(1, 12))
BOMBS = {
    "aliases": ("description", f"{ALIASES}names: *a11\ntrain: v\nthermal: {{train: t}}", "aliases"),
    "merged aliases": (
        "description",
        "a: &a {b: 1}\nc: &c {<<: [" + "*a, " * 400 + "]}\nnames: {<<: [*c, *c]}",
        "names",
    ),
    "an alias of itself": ("description", "names: &n [*n]\ntrain: v\nthermal: {train: t}", ""),
    "deep YAML": ("description", "names: " + "[" * 300, "too deep"),
    "deep registration": ("registration", "{a: " * 2000, "too deep"),
    "a date that is none": ("registration", "homography: 2026-13-45", "cannot be read|is out of range|month"),
    "a key twice": ("description", "train: v\ntrain: w\nnames: [x]\nthermal: {train: t}", "'train' stands there twice"),
    "entities": ("voc", f"{ENTITIES}]><annotation>&e11;</annotation>", None),
    "entities in CVAT": ("cvat", f"{ENTITIES}]><annotations>&e11;</annotations>", "document type"),
    "deep XML": ("cvat", "<annotations>" + "<a>" * 30_000 + "</a>" * 30_000 + "</annotations>", "lists no image"),
    "deep JSON": ("coco", '{"images": ' + "[" * 200_000, "too deep|no readable"),
    "a deep truth": ("truth", "[" * 200_000, "too deep|no readable"),
    "a number without end": ("coco", '{"images": ' + "9" * 10_000 + "}", "is no"),
    "a run without end": ("splits", "train 000000000000 999999999999", "line 1: expected"),
    "runs without end": ("splits", "".join(f"s{i} 000000 099999\n" for i in range(4)), "more than"),
    "a superscript run": ("splits", "train ² ³", "line 1: expected"),
    "many boxes": ("yolo", "0 0.5 0.5 0.1 0.1\n" * 50_000, None),
    "a long name": ("description", f"names: [{'x' * 20_000}]\ntrain: v\nthermal: {{train: t}}", "a name is wanted"),
    "a long key": (
        "description",
        f"names: [x]\ntrain: v\nthermal: {{train: t}}\n? {'k' * 20_000}\n: 1",
        "unknown key",
    ),
    "half a character": (
        "description",
        'path: "\\ud800"\ntrain: v\nthermal: {train: t}\nnames: [x]',
        "is no path",
    ),
    "half a character in a list": ("description", json.dumps({**TREE, "train": "\ud800"}), "is no path"),
    "megabytes of YAML": ("description", "names: [x]\n" + "#" * 2_000_000, "more than 1 MiB"),
    "UTF-16": ("description", "names: [x]\n".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
    "UTF-16 without its mark": ("splits", "train 1\n".encode("utf-16-le"), "zero bytes, as UTF-16 has"),
    "Latin-1": ("lists", "größe/a.png\n".encode("latin-1"), "is not UTF-8 text"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb: str, room: Path) -> None:
    """What is small on disk stays small in time and memory."""
    kind, text, says = BOMBS[bomb]
    name, _, read = READERS[kind]
    content = text if isinstance(text, bytes) else text.encode()
    started = time.thread_time()
    tracemalloc.start()
    try:
        said = attempt(room / name, content, read)
        assert tracemalloc.get_traced_memory()[1] < 200e6 + 100 * len(content)
    finally:
        tracemalloc.stop()
    assert time.thread_time() - started < 20
    if says is None:  # a label file's faults are problems
        labels = read_yolo(room / name, NAMES) if kind == "yolo" else read_voc(room / name, NAMES)
        assert [problem.kind for problem in labels.problems] == ["bad_label"]
    else:
        assert said is not None
        assert any(part in said for part in says.split("|"))


def test_every_form_says_what_it_reads(room: Path) -> None:
    for load, name in ((coco.load, "coco"), (cvat.load, "cvat"), (label_studio.load, "label_studio")):
        file, sound, _ = READERS[name]
        (room / file).write_bytes(sound)
        sound_listed(load(room / file))
