"""From a bag to a labelled set: what goes in, what a broken-off run leaves, and what a person did to the labels."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from small_bags import START, messages
from small_bags import write as write_small

from rscmd_model.datasets.sidecars import label_text, read_sidecar
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.files import write_json
from rscmd_model.imaging.images import read_thermal, read_visible
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.labelling.label_set import LabelSet
from rscmd_model.options import FEW_PAIRS
from rscmd_model.synthetic.writing import write_world
from rscmd_ros.bags import labelling
from rscmd_ros.bags.collecting import Loaded
from rscmd_ros.bags.journal import JOURNAL, Entry, Journal, rounded
from rscmd_ros.bags.labelling import RECORD, LabelJob, Labelled, label_bag
from rscmd_ros.bags.pairs import BagPair, load_pictures, pair_up
from rscmd_ros.bags.placing import partial_of, put_in_place, refuse_existing, replaced_of
from rscmd_ros.bags.reader import open_bag, typestore
from rscmd_ros.bags.sampling import Sampling, Thinning, make_plan, small
from rscmd_ros.bags.topics import COMPRESSED_IMAGE, IMAGE, THERMAL_TOPIC, TRUTH_TOPIC, VISIBLE_TOPIC
from rscmd_ros.bags.tracked_labels import Choice, Counts, tracked_labels
from rscmd_ros.label_bag import main as label
from rscmd_ros.make_bag import main as make
from rscmd_ros.node.pairing_options import PairingOptions

ROOT = Path(__file__).resolve().parents[1]
S = 10**9
TOPICS = {"visible": VISIBLE_TOPIC, "thermal": THERMAL_TOPIC}
INSTANTS = 48  # of the world, 4 in a second


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("w") / "world", train=1, val=INSTANTS, size=(96, 64), seed=1)


@pytest.fixture(scope="module")
def bag(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s of both cameras."""
    return record(world, tmp_path_factory.mktemp("b") / "bag")


def record(world: Path, out: Path, *more: str) -> Path:
    make(
        ["--data", str(world), "--split", "val", "--out", str(out), "--rate-visible", "4", "--rate-thermal", "4", *more]
    )
    return out


