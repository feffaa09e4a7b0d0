"""A labelled set to CVAT and Label Studio and back: the same boxes come, and what a person touched is never lost."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import yaml

from rscmd_model.datasets import coco, cvat, label_studio
from rscmd_model.datasets.check import check
from rscmd_model.datasets.entries import Listed
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.sidecars import Found, Sidecar, label_line, label_text, read_sidecar, write_sidecar
from rscmd_model.errors import UserError
from rscmd_model.imaging.registration import Registration
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.labelling import corrections
from rscmd_model.labelling.corrections import Corrections, correct
from rscmd_model.labelling.label_set import LabelSet
from rscmd_model.labelling.label_tools import (
    MADE_WITH,
    UNSURE,
    VIEW,
    Picture,
    write_cvat,
    write_exports,
    write_label_studio,
)
from rscmd_model.labelling.showing import take_corrections
from rscmd_model.labelling.standing import pixel_box, standing
from rscmd_ros.bags.labelling import _after

NAMES = {0: "person", 1: "car & van"}
CONTRACT = ThermalContract(source="mono16", scale=(0, 65535))
SIZE = (160, 120)
STEMS = [f"{1_700_000_000_000_000_000 + k:019d}" for k in range(3)]
MODEL = Sidecar(
    (
        Found(label_line(0, (0.25, 0.5, 0.1, 0.3)), 0.91, 0.8, 0.2, 1),
        Found(label_line(1, (0.61234, 0.51111, 0.2345, 0.1999)), 0.72, 0.7, 0.0, 2),
    ),
    (Found(label_line(1, (0.85, 0.2, 0.1, 0.1)), 0.3),),
)
EMPTY = Sidecar()
Change = Mapping[str, Sequence[tuple[str, tuple[float, float, float, float]]]]
"""By stem the boxes that a person leaves: label, and edges in px."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of two pairs to train on, one of them without objects, and one to validate on."""
    made = tmp_path / "drive 1"
    for stem, split, sidecar in zip(STEMS, ("train", "train", "val"), (MODEL, EMPTY, MODEL)):
        for kind in ("visible", "thermal", "labels", "sidecars"):
            (made / kind / split).mkdir(parents=True, exist_ok=True)
        picture = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
        cv2.imwrite(str(made / f"visible/{split}/{stem}.jpg"), picture)
        cv2.imwrite(str(made / f"thermal/{split}/{stem}.png"), np.full((60, 80), 30000, np.uint16))
        (made / f"labels/{split}/{stem}.txt").write_text(label_text(sidecar))
        write_sidecar(made / f"sidecars/{split}/{stem}.json", sidecar)
    return made


def paths(folder: Path, number: int = 0) -> tuple[Path, Path]:
    """Label file and sidecar of a pair."""
    split = "val" if number == 2 else "train"
    return folder / f"labels/{split}/{STEMS[number]}.txt", folder / f"sidecars/{split}/{STEMS[number]}.json"


def boxes(sidecar: Sidecar) -> list[tuple[str, tuple[float, ...]]]:
    """Labels and edges in px, doubtful regions too."""
    named = [(NAMES[pixel_box(found, SIZE)[0]], pixel_box(found, SIZE)[1]) for found in sidecar.labels]
    return [*named, *((UNSURE, pixel_box(found, SIZE)[1]) for found in sidecar.ignore)]


def same(listed: Listed, name: str, expected: Sidecar) -> None:
    entry = listed.images[name]
    found = [(shape.name, shape.box) for shape in entry.shapes]
    assert [label for label, _ in found] == [label for label, _ in boxes(expected)]
    np.testing.assert_allclose(
        [box for _, box in found] or np.zeros(0), [box for _, box in boxes(expected)] or np.zeros(0), atol=0.006
    )


