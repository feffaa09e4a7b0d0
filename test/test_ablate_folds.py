"""An ablation over folds: which pairs are held out, what is pooled, and that nothing of it depends on interruptions."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from published_layouts import WRITERS, open_tiny
from test_inference import model_file
from test_pairs import write_world

from rscmd_model.config import LINEAR_SPPF
from rscmd_model.datasets.check import check
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs, read_labels
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.evaluation.ablation import ablate, claim, read_rows, times_of
from rscmd_model.evaluation.ablation_runs import Ablation, Run
from rscmd_model.evaluation.answers import Answers, lost_answer
from rscmd_model.evaluation.folds import Drives, Folds, read_drives, read_folds
from rscmd_model.evaluation.scoring import Truth, score
from rscmd_model.evaluation.trainings import train_there
from rscmd_model.files import write_json
from rscmd_model.training.run import score_answers

STEMS = ("a", "b", "c", "d", "e", "f")
FRAMES = "name,fold,block\na,0,x\nb,0,x\nc,1,y\nd,1,y\ne,1,z\nf,1,z\n"
OPTIONS = ["epochs=1", "imgsz=64", "batch=4", "device=cpu", "workers=0", "optimizer=SGD", "val=False"]


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def world(folder: Path) -> Path:
    return write_world(folder, STEMS)


def test_a_fold_is_held_out_of_the_pairs_of_all_splits(tmp_path: Path) -> None:
    file = world(tmp_path / "data")
    described = yaml.safe_load(file.read_text())
    described["thermal_contract"] = {"source": "mono8", "scale": [10, 200]}
    homography = [[1, 0, 2], [0, 1, 0], [0, 0, 1]]
    described["registration"] = {"homography": homography, "visible_size": [32, 24], "thermal_size": [32, 24]}
    for kind, suffix in (("visible", "png"), ("thermal", "jpg"), ("labels", "txt")):
        for stem in STEMS:
            os.rename(file.parent / kind / "val" / f"{stem}.{suffix}", file.parent / kind / "val" / f"v{stem}.{suffix}")
    file.write_text(yaml.safe_dump(described))
    data = open_data(file)
    rows = "".join(f"v{stem},2,w\n" for stem in STEMS)
    folds, drives = read_folds(data, ("train", "val"), write(tmp_path / "frames.csv", FRAMES + rows))
    assert folds.names == ["0", "1", "2"]
    assert str(drives) == "4 drives (column block) are drawn whole"
    files = folds.write(data, tmp_path / "folds")
    folded = open_data(files["1"])
    assert [pair.stem for pair in find_pairs(folded, "val")] == ["c", "d", "e", "f"]
    assert [pair.stem for pair in find_pairs(folded, "train")] == ["a", "b", *(f"v{stem}" for stem in STEMS)]
    assert (folded.thermal_contract, folded.registration) == (data.thermal_contract, data.registration)
    for split in ("train", "val"):
        wanted = [read_labels(data, pair) for pair in find_pairs(data, split)]
        assert all(len(boxes) == 1 for boxes in wanted)
    assert all(len(read_labels(folded, pair)) == 1 for pair in find_pairs(folded, "train"))
    assert not check(folded, near=None).unused
    # What a run keeps of its data opens the same fold again.
    again = open_data(yaml.safe_dump(folded.resolved, default_flow_style=True, width=10**9).strip())
    assert find_pairs(again, "val") == find_pairs(folded, "val")


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_has_folds(name: str, tmp_path: Path) -> None:
    data = open_tiny(name, tmp_path / "set")
    splits = data.splits[:2]
    pairs = {pair.stem: pair for split in splits for pair in find_pairs(data, split)}
    listed = "".join(f"{stem},{n % 2}\n" for n, stem in enumerate(pairs))
    folds, _ = read_folds(data, splits, write(tmp_path / "frames.csv", f"name,fold\n{listed}"))
    folded = open_data(folds.write(data, tmp_path / "folds")["1"])
    assert [pair.stem for pair in find_pairs(folded, "val")] == sorted(list(pairs)[1::2])
    for pair in find_pairs(folded, "val"):
        assert pair == pairs[pair.stem]
        assert np.array_equal(read_labels(folded, pair), read_labels(data, pair))


def test_folds_are_made_of_whole_drives(tmp_path: Path) -> None:
    data = open_data(world(tmp_path / "data"))
    for stem, boxes in zip(STEMS, (1, 1, 1, 1, 1, 5)):
        lines = [f"0 0.5 0.5 0.2 {0.3 + n / 20}\n" for n in range(boxes)]
        write(tmp_path / "data" / "labels" / "train" / f"{stem}.txt", "".join(lines))
    frames = write(tmp_path / "frames.csv", "name,drive\na,x\nb,x\nc,y\nd,y\ne,w\nf,z\n")
    folds, drives = read_folds(data, ["train"], frames, "drive", 2)
    assert folds.of == {"f": "0", "a": "1", "b": "1", "c": "1", "d": "1", "e": "1"}, "5 boxes in each"
    assert drives.of["e"] == "w"
    alone, drives = read_folds(data, ["train"], frames, None, 3)
    assert len(alone.names) == 3
    assert "each of the 6 pairs is drawn by itself" in str(drives)
    with pytest.raises(UserError, match="has 4 drives, so 2 to 4 folds"):
        read_folds(data, ["train"], frames, "drive", 5)


@pytest.mark.parametrize(
    ("frames", "group", "says"),
    [
        (FRAMES.replace("f,1,z\n", ""), None, "does not name 1 of 6 pairs: f"),
        (FRAMES + "g,1,z\n", None, "names 1 that are no pairs of these splits: g"),
        (FRAMES.replace("b,0,x", "b,1,x"), None, "block 'x' lies in the folds 0, 1"),
        (FRAMES.replace(",0,", ",1,"), None, "puts all 6 pairs into one fold"),
        (FRAMES.replace(",0,", ",no/1,"), None, "fold 'no/1' becomes part of file names"),
        (FRAMES, "drive", "no column drive"),
        (FRAMES.replace("fold", "folds"), None, "no column fold"),
        (FRAMES.replace("c,1", "c,"), None, "line 4: no fold"),
        (FRAMES.replace("c,1,y", "c,1,"), None, "no block of 1 pairs: c"),
        (FRAMES + "a,0,x\n", None, "line 8: 'a' stands there twice"),
        ("name,fold\n", None, "names no pair"),
        ('name,fold\n"a', None, "is no CSV"),
    ],
)
def test_mistakes_in_the_list_are_one_line(tmp_path: Path, frames: str, group: str | None, says: str) -> None:
    data = open_data(world(tmp_path / "data"))
    with pytest.raises(UserError, match=says) as refused:
        read_folds(data, ["train"], write(tmp_path / "frames.csv", frames), group)
    assert "\n" not in str(refused.value)


def test_two_pairs_of_one_name_cannot_be_folded(tmp_path: Path) -> None:
    data = open_data(world(tmp_path / "data"))
    with pytest.raises(UserError, match="are both called a"):
        read_folds(data, ["train", "val"], write(tmp_path / "frames.csv", FRAMES))


@pytest.mark.parametrize(
    ("fold", "says"),
    [
        ({"list": "frames.csv", "held_out": "7", "of": ["train"]}, "has no fold '7'; it has 0, 1"),
        ({"list": "frames.csv", "held_out": "1", "of": ["test"]}, "no split 'test'; there are train, val"),
        ({"list": "frames.csv", "held_out": "1"}, "fold has the form"),
        ("1", "fold has the form"),
    ],
)
def test_mistakes_in_a_description_are_one_line(tmp_path: Path, fold: object, says: str) -> None:
    file = world(tmp_path)
    write(tmp_path / "frames.csv", FRAMES)
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "fold": fold}))
    with pytest.raises(UserError, match=says):
        find_pairs(open_data(file), "val")


def some_answers(stems: Sequence[str], seed: int) -> Answers:
    """Boxes that are nearly right, so that scores lie between 0 and 1."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for _ in stems:
        corner = rng.uniform(0, 60, (3, 2))
        boxes = np.hstack((corner, corner + 30)).astype(np.float32)
        truths.append(Truth(boxes, np.array([0, 0, 1])))
        near = boxes + rng.uniform(-6, 6, boxes.shape).astype(np.float32)
        found.append(Detections(near, rng.random(3), rng.integers(0, 2, 3)))
    return Answers(tuple(stems), ((100, 100),) * len(stems), tuple(truths), {"fused": found})