@pytest.fixture(scope="module")
def models(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Real model files that find something, though nothing of sense: features of unit size, and eager classifiers."""
    import torch

    from rscmd_model.methods import method_config
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.model_file import ModelHeader, save_model

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small pictures; more threads only wait for each other on a busy machine
    names = {0: "person", 1: "car", 2: "bicycle"}
    pictures = []
    for visible in sorted((world.parent / "visible" / "val").iterdir())[:4]:
        thermal = read_thermal(world.parent / "thermal" / "val" / visible.name)
        pictures.append(np.dstack((read_visible(visible)[..., ::-1], thermal)))
    some = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    folder, files = tmp_path_factory.mktemp("m"), {}
    deep = ThermalContract("mono16", (1, 99), percentile=True)
    for name, method, contract, spread, bias in (
        ("late", "late", ThermalContract(), 0.2, -4.5),
        ("sum", "sum", ThermalContract(), 0.2, -4.5),
        ("late16", "late", deep, 0.2, -4.5),
        ("dim", "late", ThermalContract(), 0.0, -0.55),
    ):
        torch.manual_seed(0)
        config = method_config(method)
        network = RscmdModel(config, names).eval()
        for part in network.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.train()
                part.momentum = None
        with torch.no_grad():
            network(some)
        network.eval()
        for head in network.heads():
            for level, (classifier, sides) in enumerate(zip(head.cv3, head.cv2)):
                torch.nn.init.normal_(classifier[-1].weight, std=spread)
                torch.nn.init.constant_(classifier[-1].bias, bias if level else -12)  # few boxes: tests are quick
                sides[-1].bias.data = -torch.arange(16.0).repeat(4) / 2  # boxes smaller than the picture
        files[name] = folder / f"{name}.safetensors"
        save_model(files[name], network, ModelHeader(config, names, 96, contract))
    yield files
    torch.set_num_threads(threads)


def job(bag: Path, model: Path, out: Path, **more: Any) -> LabelJob:
    sampling = Sampling(rate=4, pairs=40, gap=2)
    return dataclasses.replace(LabelJob(bag, model, out, sampling=sampling, device="cpu", batch=4), **more)


def run(task: LabelJob, force: bool = False) -> Labelled:
    return label_bag(task, force=force, threads=None, progress=lambda line: None)


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def labelled(bag: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelJob, Labelled]:
    """A whole set, which no test changes."""
    task = job(bag, models["late"], tmp_path_factory.mktemp("l") / "set")
    return task, run(task)


def test_a_set_has_the_cameras_pictures_and_what_was_found(labelled: tuple[LabelJob, Labelled]) -> None:
    task, done = labelled
    assert not task.partial.exists()
    pairs = list(LabelSet(task.out).pairs())
    assert {pair.split for pair in pairs} == {"train", "val"}
    assert len(pairs) == sum(done.counts.kept.values()) <= 40
    assert done.counts.labels.total() > 20
    assert done.counts.unsure.total() > 0
    assert done.counts.seen.total() == done.counts.labels.total()
    with open_bag(task.bag) as opened:
        pairing = pair_up(opened, TOPICS, task.options)
        assert done.counts.pairs == len(pairing.pairs) == INSTANTS
        recorded = {p.visible: (v, t) for p, v, t in load_pictures(opened, TOPICS, pairing.pairs)}
    first, last = min(recorded), max(recorded)
    sure, names = 0, list(done.counts.limits.sure)
    for pair in pairs:
        stamp = int(pair.stem)
        assert len(pair.stem) == 19
        share = (stamp - first) / (last - first)
        assert share >= 0.8 if pair.split == "val" else stamp < first + 0.8 * (last - first) - 2 * S
        visible, thermal = recorded[stamp]
        np.testing.assert_array_equal(read_thermal(pair.thermal), thermal)
        assert pair.visible.suffix == ".jpg"
        assert np.abs(read_visible(pair.visible).astype(int) - visible).mean() < 8
        sidecar = read_sidecar(pair.sidecar)
        assert pair.text == label_text(sidecar)
        assert not pair.touched
        for found in sidecar.labels:
            _, followed, _ = done.counts.limits.of(names[int(found.line[0])])
            assert found.track is not None
            assert found.score >= followed
        assert all(found.score >= task.choice.unsure for found in sidecar.ignore)
        sure += len(sidecar.labels)
    assert sure == done.counts.labels.total()
    stamps = sorted(int(pair.stem) for pair in pairs if pair.split == "train")
    assert min(np.diff(stamps)) >= (last - first) / 40
    record = json.loads((task.out / RECORD).read_text())
    assert record["counts"]["labels"] == dict(done.counts.labels)
    assert record["settings"]["rate"] == 4


def test_it_opens_as_training_opens_it(labelled: tuple[LabelJob, Labelled]) -> None:
    from rscmd_model.datasets.opening import open_data
    from rscmd_model.datasets.pairs import find_pairs, read_labels

    task, done = labelled
    data = open_data(task.out / "data.yaml")
    labels = {split: sum(len(read_labels(data, pair)) for pair in find_pairs(data, split)) for split in data.splits}
    assert sum(labels.values()) == done.counts.labels.total()
    assert {split: len(find_pairs(data, split)) for split in data.splits} == dict(done.counts.kept)


def test_the_same_again_is_the_same(labelled: tuple[LabelJob, Labelled], tmp_path: Path) -> None:
    task, done = labelled
    again = dataclasses.replace(task, out=tmp_path / "set")
    assert run(again).counts == done.counts
    assert content(again.out) == content(task.out)


def test_a_killed_run_goes_on_to_the_same_set(labelled: tuple[LabelJob, Labelled], tmp_path: Path) -> None:
    task, _ = labelled
    words = f"{task.bag} --model {task.model} --rate 4 --pairs 40 --gap 2 --device cpu --batch 4 --out {tmp_path}/set"
    process = subprocess.Popen(
        [sys.executable, "-m", "rscmd_ros.label_bag", *words.split()], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    journal = tmp_path / "set.partial" / JOURNAL
    try:
        while process.poll() is None and not (journal.exists() and journal.stat().st_size):
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "it was through before it was killed"
    begun = sum(1 for _ in Journal(journal.parent).entries())
    assert 0 < begun < INSTANTS
    lines: list[str] = []
    label_bag(dataclasses.replace(task, out=tmp_path / "set"), force=False, threads=None, progress=lines.append)
    assert f"going on after {begun // 4 * 4} of {INSTANTS} pairs" in lines
    assert content(tmp_path / "set") == content(task.out)


@pytest.mark.parametrize("share", [0.0, 0.31, 0.77, 1.0])
def test_a_journal_cut_anywhere_goes_on_to_the_same_set(
    labelled: tuple[LabelJob, Labelled], tmp_path: Path, share: float
) -> None:
    """As after a loss of power: half a line at the journal's end, pictures of pairs that it has no more, half files."""
    task, _ = labelled
    again = dataclasses.replace(task, out=tmp_path / "set")
    shutil.copytree(task.out, again.partial)
    journal = again.partial / JOURNAL
    journal.write_bytes(journal.read_bytes()[: int(share * journal.stat().st_size)])
    (again.partial / "thermal" / "val" / ".1.99.partial.png").write_bytes(b"half")
    (again.partial / ".data.99.partial.yaml").write_bytes(b"half")
    run(again)
    assert content(again.out) == content(task.out)


def test_going_on_with_other_settings_is_refused_and_other_limits_are_not(
    labelled: tuple[LabelJob, Labelled], models: dict[str, Path], world: Path, tmp_path: Path
) -> None:
    task, _ = labelled
    begun = dataclasses.replace(task, out=tmp_path / "set")
    shutil.copytree(task.out, begun.partial)
    before = content(begun.partial)
    other = record(world, tmp_path / "other", "--jitter-ms", "3")
    for change, said in (
        ({"sampling": dataclasses.replace(task.sampling, rate=2)}, "begun of another recording"),
        ({"sampling": dataclasses.replace(task.sampling, gap=1)}, "with gap 2, and it is 1 now"),
        ({"model": models["sum"]}, "begun with another model"),
        ({"png": True}, "with png False, and it is True now"),
        ({"bag": other}, "begun of another recording"),
        ({"options": PairingOptions(slop_ms=20)}, "with slop_ms 50.0, and it is 20.0 now"),
    ):
        with pytest.raises(UserError, match=said):
            run(dataclasses.replace(begun, **change))
    file = next(path for path in begun.bag.iterdir() if path.name != "metadata.yaml")
    recorded = file.stat().st_mtime_ns
    os.utime(file, ns=(recorded, recorded + 1))  # pictures that are others, with the stamps of before
    with pytest.raises(UserError, match="begun of other files, or before they were changed"):
        run(begun)
    os.utime(file, ns=(recorded, recorded))
    assert content(begun.partial) == before
    done = run(dataclasses.replace(begun, choice=Choice(sure={"": 0.9}, followed=0.6)))
    assert 0 < done.counts.labels.total() < labelled[1].counts.labels.total()


def test_force_keeps_what_a_person_did(labelled: tuple[LabelJob, Labelled], tmp_path: Path) -> None:
    task, _ = labelled
    mine = dataclasses.replace(task, out=tmp_path / "set", choice=Choice(sure={"": 0.9}, followed=0.6))
    shutil.copytree(task.out, mine.out)
    with pytest.raises(UserError, match=r"exists already.*--force"):
        run(mine)
    pairs = list(LabelSet(mine.out).pairs())
    changed, emptied, own = pairs[0], pairs[-1], LabelSet(mine.out, png=True).pair("train", "mine")
    changed.labels.write_text("1 0.5 0.5 0.25 0.25\n")
    emptied.labels.unlink()
    for there, here in ((pairs[1].visible, own.visible.with_suffix(".jpg")), (pairs[1].thermal, own.thermal)):
        shutil.copyfile(there, here)
    own.labels.write_text("0 0.5 0.5 0.1 0.1\n")
    (mine.out / "notes.txt").write_text("mine")
    before = content(mine.out)
    done = run(mine, force=True)
    after = content(mine.out)
    assert done.persons == 3
    theirs = [name for name in before if Path(name).stem in (changed.stem, emptied.stem, "mine")]
    assert {name: after.get(name) for name in [*theirs, "notes.txt"]} == {
        name: before[name] for name in [*theirs, "notes.txt"]
    }
    assert not emptied.labels.exists()
    assert after.keys() == before.keys() | {"thermal_view/train/mine.jpg"}
    sidecars = [name for name in before if name.startswith("sidecars") and name not in theirs]
    assert sum(after[name] != before[name] for name in sidecars) > len(sidecars) / 2
    assert not list(tmp_path.glob("set.*"))
    with pytest.raises(UserError, match=r"3 pairs with labels of a person and was made with gap 2"):
        run(dataclasses.replace(mine, sampling=dataclasses.replace(mine.sampling, gap=1)), force=True)
    assert content(mine.out) == after


@pytest.mark.parametrize("tool", [True, False])
def test_what_a_person_does_while_a_set_is_replaced_stays_or_is_refused(
    labelled: tuple[LabelJob, Labelled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: bool
) -> None:
    """In its last step, by a tool's corrections from another terminal, which can wait, or in a text editor."""
    task, _ = labelled
    mine = dataclasses.replace(task, out=tmp_path / "set")
    shutil.copytree(task.out, mine.out)
    pair = next(iter(LabelSet(mine.out).pairs()))
    told = []

    def while_shown(folder: Path, model: str, called: str) -> None:
        if tool:
            take = "from pathlib import Path; from rscmd_model.labelling.showing import take_corrections as take; "
            word = f"{take}take(Path({str(mine.out)!r}), [])"
            told.append(subprocess.run([sys.executable, "-c", word], cwd=ROOT, capture_output=True, text=True).stderr)
        else:
            aside = tmp_path / "edited.txt"  # as an editor writes: another file of that name
            aside.write_text("1 0.5 0.5 0.25 0.25\n")
            aside.replace(pair.labels)
            told.append(pair.labels.read_text())

    monkeypatch.setattr(labelling, "show", while_shown)
    done = run(mine, force=True)
    if tool:
        assert "another labelling is writing into" in told[0]
    else:
        assert pair.text == "1 0.5 0.5 0.25 0.25\n"
        assert (done.persons, len(told)) == (1, 2), "it is shown once more, as it is then"


def test_classes_that_a_person_changed_are_refused_before_the_pass(
    labelled: tuple[LabelJob, Labelled], tmp_path: Path
) -> None:
    task, _ = labelled
    mine = dataclasses.replace(task, out=tmp_path / "set")
    shutil.copytree(task.out, mine.out)
    next(iter(LabelSet(mine.out).pairs())).labels.write_text("3 0.5 0.5 0.25 0.25\n")
    description = mine.out / "data.yaml"
    description.write_text(description.read_text().replace("2: bicycle", "2: bicycle, 3: dog"))
    with pytest.raises(
        UserError, match=r"1 pairs with .* person and has the classes .*, bicycle, dog in its data.yaml"
    ):
        run(mine, force=True)
    assert not mine.partial.exists()


def sure_boxes(image: ElementTree.Element) -> list[ElementTree.Element]:
    return [box for box in image.findall("box") if box.get("label") != "unsure"]


def test_corrections_come_back_and_outlive_another_model(
    command: Callable[..., subprocess.CompletedProcess[str]],
    labelled: tuple[LabelJob, Labelled],
    models: dict[str, Path],
    tmp_path: Path,
) -> None:
    """CVAT's file holds every pair; of those that a person left alone the next model's labels must stay."""
    task, done = labelled
    mine = dataclasses.replace(task, out=tmp_path / "set", model=models["sum"])
    shutil.copytree(task.out, mine.out)
    file = tmp_path / "train.xml"
    tree = ElementTree.parse(mine.out / "for_cvat" / "train.xml")
    image = next(one for one in tree.iterfind("image") if len(sure_boxes(one)) > 1)
    stem = Path(image.get("name", "")).stem
    for box in sure_boxes(image)[1:]:
        image.remove(box)
    tree.write(file)
    assert run(mine, force=True).persons == 0
    words = ["rscmd_ros.label_bag", "--out", mine.out, "--corrected", file]
    told = command(*words)
    assert told.returncode == 0, told.stderr
    kept = done.counts.kept["train"]
    assert f"{file}: {kept} pairs: 1 corrected (" in told.stdout
    corrected = LabelSet(mine.out).pair("train", stem)
    text = corrected.text
    assert len(text.splitlines()) == 1
    assert run(mine, force=True).persons == 1
    assert corrected.text == text
    assert corrected.touched
    assert sum(pair.touched for pair in LabelSet(mine.out).pairs()) == 1
    for more, said in ((["--force"], "give one"), (["--out", tmp_path], "no labelled set")):
        again = command(*words, *more)
        assert (again.returncode, again.stderr.count("\n")) == (2, 1)
        assert said in again.stderr


def test_a_swap_that_was_broken_off_loses_nothing(labelled: tuple[LabelJob, Labelled], tmp_path: Path) -> None:
    task, _ = labelled
    mine = dataclasses.replace(task, out=tmp_path / "set")
    shutil.copytree(task.out, tmp_path / ".set.replaced")
    shutil.copytree(task.out, mine.partial)
    first = next(iter(LabelSet(tmp_path / ".set.replaced").pairs()))
    first.labels.write_text("1 0.5 0.5 0.25 0.25\n")
    assert run(mine, force=True).persons == 1
    assert (mine.out / first.labels.relative_to(tmp_path / ".set.replaced")).read_text() == "1 0.5 0.5 0.25 0.25\n"
    assert {path.name for path in tmp_path.iterdir()} == {"set"}


def test_a_folder_that_a_person_put_beside_a_set_is_left_alone(tmp_path: Path) -> None:
    """Whatever its name, and also where the call is refused."""
    out, beside = tmp_path / "set", tmp_path / "set.old"
    for folder in (out, beside):
        folder.mkdir()
        write_json(folder / RECORD, {"settings": {}})
    with pytest.raises(UserError, match="exists already"):
        refuse_existing(out, force=False)
    partial_of(out).mkdir()
    put_in_place(out)
    assert {path.name for path in tmp_path.iterdir()} == {"set", "set.old"}
    shutil.rmtree(out)
    refuse_existing(out, force=False)
    assert {path.name for path in tmp_path.iterdir()} == {"set.old"}


def test_a_replacement_that_was_broken_off_is_recovered_and_a_refusal_removes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "set"
    replaced_of(out).mkdir()
    write_json(replaced_of(out) / RECORD, {"settings": {}})
    with pytest.raises(UserError, match="exists already"):
        refuse_existing(out, force=False)
    assert {path.name for path in tmp_path.iterdir()} == {"set"}
    shutil.copytree(out, replaced_of(out))  # broken off after the second rename
    with pytest.raises(UserError, match="exists already"):
        refuse_existing(out, force=False)
    assert replaced_of(out).exists()
    partial_of(out).mkdir()
    put_in_place(out)
    assert {path.name for path in tmp_path.iterdir()} == {"set"}


def test_the_folder_that_one_is_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", "..", "/"):
        with pytest.raises(UserError, match="choose another --out"):
            run(job(Path("bag"), Path("model"), Path(out)))


def test_16_bit_thermal_and_visible_without_loss(models: dict[str, Path], world: Path, tmp_path: Path) -> None:
    shutil.copytree(world.parent, tmp_path / "deep")
    for file in (tmp_path / "deep" / "thermal").rglob("*.png"):
        cv2.imwrite(str(file), read_thermal(file).astype(np.uint16) * 40 + 7000)
    text = world.read_text().replace("source: mono8, scale: [0, 255]", "source: mono16, scale: {percentile: [1, 99]}")
    (tmp_path / "deep" / "data.yaml").write_text(text)
    bag = record(tmp_path / "deep" / "data.yaml", tmp_path / "bag")
    task = job(bag, models["late16"], tmp_path / "set", png=True)
    assert run(task).counts.labels.total() > 0
    with open_bag(bag) as opened:
        pairing = pair_up(opened, TOPICS, task.options)
        recorded = {p.visible: (v, t) for p, v, t in load_pictures(opened, TOPICS, pairing.pairs)}
    for pair in LabelSet(task.out).pairs():
        thermal = read_thermal(pair.thermal)
        assert thermal.dtype == np.uint16
        np.testing.assert_array_equal(thermal, recorded[int(pair.stem)][1])
        np.testing.assert_array_equal(read_visible(pair.visible), recorded[int(pair.stem)][0])


def test_a_model_with_a_fused_answer_alone_labels_too(bag: Path, models: dict[str, Path], tmp_path: Path) -> None:
    task = job(bag, models["sum"], tmp_path / "set")
    done = run(task)
    assert done.counts.labels.total() > 0
    assert not done.counts.seen
    founds = [found for pair in LabelSet(task.out).pairs() for found in read_sidecar(pair.sidecar).labels]
    assert all(found.visible is None and found.thermal is None for found in founds)


def test_pictures_that_do_not_decode_are_counted_and_left_out(models: dict[str, Path], tmp_path: Path) -> None:
    """Damage within compressed data shows only where it is decoded."""
    store, recorded = typestore(), []
    types = store.types
    kinds = {VISIBLE_TOPIC: (3, ".jpg"), THERMAL_TOPIC: (1, ".png")}
    for k in range(40):
        stamp = START + k * S // 4
        header = types["std_msgs/msg/Header"](
            types["builtin_interfaces/msg/Time"](sec=stamp // S, nanosec=stamp % S), "camera"
        )
        for topic, (channels, suffix) in kinds.items():
            noise = np.random.default_rng(k).integers(0, 255, (64, 96, channels), dtype=np.uint8)
            data = cv2.imencode(suffix, noise)[1]
            if topic == THERMAL_TOPIC and k in (9, 10, 33):
                data[60:-30] = 0  # what its chunks contain, not how long they are
            message = types[COMPRESSED_IMAGE](header, suffix[1:].replace("jpg", "jpeg"), data.reshape(-1))
            recorded.append((topic, stamp, bytes(store.serialize_cdr(message, COMPRESSED_IMAGE))))
    write_small(tmp_path / "bag", recorded, kinds=dict.fromkeys(kinds, COMPRESSED_IMAGE))
    task = job(tmp_path / "bag", models["late"], tmp_path / "set", choice=Choice(sure={"": 0.2}, followed=0.2))
    done = run(task)
    assert (done.counts.pairs, done.counts.faults) == (40, 3)
    stems = {pair.stem for pair in LabelSet(task.out).pairs()}
    assert not stems & {f"{START + k * S // 4:019d}" for k in (9, 10, 33)}
    faults = [entry.fault for entry in Journal(task.out).entries() if entry.fault]
    assert len(faults) == 3


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(labelled: tuple[LabelJob, Labelled], tmp_path: Path) -> None:
    task, _ = labelled
    again = dataclasses.replace(task, out=tmp_path / "set")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((task.out / JOURNAL).stat().st_size // 2, limits[1]))
    try:
        with pytest.raises(UserError, match=rf"cannot write .*{JOURNAL}"):
            run(again)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not again.out.exists()
    assert all(cv2.imread(str(file), -1) is not None for file in (again.partial / "thermal").rglob("*.png"))
    run(again)
    assert content(again.out) == content(task.out)


def test_what_cannot_be_used_is_told_and_nothing_is_written(
    labelled: tuple[LabelJob, Labelled], models: dict[str, Path], world: Path, tmp_path: Path
) -> None:
    task, _ = labelled
    wrong = tmp_path / "registration.yaml"
    wrong.write_text("homography: [[1, 0, 0], [0, 1, 0], [0, 0, 1]]\nthermal_size: [96, 96]\nvisible_size: [96, 64]\n")
    lone = messages(8)
    write_small(tmp_path / "lone", [one for one in lone if one[0] != THERMAL_TOPIC])
    short = record(world, tmp_path / "short", "--rate-visible", "100", "--rate-thermal", "100")
    there = {path.name for path in tmp_path.iterdir()}
    for change, said in (
        ({"registration": wrong}, r"registration is for thermal images of 96x96, and this one is 96x64"),
        ({"bag": tmp_path / "lone"}, rf"has no topic {THERMAL_TOPIC}"),
        ({"bag": short}, r"span 0\.5 s, too short"),
        ({"model": models["late16"]}, "the model was trained on mono16"),
        ({"bag": tmp_path / "none"}, "does not exist"),
        ({"model": tmp_path / "none"}, "none"),
        ({"out": world.parent}, "is no set of label_bag"),
    ):
        with pytest.raises(UserError, match=said):
            run(dataclasses.replace(task, **{"out": tmp_path / "set", **change}))
        assert {path.name for path in tmp_path.iterdir()} == there


@pytest.mark.parametrize("levels", [[7000] * 7 + [29000], [7000] * 9, [7000, None, 7200], [None]])
def test_a_thermal_camera_that_the_contract_does_not_show_is_told_before_the_pass(
    monkeypatch: pytest.MonkeyPatch, levels: list[int | None]
) -> None:
    """Not for its first images alone, which may be of a closed shutter."""

    def pictures(*_: object) -> Iterator[Loaded]:
        for pair, level in zip(pairs_at(*range(len(levels))), levels):
            thermal = None if level is None else np.full((6, 8), level, np.uint16)
            yield Loaded(pair, np.zeros((6, 8, 3), np.uint8), thermal, "damaged")

    monkeypatch.setattr(labelling, "in_order", pictures)
    header: Any = SimpleNamespace(thermal=ThermalContract("mono16", (28000, 32500)))
    plan = make_plan(pairs_at(*range(40)), Sampling(gap=2))
    check = labelling._check_first
    if 29000 in levels:
        check(None, job(Path("bag"), Path("m"), Path("o")), plan, header, None)  # type: ignore[arg-type]
        return
    said = r"outside the scale of the model's thermal contract, 28000 to 32500" if levels[0] else "decoded: damaged"
    with pytest.raises(UserError, match=said):
        check(None, job(Path("bag"), Path("m"), Path("o")), plan, header, None)  # type: ignore[arg-type]


def test_stamps_that_never_pair(models: dict[str, Path], tmp_path: Path) -> None:
    shifted = [(t, time, data) for t, time, data in messages(8) if t == VISIBLE_TOPIC]
    shifted += [(t, time, data) for t, time, data in messages(120) if t == THERMAL_TOPIC and time > START + 9 * S]
    write_small(tmp_path / "bag", sorted(shifted, key=lambda one: one[1]))
    with pytest.raises(UserError, match=r"no visible and thermal frame .* begin 8\.4 s after the other's end"):
        run(job(tmp_path / "bag", models["late"], tmp_path / "set"))
    assert {path.name for path in tmp_path.iterdir()} == {"bag"}


def test_nothing_to_see_tells_the_best_score_and_lower_limits_go_on(
    bag: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    task = job(bag, models["dim"], tmp_path / "set")
    with pytest.raises(
        UserError, match=r"nothing to learn .*; the best box of \d+ pairs is a \w+ of 0\.[1-9]\d\. .*--sure"
    ):
        run(task)
    assert not task.out.exists()
    lower = Choice(sure={"": 0.5})
    assert run(dataclasses.replace(task, choice=lower)).counts.labels.total() > 0


def test_the_command(
    command: Callable[..., subprocess.CompletedProcess[str]], bag: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "set"
    words = [bag, "--model", models["late"], "--out", out, "--rate", 4, "--gap", 2, "--device", "cpu"]
    done = command("rscmd_ros.label_bag", *words, "--sure", "0.6,car=0.9")
    assert done.returncode == 0, done.stderr
    assert f"next: python -m rscmd_model.train --data {out}/data.yaml --weights yolov8n.pt {FEW_PAIRS}\n" in done.stdout
    assert "sure person 0.60, car 0.90, bicycle 0.60; followed 0.3; unsure 0.15" in done.stdout
    assert f"pairs answered {INSTANTS}; in the set " in done.stdout
    for more, said in (([], "exists already"), (["--sure", "x"], "--sure x"), (["--gap", "-1"], "--gap")):
        again = command("rscmd_ros.label_bag", *words, *more)
        assert (again.returncode, again.stderr.count("\n")) == (2, 1)
        assert said in again.stderr
    with pytest.raises(UserError, match="boat"):
        label([*map(str, words), "--sure", "boat=0.9", "--force"])


def pairs_at(*seconds: float) -> list[BagPair]:
    return [BagPair(k, k, round(s * S), round(s * S), 0, 0) for k, s in enumerate(seconds)]


def test_a_plan_takes_so_many_a_second_and_divides_the_time() -> None:
    plan = make_plan(pairs_at(*np.arange(0, 100, 1 / 9)), Sampling(rate=5, pairs=102, gap=5))
    assert 4.4 * 100 < len(plan.pairs) <= 501
    assert plan.period == pytest.approx(plan.length / 100, rel=1e-6)
    splits = [plan.split(time) for time in plan.times]
    assert splits == sorted(splits, key=lambda split: ["train", None, "val"].index(split))
    gone = [time for time, split in zip(plan.times, splits) if split is None]
    assert (gone[-1] - gone[0]) / S == pytest.approx(5, abs=0.3)
    assert splits.count("val") == pytest.approx(0.2 * len(splits), abs=2)


def test_a_plan_outlives_clocks_that_are_set_and_frames_in_several_pairs() -> None:
    stamps = [*range(0, 50), *range(10**6, 10**6 + 50), *range(20, 60)]
    plan = make_plan(pairs_at(*stamps), Sampling(rate=1, pairs=FEW, gap=5))
    assert len(plan.pairs) == 108  # stamps that were there before are the same frames again
    assert plan.length == 107 * S - 0 * S
    twice = [dataclasses.replace(pair, dt=3) for pair in pairs_at(*range(40))] + pairs_at(*range(40))
    assert {pair.dt for pair in make_plan(twice, Sampling(gap=1)).pairs} == {0}


FEW = 10


def test_a_standing_robot_gives_one_pair_and_a_parked_one_that_sees_people_walk_gives_more() -> None:
    rng = np.random.default_rng(0)
    still = rng.integers(40, 200, (512, 640, 3), dtype=np.uint8), rng.integers(40, 200, (256, 320), dtype=np.uint8)

    def seen(brighter: int = 0, walker: tuple[slice, slice] | None = None, camera: int = 0) -> np.ndarray:
        pictures = [np.clip(one + rng.normal(brighter, 8, one.shape), 0, 255).astype(np.uint8) for one in still]
        if walker is not None:
            pictures[camera][walker] = 230
        return small(*pictures)

    thinning = Thinning(2 * S)
    assert thinning.due("train", 0)
    assert not thinning.is_copy("train", seen())
    thinning.take("train", 0, seen())
    assert not thinning.due("train", 1 * S)
    assert thinning.due("val", 1 * S)
    assert thinning.due("train", 2 * S)
    assert thinning.is_copy("train", seen())
    assert thinning.is_copy("train", seen(brighter=20)), "the exposure alone has changed"
    assert not thinning.is_copy("train", seen(walker=(slice(300, 360), slice(200, 224))))
    assert not thinning.is_copy("train", seen(walker=(slice(150, 180), slice(100, 112)), camera=1))
    assert not thinning.is_copy("val", seen())


def test_a_recording_of_a_standing_robot_gives_one_pair_for_each_split(models: dict[str, Path], tmp_path: Path) -> None:
    first = [data for topic, _, data in messages(1) if topic != TRUTH_TOPIC]
    store, recorded = typestore(), []
    for k in range(40):
        for topic, data in zip((VISIBLE_TOPIC, THERMAL_TOPIC), first):
            message = store.deserialize_cdr(data, IMAGE)
            time = START + k * S // 4
            message.header.stamp.sec, message.header.stamp.nanosec = time // S, time % S
            recorded.append((topic, time, bytes(store.serialize_cdr(message, IMAGE))))
    write_small(tmp_path / "bag", recorded)
    done = run(job(tmp_path / "bag", models["late"], tmp_path / "set", choice=Choice(sure={"": 0.2}, followed=0.2)))
    assert done.counts.kept == {"train": 1, "val": 1}
    assert done.counts.copies > 20


def test_an_entry_is_the_same_when_it_is_read_again() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 500, (50, 2)).astype(np.float32)
    boxes = np.hstack((corners, corners + rng.uniform(0, 100, (50, 2)).astype(np.float32)))
    found = Detections(boxes, rng.uniform(0, 1, 50), rng.integers(0, 80, 50))
    entry = Entry(START, 5, (640, 512), {"visible": rounded(found), "thermal": []}, "val", "QUJD")
    again = Entry.from_line(entry.line())
    assert again == entry
    for name in ("boxes", "scores", "classes"):
        one, other = (getattr(e.detections()["visible"], name) for e in (entry, again))
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(again.detections()["visible"].boxes, boxes, atol=0.006)


def test_where_no_answer_finds_an_object_that_is_followed_nothing_is_taught() -> None:
    """A weak box in a gap is a label by its track. A gap without any box is a region: hidden, or a wrong track."""
    scores = [0.9, 0.9, 0.9, 0.35, None, 0.9, 0.9]
    entries = [
        Entry(
            START + k * S // 5,
            k * S // 5,
            (100, 100),
            {"fused": [] if score is None else [[30 + k, 30, 60 + k, 70, score, 0]]},
            kept="train",
        )
        for k, score in enumerate(scores)
    ]
    counts = Counts()
    made = [sidecar for _, sidecar in tracked_labels(entries, {0: "person"}, Choice(sure={"": 0.6}), counts)]
    assert [len(sidecar.labels) for sidecar in made] == [1, 1, 1, 1, 0, 1, 1]
    assert [len(sidecar.ignore) for sidecar in made] == [0, 0, 0, 0, 1, 0, 0]
    assert len({sidecar.labels[0].track for sidecar in made if sidecar.labels}) == 1
    assert counts.followed == 1
