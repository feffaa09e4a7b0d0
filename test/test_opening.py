"""What --data may be: a file, a line, another layout; and that each comes out as the same kind of thing."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from published_layouts import llvip, open_tiny, write_image
from test_pairs import write_world

from rscmd_model.datasets.check import check
from rscmd_model.datasets.opening import open_data, write_description
from rscmd_model.datasets.pairs import DataConfig, find_pairs, read_labels
from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract

DEEP = {"source": "mono16", "scale": {"percentile": [1, 99]}}


def write_coco(root: Path, **changes: Any) -> Path:
    """Two splits in COCO form; in val the categories have other numbers than in train."""
    for split, order in (("train", ("person", "car")), ("val", ("car", "person"))):
        images, notes = [], []
        for number, stem in enumerate(("a", "sub/b")):
            write_image(root / f"images/rgb/{split}/{stem}.jpg", split + stem)
            write_image(root / f"images/ir/{split}/{stem}.png", split + stem, grey=True)
            images.append({"id": number, "file_name": f"{stem}.jpg", "width": 40, "height": 32})
            note = {"image_id": number, "category_id": 3 + 4 * order.index("car"), "iscrowd": 0}
            notes.append({**note, "id": number, "bbox": [4, 8, 20, 16]})
        categories = [{"id": 3 + 4 * i, "name": name} for i, name in enumerate(order)]
        content = {"images": images, "annotations": notes, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
    data = {
        "reader": "coco",
        "visible": {"train": "images/rgb/train", "val": "images/rgb/val"},
        "thermal": {"train": "images/ir/train", "val": "images/ir/val"},
        "annotations": {"train": "train.json", "val": "val.json"},
        **changes,
    }
    (root / "data.yaml").write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return root / "data.yaml"


def edit(file: Path, change: dict[str, Any]) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))


def test_coco_pairs(tmp_path: Path) -> None:
    data = open_data(write_coco(tmp_path))
    assert data.names == {0: "person", 1: "car"}
    for split in ("train", "val"):
        pairs = find_pairs(data, split)
        assert [(p.stem, p.visible.suffix, p.thermal.suffix) for p in pairs] == [
            ("a", ".jpg", ".png"),
            ("sub/b", ".jpg", ".png"),
        ]
        for pair in pairs:  # the same class in both splits, whatever its number there
            np.testing.assert_allclose(read_labels(data, pair), [[1, 0.35, 0.5, 0.5, 0.5]], rtol=1e-6)
    assert not check(data).problems


def test_coco_names_may_be_given_and_must_then_hold(tmp_path: Path) -> None:
    data = open_data(write_coco(tmp_path, names=["car", "person"]))
    assert read_labels(data, find_pairs(data, "train")[0])[0, 0] == 0
    data = open_data(write_coco(tmp_path, names=["person"]))
    with pytest.raises(UserError, match="class 'car' is unknown; names has person"):
        read_labels(data, find_pairs(data, "train")[0])


def test_coco_faults(tmp_path: Path) -> None:
    data = open_data(write_coco(tmp_path))
    (tmp_path / "images/ir/train/a.png").unlink()
    (tmp_path / "images/rgb/train/sub/b.jpg").unlink()
    with pytest.raises(UserError, match="2 x image without its partner"):
        find_pairs(data, "train")
    notes = json.loads((tmp_path / "val.json").read_text())["annotations"]
    edit(tmp_path / "val.json", {"annotations": [{**notes[0], "iscrowd": 1}]})
    labels = data.reader.labels(find_pairs(data, "val")[0], data.names)
    assert (len(labels.boxes), [p.kind for p in labels.problems]) == (0, ["crowd"])
    for change, says in (
        ({"annotations": [{**notes[0], "image_id": 77}]}, "image id 77 that is not among its images"),
        ({"annotations": [{**notes[0], "category_id": 1}]}, "is no COCO detection file: KeyError 1"),
        ({"images": [{"id": 0, "file_name": "a.jpg"}]}, "is no COCO detection file: KeyError 'width'"),
        ({"images": 3}, "is no COCO detection file"),
    ):
        write_coco(tmp_path)
        edit(tmp_path / "val.json", change)
        with pytest.raises(UserError, match=says):
            find_pairs(data, "val")
    (tmp_path / "val.json").write_text("{")
    with pytest.raises(UserError, match="is no readable JSON"):
        find_pairs(data, "val")
    (tmp_path / "val.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*val\.json"):
        find_pairs(data, "val")


def test_two_thermal_images_of_one_name(tmp_path: Path) -> None:
    data = open_data(write_coco(tmp_path))
    write_image(tmp_path / "images/ir/train/a.jpg", "x", grey=True)
    with pytest.raises(UserError, match="same stem, so the partner"):
        find_pairs(data, "train")


@pytest.mark.parametrize("kind", ["yolo", "coco", "flir", "llvip", "m3fd", "mfad"])
def test_a_spec_opens_the_same_data_from_any_folder(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def own() -> DataConfig:
        return open_data(write_world(tmp_path / "set") if kind == "yolo" else write_coco(tmp_path / "set"))

    data = own() if kind in ("yolo", "coco") else open_tiny(kind, tmp_path / "set")
    monkeypatch.chdir(tmp_path.parent)
    line = yaml.safe_dump(data.resolved, default_flow_style=True)
    for again in (open_data(data.spec), open_data(line), pickle.loads(pickle.dumps(data))):
        assert again.resolved == data.resolved
        assert (again.names, again.root, again.splits) == (data.names, data.root, data.splits)
        assert find_pairs(again, "val") == find_pairs(data, "val")


def test_the_contract_can_be_set_for_every_reader(tmp_path: Path) -> None:
    llvip(tmp_path / "llvip")
    line = f"{{reader: llvip, root: {tmp_path / 'llvip'}, thermal_contract: {json.dumps(DEEP)}}}"
    expected = ThermalContract("mono16", (1.0, 99.0), percentile=True)
    assert open_data(line).thermal_contract == expected
    assert open_data(open_data(line).spec).thermal_contract == expected
    assert open_data(write_coco(tmp_path / "coco", thermal_contract=DEEP)).thermal_contract == expected
    assert {p.kind for p in check(open_data(line), near=None).problems} == {"thermal_type", "pair_count"}


def test_root_on_the_command_line_wins(tmp_path: Path) -> None:
    file = write_world(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "here").mkdir()
    file.write_text((tmp_path / "there/data.yaml").read_text())
    assert len(find_pairs(open_data(file, tmp_path / "there"), "train")) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{reader: lvip, root: .}", "no reader 'lvip'; did you mean llvip?"),
        ("{reader: tiff}", "no reader 'tiff'; there are yolo, coco, cvat, label_studio, flir"),
        ("{reader: llvip}", "llvip needs root"),
        ("{reader: llvip, root: ., names: [x]}", "has its own class names"),
        ("{reader: mfad, root: ., path: .}", "path and root mean the same"),
        ("{reader: coco, names: [x]}", "visible, thermal and annotations each need"),
        ("{reader: coco, visible: {a: x}, thermal: {a: x}, annotations: {b: x}}", "for the same splits"),
        ("{names: [x], train: v, thermal: {train: t}, thermal_contrct: {}}", "did you mean thermal_contract?"),
        ("{names: [x, x], train: v, thermal: {train: t}}", "names has a class twice"),
        ("{names: [x], train: v, test: w, thermal: {train: t}}", "'test' has a visible folder and no thermal one"),
        ("{names: [x], train", "is not YAML"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("?", r"\?")):
        open_data(text)


def test_deep_thermal_images_in_coco(tmp_path: Path) -> None:
    file = write_coco(tmp_path, thermal_contract=DEEP)
    for png in (tmp_path / "images/ir").rglob("*.png"):
        deep = cv2.imread(str(png), cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 120
        assert cv2.imwrite(str(png), deep)
    assert not check(open_data(file)).problems


def test_a_class_name_is_the_text_that_was_written(tmp_path: Path) -> None:
    """YAML takes these for dates, booleans and numbers."""
    words = ["2026-11-26", "on", "007", "no", "off", "1e3", "1_000", "12:30:00", "0x10", "1.50", "y", "größe"]
    file = write_world(tmp_path)
    for text in (f"[{', '.join(words)}]", "".join(f"\n  {i}: {word}" for i, word in enumerate(words))):
        file.write_text(f"train: visible/train\nthermal: {{train: thermal/train}}\nnames: {text}\n", encoding="utf-8")
        data = open_data(file)
        assert list(data.names.values()) == words
        write_description(data, {}, tmp_path / "kept.yaml")
        for again in (open_data(data.spec), open_data(tmp_path / "kept.yaml")):
            assert again.names == data.names
    for text, says in (
        ("[a, ~]", "the name of class 1 is None"),
        ("[a, '']", "the name of class 1 is ''"),
        ('["a\\nb"]', "a name is wanted"),
        ("[[a]]", "a name is wanted"),
        ("{0: a, 0: b}", "the key '0' stands there twice"),
        ("{00: a}", "names must list the classes"),
    ):
        with pytest.raises(UserError, match=says):
            open_data(f"{{names: {text}, train: v, thermal: {{train: t}}}}")


def test_folders_are_text_as_well(tmp_path: Path) -> None:
    write_world(tmp_path)
    for kind, name in (("visible", "007"), ("thermal", "on")):
        (tmp_path / kind / "train").rename(tmp_path / name)
    file = tmp_path / "odd.yaml"
    file.write_text(
        "names: [person, car]\npath:\ntrain: 007\nval: visible/val\ntest:\nthermal: {train: on, val: thermal/val}\n"
    )
    assert [pair.stem for pair in find_pairs(open_data(file), "train")] == ["a", "b"]


def read_all(file: Path) -> None:
    data = open_data(file)
    for pair in [pair for split in data.splits for pair in find_pairs(data, split)]:
        read_labels(data, pair)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
def test_byte_order_marks_and_line_ends(mark: bytes, tmp_path: Path) -> None:
    """Whatever an editor makes of data.yaml, JSON, label files and registration."""
    yolo, coco = write_world(tmp_path / "yolo"), write_coco(tmp_path / "coco")
    (tmp_path / "yolo/r.yaml").write_text(
        "homography: [[1, 0, 0], [0, 1, 0], [0, 0, 1]]\nthermal_size: [32, 24]\nvisible_size: [32, 24]\n"
    )
    yolo.write_text(yolo.read_text() + "registration: r.yaml\n")
    files = [*tmp_path.rglob("*.yaml"), *tmp_path.rglob("*.json"), *tmp_path.rglob("labels/*/*.txt")]
    assert len(files) == 9
    for file in files:
        file.write_bytes(mark + file.read_bytes().replace(b"\n", b"\r\n"))
    for file in (yolo, coco):
        data = open_data(file)
        assert not check(data, near=None).problems
        assert len(read_labels(data, find_pairs(data, "train")[0])) == 1
    for file in files:
        text = file.read_text(encoding="utf-8-sig")
        file.write_bytes(text.encode("utf-16"))
        with pytest.raises(UserError, match=r"is UTF-16 text: save it as UTF-8") as error:
            read_all(yolo if "yolo" in str(file) else coco)
        assert str(file) in str(error.value)
        file.write_bytes(text.encode())


def test_coco_boxes_in_other_units(tmp_path: Path) -> None:
    data = open_data(write_coco(tmp_path))
    notes = json.loads((tmp_path / "val.json").read_text())["annotations"]
    for box, kind, says in (
        ([0.1, 0.25, 0.5, 0.5], "units", "its numbers are fractions, and pixels are wanted"),
        ([20, 10, 36, 30], "outside", "as corners x1 y1 x2 y2 the numbers lie inside, but COCO wants x y width height"),
        ([float("nan"), 1, 5, 5], "empty_box", "is empty"),
        ([1, 1, float("inf"), 5], "empty_box", "lies outside the image"),
    ):
        edit(tmp_path / "val.json", {"annotations": [{**notes[0], "bbox": box}]})
        (problem,) = data.reader.labels(find_pairs(data, "val")[0], data.names).problems
        assert problem.kind == kind
        assert says in problem.text