def test_answers_are_kept_as_they_were(tmp_path: Path) -> None:
    answers = some_answers(["a", "dusk/b"], 0)
    answers = replace(answers, found={**answers.found, "thermal": [Detections.empty(), answers.found["fused"][1]]})
    answers.save(tmp_path / "answers.npz")
    again = Answers.load(tmp_path / "answers.npz")
    assert (again.stems, again.sizes, list(again.found)) == (answers.stems, answers.sizes, ["fused", "thermal"])
    for name, found in answers.found.items():
        for one, other in zip(found, again.found[name], strict=True):
            assert all(np.array_equal(getattr(one, f), getattr(other, f)) for f in ("boxes", "scores", "classes"))
    assert all(np.array_equal(t.boxes, o.boxes) for t, o in zip(answers.truths, again.truths, strict=True))
    (tmp_path / "answers.npz").write_bytes((tmp_path / "answers.npz").read_bytes()[:200])
    with pytest.raises(UserError, match="holds no answers that can be read"):
        Answers.load(tmp_path / "answers.npz")


def finish(folder: Path, answers: Answers) -> None:
    """What a finished run leaves for the tables."""
    write_json(folder / "cost.json", {"parameters": 1, "gflops": 1.0, "step_ms": None, "memory_mb": 1.0})
    write_json(folder / "scores.json", {"branches": {name: {} for name in answers.found}})
    answers.save(folder / "answers.npz")


