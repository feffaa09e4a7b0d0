"""Reading image pairs: what is found, and what is told when something is wrong."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from rscmd_model.datasets.inspection import check_pairs
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs, read_labels, split_hash
from rscmd_model.datasets.telling import trained_on_line
from rscmd_model.datasets.yolo import read_yolo
from rscmd_model.errors import UserError
from rscmd_model.imaging.images import read_thermal, read_visible, stack_pair
from rscmd_model.imaging.thermal import ThermalContract


def write_world(root: Path, stems: tuple[str, ...] = ("a", "b")) -> Path:
    """Two tiny splits in the native layout; the visible image is PNG, the thermal one JPEG with three channels."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("visible", "thermal", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for stem in stems:
            cv2.imwrite(str(root / f"visible/{split}/{stem}.png"), rng.integers(0, 256, (24, 32, 3), np.uint8))
            plane = cv2.GaussianBlur(rng.integers(0, 256, (24, 32), np.uint8), (5, 5), 2)
            cv2.imwrite(str(root / f"thermal/{split}/{stem}.jpg"), np.dstack([plane] * 3))
            (root / f"labels/{split}/{stem}.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    data = {
        "path": ".",
        "train": "visible/train",
        "val": "visible/val",
        "thermal": {"train": "thermal/train", "val": "thermal/val"},
        "names": {0: "person", 1: "car"},
    }
    (root / "data.yaml").write_text(yaml.safe_dump(data))
    return root / "data.yaml"


def test_pairs_are_found_by_stem(tmp_path: Path) -> None:
    data = open_data(write_world(tmp_path))
    pairs = find_pairs(data, "train")
    assert [(p.stem, p.visible.suffix, p.thermal.suffix) for p in pairs] == [
        ("a", ".png", ".jpg"),
        ("b", ".png", ".jpg"),
    ]
    assert data.names == {0: "person", 1: "car"}
    assert data.thermal_contract == ThermalContract()
    assert len(check_pairs(data, pairs)[0]) == 2
    assert split_hash(pairs) != split_hash(pairs[:1])


