"""`python -m rscmd_model.datasets check`: what it finds, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from published_layouts import open_tiny, picture
from test_pairs import write_world
from test_pictures import with_orientation

from rscmd_model.datasets import __main__ as command
from rscmd_model.datasets.check import check
from rscmd_model.datasets.near_copies import near_copies, perceptual_hash
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import Labels, PairFiles, find_pairs
from rscmd_model.datasets.sheet import contact_sheet
from rscmd_model.datasets.unused import unused_line
from rscmd_model.datasets.yolo import YoloFolders
from rscmd_model.errors import UserError
from rscmd_model.imaging.draw import dashed_boxes


def distinct_world(root: Path, stems: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    """The native layout with pictures that differ from pair to pair and from split to split."""
    data = write_world(root, stems)
    for split in ("train", "val"):
        for stem in stems:
            cv2.imwrite(str(root / f"visible/{split}/{stem}.png"), picture(f"v{split}{stem}", (64, 48), 3))
            cv2.imwrite(str(root / f"thermal/{split}/{stem}.jpg"), picture(f"t{split}{stem}", (64, 48), 1))
    return data


def run(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["datasets", "check", *map(str, words)])
    return command.main()


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(root)): (p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*")}


def test_a_clean_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = distinct_world(tmp_path / "set")
    before = snapshot(tmp_path / "set")
    out, sheet = tmp_path / "out/check.json", tmp_path / "out/sheet.png"
    assert run(monkeypatch, "--data", data, "--json", out, "--sheet", sheet, "--sheet-pairs", "5") == 0
    result = json.loads(out.read_text())
    assert result["pairs"] == {"train": 4, "val": 4}
    assert result["boxes"] == {"person": 8, "car": 0}
    assert result["sizes"] == {"train": {"64x48": 4}, "val": {"64x48": 4}}
    assert result["problems"] == []
    assert result["description"]["root"] == str(tmp_path / "set")
    shown = cv2.imread(str(sheet))
    assert shown.shape == (3 * (288 + 28), 2 * (2 * 384 + 8), 3)  # three rows of two pairs, the last place empty
    assert (shown[-288:, -700:] == 255).all()
    assert before == snapshot(tmp_path / "set")
    said = capsys.readouterr().out
    assert "train: 4 pairs, 0 of them without a box" in said
    assert "no problems" in said


class Doubtful(YoloFolders):
    """The native layout; in every pair one region is ignored."""

    def labels(self, pair: PairFiles, names: Mapping[int, str]) -> Labels:
        known = super().labels(pair, names)
        return replace(known, ignore=np.array([[1, 0.25, 0.25, 0.3, 0.3]], np.float32))


def test_the_sheet_shows_what_bears_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(distinct_world(tmp_path))
    pairs = {"train": find_pairs(data, "train")}
    said: list[str] = []
    put_text = cv2.putText

    def listen(image: np.ndarray, text: str, *rest: Any) -> Any:
        said.append(text)
        return put_text(image, text, *rest)

    monkeypatch.setattr(cv2, "putText", listen)
    plain = contact_sheet(data, pairs, 1, 0)
    assert [text for text in said if "boxes" in text] == [said[-1]]
    assert said[-1].endswith("64x48, boxes: 1")
    assert isinstance(data.reader, YoloFolders)
    doubtful = replace(data, reader=Doubtful(*vars(data.reader).values()))
    shown = contact_sheet(doubtful, pairs, 1, 0)
    assert said[-1].endswith("64x48, boxes: 1, unsure: 1")
    changed = np.argwhere((plain != shown).any(axis=2)[22:])  # below the line
    left, top, right, bottom = 384 * 0.1, 288 * 0.1, 384 * 0.4, 288 * 0.4
    assert changed.min(axis=0).tolist() == pytest.approx([top, left], abs=1)
    assert changed.max(axis=0).tolist() == pytest.approx([bottom, 384 + right], abs=1)  # on both pictures
    edge = shown[22 + round(top), round(left) : round(right)]
    assert set(map(tuple, edge.tolist())) == {(200, 200, 200), (60, 60, 60)}


def test_regions_beyond_the_picture_are_drawn_as_far_as_they_are_in_it() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    dashed_boxes(image, np.array([[-5.0, -5, 10, 10], [40, 40, 50, 50], [2, 2, 1e3, 5]]))
    for y, x in ((10, 5), (5, 10), (2, 29)):
        assert image[y, x].any()
    assert not image[12:].any()


def break_everything(root: Path) -> Counter[str]:
    """One of each fault in a set of one's own; returns what there is to find."""
    (root / "thermal/train/a.jpg").unlink()
    (root / "visible/val/b.png").unlink()
    jpeg = root / "thermal/train/b.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-40])
    (root / "visible/train/c.png").write_bytes((root / "visible/train/c.png").read_bytes()[:90])
    colours = cv2.applyColorMap(picture("palette", (64, 48), 1), cv2.COLORMAP_JET)
    cv2.imwrite(str(root / "thermal/train/d.jpg"), colours)
    (root / "labels/train/b.txt").write_text("0 0.9 0.5 0.4 0.2\n7 0.5 0.5 0.1 0.1\n0 0.5 0.5 0 0.1\nperson\n")
    (root / "labels/val/c.txt").write_bytes(b"\xff\xfe\x00")
    (root / "labels/val/d.txt").write_text("1 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n")
    cv2.imwrite(str(root / "thermal/val/d.jpg"), picture("flat", (64, 20), 1))
    for kind, suffix in (("visible", "png"), ("thermal", "jpg")):  # seen in train
        os.link(root / f"{kind}/train/e.{suffix}", root / f"{kind}/val/f.{suffix}")
    found = {"no_partner": 2, "unreadable": 2, "palette": 1, "outside": 1, "unknown_class": 1, "empty_box": 1}
    return Counter({**found, "bad_label": 2, "repeated_box": 1, "size_mismatch": 1, "near_copy": 1})