def ablation_of(tmp_path: Path, frames: str = FRAMES) -> Ablation:
    data = open_data(world(tmp_path / "data"))
    folds, _ = read_folds(data, ["train"], write(tmp_path / "frames.csv", frames))
    return Ablation(tmp_path / "out", data, "train", "n", "yolov8", {"epochs": 1}, folds=folds)


def test_folds_are_pooled_and_their_drives_resampled(tmp_path: Path) -> None:
    ablation = ablation_of(tmp_path)
    everything = {method: some_answers(STEMS, seed) for seed, method in enumerate(("sum", "rsc"))}
    runs = ablation.runs(["sum", "rsc"], 1)
    assert [run.name for run in runs] == ["sum-seed0-fold0", "rsc-seed0-fold0", "sum-seed0-fold1", "rsc-seed0-fold1"]
    for run in runs:
        folder = ablation.out / run.name
        whole = everything[run.method]
        here = [n for n, stem in enumerate(STEMS) if ablation.folds and ablation.folds.of[stem] == run.fold]
        found = {"fused": [whole.found["fused"][n] for n in here]}
        part = Answers(*([t[n] for n in here] for t in (whole.stems, whole.sizes, whole.truths)), found)  # type: ignore[arg-type]
        finish(folder, part)
    drives = Drives(dict(zip(STEMS, "xxyyzz")), "block")
    rows = read_rows(runs, ablation, drives, 50)
    assert [(row.method, row.seed, row.branch) for row in rows] == [("sum", 0, "fused"), ("rsc", 0, "fused")]
    times = times_of(STEMS, drives, 50)
    assert (times[:, 0] == times[:, 1]).all(), "a drive is drawn whole"
    for row in rows:
        whole = everything[row.method]
        pooled = score(whole.truths, whole.found["fused"], ablation.data.names, whole.sizes)
        assert (row.mAP50, row.mAP50_95) == (pooled.mAP50, pooled.mAP50_95)
        some = np.repeat(np.arange(6), times[7])
        parts = ([t[n] for n in some] for t in (whole.truths, whole.found["fused"]))
        drawn = score(*parts, ablation.data.names, [(100, 100)] * len(some))
        assert row.resampled is not None
        assert row.resampled[7].tolist() == [drawn.mAP50, drawn.mAP50_95]
    assert len(read_rows(runs[:3], ablation, None, 0)) == 1, "rsc lacks a fold"