def from_cvat(folder: Path, change: Change, split: str = "train", name: str = "corrected.xml") -> Path:
    """The file that CVAT would export: what it was given, but for the pairs that a person changed."""
    root = ElementTree.parse(folder / f"for_cvat/{split}.xml").getroot()
    for image in root.iterfind("image"):
        stem = str(image.get("name")).removesuffix(".jpg")
        if stem in change:
            for box in list(image):
                image.remove(box)
            for label, edges in change[stem]:
                corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(str, edges)))
                ElementTree.SubElement(image, "box", {"label": label, "source": "manual", **corners})
    ElementTree.ElementTree(root).write(folder.parent / name)
    return folder.parent / name


def from_studio(folder: Path, submitted: Sequence[str], change: Change | None = None, split: str = "train") -> Path:
    """The file that Label Studio would export: a submitted task has its predictions as its annotation."""
    tasks = json.loads((folder / f"for_label_studio/{split}.json").read_text())
    for number, task in enumerate(tasks, 1):
        stem = task["data"]["visible"].rpartition("/")[2].removesuffix(".jpg")
        result = [{k: v for k, v in region.items() if k != "score"} for region in task["predictions"][0]["result"]]
        if change and stem in change:
            result = [region(label, edges) for label, edges in change[stem]]
        task |= {"id": number, "annotations": [{"result": result, "was_cancelled": False}] if stem in submitted else []}
    (folder.parent / "corrected.json").write_text(json.dumps(tasks))
    return folder.parent / "corrected.json"


def region(label: str, edges: tuple[float, float, float, float]) -> dict[str, Any]:
    x0, y0, x1, y1 = np.array(edges) / (SIZE * 2) * 100
    value = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0, "rectanglelabels": [label]}
    size = {"original_width": SIZE[0], "original_height": SIZE[1]}
    return {"type": "rectanglelabels", "from_name": "label", "to_name": "visible", **size, "value": value}


def export(folder: Path) -> list[Path]:
    return write_exports(folder, NAMES, CONTRACT, None, "assembled.safetensors")