def test_every_fault_is_found_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = distinct_world(tmp_path / "set", ("a", "b", "c", "d", "e"))
    expected = break_everything(tmp_path / "set")
    before = snapshot(tmp_path / "set")
    out = tmp_path / "check.json"
    assert run(monkeypatch, "--data", data, "--json", out, "--sheet", tmp_path / "sheet.jpg") == 1
    result: dict[str, Any] = json.loads(out.read_text())
    assert Counter(problem["kind"] for problem in result["problems"]) == expected
    assert result["problem_counts"] == expected
    assert result["pairs"] == {"train": 4, "val": 5}
    assert result["boxes"] == {"person": 6, "car": 1}  # what a training would use
    for problem in result["problems"]:
        assert Path(problem["file"]).is_relative_to(tmp_path / "set")
    assert "f.png is nearly train" in next(p["text"] for p in result["problems"] if p["kind"] == "near_copy")
    assert before == snapshot(tmp_path / "set")


def test_a_damaged_pair_is_not_a_near_copy_of_another(tmp_path: Path) -> None:
    data = distinct_world(tmp_path)
    for split in ("train", "val"):
        (tmp_path / f"visible/{split}/a.png").write_bytes(b"")
    assert [p.kind for p in check(open_data(data)).problems] == ["unreadable", "unreadable"]


def test_what_cannot_be_done_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = distinct_world(tmp_path / "set")
    for words, says in (
        (("--data", tmp_path / "absent.yaml"), "cannot read"),
        (("--data", "llvip"), "needs --root"),
        (("--data", data, "--json", tmp_path / "set/check.json"), "lies in the data's folder"),
        (("--data", data, "--sheet", tmp_path / "sheet.gif"), r"give a \.png or \.jpg"),
        (("--data", data, "--near", "65"), "--near from -1 to 64"),
    ):
        with pytest.raises(UserError, match=says):
            run(monkeypatch, *words)
    for kind in ("train", "val"):
        for file in (tmp_path / "set/visible" / kind).iterdir():
            file.write_bytes(b"x")
    with pytest.raises(UserError, match="no pair can be shown"):
        run(monkeypatch, "--data", data, "--sheet", tmp_path / "sheet.png")