def test_folds_of_which_some_were_scored_with_a_camera_lost_are_pooled(tmp_path: Path) -> None:
    ablation = ablation_of(tmp_path)
    runs = ablation.runs(["sum"], 1)
    for run, stems in zip(runs, (STEMS[:2], STEMS[2:])):
        answers = some_answers(stems, 0)
        fused = {"fused": answers.found["fused"]}
        lost = dict.fromkeys(map(lost_answer, ("visible", "thermal")), answers.found["fused"])
        finish(ablation.out / run.name, replace(answers, found=fused | lost if run.fold == "1" else fused))
    (ablation.out / runs[0].name / "cost.json").unlink()  # as if it had been killed just before it was written
    (row,) = read_rows(runs, ablation, None, 0)
    assert (row.branch, row.cost["parameters"]) == ("fused", 1)
    (ablation.out / runs[1].name / "cost.json").unlink()
    (row,) = read_rows(runs, ablation, None, 0)
    assert set(row.cost.values()) == {None}
    with pytest.raises(ValueError, match="the same answers to different pairs"):
        Answers.together([some_answers(STEMS[:2], 0), replace(answers, found={"thermal": answers.found["fused"]})])


def test_another_recipe_is_refused_and_an_old_one_goes_on(tmp_path: Path) -> None:
    ablation = ablation_of(tmp_path)
    weights = write(tmp_path / "plain.pt", "one")
    given = replace(ablation, weights=weights)
    claim(given)
    claim(given)
    assert given.command(Run("sum", 3, "1"))[3:11] == [
        *("--score", "val", "--data", str(ablation.out / "folds" / "fold1.yaml"), "--method", "sum", "--scale", "n"),
    ]
    assert given.command(Run("sum", 3, "1"))[13:15] == ["--weights", str(weights)]
    weights.write_text("two")
    with pytest.raises(UserError, match="another weights: choose another --out"):
        claim(given)
    with pytest.raises(UserError, match="another folds and weights"):
        claim(replace(ablation, folds=Folds({**ablation.folds.of, "e": "0", "f": "0"}, ("train",))))  # type: ignore[union-attr]
    plain = replace(ablation, folds=None, out=tmp_path / "old", family=LINEAR_SPPF)
    old = {"data": ablation.data.spec, "split": "train", "model": "n", "options": {"epochs": 1}}
    write_json(plain.out / "recipe.json", old)
    claim(plain)


def test_an_ablation_of_data_that_changed_is_refused(tmp_path: Path) -> None:
    ablation = replace(ablation_of(tmp_path), folds=None, split="val")
    claim(ablation)
    root = tmp_path / "data"
    label, image = root / "labels" / "val" / "a.txt", root / "visible" / "train" / "b.png"
    content = label.read_text()
    write(label, "1 0.5 0.5 0.2 0.4\n")
    with pytest.raises(UserError, match="holds an ablation with another labels: choose another --out"):
        claim(ablation)
    recipe = json.loads((ablation.out / "recipe.json").read_text())
    older = {key: value for key, value in recipe.items() if key not in ("description", "pairs", "labels")}
    write_json(tmp_path / "older" / "recipe.json", older)
    claim(replace(ablation, out=tmp_path / "older"))
    write(label, content)
    claim(ablation)
    image.rename(root / "b.png")
    (root / "thermal" / "train" / "b.jpg").rename(root / "b.jpg")
    with pytest.raises(UserError, match="another labels and pairs"):
        claim(ablation)
    (root / "b.png").rename(image)
    (root / "b.jpg").rename(root / "thermal" / "train" / "b.jpg")
    described = yaml.safe_load((root / "data.yaml").read_text())
    contract = {"source": "mono8", "scale": [10, 200]}
    write(root / "data.yaml", yaml.safe_dump({**described, "thermal_contract": contract}))
    with pytest.raises(UserError, match="another description"):
        claim(replace(ablation, data=open_data(root / "data.yaml")))


