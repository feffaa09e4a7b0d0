"""The published data sets as they unpack, trap by trap, and a training and a score on each."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from published_layouts import TRAIN, VAL, WRITERS, open_tiny, voc, write_image, write_text

from rscmd_model.datasets.check import check
from rscmd_model.datasets.inspection import check_pairs
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import DataConfig, find_pairs, list_pairs, read_labels, split_hash
from rscmd_model.datasets.published import read_split_file
from rscmd_model.errors import UserError
from rscmd_model.evaluation.sweep import evaluate
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import method_config
from rscmd_model.network.model_file import read_header
from rscmd_model.training.run import train
from rscmd_ros.make_bag import main as make_bag

NAMES = {
    "flir": ["person", "car", "bicycle"],
    "llvip": ["person"],
    "m3fd": ["People", "Car", "Bus", "Lamp", "Motorcycle", "Truck"],
    "mfad": ["Car", "Bus", "Truck", "Pedestrian", "Ebikerider", "Cyclist"],
}
FOUND = {"flir": ["person", "car"], "llvip": ["person", "person"], "m3fd": ["People", "Lamp"]}
FOUND["mfad"] = ["Car", "Ebikerider"]
SPLITS = Path(open_data.__code__.co_filename).parent / "splits"


def classes(data: DataConfig, split: str = "train", index: int = 0) -> list[str]:
    return [data.names[int(cls)] for cls in read_labels(data, find_pairs(data, split)[index])[:, 0]]


def kinds(data: DataConfig) -> Counter[str]:
    return Counter(problem.kind for problem in check(data).problems if problem.kind != "pair_count")


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_reads_as_it_unpacks(name: str, tmp_path: Path) -> None:
    data = open_tiny(name, tmp_path / "set")
    assert list(data.names.values()) == NAMES[name]
    assert data.thermal_contract.to_dict() == {"source": "mono8", "scale": [0.0, 255.0]}
    for split, count in (("train", len(TRAIN)), ("val", len(VAL))):
        pairs = find_pairs(data, split)
        assert len(pairs) == count
        assert len(check_pairs(data, pairs)[0]) == count
        assert all(Path(p.visible).is_file() and Path(p.thermal).is_file() for p in pairs)
        assert all(p.visible != p.thermal for p in pairs)
    assert sorted(classes(data)) == sorted(FOUND[name])
    assert not kinds(data)


@pytest.mark.parametrize("name", WRITERS)
def test_one_folder_around_the_set_does_no_harm(name: str, tmp_path: Path) -> None:
    """Archives unpack to align/, LLVIP/, M3FD_Detection/; the folder above is taken as well."""
    inner = open_tiny(name, tmp_path / "downloads" / "whatever")
    split_file = tmp_path / "downloads" / "m3fd_split.txt" if name == "m3fd" else None
    assert open_data(name, tmp_path / "downloads", split_file).root == inner.root
    with pytest.raises(UserError, match=rf"does not hold .*docs/datasets/{name}.md"):
        open_data(name, inner.root.parent.parent, split_file)


@pytest.mark.parametrize("name", WRITERS)
def test_a_training_and_a_score_on_every_layout(name: str, tmp_path: Path) -> None:
    data = open_tiny(name, tmp_path / "set")
    before = sorted(p.relative_to(tmp_path / "set") for p in (tmp_path / "set").rglob("*"))
    options = {"epochs": 1, "imgsz": 64, "batch": 4, "nbs": 4, "plots": False, "device": "cpu", "verbose": False}
    file = train(data.spec, method_config("rscmd"), {**options, "project": str(tmp_path), "name": "run"})
    header = read_header(file)
    assert list(header.names.values()) == NAMES[name]
    assert header.data == {"name": name, "split_hash": split_hash(find_pairs(data, "train"))}
    pairs = find_pairs(data, "val")
    result = evaluate(Predictor(file, device="cpu", conf=0.001, max_det=100), data, pairs)
    assert result["pairs"] == len(VAL)
    assert {c: f["truths"] for c, f in result["per_class"].items() if f["truths"]} == {
        c: len(VAL) * n for c, n in Counter(FOUND[name]).items()
    }
    again = open_data(tmp_path / "run" / "data.yaml")  # what was trained on is kept beside the results, and opens
    assert [p.visible for p in find_pairs(again, "train")] == [p.visible for p in find_pairs(data, "train")]
    assert before == sorted(p.relative_to(tmp_path / "set") for p in (tmp_path / "set").rglob("*"))


def test_a_training_resumes_from_the_inline_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spec is a plain string: it survives the checkpoint, another folder, and a copy of the command line."""
    data = open_tiny("llvip", tmp_path / "set, with: {odd} name")
    options = {"imgsz": 64, "batch": 4, "nbs": 4, "plots": False, "device": "cpu", "verbose": False, "val": False}
    config = method_config("thermal")
    train(data.spec, config, {**options, "epochs": 2, "save_period": 1, "project": str(tmp_path), "name": "run"})
    monkeypatch.chdir(tmp_path.parent)
    train(None, config, {"resume": str(tmp_path / "run/weights/epoch0.pt"), "device": "cpu"})
    assert yaml.safe_load((tmp_path / "run/args.yaml").read_text())["data"] == data.spec
    assert [p.stem for p in find_pairs(open_data(data.spec), "val")] == [f"0{stem}" for stem in VAL]