def test_a_data_yaml_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_world(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    assert len(find_pairs(open_data(file), "val")) == 2
    assert open_data(Path(tmp_path.name) / "data.yaml").root == tmp_path.resolve()


def test_a_folder_means_the_data_yaml_in_it(tmp_path: Path) -> None:
    file = write_world(tmp_path)
    assert open_data(tmp_path).spec == open_data(file).spec == str(file.resolve())
    with pytest.raises(UserError, match="cannot read"):
        open_data(tmp_path / "visible")
    with pytest.raises(UserError, match="x" * 20):
        open_data("x" * 5000)


def test_missing_partners_are_counted_and_named(tmp_path: Path) -> None:
    data = open_data(write_world(tmp_path, ("a", "b", "c", "d", "e", "f")))
    for stem in "abcd":
        (tmp_path / f"thermal/train/{stem}.jpg").unlink()
    (tmp_path / "visible/train/f.png").unlink()
    with pytest.raises(
        UserError, match=r"5 x image without its partner; whole pairs: 1.*train/a.png has no thermal.*and 2 more"
    ):
        find_pairs(data, "train")


def test_empty_split_missing_folder_unknown_split(tmp_path: Path) -> None:
    data = open_data(write_world(tmp_path))
    with pytest.raises(UserError, match="no split 'test'; it has train, val"):
        find_pairs(data, "test")
    for file in [*(tmp_path / "visible/val").iterdir(), *(tmp_path / "thermal/val").iterdir()]:
        file.unlink()
    with pytest.raises(UserError, match="no images in"):
        find_pairs(data, "val")
    (tmp_path / "thermal/val").rmdir()
    with pytest.raises(UserError, match="no folder"):
        find_pairs(data, "val")


def test_a_split_in_the_images_of_another_is_told_where_its_labels_are(tmp_path: Path) -> None:
    file = write_world(tmp_path)
    described = yaml.safe_load(file.read_text()) | {"mini": "visible/train"}
    described["thermal"]["mini"] = "thermal/train"
    file.write_text(yaml.safe_dump(described))
    with pytest.raises(UserError, match=r"no folder .*/labels/mini with the labels; .* write 'labels: ") as told:
        find_pairs(open_data(file), "mini")
    remedy = str(told.value).partition("write '")[2].partition("' into")[0]
    file.write_text(yaml.safe_dump(described | yaml.safe_load(remedy)))
    data = open_data(file)
    assert [len(read_labels(data, pair)) for split in ("mini", "val") for pair in find_pairs(data, split)] == [1] * 4


def test_two_images_of_one_stem_are_ambiguous(tmp_path: Path) -> None:
    data = open_data(write_world(tmp_path))
    (tmp_path / "visible/train/a.jpg").write_bytes((tmp_path / "visible/train/a.png").read_bytes())
    with pytest.raises(UserError, match="same stem"):
        find_pairs(data, "train")


def test_scored_pairs_that_are_trained_on_are_told(tmp_path: Path) -> None:
    data = open_data(write_world(tmp_path))

    def told(split: str) -> str:
        return trained_on_line(split, find_pairs(data, split), find_pairs(data, "train"))

    assert told("val") == ""
    assert told("train").startswith("train: 2 of the 2 scored pairs are in train: ")
    (tmp_path / "visible/val/b.png").unlink()
    (tmp_path / "visible/val/b.png").symlink_to(tmp_path / "visible/train/a.png")
    assert told("val").startswith("val: 1 of the 2 scored pairs are in train: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2", "is not YAML"),
        ("hello", "expected keys"),
        ("names: {1: car}\nthermal: {train: t}", "names must list"),
        ("names: [car]", "thermal must give a folder"),
        ("names: [car]\nthermal: {train: t}", "split 'train' needs a visible folder"),
        ("names: [car]\ntrain: v\nthermal: {train: t}\nthermal_contract: {source: mono8}", "source and scale"),
        ("names: [car]\ntrain: v\nthermal: {train: t}\nthermal_contract: {source: rgb, scale: [0, 1]}", "'rgb'"),
    ],
)
def test_bad_data_yaml(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        open_data(tmp_path / "data.yaml")
    with pytest.raises(UserError, match="cannot read"):
        open_data(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 0.5 0.5 0.2", "expected 'class cx cy w h'"),
        ("person 0.5 0.5 0.2 0.2", "expected 'class cx cy w h'"),
        ("2 0.5 0.5 0.2 0.2", "class 2 is unknown"),
        ("-1 0.5 0.5 0.2 0.2", "class -1 is unknown"),
        ("0 0.95 0.5 0.2 0.2", "partly outside the image"),
        ("0 320 240 20 20", "lies outside the image: fractions from 0 to 1 are wanted, and these look like pixels"),
        ("0 50 50 20 20", "these look like percent"),
        ("0 0.6 0.6 0.9 0.9", "as corners x1 y1 x2 y2 the numbers lie inside, but YOLO wants centre and size"),
        ("0 1e400 0.5 0.2 0.2", "is empty"),
        ("0 0.5 0.5 0 0.2", "is empty"),
        ("0 nan 0.5 0.2 0.2", "is empty"),
    ],
)
def test_bad_labels_name_file_and_line(tmp_path: Path, line: str, says: str) -> None:
    data = open_data(write_world(tmp_path))
    pair = find_pairs(data, "train")[0]
    file = tmp_path / "labels/train/a.txt"
    file.write_text("0 0.5 0.5 0.2 0.4\n\n" + line + "\n")
    with pytest.raises(UserError, match=says) as error:
        read_labels(data, pair)
    assert f"{file}, line 3" in str(error.value)