def test_answers_to_other_pairs_are_refused(tmp_path: Path) -> None:
    ablation = replace(ablation_of(tmp_path), folds=None)
    finish(ablation.out / "sum-seed0", some_answers(STEMS[:5], 0))
    with pytest.raises(UserError, match="sum-seed0 was scored on other pairs than the data have now, 'f' among them"):
        read_rows([Run("sum", 0)], ablation, Drives(dict(zip(STEMS, "xxyyzz")), "block"), 10)


def test_a_fold_without_objects_has_answers_and_no_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ablation = ablation_of(tmp_path)
    for stem in STEMS[:2]:
        write(tmp_path / "data" / "labels" / "train" / f"{stem}.txt", "")
    assert ablation.folds is not None
    files = ablation.folds.write(ablation.data, ablation.out / "folds")
    runs = ablation.runs(["visible"], 1)
    for run in runs:
        folder = ablation.out / run.name
        folder.mkdir()
        write(folder / "args.yaml", yaml.safe_dump({"device": "cpu", "data": str(files[str(run.fold)])}))
        score_answers(model_file(folder / "model.safetensors", "visible"), "val")
        write_json(folder / "cost.json", {"parameters": 1, "gflops": 1.0, "step_ms": None, "memory_mb": 1.0})
    assert "val: none of its 2 pairs has an object, so it has no score of its own" in capsys.readouterr().out
    assert all(map(ablation.is_finished, runs))
    (row,) = read_rows(runs, ablation, None, 0)
    assert row.mAP50 >= 0
    with pytest.raises(
        UserError, match="visible-seed0-fold0 has no score, since none of the scored pairs has an object"
    ):
        read_rows(runs[:1], replace(ablation, folds=None), None, 0)


def test_one_drive_has_no_intervals_and_a_split_that_is_trained_on_is_told(tmp_path: Path) -> None:
    ablation = replace(ablation_of(tmp_path), folds=None)
    folder, answers = ablation.out / "sum-seed0", some_answers(STEMS, 0)
    finish(folder, answers)
    write_json(folder / "scores.json", {"branches": {"fused": {"mAP50": 0.5, "mAP50_95": 0.25}}})
    told: list[str] = []
    ablate(ablation, ["sum"], 1, progress=told.append, drives=Drives(dict.fromkeys(STEMS, "x"), "block"))
    said = "No intervals: all scored pairs are of one drive"
    assert told[1].startswith("train: 6 of the 6 scored pairs are in train")
    assert told[2].startswith(said)
    assert said in (ablation.out / "table.md").read_text()
    assert "low" not in (ablation.out / "table.csv").read_text().splitlines()[0]


def test_a_run_that_lacks_answers_is_scored_again(tmp_path: Path) -> None:
    ablation = replace(ablation_of(tmp_path), folds=None)
    run = Run("sum", 0)
    folder = ablation.out / run.name
    assert not ablation.is_finished(run)
    write_json(folder / "scores.json", {"branches": {"fused": {}}})
    assert ablation.is_finished(run), "without a checkpoint nothing can be scored again"
    (folder / "weights").mkdir()
    write(folder / "weights" / "last.pt", "")
    assert not ablation.is_finished(run)
    assert ablation.command(run)[3:] == ["--score", "train", f"resume={folder / 'weights' / 'last.pt'}"]
    write(folder / "answers.npz", "")
    assert ablation.is_finished(run)
    lost = replace(ablation, lost=True)
    assert not lost.is_finished(run)
    assert lost.command(run)[5] == "--lost"
    write_json(folder / "scores.json", {"branches": {"fused": {}, "fused, visible lost": {}}})
    assert lost.is_finished(run)