def test_what_tools_are_given_reads_back_as_the_same_boxes(folder: Path) -> None:
    written = export(folder)
    assert sorted(str(file.relative_to(folder)) for file in written) == [
        *("for_cvat/labels.json", "for_cvat/train.xml", "for_cvat/val.xml"),
        *("for_label_studio/config.xml", "for_label_studio/train.json", "for_label_studio/val.json"),
    ]
    read = cvat.load(folder / "for_cvat/train.xml")
    assert read.classes == ("person", "car & van", UNSURE)
    assert [read.images[f"{stem}.jpg"].size for stem in STEMS[:2]] == [SIZE] * 2
    for stem, sidecar in zip(STEMS, (MODEL, EMPTY)):
        same(read, f"{stem}.jpg", sidecar)
    submitted = label_studio.load(from_studio(folder, STEMS))
    for stem, sidecar in zip(STEMS, (MODEL, EMPTY)):
        same(submitted, f"drive 1/visible/train/{stem}.jpg", sidecar)
        view = cv2.imread(str(folder / VIEW / f"train/{stem}.jpg"), cv2.IMREAD_UNCHANGED)
        assert view.shape == SIZE[::-1]  # in the visible picture's pixels
        assert abs(int(view.mean()) - 30000 * 255 // 65535) <= 1
    task, other = json.loads((folder / "for_label_studio/train.json").read_text())
    assert task["data"]["visible"] == f"/data/local-files/?d=drive%201/visible/train/{STEMS[0]}.jpg"
    assert task["predictions"][0]["model_version"] == "assembled.safetensors"
    assert [region["score"] for region in task["predictions"][0]["result"]] == [0.91, 0.72, 0.3]
    assert other["predictions"][0]["result"] == []
    labels = json.loads((folder / "for_cvat/labels.json").read_text())
    assert [label["name"] for label in labels] == [*NAMES.values(), UNSURE]
    config = ElementTree.parse(folder / "for_label_studio/config.xml").getroot()
    assert [label.get("value") for label in config.iter("Label")] == [*NAMES.values(), UNSURE]
    assert [image.get("name") for image in config.iter("Image")] == ["visible", "thermal"]


def test_views_are_made_anew_where_they_were_made_otherwise(folder: Path) -> None:
    export(folder)
    view = folder / VIEW / f"train/{STEMS[0]}.jpg"
    level = round(cv2.imread(str(view), cv2.IMREAD_GRAYSCALE).mean())
    view.write_bytes(b"as it was")
    export(folder)
    assert view.read_bytes() == b"as it was", "it is not written again for nothing"
    write_exports(folder, NAMES, ThermalContract("mono16", (29000.0, 31000.0)), None)
    assert cv2.imread(str(view), cv2.IMREAD_GRAYSCALE).mean() > level
    aside = Registration(((1.0, 0, SIZE[0] / 2), (0, 1.0, 0), (0, 0, 1.0)), SIZE, SIZE)
    write_exports(folder, NAMES, ThermalContract("mono16", (29000.0, 31000.0)), aside)
    assert cv2.imread(str(view), cv2.IMREAD_GRAYSCALE)[:, : SIZE[0] // 4].max() < level, "nothing is seen there"
    export(folder)
    (folder / VIEW / MADE_WITH).write_text("{")  # of earlier versions it is not there at all
    view.write_bytes(b"of nobody knows what")
    export(folder)
    assert round(cv2.imread(str(view), cv2.IMREAD_GRAYSCALE).mean()) == level


def test_the_files_for_tools_are_none_of_the_set(folder: Path) -> None:
    """The check, which names every file that is not used, has nothing to say of them."""
    export(folder)
    splits = ("train", "val")
    visible, thermal = ({split: f"{camera}/{split}" for split in splits} for camera in ("visible", "thermal"))
    description = {**visible, "thermal": thermal, "names": NAMES, "thermal_contract": CONTRACT.to_dict()}
    (folder / "data.yaml").write_text(yaml.safe_dump(description))
    report = check(open_data(folder / "data.yaml"), near=None)
    assert {split: len(pairs) for split, pairs in report.pairs.items()} == {"train": 2, "val": 1}
    assert report.problems == []
    assert not [one.file for one in report.unused if VIEW in one.file.parts or "for_" in one.file.parent.name]


def test_many_pictures_are_written_one_by_one(tmp_path: Path) -> None:
    """Neither file needs them all at once: the pictures that were written are let go."""

    def come() -> Iterator[Picture]:
        given: list[weakref.ref[Picture]] = []
        for k in range(500):
            assert sum(one() is not None for one in given) <= 1
            picture = Picture(f"visible/train/{k}.jpg", f"{VIEW}/train/{k}.jpg", SIZE, MODEL.labels, MODEL.ignore)
            given.append(weakref.ref(picture))
            yield picture

    write_cvat(tmp_path / "many.xml", come(), NAMES)
    write_label_studio(tmp_path / "many.json", come(), NAMES, "drive")
    assert len(cvat.load(tmp_path / "many.xml").images) == 500
    assert len(json.loads((tmp_path / "many.json").read_text())) == 500
    write_label_studio(tmp_path / "none.json", [], NAMES, "drive")
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_nothing_changed_writes_nothing(folder: Path) -> None:
    export(folder)
    before = {path: path.read_bytes() for number in range(3) for path in paths(folder, number)}
    assert correct(folder, from_cvat(folder, {}), NAMES) == Corrections(listed=2, unchanged=2)
    assert correct(folder, from_studio(folder, []), NAMES) == Corrections(listed=2, waiting=2)
    nudged = [(label, tuple(edge + 0.4 for edge in box)) for label, box in boxes(MODEL)]  # as a tool rounds
    assert correct(folder, from_cvat(folder, {STEMS[0]: nudged}), NAMES).unchanged == 2
    assert {path: path.read_bytes() for path in before} == before


def test_a_correction_in_cvat(folder: Path) -> None:
    """One box moved, one deleted, the doubtful one turned into an object, one drawn anew, one more marked doubtful."""
    export(folder)
    person, _, doubt = boxes(MODEL)
    moved = ("person", tuple(edge + 2 for edge in person[1]))
    left = [moved, ("car & van", doubt[1]), ("person", (0.0, 10.0, 30.0, 40.0)), (UNSURE, (100.0, 90.0, 120.0, 118.0))]
    counts = correct(folder, from_cvat(folder, {STEMS[0]: left}), NAMES)
    assert counts == Corrections(listed=2, corrected=1, unchanged=1, added=3, removed=2)
    assert counts.line() == "2 pairs: 1 corrected (+3 -2 boxes), 1 unchanged"
    text, sidecar = paths(folder)[0].read_text(), read_sidecar(paths(folder)[1])
    assert (sidecar.person, sidecar.before) == (True, MODEL)
    assert text == label_text(sidecar)
    assert sidecar.touched(text)
    for found, expected in zip(boxes(sidecar), left, strict=True):
        assert found[0] == expected[0]
        np.testing.assert_allclose(found[1], expected[1], atol=0.01)
    assert sidecar.regions(text) == sidecar.ignore
    assert sidecar.regions(text + "0 0.5 0.5 0.1 0.1\n") == ()  # then a text editor has the last word
    again = correct(folder, from_cvat(folder, {STEMS[0]: left}), NAMES)
    assert again == Corrections(listed=2, unchanged=2)
    # What is exported now is what the person left.
    export(folder)
    same(cvat.load(folder / "for_cvat/train.xml"), f"{STEMS[0]}.jpg", sidecar)


def test_what_is_known_of_a_box_that_stays_goes_on(folder: Path) -> None:
    export(folder)
    file = from_cvat(folder, {STEMS[0]: boxes(MODEL)[1:]})
    assert correct(folder, file, NAMES).removed == 1
    sidecar = read_sidecar(paths(folder)[1])
    assert (sidecar.labels, sidecar.ignore) == (MODEL.labels[1:], MODEL.ignore)


def test_another_class_is_a_correction(folder: Path) -> None:
    export(folder)
    (_, box), *others = boxes(MODEL)
    counts = correct(folder, from_cvat(folder, {STEMS[0]: [("car & van", box), *others]}), NAMES)
    assert counts == Corrections(listed=2, corrected=1, unchanged=1, added=1, removed=1)
    assert [label for label, _ in boxes(read_sidecar(paths(folder)[1]))] == ["car & van", "car & van", UNSURE]


def test_a_doubt_that_is_dispelled_is_a_correction(folder: Path) -> None:
    """The label file stays as it is, and the region is over."""
    export(folder)
    text = paths(folder)[0].read_text()
    counts = correct(folder, from_cvat(folder, {STEMS[0]: boxes(MODEL)[:2]}), NAMES)
    assert counts == Corrections(listed=2, corrected=1, unchanged=1)
    assert paths(folder)[0].read_text() == text
    assert read_sidecar(paths(folder)[1]) == Sidecar(MODEL.labels, (), True, MODEL)


def test_a_submitted_task_of_label_studio_counts_as_looked_at(folder: Path) -> None:
    export(folder)
    person = ("person", (20.0, 20.0, 60.0, 100.0))
    counts = correct(folder, from_studio(folder, STEMS, {STEMS[1]: [person]}), NAMES)
    assert counts == Corrections(listed=2, corrected=1, confirmed=1, added=1)
    assert read_sidecar(paths(folder)[1]) == replace(MODEL, person=True, before=MODEL)
    assert [label for label, _ in boxes(read_sidecar(paths(folder, 1)[1]))] == ["person"]
    assert correct(folder, from_studio(folder, STEMS, {STEMS[1]: [person]}), NAMES).unchanged == 2
    skipped = json.loads(from_studio(folder, STEMS).read_text())
    for task in skipped:
        task["annotations"][0]["was_cancelled"] = True
    (folder.parent / "skipped.json").write_text(json.dumps(skipped))
    assert correct(folder, folder.parent / "skipped.json", NAMES) == Corrections(listed=2, waiting=2)


def test_coco(folder: Path) -> None:
    """As a tool exports it, with the classes in an order of its own."""
    ids = {UNSURE: 1, "car & van": 2, "person": 3}
    notes = [
        {"id": k, "image_id": 7, "category_id": ids[label], "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
        for k, (label, (x0, y0, x1, y1)) in enumerate([*boxes(MODEL)[1:], ("person", (0.0, 0.0, 20.0, 20.0))])
    ]
    images = [{"id": 7, "file_name": f"train/{STEMS[0]}.jpg", "width": SIZE[0], "height": SIZE[1]}]
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    file = folder.parent / "corrected.json"
    file.write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
    assert len(coco.load(file).images) == 1
    assert correct(folder, file, NAMES) == Corrections(listed=1, corrected=1, added=1, removed=1)


def test_labels_changed_by_hand_stay_unless_the_file_says_something_new(folder: Path) -> None:
    export(folder)
    exported = from_cvat(folder, {}, name="as_exported.xml")
    labels, sidecar_file = paths(folder)
    by_hand = label_line(1, (0.5, 0.5, 0.2, 0.2)) + "\n"
    labels.write_text(by_hand)
    assert correct(folder, exported, NAMES) == Corrections(listed=2, kept=1, unchanged=1)
    assert (labels.read_text(), read_sidecar(sidecar_file)) == (by_hand, MODEL)
    assert correct(folder, from_studio(folder, STEMS[:1]), NAMES).kept == 1  # looked at there, drawn here
    car = ("car & van", (10.0, 10.0, 50.0, 50.0))
    assert correct(folder, from_cvat(folder, {STEMS[0]: [car]}), NAMES).corrected == 1
    # A person's labels stay when an older export comes back, and when the label file is changed once more.
    assert correct(folder, exported, NAMES).kept == 1
    labels.write_text(by_hand)
    assert correct(folder, exported, NAMES).kept == 1
    assert correct(folder, from_cvat(folder, {STEMS[0]: [car]}), NAMES).kept == 1
    assert labels.read_text() == by_hand
    # Without a sidecar the labels are a person's; they are exported and compared all the same.
    sidecar_file.unlink()
    export(folder)
    assert correct(folder, from_cvat(folder, {}), NAMES).unchanged == 2
    assert correct(folder, from_cvat(folder, {STEMS[0]: []}), NAMES).removed == 1
    assert (labels.read_text(), read_sidecar(sidecar_file)) == ("", Sidecar(person=True))


def test_an_export_from_before_any_relabelling_changes_nothing(folder: Path) -> None:
    """Also when the last model said the same as the one before it, and after a person's correction."""
    files, sidecar_file = [], paths(folder)[1]
    for number in range(4):
        export(folder)
        files.append(from_cvat(folder, {}, name=f"{number}.xml"))
        said = Sidecar(MODEL.labels[: number % 3], MODEL.ignore)  # of 1 and 2 objects, and of none twice
        for again in (said, said):
            LabelSet(folder).write_labels("train", STEMS[0], _after(again, LabelSet(folder).pair("train", STEMS[0])))
    before = sidecar_file.read_bytes()
    for file in files:
        counts = correct(folder, file, NAMES)
        assert counts.kept + counts.unchanged == 2, file
    assert sidecar_file.read_bytes() == before
    export(folder)
    assert correct(folder, from_cvat(folder, {STEMS[0]: []}), NAMES).corrected == 1
    before = sidecar_file.read_bytes()
    for file in files:
        assert correct(folder, file, NAMES).kept == 1, file
    assert sidecar_file.read_bytes() == before


def test_what_is_confirmed_stays_as_it_was_written(folder: Path) -> None:
    labels, sidecar_file = paths(folder)
    labels.write_text("0 0.1 0.1 0.3 0.1 0.2 0.5\n")
    export(folder)
    assert correct(folder, from_studio(folder, STEMS[:1]), NAMES).confirmed == 1
    assert labels.read_text() == "0 0.1 0.1 0.3 0.1 0.2 0.5\n"
    assert read_sidecar(sidecar_file).person
    assert correct(folder, from_studio(folder, STEMS[:1]), NAMES).unchanged == 1


def test_polygons_written_by_hand_are_boxes(folder: Path) -> None:
    paths(folder)[0].write_text("0 0.1 0.1 0.3 0.1 0.2 0.5\n")
    (pair, *_) = standing(folder, "train", NAMES)
    assert (pair.touched, pair.unsure) == (True, ())
    np.testing.assert_allclose(pixel_box(pair.labels[0], SIZE)[1], (16, 12, 48, 60), atol=0.01)
    paths(folder)[0].write_text("7 0.1 0.1 0.3 0.1\n")
    with pytest.raises(UserError, match="class 7 is unknown"):
        export(folder)


@pytest.mark.parametrize("dies_at", [0, 1])
def test_broken_off_between_two_files_a_persons_label_stays_a_persons(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    """Killed before the first sidecar is written, or before the second: running it again ends the work."""
    export(folder)
    car = [("car & van", (10.0, 10.0, 50.0, 50.0)), (UNSURE, (80.0, 80.0, 100.0, 100.0))]
    file = from_cvat(folder, dict.fromkeys(STEMS[:2], car))
    calls = iter(range(9))

    def killed(path: Path, sidecar: Sidecar) -> None:
        if next(calls) == dies_at:
            raise KeyboardInterrupt
        write_sidecar(path, sidecar)

    with monkeypatch.context() as patched:
        patched.setattr(corrections, "write_sidecar", killed)
        with pytest.raises(KeyboardInterrupt):
            correct(folder, file, NAMES)
    for number in range(2):
        labels, sidecar_file = paths(folder, number)
        written = number <= dies_at
        assert read_sidecar(sidecar_file).touched(labels.read_text()) == written
    assert correct(folder, file, NAMES).corrected == 2 - dies_at
    for number in range(2):
        labels, sidecar_file = paths(folder, number)
        assert boxes(read_sidecar(sidecar_file))[1][0] == UNSURE
        assert read_sidecar(sidecar_file).goes_with(labels.read_text())


def test_shapes_that_are_no_boxes_are_counted(folder: Path) -> None:
    export(folder)
    file = from_cvat(folder, {STEMS[0]: [*boxes(MODEL), ("person", (170.0, 10.0, 190.0, 30.0))]})
    text = file.read_text().replace("</image>", '<points label="person" points="1,2"/></image>', 1)
    file.write_text(text)
    counts = correct(folder, file, NAMES)
    assert (counts.left_out, counts.unchanged) == (2, 2)
    assert counts.line().endswith("; 2 shapes that are no boxes left out")


def test_boxes_that_a_task_left_out_were_deleted_by_nobody(folder: Path) -> None:
    """Neither those of a label that the task does not have, nor all where none were uploaded."""
    LabelSet(folder).write_labels("train", STEMS[1], MODEL)
    export(folder)
    before = {path: path.read_bytes() for number in range(3) for path in paths(folder, number)}
    for label in ("car & van", UNSURE):
        left = [box for box in boxes(MODEL) if box[0] != label]
        file = from_cvat(folder, dict.fromkeys(STEMS[:2], left))
        root = ElementTree.parse(file).getroot()
        (labels,) = root.iterfind("meta//labels")
        labels.remove(next(one for one in labels if one.findtext("name") == label))
        ElementTree.ElementTree(root).write(file)
        with pytest.raises(UserError, match=f"a task without the label '{label}'"):
            correct(folder, file, NAMES)
    none = from_cvat(folder, dict.fromkeys(STEMS[:2], ()))
    with pytest.raises(UserError, match="not one box in the 2 pairs that have objects here"):
        correct(folder, none, NAMES)
    assert {path: path.read_bytes() for path in before} == before
    submitted = correct(folder, from_studio(folder, STEMS, dict.fromkeys(STEMS[:2], ())), NAMES)
    assert submitted.corrected == 2, "of each of these a person says that there is nothing"


def test_a_region_whose_label_was_taken_away_is_refused(folder: Path) -> None:
    export(folder)
    unlabelled = region("person", (10.0, 10.0, 50.0, 50.0))
    for value in ([], None):
        unlabelled["value"]["rectanglelabels"] = value
        file = from_studio(folder, STEMS)
        tasks = json.loads(file.read_text())
        tasks[1]["annotations"][0]["result"] = [unlabelled]
        file.write_text(json.dumps(tasks))
        with pytest.raises(UserError, match=rf"task 2, region 1 of .*{STEMS[1]}.* has no label"):
            correct(folder, file, NAMES)


def test_a_set_may_be_called_thermal(folder: Path) -> None:
    called = folder.rename(folder.with_name("thermal"))
    export(called)
    assert correct(called, from_studio(called, STEMS), NAMES).confirmed == 2


def test_a_class_that_was_taken_out_is_told_before_anything_is_written(folder: Path) -> None:
    export(folder)
    file = from_cvat(folder, {STEMS[0]: [("person", (10.0, 10.0, 50.0, 50.0))]})
    LabelSet(folder).write_description({0: "person"}, CONTRACT, None)
    before = {path: path.read_bytes() for number in range(3) for path in paths(folder, number)}
    with pytest.raises(UserError, match=rf"{STEMS[0]}.txt: class 1 is unknown; names has person"):
        take_corrections(folder, [file])
    assert {path: path.read_bytes() for path in before} == before


def test_bad_files_are_one_line_and_write_nothing(folder: Path) -> None:
    export(folder)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    good = {STEMS[0]: [("car & van", (10.0, 10.0, 50.0, 50.0))]}
    cases = [
        (
            from_cvat(folder, {**good, STEMS[1]: [("cat", (1.0, 1.0, 9.0, 9.0))]}, name="class.xml"),
            "unknown class 'cat'",
        ),
        (from_cvat(folder, {**good, STEMS[1]: [("persn", (1, 1, 9, 9))]}, name="near.xml"), "did you mean person?"),
    ]
    for name, old, new, says in (
        ("unknown.xml", f"{STEMS[1]}.jpg", "elsewhere.jpg", "1 pictures that are in no pair of .*'elsewhere'"),
        ("size.xml", 'width="160"', 'width="640"', "has 640x120 px, and the visible picture of the pair has 160x120"),
        ("thermal.xml", f"{STEMS[0]}.jpg", f"thermal/{STEMS[0]}.png", "boxes on the thermal picture"),
        ("twice.xml", f"{STEMS[1]}.jpg", f"b/{STEMS[0]}.jpg", None),
    ):
        file = from_cvat(folder, {**good, STEMS[1]: good[STEMS[0]]}, name=name)
        file.write_text(file.read_text().replace(old, new))
        cases.append((file, says or "lists the pair .* twice"))
    for name, text, says in (
        ("empty.json", "", "is empty"),
        ("empty.xml", "", "is no readable XML"),
        ("no.json", "[]", "no JSON export of Label Studio"),
        ("none.json", '{"images": [], "annotations": [], "categories": []}', "lists no picture"),
        ("other.json", "{}", "is no COCO detection file"),
        ("labels.zip", "PK", "unpack it"),
        ("labels.txt", "0 0.5 0.5 1 1", "corrections come as .xml"),
    ):
        (folder.parent / name).write_text(text)
        cases.append((folder.parent / name, says))
    cases.append((folder.parent / "missing.json", "cannot read .*missing.json"))
    for file, says in cases:
        with pytest.raises(UserError, match=says) as error:
            correct(folder, file, NAMES)
        assert "\n" not in str(error.value)
        assert file.name in str(error.value)
    with pytest.raises(UserError, match="a class is called 'unsure'"):
        write_exports(folder, {0: "unsure"}, CONTRACT, None)
    assert {path: path.read_bytes() for path in before} == before
