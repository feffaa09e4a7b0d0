"""What labelling tools and other projects write: polygons, lists of images, two label sets, CVAT, Label Studio."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from published_layouts import write_image, write_text
from test_pairs import write_world

from rscmd_model.datasets.check import check
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import DataConfig, find_pairs, list_pairs, read_labels
from rscmd_model.datasets.telling import left_out_line
from rscmd_model.datasets.two_labels import Boxes
from rscmd_model.datasets.yolo import read_yolo
from rscmd_model.errors import UserError
from rscmd_model.imaging.registration import Registration

NAMES = {0: "person", 1: "car"}


def change(file: Path, **keys: Any) -> DataConfig:
    """Write these keys into a data.yaml (None takes one out) and open it."""
    data = {**yaml.safe_load(file.read_text()), **keys}
    file.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return open_data(file)


def boxes(data: DataConfig, split: str = "train") -> dict[str, list[list[float]]]:
    """Class and box (left, top, right, bottom as fractions) by stem."""
    found = {}
    for pair in find_pairs(data, split):
        rows = read_labels(data, pair)
        corners = np.hstack((rows[:, :1], rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2))
        found[pair.stem] = sorted(corners.astype(np.float64).round(4).tolist())
    return found


def test_polygons_are_read_by_the_box_around(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("1 0.1 0.2 0.5 0.2 0.3 0.6\n0 0.5 0.5 0.2 0.2\n0 0.4 0.4 0.6 0.5 0.5 0.7 0.3 0.6\n")
    labels = read_yolo(file, NAMES)
    assert not labels.problems
    expected = [[0, 0.45, 0.55, 0.3, 0.3], [0, 0.5, 0.5, 0.2, 0.2], [1, 0.3, 0.4, 0.4, 0.4]]
    np.testing.assert_allclose(labels.boxes, expected, atol=1e-6)
    # A predicted label has a confidence behind it, half a polygon an odd number too many.
    for line, says in (
        ("0 0.5 0.5 0.2 0.2 0.93", "without a confidence"),
        ("0 0.1 0.2 0.5 0.2 0.3 0.6 0.7", "or a polygon"),
    ):
        file.write_text(line)
        (problem,) = read_yolo(file, NAMES).problems
        assert problem.kind == "bad_label"
        assert says in problem.text


def test_labels_may_lie_elsewhere(tmp_path: Path) -> None:
    file = write_world(tmp_path)
    before = boxes(open_data(file))
    (tmp_path / "labels").rename(tmp_path / "annotations")
    with pytest.raises(UserError, match=r"no folder .*labels/train with the labels; the key 'labels'"):
        find_pairs(open_data(file), "train")
    for labels in ("annotations", {"train": "annotations/train", "val": "annotations/val"}):
        data = change(file, labels=labels)
        assert boxes(data) == before
        assert boxes(open_data(data.spec)) == before
        assert not check(data, near=None).problems
    for wrong, says in ((["x"], "a folder for each split"), ({"tran": "x"}, "each split"), ({"train": []}, "no path")):
        with pytest.raises(UserError, match=says):
            change(file, labels=wrong)


def test_lists_of_images(tmp_path: Path) -> None:
    """ICAFusion's and CFT's keys; KAIST's names, which repeat from folder to folder; labels as YOLO finds them."""
    for number in range(2):
        for set_name in ("set00", "set01"):
            for camera in ("visible", "lwir"):
                image = tmp_path / f"images/{set_name}/{camera}/I{number:05d}.png"
                write_image(image, f"{camera}{set_name}{number}", grey=camera == "lwir")
            text = f"0 0.5 0.5 0.{number + 1} 0.{2 if set_name == 'set00' else 4}\n"
            write_text(tmp_path / f"labels/{set_name}/visible/I{number:05d}.txt", text)
    stems = [f"images/{set_name}/{{}}/I{n:05d}.png" for set_name in ("set00", "set01") for n in range(2)]
    (tmp_path / "rgb.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(s.format("visible") for s in stems).encode())
    write_text(tmp_path / "ir.txt", "\n".join(str(tmp_path / s.format("lwir")) for s in stems) + "\n")
    file = tmp_path / "kaist.yaml"
    file.write_text(
        "train_rgb: rgb.txt\ntrain_ir: ir.txt\nval_rgb: ./rgb.txt\nval_ir: ir.txt\nnc: 1\nnames: ['person']\n"
    )
    data = open_data(file)
    found = boxes(data)
    assert list(found) == [s.format("visible").removesuffix(".png") for s in stems]
    assert found["images/set01/visible/I00001"] == [[0, 0.4, 0.3, 0.6, 0.7]]
    assert all(p.visible.parent.parent == p.thermal.parent.parent for p in find_pairs(data, "val"))
    assert boxes(open_data(data.spec)) == found
    # Names that repeat do not tell pairs when the lists are not in step.
    lines = (tmp_path / "ir.txt").read_text().splitlines()
    write_text(tmp_path / "ir.txt", "\n".join(lines[:-1]))
    with pytest.raises(UserError, match="do not name the same pairs line by line"):
        find_pairs(data, "train")
    write_text(tmp_path / "ir.txt", "\n".join([lines[0], lines[0], *lines[2:]]))
    with pytest.raises(UserError, match="twice"):
        find_pairs(data, "train")
    write_text(tmp_path / "ir.txt", "\n".join([*lines[:3], lines[3].replace("set01", "set02")]))
    with pytest.raises(UserError, match="is listed and not there"):
        find_pairs(data, "train")
    write_text(tmp_path / "ir.txt", "\n".join(lines))
    (tmp_path / "labels").rename(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"not one image of .* has a label file; the first one's would be .*labels/set00"
    ):
        find_pairs(data, "train")


def test_lists_in_another_order_go_by_name(tmp_path: Path) -> None:
    file = write_world(tmp_path, ("a", "b", "c"))
    before = boxes(open_data(file))
    for split in ("train", "val"):
        write_text(tmp_path / f"v_{split}.txt", "".join(f"visible/{split}/{s}.png\n" for s in "abc"))
        write_text(tmp_path / f"t_{split}.txt", "".join(f"./thermal/{split}/{s}.jpg\n" for s in "cab"))
    sources = {"train": "v_train.txt", "val": "v_val.txt", "thermal": {"train": "t_train.txt", "val": "t_val.txt"}}
    data = change(file, **sources, labels="labels")
    assert {stem.rpartition("/")[2]: rows for stem, rows in boxes(data).items()} == before
    with pytest.raises(UserError, match=r"or \.txt lists for every one"):
        change(file, val="visible/val")


@pytest.mark.parametrize(("choice", "camera"), [("union", "thermal"), ("thermal", "thermal"), ("union", "visible")])
def test_lists_without_a_label_file_of_a_camera_that_is_used(choice: str, camera: str, tmp_path: Path) -> None:
    file = write_world(tmp_path, ("a",))
    for split in ("train", "val"):
        write_text(tmp_path / f"v_{split}.txt", f"visible/{split}/a.png\n")
        write_text(tmp_path / f"t_{split}.txt", f"thermal/{split}/a.jpg\n")
    sources = {"train": "v_train.txt", "val": "v_val.txt", "thermal": {"train": "t_train.txt", "val": "t_val.txt"}}
    folders = {"visible": "labels/{}", "thermal": "labels/{}"} | {camera: "elsewhere"}
    labels = {s: {c: folder.format(s) for c, folder in folders.items()} for s in ("train", "val")}
    data = change(file, **sources, labels=labels, boxes=choice)
    listed = f"{camera[0]}_train.txt"
    with pytest.raises(
        UserError, match=rf"not one image of .*/{listed} has a label file; .* would be .*/elsewhere/a.txt"
    ):
        find_pairs(data, "train")
    other = "visible" if camera == "thermal" else "thermal"
    assert boxes(change(file, boxes=other)) == {"visible/train/a": [[0, 0.4, 0.3, 0.6, 0.7]]}


def test_two_label_sets(tmp_path: Path) -> None:
    file = write_world(tmp_path, ("a",))
    for split in ("train", "val"):
        # The same person, a little aside; the same place, another class; a person that only the thermal camera sees.
        text = "0 0.51 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n0 0.8 0.8 0.1 0.2\n"
        write_text(tmp_path / f"labels_ir/{split}/a.txt", text)
    both = {s: {"visible": f"labels/{s}", "thermal": f"labels_ir/{s}"} for s in ("train", "val")}
    with pytest.raises(UserError, match="labels of both cameras need 'boxes: visible'"):
        change(file, labels=both)
    person, aside = [0, 0.4, 0.3, 0.6, 0.7], [0, 0.41, 0.3, 0.61, 0.7]
    car, alone = [1, 0.4, 0.3, 0.6, 0.7], [0, 0.75, 0.7, 0.85, 0.9]
    for choice, expected in (
        ("visible", [person]),
        ("thermal", [aside, alone, car]),
        ("union", [person, car, alone]),
    ):
        data = change(file, labels=both, boxes=choice)
        np.testing.assert_allclose(sorted(boxes(data)["a"]), sorted(expected), atol=1e-4)
        assert boxes(open_data(data.spec)) == boxes(data)
        assert not check(data, near=None).problems
    assert len(boxes(change(file, match_iou=0.99))["a"]) == 4  # nothing is the same then
    for keys, says in (
        ({"boxes": "both", "match_iou": None}, "boxes is one of visible, thermal, union"),
        ({"match_iou": 0}, "an IoU above 0"),
        ({"match_iou": 0.5, "boxes": "visible"}, "match_iou is for"),
        ({"labels": None, "boxes": "union", "match_iou": None}, "needs labels of the thermal images"),
    ):
        with pytest.raises(UserError, match=says):
            change(file, **{"labels": both, "boxes": "union", "match_iou": 0.5, **keys})


def test_one_person_is_not_matched_twice() -> None:
    def labels(*rows: list[float]) -> Any:
        return replace(read_yolo(None, NAMES), boxes=np.array(rows, np.float32))

    one, two = labels([0, 0.5, 0.5, 0.2, 0.4]), labels([0, 0.5, 0.5, 0.2, 0.4], [0, 0.53, 0.5, 0.2, 0.4])
    assert len(Boxes("union").of(one, two).boxes) == 2
    assert len(Boxes("union").of(two, one).boxes) == 2
    assert len(Boxes("union").of(one, read_yolo(None, NAMES)).boxes) == 1
    assert len(Boxes("union").of(read_yolo(None, NAMES), two).boxes) == 2


def test_boxes_drawn_on_thermal_images_go_through_the_registration() -> None:
    # The thermal camera sees the right half of the visible image, at half its resolution.
    matrix = ((1.0, 0, 40), (0, 2.0, 0.5), (0, 0, 1))
    registration = Registration(matrix, (40, 32), (80, 64))
    thermal = replace(read_yolo(None, NAMES), boxes=np.array([[1, 0.5, 0.5, 0.5, 0.5]], np.float32))
    found = Boxes("thermal", registration=registration).of(read_yolo(None, NAMES), thermal)
    np.testing.assert_allclose(found.boxes, [[1, 0.75, 0.5, 0.25, 0.5]], atol=1e-6)


def write_tool(root: Path, form: str, annotations: str) -> Path:
    """Two pairs in folders of one root, and a tool's file."""
    for stem in ("0001", "sub/0002"):
        write_image(root / f"visible/{stem}.jpg", stem)
        write_image(root / f"thermal/{stem}.png", stem, grey=True)
    suffix = "xml" if form == "cvat" else "json"
    write_text(root / f"labels.{suffix}", annotations)
    data = {"reader": form, "visible": {"train": "visible"}, "thermal": {"train": "thermal"}}
    (root / "data.yaml").write_text(yaml.safe_dump({**data, "annotations": {"train": f"labels.{suffix}"}}))
    return root / "data.yaml"


def cvat_file(*images: tuple[str, str]) -> str:
    head = "<annotations><version>1.1</version><meta><job><labels><label><name>person</name></label>"
    head += "<label><name>car</name></label></labels></job></meta>"
    return (
        head
        + "".join(f'<image id="0" name="{n}" width="40" height="32">{s}</image>' for n, s in images)
        + "</annotations>"
    )


BOX = '<box label="car" xtl="4" ytl="8" xbr="24" ybr="24" occluded="0" z_order="0"/>'


def test_cvat(tmp_path: Path) -> None:
    turned = '<box label="car" xtl="10" ytl="12" xbr="30" ybr="20" rotation="90"/>'
    polygon = '<polygon label="person" points="4.0,8.0;24.0,8.0;14.0,24.0"/><tag label="car"/>'
    polygon += '<points label="car" points="1,2"/>'
    data = open_data(write_tool(tmp_path, "cvat", cvat_file(("visible/0001.jpg", turned), ("sub/0002.jpg", polygon))))
    assert data.names == NAMES
    assert boxes(data) == {"0001": [[1, 0.4, 0.1875, 0.6, 0.8125]], "sub/0002": [[0, 0.1, 0.25, 0.6, 0.75]]}
    report = check(data, near=None)
    assert [problem.kind for problem in report.problems] == ["no_box"]
    for text, says in (
        ("<annotations><track id='0'/></annotations>", "export as 'CVAT for images 1.1'"),
        (cvat_file(("0001.jpg", "<box label='car' xtl='x'/>")), "has a shape that cannot be read"),
        (cvat_file(("0001.jpg", ""), ("0001.jpg", "")), "twice"),
    ):
        with pytest.raises(UserError, match=says):
            open_data(write_tool(tmp_path, "cvat", text))


def test_a_task_with_the_images_of_both_cameras(tmp_path: Path) -> None:
    """The folder before a name says whose it is; labels on both are used as `boxes` says."""
    far = BOX.replace('xtl="4"', 'xtl="30"').replace('xbr="24"', 'xbr="38"')
    text = cvat_file(("visible/0001.jpg", BOX), ("thermal/0001.png", BOX + far), ("thermal/sub/0002.png", BOX))
    file = write_tool(tmp_path, "cvat", text)
    with pytest.raises(UserError, match="labels on 1 visible and 2 thermal images: add 'boxes: visible'"):
        find_pairs(open_data(file), "train")
    counts = {c: [len(rows) for rows in boxes(change(file, boxes=c)).values()] for c in ("visible", "thermal", "union")}
    assert counts == {"visible": [1, 0], "thermal": [2, 1], "union": [2, 1]}
    write_tool(tmp_path, "cvat", cvat_file(("thermal/0001.png", BOX), ("thermal/sub/0002.png", BOX)))
    assert [len(rows) for rows in boxes(open_data(file)).values()] == [1, 1]  # one camera alone: no question


def region(**changes: Any) -> dict[str, Any]:
    value = {"x": 10, "y": 25, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["car"]}
    value |= {k: v for k, v in changes.items() if k in value or k == "points"}
    rest = {k: v for k, v in changes.items() if k not in value}
    size = {"original_width": 40, "original_height": 32}
    return {"type": "rectanglelabels", "from_name": "label", "to_name": "image", **size, "value": value, **rest}


def task(picture: Any, *regions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    data = picture if isinstance(picture, dict) else {"image": picture}
    return {
        "id": 1,
        "data": data,
        "annotations": [{"result": list(regions), **changes}],
        "predictions": [{"result": [region()]}],
    }


def test_label_studio(tmp_path: Path) -> None:
    turned = region(x=50, y=25, width=25, height=12.5, rotation=90)
    tasks = [
        task("/data/upload/3/0a1b2c3d-0001.jpg", region(), turned),
        task("/data/local-files/?d=visible/sub/0002.jpg"),
    ]
    data = open_data(write_tool(tmp_path, "label_studio", json.dumps(tasks)))
    assert data.names == {0: "car"}
    # About the upper left corner, clockwise: 10 x 4 px become 4 x 10, to the left of it.
    assert boxes(data) == {"0001": [[0, 0.1, 0.25, 0.6, 0.75], [0, 0.4, 0.25, 0.5, 0.5625]], "sub/0002": []}
    assert not check(data, near=None).problems
    lean = [
        {
            "image": "/data/upload/3/0a1b2c3d-0001.jpg",
            "id": 4,
            "label": [{**region()["value"], "original_width": 40, "original_height": 32}],
        }
    ]
    assert boxes(open_data(write_tool(tmp_path, "label_studio", json.dumps(lean))))["0001"] == [
        [0, 0.1, 0.25, 0.6, 0.75]
    ]
    two = task({"visible": "s3://b/visible/0001.jpg", "thermal": "s3://b/thermal/0001.png"}, region(to_name="thermal"))
    assert boxes(open_data(write_tool(tmp_path, "label_studio", json.dumps([two]))))["0001"] == [
        [0, 0.1, 0.25, 0.6, 0.75]
    ]
    skipped = task("visible/0001.jpg", region(), was_cancelled=True)
    write_tool(tmp_path, "label_studio", json.dumps([skipped]))
    with pytest.raises(
        UserError, match="1 x pair that is listed and that nobody has labelled, left out; whole pairs: 0"
    ):
        boxes(change(tmp_path / "data.yaml", names=["car"]))
    for tasks, says in (
        ([], "is no JSON export of Label Studio"),
        ([{"data": {"text": "hello"}}], "has no picture"),
        ([task("0001.jpg", region(original_width=None))], "lacks original_width"),
        ([{**two, "annotations": [{"result": [region(to_name="img")]}]}], "a region of 'img'"),
        ([{**skipped, "annotations": [{"result": []}, {"result": []}]}], "2 annotations: leave one"),
    ):
        write_text(tmp_path / "labels.json", json.dumps(tasks))
        with pytest.raises(UserError, match=says):
            find_pairs(open_data(tmp_path / "data.yaml"), "train")


@pytest.mark.parametrize("task_of_2", [{"annotations": []}, {"annotations": [{"result": [], "was_cancelled": True}]}])
def test_a_pair_that_nobody_has_labelled_is_no_pair_without_objects(task_of_2: dict[str, Any], tmp_path: Path) -> None:
    waiting = {**task("visible/sub/0002.jpg"), **task_of_2}
    data = open_data(write_tool(tmp_path, "label_studio", json.dumps([task("visible/0001.jpg", region()), waiting])))
    assert list(boxes(data)) == ["0001"]
    report = check(data, near=None)
    assert [problem.kind for problem in report.problems] == ["unlabelled"]
    assert report.problems[0].text.endswith("visible/sub/0002.jpg, and nobody has labelled it")
    assert [unused.file.name for unused in report.unused] == [], "neither image is told twice"
    assert left_out_line("train", list_pairs(data, "train")).startswith(
        "train: 1 pairs are left out, since nobody has labelled them, first: "
    )
    write_text(tmp_path / "folds.csv", "name,fold\n0001,1\n")
    folded = change(tmp_path / "data.yaml", fold={"list": "folds.csv", "held_out": "1", "of": ["train"]})
    assert list(boxes(folded, "val")) == ["0001"]
    # The other camera's task decides where its labels are used.
    tasks = [task("visible/0001.jpg", region()), {**task("thermal/0001.png"), **task_of_2}]
    file = write_tool(tmp_path, "label_studio", json.dumps(tasks))
    assert list(boxes(change(file, boxes="visible"))) == ["0001"]
    for choice in ("thermal", "union", None):
        assert left_out_line("train", list_pairs(change(file, boxes=choice), "train"))


def test_a_name_of_another_folder_is_no_image_of_ours(tmp_path: Path) -> None:
    """set00/0002.jpg is not sub/0002.jpg, though both end alike."""
    data = open_data(write_tool(tmp_path, "cvat", cvat_file(("0001.jpg", BOX), ("set00/0002.jpg", BOX))))
    listing = list_pairs(data, "train")
    assert [pair.stem for pair in listing.pairs] == ["0001"]
    assert [problem.text.split(", ")[1] for problem in listing.problems] == ["which is not there"]
    unused = {u.file.name: u.reason for u in check(data, near=None).unused}
    assert unused == {"0002.jpg": "in the label file of no split", "0002.png": "in the label file of no split"}