def test_labels(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("1 0.5 0.5 1 1\n0 0.1 0.1 0.2 0.2\n1 0.5 0.5 1 1\n")
    labels = read_yolo(file, {0: "person", 1: "car"})
    np.testing.assert_allclose(labels.boxes, [[0, 0.1, 0.1, 0.2, 0.2], [1, 0.5, 0.5, 1, 1]], rtol=1e-6)
    assert [problem.kind for problem in labels.problems] == ["repeated_box"]
    assert read_yolo(None, {0: "person"}).boxes.shape == (0, 5)


def test_unreadable_images_are_counted_and_named(tmp_path: Path) -> None:
    data = open_data(write_world(tmp_path, ("a", "b", "c", "d")))
    pairs = find_pairs(data, "train")
    jpeg = tmp_path / "thermal/train/a.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-40])
    (tmp_path / "visible/train/b.png").write_bytes(b"not an image")
    (tmp_path / "thermal/train/c.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="3 of 4 pairs cannot be used") as error:
        check_pairs(data, pairs)
    for name in ("a.jpg: it is cut short", "b.png is no readable image", "c.jpg is no readable image"):
        assert name in str(error.value)


def test_a_thermal_of_another_type_than_the_contract_is_named(tmp_path: Path) -> None:
    data = open_data(write_world(tmp_path))
    deep = replace(data, thermal_contract=ThermalContract("mono16", (0, 1000)))
    with pytest.raises(UserError, match=r"2 of 2 pairs.*a\.jpg: thermal image has dtype uint8"):
        check_pairs(deep, find_pairs(deep, "train"))


def test_thermal_files(tmp_path: Path) -> None:
    deep = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 300
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert (read_thermal(tmp_path / "deep.png") == deep).all()
    cv2.imwrite(str(tmp_path / "palette.png"), cv2.applyColorMap((deep // 256).astype(np.uint8), cv2.COLORMAP_JET))
    with pytest.raises(UserError, match=r"palette\.png: .*colours are not temperatures"):
        read_thermal(tmp_path / "palette.png")
    with pytest.raises(UserError, match="cannot read"):
        read_visible(tmp_path / "absent.png")


def test_stack_is_red_green_blue_thermal() -> None:
    visible = np.zeros((4, 6, 3), np.uint8)
    visible[:] = (10, 20, 30)  # BGR
    stack = stack_pair(visible, np.full((2, 3), 40, np.uint8))
    assert stack.shape == (4, 6, 4)
    assert (stack == (30, 20, 10, 40)).all()


def test_real_pairs(llvip_mini: Path) -> None:
    data = open_data(llvip_mini / "data.yaml")
    for split, count, boxes in (("train", 32, 124), ("val", 6, 16)):
        pairs = find_pairs(data, split)
        assert len(pairs) == count
        assert sum(len(read_labels(data, p)) for p in pairs) == boxes
    assert check_pairs(data, pairs)[0][0]["size"] == (1024, 1280)


def test_pairs_and_labels_in_sub_folders(tmp_path: Path) -> None:
    """KAIST's way; and a thermal folder within the visible one is not taken for visible pictures."""
    data = open_data(write_world(tmp_path))
    for kind, suffix in (("visible", "png"), ("thermal", "jpg"), ("labels", "txt")):
        (tmp_path / kind / "train/set01/V000").mkdir(parents=True)
        (tmp_path / f"{kind}/train/b.{suffix}").rename(tmp_path / f"{kind}/train/set01/V000/b.{suffix}")
    pairs = find_pairs(data, "train")
    assert [pair.stem for pair in pairs] == ["a", "set01/V000/b"]
    assert [len(read_labels(data, pair)) for pair in pairs] == [1, 1]
    (tmp_path / "thermal/train").rename(tmp_path / "visible/train/ir")
    text = (tmp_path / "data.yaml").read_text().replace("thermal/train", "visible/train/ir")
    (tmp_path / "data.yaml").write_text(text)
    assert [pair.stem for pair in find_pairs(open_data(tmp_path / "data.yaml"), "train")] == ["a", "set01/V000/b"]


def test_hidden_files_are_no_images_and_links_do_not_loop(tmp_path: Path) -> None:
    data = open_data(write_world(tmp_path))
    (tmp_path / "visible/train/._a.png").write_bytes(b"Mac OS X")
    (tmp_path / "visible/train/.thumbnails").mkdir()
    (tmp_path / "visible/train/.thumbnails/z.png").write_bytes(b"")
    (tmp_path / "thermal/train/again").symlink_to(tmp_path / "thermal/train")
    assert [pair.stem for pair in find_pairs(data, "train")] == ["a", "b"]


def test_label_files_that_belong_to_no_image_stop(tmp_path: Path) -> None:
    """Every image would be background, and the score would be of nothing."""
    data = open_data(write_world(tmp_path))
    labels = tmp_path / "labels/val"
    for file in labels.glob("*.txt"):
        file.rename(labels / f"{file.stem}_visible.txt")
    with pytest.raises(UserError, match=r"none of the 2 label files in .*labels/val belongs to an image of val"):
        find_pairs(data, "val")
    (labels / "classes.txt").write_text("person\n")  # what tools leave there is no label file
    for file in labels.glob("*_visible.txt"):
        file.unlink()
    assert len(find_pairs(data, "val")) == 2
    (labels / "a.txt").write_text("")
    assert len(find_pairs(data, "val")) == 2


def test_a_partner_of_a_format_that_is_not_read_is_named(tmp_path: Path) -> None:
    data = open_data(write_world(tmp_path))
    (tmp_path / "thermal/train/a.jpg").rename(tmp_path / "thermal/train/a.webp")
    (tmp_path / "thermal/train/b.jpg").rename(tmp_path / "thermal/train/B.jpg")
    with pytest.raises(UserError) as error:
        find_pairs(data, "train")
    assert "a.webp is there, but pictures of the format .webp are not read" in str(error.value)
    assert "B.jpg is there, but its name differs in upper and lower case" in str(error.value)


def test_a_file_s_name_may_be_no_utf_8(tmp_path: Path) -> None:
    data = write_world(tmp_path, ("a", "b"))
    for file in [*tmp_path.rglob("b.*")]:
        file.rename(file.with_stem(os.fsdecode(b"\xff")))
    pairs = find_pairs(open_data(data), "train")
    assert len(pairs) == 2
    assert split_hash(pairs) != split_hash(pairs[:1])