def test_drives_without_folds(tmp_path: Path) -> None:
    data = open_data(world(tmp_path / "data"))
    frames = write(tmp_path / "frames.csv", "name,drive\n" + "".join(f"{stem},x\n" for stem in (*STEMS, "other")))
    assert read_drives(data, "val", frames, "drive").of == dict.fromkeys(STEMS, "x")


def test_a_machine_that_does_not_see_the_folder_refuses(tmp_path: Path) -> None:
    ablation = ablation_of(tmp_path)
    blind, _ = train_there(ablation, Run("sum", 0, "1"), "{}", None, str(tmp_path))
    assert f"does not see {ablation.out / 'recipe.json'}" in blind


def test_a_training_is_killed_with_what_started_it() -> None:
    program = (
        "import sys, time\nfrom rscmd_model.evaluation.trainings import start\n"
        "print(start([sys.executable, '-c', 'print(1, flush=True); input()']).stdout.read(1), flush=True)\n"
        "time.sleep(99)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"b'1'\n"
    trainings = psutil.Process(parent.pid).children()
    assert len(trainings) == 1
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(trainings, timeout=30)[1] == []


@pytest.mark.timeout(280)
def test_ray_gives_the_same_though_a_worker_is_killed(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    data, frames = world(tmp_path / "data"), write(tmp_path / "frames.csv", FRAMES)
    words = ["--data", str(data), "--split", "train", "--folds", str(frames), "--methods", "sum", "--seeds", "1"]
    words += ["--resamples", "20", "--lost", *OPTIONS]
    there, here = tmp_path / "there", tmp_path / "here"
    for out in (there, here):  # fold 1 is finished
        answers = some_answers(STEMS[2:], 0)
        names = ("fused", *map(lost_answer, ("visible", "thermal")))
        answers = replace(answers, found=dict.fromkeys(names, answers.found["fused"]))
        finish(out / "sum-seed0-fold1", answers)
    struck: list[int] = []

    def strike() -> None:
        """Kill the worker of Ray that trains fold 0, as soon as it does."""
        wait_for(there / "sum-seed0-fold0.log")
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or ()
            if "name=sum-seed0-fold0" in words and f"project={there}" in words:
                parent = process.parent()
                assert parent is not None
                struck.append(parent.pid)
                parent.kill()
                return

    striker = threading.Thread(target=strike)
    striker.start()
    done = command("rscmd_model.ablate", *words, "--out", there, "--ray", "local", "--workers", "1")
    striker.join()
    assert done.returncode == 0, done.stderr
    assert "2 runs, 1 of them finished before; 6 pairs in 2 folds" in done.stdout
    assert struck, "no worker was killed"

    done = command("rscmd_model.ablate", *words, "--out", here, "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "2 runs, 1 of them finished before" in done.stdout
    assert figures(here) == figures(there)
    assert [row["branch"] for row in figures(here)] == ["fused", "fused, visible lost", "fused, thermal lost"]
    files = [out / "sum-seed0-fold0" / "answers.npz" for out in (here, there)]
    with np.load(files[0]) as mine, np.load(files[1]) as theirs:
        assert len(mine["boxes"])
        assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)


def figures(out: Path) -> list[dict[str, str]]:
    """The rows of results.csv without what the runs cost."""
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if "mAP" in k or k in ("method", "branch")} for row in rows]


def wait_for(file: Path) -> None:
    end = time.monotonic() + 240
    while not file.exists():
        assert time.monotonic() < end, f"no {file}"
        time.sleep(0.1)