def test_a_bag_is_made_of_a_published_set(tmp_path: Path) -> None:
    open_tiny("flir", tmp_path / "set")
    words = ["--data", "flir", "--root", str(tmp_path / "set"), "--out", str(tmp_path / "bag")]
    make_bag([*words, "--rate-visible", "10", "--rate-thermal", "10"])
    assert (tmp_path / "bag/metadata.yaml").is_file()


# FLIR-aligned


def test_flir_stray_dogs_are_left_out_and_counted(tmp_path: Path) -> None:
    data = open_tiny("flir", tmp_path)
    write_text(
        tmp_path / f"Annotations/FLIR_{TRAIN[0]}_PreviewData.xml",
        voc([("dog", 1, 1, 9, 9), ("bicycle", 4, 4, 20, 14), ("dog", 20, 1, 29, 9)]),
    )
    assert classes(data) == ["bicycle"]
    checked, read_over = check_pairs(data, find_pairs(data, "train"))
    assert len(checked) == len(TRAIN)
    assert len(read_over) == 1
    assert read_over[0].startswith("2 x unknown_class")
    assert "'dog'" in read_over[0]
    assert kinds(data) == {"unknown_class": 2}


def test_flir_suffixes_belong_to_the_end_of_a_stem_alone(tmp_path: Path) -> None:
    """Replacing _RGB in the whole path would break on this folder's name."""
    data = open_tiny("flir", tmp_path / "my_RGB_set_PreviewData")
    assert len(find_pairs(data, "train")) == len(TRAIN)
    assert classes(data) == ["person", "car"]


def test_flir_counts_4128_and_4129_are_both_published(tmp_path: Path) -> None:
    data = open_tiny("flir", tmp_path)
    assert dict(data.published)["train"] == (4129, 4128)
    problem = next(p for p in check(data).problems if p.kind == "pair_count")
    assert "has 4 pairs here and 4129 or 4128 as published" in problem.text


def test_flir_without_its_lists(tmp_path: Path) -> None:
    open_tiny("flir", tmp_path)
    (tmp_path / "align_validation.txt").write_text("FLIR_00021\nwhat\n")
    with pytest.raises(UserError, match="'what' is no name of a FLIR image"):
        open_data("flir", tmp_path)
    (tmp_path / "align_validation.txt").write_text(f"FLIR_{TRAIN[0]}\n")
    with pytest.raises(UserError, match="listed twice"):
        open_data("flir", tmp_path)
    (tmp_path / "align_validation.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read .*align_validation\.txt"):
        open_data("flir", tmp_path)