def test_exit_codes_of_the_process(command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    data = open_tiny("mfad", tmp_path / "set")
    words = ["rscmd_model.datasets", "check", "--data", "mfad", "--root"]
    done = command(*words, data.root)
    assert done.returncode == 1  # six pairs are not the whole set
    assert "2 x pair_count" in done.stdout
    assert "Traceback" not in done.stderr
    failed = command(*words, tmp_path / "absent")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: no folder")
    assert failed.stderr.count("\n") == 1


def test_a_hash_survives_size_brightness_and_compression() -> None:
    for i in range(20):
        image = picture(str(i), (320, 256), 3)
        mine = perceptual_hash(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
        grey = cv2.cvtColor(cv2.resize(image, (160, 128), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
        for other in (grey, (grey * 0.7).astype(np.uint8), grey.astype(np.uint16) * 200):
            assert int(mine ^ perceptual_hash(other)).bit_count() <= 4
        assert int(mine ^ perceptual_hash(picture(f"x{i}", (160, 128), 1)[..., 0])).bit_count() > 12


def test_near_means_near_in_both_images() -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 2**63, (900, 2), np.uint64)
    other = rng.integers(0, 2**63, (600, 2), np.uint64)
    other[5] = train[700] ^ np.array([0b111, 0b1], np.uint64)
    other[300] = train[8] ^ np.array([0, 0b1111111], np.uint64)  # 7 bits
    other[590, 0] = train[9, 0]  # the visible image alone
    assert list(near_copies(train, other, 6)) == [(5, 700, 3)]
    assert list(near_copies(train, other, 7)) == [(5, 700, 3), (300, 8, 7)]
    assert list(near_copies(train[:0], other, 6)) == []


def test_real_photographs_are_clean(llvip_mini: Path) -> None:
    """Two cameras in train and a third in val, so nothing is near; the boxes are those of its README."""
    report = check(open_data(llvip_mini / "data.yaml"))
    assert not report.problems
    assert {split: sum(counts.values()) for split, counts in report.boxes.items()} == {"train": 124, "val": 16}
    assert {split: len(found) for split, found in report.pairs.items()} == {"train": 32, "val": 6}


@pytest.mark.parametrize(("orientation", "size"), [(3, (64, 48)), (6, (64, 48)), (6, (48, 64)), (6, (48, 48))])
def test_an_exif_orientation_on_one_side_alone(orientation: int, size: tuple[int, int], tmp_path: Path) -> None:
    """Stored lying beside an upright partner, the tag puts it right; any other turned picture may be wrong."""
    data = distinct_world(tmp_path)
    for stem in "ab":
        jpeg = cv2.imencode(".jpg", picture(f"v{stem}", size, 3))[1].tobytes()
        (tmp_path / f"visible/val/{stem}.png").unlink()
        (tmp_path / f"visible/val/{stem}.jpg").write_bytes(with_orientation(jpeg, orientation))
        cv2.imwrite(
            str(tmp_path / f"thermal/val/{stem}.jpg"),
            picture(f"t{stem}", (48, 48) if size == (48, 48) else (64, 48), 1),
        )
    report = check(open_data(data), near=None)
    found = Counter(problem.kind for problem in report.problems)
    if (orientation, size) == (6, (48, 64)):
        assert not found
        assert report.sizes["val"] == {"64x48": 4}
    else:
        assert found["orientation"] == 2


def test_files_that_nothing_uses_are_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    data = distinct_world(root, ("a", "b", "c", "d", "e"))
    labels = root / "labels/train"
    (labels / "a.txt").rename(labels / "a.TXT")
    (labels / "b.txt").rename(labels / "b_visible.txt")
    (labels / "c.txt").rename(labels / "C.txt")
    (labels / "more").mkdir()
    (labels / "d.txt").rename(labels / "more/d.txt")
    (labels / "e.txt").rename(root / "visible/train/e.txt")
    for name in ("labels/0815.txt", "labels/train/gone.txt", "labels/train/classes.txt", "visible/train/a.webp"):
        (root / name).write_text("")
    for name in ("visible/test/z.png", "thermal/test/z.jpg", "labels/test/z.txt", "visible/train/.DS_Store"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    (root / "labels/e.txt").write_text("")
    out = tmp_path / "check.json"
    assert run(monkeypatch, "--data", data, "--json", out) == 1
    result = json.loads(out.read_text())
    reasons = {str(Path(u["file"]).relative_to(root)): u["reason"] for u in result["unused"]}
    for name, reason in {
        "labels/train/a.TXT": "its suffix is .TXT, and .txt is read",
        "labels/train/b_visible.txt": "the nearest is " + str(root / "visible/train/b.png"),
        "labels/train/C.txt": "c.png differs from its name in upper and lower case",
        "labels/train/more/d.txt": f"its label file would be {labels / 'd'}.txt",
        "visible/train/e.txt": f"labels are read from {labels}",
        "labels/e.txt": "labels are read from",
        "labels/train/gone.txt": "no image of train has its name",
        "visible/train/a.webp": "pictures of the format .webp are not read",
        "visible/test/z.png": "in the folder of no split",
        "thermal/test/z.jpg": "in the folder of no split",
        "labels/test/z.txt": "is not used",
        "visible/train/.DS_Store": "hidden",
        "labels/train/classes.txt": "no image and no label file",
        "labels/0815.txt": f"labels are read from {labels} and {root / 'labels/val'}",
    }.items():
        assert reason in reasons.pop(name), name
    assert not reasons
    assert result["problem_counts"] == {"unused_label": 8, "foreign_labels": 1, "unused_image": 1}
    line = unused_line(open_data(data))
    assert line.startswith("8 label files and 1 image files below the data's folders are not used")
    assert "\n" not in line
    assert unused_line(open_data(distinct_world(tmp_path / "clean"))) == ""


def test_many_unused_files_are_counted(tmp_path: Path) -> None:
    data = distinct_world(tmp_path)
    for number in range(30):
        (tmp_path / f"labels/train/x{number}.txt").write_text("")
    lines = check(open_data(data), near=None).lines()
    assert sum(line.startswith("unused: ") for line in lines) == 21
    assert "unused: 30 files in all (30 x unused_label); --json FILE lists them" in lines


def test_a_list_of_classes_in_another_order_is_told(tmp_path: Path) -> None:
    """Label Studio writes classes.txt in alphabetic order, whatever data.yaml says."""
    data = open_data(distinct_world(tmp_path))
    (tmp_path / "labels/train/classes.txt").write_text("person\ncar\n")
    (tmp_path / "labels/obj.names").write_text("person\r\ncar")
    assert not check(data, near=None).problems
    (tmp_path / "labels/classes.txt").write_text("car\nperson\n")
    (problem,) = check(data, near=None).problems
    assert problem.kind == "class_list"
    assert problem.text.endswith("it lists 'car, person', and names has 'person, car'")
    assert unused_line(data) == ""