def test_flir_missing_files_are_said(tmp_path: Path) -> None:
    data = open_tiny("flir", tmp_path)
    (tmp_path / f"JPEGImages/FLIR_{TRAIN[0]}_RGB.jpg").unlink()
    for kind in ("RGB.jpg", "PreviewData.jpeg"):
        (tmp_path / f"JPEGImages/FLIR_{TRAIN[1]}_{kind}").unlink()
    (tmp_path / f"Annotations/FLIR_{TRAIN[2]}_PreviewData.xml").unlink()
    with pytest.raises(
        UserError,
        match=r"1 x pair that is listed, .*, 1 x image without its partner, 1 x no label file; whole pairs: 1",
    ):
        find_pairs(data, "train")
    assert kinds(data) == {"missing": 1, "no_partner": 1, "no_label": 1}


def test_flir_two_images_of_one_stem(tmp_path: Path) -> None:
    data = open_tiny("flir", tmp_path)
    write_image(tmp_path / f"JPEGImages/FLIR_{TRAIN[0]}_RGB.png", "other")
    assert [p.kind for p in list_pairs(data, "train").problems] == ["same_stem"]


# LLVIP


def test_llvip_labels_from_before_the_correction_are_told(tmp_path: Path) -> None:
    data = open_tiny("llvip", tmp_path)
    many = [("person", i % 32, i // 32 / 10, i % 32 + 5, i // 32 / 10 + 4) for i in range(7929)]
    write_text(tmp_path / f"Annotations/0{VAL[0]}.xml", voc(many))
    assert kinds(data) == {"old_labels": 1}


def test_llvip_one_image_of_another_kind(tmp_path: Path) -> None:
    """A half-finished download: the train folders do not hold the same pairs."""
    data = open_tiny("llvip", tmp_path)
    (tmp_path / f"infrared/train/0{TRAIN[3]}.jpg").unlink()
    (tmp_path / f"visible/train/0{TRAIN[0]}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"llvip train: 1 x image without its partner; whole pairs: 3"):
        find_pairs(data, "train")
    assert kinds(data) == {"no_partner": 1, "unreadable": 1}
    shutil.rmtree(tmp_path / "infrared/train")
    assert kinds(data) == {"no_split": 1}  # val is looked at all the same
    with pytest.raises(UserError, match="no folder"):
        find_pairs(data, "train")


def test_boxes_beyond_the_edge_are_clipped_and_counted(tmp_path: Path) -> None:
    data = open_tiny("llvip", tmp_path)
    boxes = [("person", 30, 8, 44, 24), ("person", 50, 8, 60, 24), ("person", 9, 9, 9, 20), ("person", 1, 1, 5, 5)]
    write_text(tmp_path / f"Annotations/0{TRAIN[0]}.xml", voc([*boxes, boxes[-1]]))
    labels = read_labels(data, find_pairs(data, "train")[0])
    np.testing.assert_allclose(labels[:, 1:], [[3 / 40, 3 / 32, 0.1, 0.125], [35 / 40, 0.5, 0.25, 0.5]], rtol=1e-6)
    assert kinds(data) == {"outside": 1, "empty_box": 2, "repeated_box": 1}


def test_unusable_xml_stops_a_training_and_not_the_check(tmp_path: Path) -> None:
    data = open_tiny("llvip", tmp_path)
    texts = ("<annotation><size>", voc([], (0, 0)), voc([("person", 1, 1, 5, 5)]).replace("<xmax>5</xmax>", ""))
    for stem, text in zip(TRAIN, texts):
        write_text(tmp_path / f"Annotations/0{stem}.xml", text)
    assert kinds(data) == {"bad_label": 3}
    with pytest.raises(UserError, match="3 of 4 pairs cannot be used"):
        check_pairs(data, find_pairs(data, "train"))


def test_images_and_labels_of_different_sizes_are_told(tmp_path: Path) -> None:
    data = open_tiny("llvip", tmp_path)
    write_image(tmp_path / f"infrared/train/0{TRAIN[0]}.jpg", TRAIN[0], (20, 16), grey=True)
    write_text(tmp_path / f"Annotations/0{TRAIN[1]}.xml", voc([("person", 8, 8, 24, 56)], (80, 64)))
    assert kinds(data) == {"size_mismatch": 1, "label_size": 1}
    np.testing.assert_allclose(read_labels(data, find_pairs(data, "train")[1])[0, 1:], [0.2, 0.5, 0.2, 0.75])
    check_pairs(data, find_pairs(data, "train"))  # both are used all the same


def test_voc_in_other_units(tmp_path: Path) -> None:
    data = open_tiny("llvip", tmp_path)
    texts = (
        voc([("person", 0.1, 0.2, 0.5, 0.75)]),
        voc([("person", 20, 18, 19, 12)]),
        voc([("person", 1, 1, 5, 5)], (0, 0)),
        "<!DOCTYPE a [<!ENTITY b 'c'>]>" + voc([("person", 1, 1, 5, 5)]),
    )
    for stem, text in zip(TRAIN, texts):
        write_text(tmp_path / f"Annotations/0{stem}.xml", text)
    problems = check(data, near=None).problems
    assert kinds(data) == {"units": 1, "empty_box": 1, "bad_label": 2}
    for says in ("pixels are wanted", "VOC wants corners", "<size> names no image size", "no document type"):
        assert any(says in problem.text for problem in problems), says


# M3FD


def test_m3fd_classes_go_by_name(tmp_path: Path) -> None:
    """Loaders list Lamp and Motorcycle in either order; the names in the XML files decide."""
    data = open_tiny("m3fd", tmp_path / "set")
    rows = [("Truck", 1, 1, 5, 5), ("Motorcycle", 6, 1, 9, 5), ("Lamp", 10, 1, 14, 5), ("lamp", 15, 1, 19, 5)]
    write_text(tmp_path / f"set/Annotation/{TRAIN[0]}.xml", voc(rows, (25, 18)))
    assert sorted(classes(data)) == ["Lamp", "Motorcycle", "Truck"]
    assert kinds(data) == {"unknown_class": 1}  # "lamp" is another word


def test_m3fd_sizes_differ_from_pair_to_pair(tmp_path: Path) -> None:
    data = open_tiny("m3fd", tmp_path / "set")
    assert check(data).sizes["train"] == {"40x30": 2, "25x18": 2}
    first, second = (read_labels(data, pair)[0, 3:] for pair in find_pairs(data, "train")[:2])
    np.testing.assert_allclose(first, [8 / 25, 12 / 18], rtol=1e-6)
    np.testing.assert_allclose(second, [8 / 40, 12 / 30], rtol=1e-6)


def test_m3fd_pairs_in_no_list_are_unused_on_purpose(tmp_path: Path) -> None:
    open_tiny("m3fd", tmp_path / "set")
    write_text(tmp_path / "few.txt", f"train {TRAIN[0]} {TRAIN[1]}\nval {VAL[0]}\n")
    report = check(open_data("m3fd", tmp_path / "set", tmp_path / "few.txt"), near=None)
    assert len(report.unused) == 9  # both images and the XML file of three pairs
    assert not report.problems


def test_m3fd_near_copies_across_the_split_are_found(tmp_path: Path) -> None:
    data = open_tiny("m3fd", tmp_path / "set")
    for kind, grey in (("Vis", False), ("Ir", True)):
        write_image(tmp_path / f"set/{kind}/{VAL[0]}.png", TRAIN[1], (40, 30), grey)  # a copy at another size
    write_text(tmp_path / f"set/Annotation/{VAL[0]}.xml", voc([], (40, 30)))
    copies = [p for p in check(data).problems if p.kind == "near_copy"]
    assert [p.file.stem for p in copies] == [VAL[0]]
    assert f"{TRAIN[1]}.png" in copies[0].text
    assert not check(data, near=None).problems


@pytest.mark.parametrize(("name", "counts"), [("m3fd", (3129, 900)), ("m3fd-damsdet", (3368, 831))])
def test_m3fd_shipped_splits_fit_the_whole_set(name: str, counts: tuple[int, int], tmp_path: Path) -> None:
    """All 4200 ids as published: the lists find every pair they name; id 01300 is in neither DAMSDet list."""
    write_image(tmp_path / "v.png", "v")
    for folder, file, text in (("Vis", "v.png", None), ("Ir", "v.png", None), ("Annotation", "a.xml", voc([]))):
        (tmp_path / "set" / folder).mkdir(parents=True)
        if text:
            write_text(tmp_path / file, text)
        for number in range(4200):
            os.link(tmp_path / file, tmp_path / "set" / folder / f"{number:05d}{Path(file).suffix}")
    data = open_data(name, tmp_path / "set")
    train_ids, val_ids = ([int(p.stem) for p in find_pairs(data, split)] for split in ("train", "val"))
    assert (len(train_ids), len(val_ids)) == counts
    assert not set(train_ids) & set(val_ids)
    assert 1300 not in {*train_ids, *val_ids}
    if name == "m3fd-damsdet":
        assert {*train_ids, *val_ids, 1300} == set(range(4200))
    else:  # the rule that stands in the file
        assert val_ids == [i for i in range(4200) if i // 100 % 5 == 1]
        gap = {i for i in range(4200) for j in (i - 10, i + 10) if 0 <= j < 4200 and j // 100 % 5 == 1}
        assert train_ids == [i for i in range(4200) if i // 100 % 5 != 1 and i not in gap and i != 1300]
        assert min(abs(t - v) for t in train_ids for v in val_ids[:200]) == 11


def test_a_changed_split_list_is_refused(tmp_path: Path) -> None:
    for file in SPLITS.iterdir():
        digest = "0" * 64
        with pytest.raises(UserError, match="not the list that was shipped"):
            read_split_file(file, digest)
    for text, says in (
        ("", "lists nothing"),
        ("train", "line 1: expected"),
        ("train 1 200", "line 1: expected"),
        ("train 01 03\nval 02", "02 is listed twice"),
        ("train 3 1", "line 1: expected"),
    ):
        write_text(tmp_path / "list.txt", text)
        with pytest.raises(UserError, match=says):
            read_split_file(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbftrain 1 2\r\nval 3\r\n")
    assert read_split_file(tmp_path / "list.txt") == {"train": ("1", "2"), "val": ("3",)}
    write_text(tmp_path / "list.txt", "# mine\ntrain 008 011  # four\nval x\n")
    assert read_split_file(tmp_path / "list.txt") == {"train": ("008", "009", "010", "011"), "val": ("x",)}


# MFAD


def test_mfad_numbers_are_in_the_order_of_its_own_yaml(tmp_path: Path) -> None:
    data = open_tiny("mfad", tmp_path)
    write_text(tmp_path / f"labels/train/{TRAIN[0]}.txt", "".join(f"{i} 0.5 0.5 0.{i + 1} 0.2\n" for i in range(7)))
    assert classes(data) == NAMES["mfad"]
    assert kinds(data) == {"unknown_class": 1}
    write_text(tmp_path / "labels/classes.txt", "Truck\nBus\n")  # labelling tools leave it there; no label of a pair
    (tmp_path / f"labels/test/{VAL[0]}.txt").unlink()  # a picture without objects
    assert read_labels(data, find_pairs(data, "val")[0]).shape == (0, 5)
    assert check(data).without_boxes == {"train": 0, "val": 1}


def test_splits_by_folder_take_no_list(tmp_path: Path) -> None:
    write_text(tmp_path / "list.txt", "train 1")
    for name in ("llvip", "mfad"):
        open_tiny(name, tmp_path / name)
        with pytest.raises(UserError, match="--split-file is not for it"):
            open_data(name, tmp_path / name, tmp_path / "list.txt")


def test_what_is_missing_on_the_command_line() -> None:
    with pytest.raises(UserError, match="--data flir needs --root DIR"):
        open_data("flir")
    with pytest.raises(UserError, match=r"cannot read lvip: .*published sets are flir, llvip"):
        open_data("lvip")
    with pytest.raises(UserError, match=r"no folder .*/absent"):
        open_data("m3fd", Path("/absent"))
