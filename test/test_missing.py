"""The protocol of a lost camera: its cells are what plain evaluation gives, where the lost images are really gone."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_inference import model_file
from test_pairs import write_world

from rscmd_model import evaluate as evaluation
from rscmd_model.datasets.incomplete import WHICH, lost_cameras, read_table
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import DataConfig, PairFiles, find_pairs, pixel_boxes, read_labels, split_hash
from rscmd_model.errors import UserError
from rscmd_model.evaluation.faults import Fault, frames_before, grey_noise
from rscmd_model.evaluation.missing import ALWAYS, Answerer, Cell, ProtocolScores, run_protocol
from rscmd_model.evaluation.missing_report import table
from rscmd_model.evaluation.scoring import Truth, score
from rscmd_model.evaluation.sweep import evaluate, sweep
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.predictor import Predictor

STEMS = ("000000_00", "000000_01", "000000_04", "000001_07", "000001_08", "000001_09", "000002_00", "alone")
FIRST = ("000000_00", "000001_07", "000002_00", "alone")  # of their sequences
BRANCH, BLACK, FROZEN, NOISE = Answerer("branch"), *(Answerer("fused", look) for look in ("black", "frozen", "noise"))
World = tuple[DataConfig, list[PairFiles]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Noise pictures of three sequences with a gap, and one that is of none."""
    root = tmp_path_factory.mktemp("world")
    data = open_data(write_world(root, STEMS))
    random = np.random.default_rng(0)
    for stem in STEMS:
        (root / f"thermal/train/{stem}.jpg").unlink()
        picture = random.integers(0, 256, (64, 96, 4), np.uint8)
        cv2.imwrite(str(root / f"visible/train/{stem}.png"), picture[..., :3])
        cv2.imwrite(str(root / f"thermal/train/{stem}.png"), picture[..., 3])
    return data, find_pairs(data, "train")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory, world: World) -> Predictor:
    """Random weights. The truth becomes what it finds in the sound pairs, so that every change shows in its score."""
    data, pairs = world
    made = Predictor(model_file(tmp_path_factory.mktemp("model") / "m.safetensors"), device="cpu", conf=0.05)
    for pair in pairs:
        visible, thermal = cv2.imread(str(pair.visible)), cv2.imread(str(pair.thermal), cv2.IMREAD_UNCHANGED)
        found = made.predict(visible, thermal, max_det=12)
        boxes = found.boxes / np.array([96, 64, 96, 64])
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        rows = [f"{c} {x} {y} {w} {h}" for c, (x, y), (w, h) in zip(found.classes, centre, size) if min(w, h) > 0.01]
        (data.root / f"labels/train/{pair.stem}.txt").write_text("\n".join(rows))
    return made


@pytest.fixture(scope="module")
def scores(predictor: Predictor, world: World) -> ProtocolScores:
    return run_protocol(predictor, *world, [0, 50], batch=3)


def figures(scores: ProtocolScores, who: Answerer, which: str, rate: float) -> dict:
    (cell,) = (cell for cell in scores.cells if (cell.who, cell.which, cell.rate) == (who, which, rate))
    return dict(cell.figures)


def plain(predictor: Predictor, data: DataConfig, pairs: Sequence[PairFiles], **fault: str) -> dict:
    point = sweep(predictor, data, pairs, [Fault(**fault)], batch=3)[0]  # type: ignore[arg-type]
    return {name: point[name] for name in ("mAP50", "mAP50_95", "per_class")}


def test_at_rate_0_it_is_the_plain_evaluation(scores: ProtocolScores, predictor: Predictor, world: World) -> None:
    sound = plain(predictor, *world)
    assert sound["mAP50"] > 0.3
    assert scores.both == sound
    for who in (BRANCH, BLACK, FROZEN, NOISE):
        for which in WHICH:
            assert figures(scores, who, which, 0) == sound
    assert evaluate(predictor, *world, batch=3)["per_class"] == sound["per_class"]


def test_at_100_percent_it_is_the_plain_evaluation_of_a_lost_camera(
    scores: ProtocolScores, predictor: Predictor, world: World
) -> None:
    seen = set()
    for camera in ("visible", "thermal"):
        for who, answer in ((BRANCH, "branch"), (BLACK, "zeros"), (FROZEN, "frozen"), (NOISE, "noise")):
            lost = plain(predictor, *world, drop=camera, answer=answer)
            assert figures(scores, who, camera, ALWAYS) == lost
            seen.add(lost["mAP50_95"])
    assert len(seen) == 8, "each of them is another answer"
    assert max(seen) < scores.both["mAP50_95"]


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("look", ["black", "frozen"])
def test_the_same_figures_come_of_files_that_are_black_or_frozen(
    which: str, look: str, scores: ProtocolScores, predictor: Predictor, world: World, tmp_path: Path
) -> None:
    """The fused head is asked about whole pairs of a data set that was written by hand."""
    data, pairs = world
    black = {"visible": tmp_path / "visible.png", "thermal": tmp_path / "thermal.png"}
    cv2.imwrite(str(black["visible"]), np.zeros((64, 96, 3), np.uint8))
    cv2.imwrite(str(black["thermal"]), np.zeros((64, 96), np.uint8))
    by_hand = []
    for number, pair in enumerate(pairs):
        camera = scores.tables[50, which].get(pair.stem)
        if camera is not None:
            before = look == "frozen" and pair.stem not in FIRST
            file = getattr(pairs[number - 1], camera) if before else black[camera]
            pair = replace(pair, **{camera: file})
        by_hand.append(pair)
    assert by_hand != pairs
    who = Answerer("fused", look)
    assert figures(scores, who, which, 50) == plain(predictor, data, by_hand)


@pytest.mark.parametrize("which", WHICH)
def test_a_branch_answers_for_the_pairs_of_the_table_alone(
    which: str, scores: ProtocolScores, predictor: Predictor, world: World
) -> None:
    """The predictor is asked as a node asks it: about pairs and lone images mixed."""
    data, pairs = world
    lost = scores.tables[50, which]
    images = {"visible": [], "thermal": []}
    truths = []
    for pair in pairs:
        for camera, read in images.items():
            image = cv2.imread(str(getattr(pair, camera)), cv2.IMREAD_UNCHANGED)
            read.append(None if lost.get(pair.stem) == camera else image)
        labels = read_labels(data, pair)
        truths.append(Truth(pixel_boxes(labels, 96, 64), labels[:, 0].astype(np.int64)))
    assert sum(image is None for read in images.values() for image in read) == 4
    found = predictor.predict_batch(images["visible"], images["thermal"])
    expected = score(truths, found, data.names, [(96, 64)] * 8)
    cell = figures(scores, BRANCH, which, 50)
    assert cell["mAP50"] == pytest.approx(expected.mAP50, abs=1e-4)
    assert cell["mAP50_95"] == pytest.approx(expected.mAP50_95, abs=1e-4)
    assert cell["mAP50_95"] < scores.both["mAP50_95"]


def test_every_pair_s_state_is_in_the_tables(scores: ProtocolScores, world: World, tmp_path: Path) -> None:
    _, pairs = world
    scores.write_tables(tmp_path)
    written = scores.to_dict()
    assert len(written["tables"]) == len(list(tmp_path.iterdir())) == 9
    for entry in written["tables"]:
        file = tmp_path / entry["file"]
        lost = read_table(file, pairs)
        assert lost == lost_cameras(sorted(STEMS), entry["rate"] / 100, entry["which"], seed=0)
        assert len(file.read_text().splitlines()) == 1 + len(pairs)
        assert entry["digest"] == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        assert entry["visible_lost"] + entry["thermal_lost"] == len(lost) == round(entry["rate"] / 100 * len(pairs))
    assert written["split_hash"] == split_hash(pairs)


def test_the_seed_draws_other_tables_and_the_order_none(predictor: Predictor, world: World) -> None:
    data, pairs = world
    one = run_protocol(predictor, data, pairs[::-1], [50], ["black"], seed=0)
    other = run_protocol(predictor, data, pairs, [50], ["black"], seed=1)
    assert one.tables[50, "either"] == lost_cameras(STEMS, 0.5) != other.tables[50, "either"]
    assert one.answerers == [BRANCH, BLACK]


def by_hand(both: float, visible: float, thermal: float) -> ProtocolScores:
    def pair(figure: float) -> dict[str, float]:
        return {"mAP50": figure, "mAP50_95": figure / 2}

    cells = [
        (w, r, f) for w, f in (("visible", visible), ("thermal", thermal), ("either", 0.3)) for r in (50.0, ALWAYS)
    ]
    return ProtocolScores(
        (), 0, (50.0,), "fused", pair(both), {}, tuple(Cell(BLACK, w, r, pair(f)) for w, r, f in cells), ()
    )


def test_means_and_collapse_rates_by_hand() -> None:
    scores = by_hand(0.8, 0.6, 0.2)
    assert scores.mean(BLACK, "mAP50") == pytest.approx((0.6 + 0.2 + 0.3) / 3)
    assert scores.mean_of_three(BLACK, "mAP50_95") == pytest.approx((0.4 + 0.3 + 0.1) / 3)
    assert scores.collapse(0.2, "mAP50") == pytest.approx(0.75)
    assert scores.collapse(1.0, "mAP50") == pytest.approx(-0.25), "better with a camera lost"
    written = scores.to_dict()
    assert written["cells"][0]["PCR50"] == pytest.approx(0.25)
    assert written["means"][0]["cells"]["PCR50_95"] == pytest.approx((0.8 - 1.1 / 3) / 0.8)
    last = table(scores).splitlines()[-1]
    assert " ".join(last.split()) == "fused, black 0.367/0.183 54.2/54.2 0.533/0.267 25.0/25.0 75.0/75.0"
    nothing = by_hand(0.0, 0.1, 0.0)
    assert nothing.collapse(0.1, "mAP50") is None
    assert json.dumps(nothing.to_dict())
    assert table(nothing).splitlines()[-1].endswith("-/-")


def test_a_model_answers_with_what_it_has(world: World, tmp_path: Path) -> None:
    data, pairs = world
    fused = Predictor(model_file(tmp_path / "sum.safetensors", "sum"), device="cpu", conf=0.05)
    scores = run_protocol(fused, data, pairs, [50])
    assert scores.answerers == [BLACK, FROZEN, NOISE]
    assert "branch is left out: this model has no visible and no thermal branch" in table(scores)
    late = Predictor(model_file(tmp_path / "late.safetensors", "late"), device="cpu", conf=0.05)
    scores = run_protocol(late, data, pairs, [50])
    assert (scores.answerers, scores.sound_answer) == ([BRANCH], "ensemble")
    assert scores.both == {n: f for n, f in evaluate(late, data, pairs).items() if n in scores.both}
    assert "fused is left out: this model has no fused head" in table(scores)
    with pytest.raises(UserError, match="a lost image as noise: this model has no fused head"):
        run_protocol(late, data, pairs, [50], ["noise"])
    control = Predictor(model_file(tmp_path / "thermal.safetensors", "thermal"), device="cpu", conf=0.05)
    with pytest.raises(UserError, match="this model has the thermal camera alone"):
        run_protocol(control, data, pairs, [50])


def test_without_frames_before_nothing_is_frozen(predictor: Predictor, world: World) -> None:
    data, pairs = world
    loose = [pair for pair in pairs if pair.stem in FIRST]
    scores = run_protocol(predictor, data, loose, [50])
    assert scores.answerers == [BRANCH, BLACK, NOISE]
    assert "frozen is left out: no pair has a frame of its sequence before it" in table(scores)
    with pytest.raises(UserError, match="no pair has a frame of its sequence before it"):
        run_protocol(predictor, data, loose, [50], ["frozen"])


# --- what stands in place of a lost image ---------------------------------------------------------------------------


def files(*stems: str) -> list[PairFiles]:
    return [PairFiles(s, Path(f"v/{s}.png"), Path(f"t/{s}.png"), None) for s in stems]


def test_the_frame_before_is_the_last_one_of_the_sequence(scores: ProtocolScores) -> None:
    before = frames_before(files(*STEMS[::-1]))
    assert {stem: (pair.stem, age) for stem, (pair, age) in before.items()} == {
        "000000_01": ("000000_00", 1),
        "000000_04": ("000000_01", 3),
        "000001_08": ("000001_07", 1),
        "000001_09": ("000001_08", 1),
    }
    assert frames_before(files("190002", "190010", "200011"))["190010"][0].stem == "190002"
    with pytest.raises(UserError, match="a_1 and a_01 are both frame 1"):
        frames_before(files("a_1", "a_01"))
    assert scores.notes == (
        "frozen is the frame before; its age in frames: median 1, at most 3",
        "4 of 8 pairs have no frame before, and get a black image",
    )


def test_a_frozen_image_is_the_one_before_and_as_faulty_as_others() -> None:
    random = np.random.default_rng(0)
    pair, before = (
        (random.integers(0, 256, (48, 64, 3), np.uint8), random.integers(0, 256, (48, 64), np.uint8)) for _ in range(2)
    )
    contract = ThermalContract()
    visible, thermal = Fault(drop="visible", answer="frozen").apply(*pair, contract, 0, "a", before)
    assert visible is before[0]
    assert thermal is pair[1]
    visible, thermal = Fault(drop="thermal", answer="frozen").apply(*pair, contract, 0, "a", before)
    assert visible is pair[0]
    assert thermal is before[1]
    visible, thermal = Fault(drop="thermal", answer="frozen").apply(*pair, contract, 0, "a")
    assert thermal is not None
    assert not thermal.any(), "there is no frame before"
    askew = Fault(drop="thermal", answer="frozen", shift=(5, 0)).apply(*pair, contract, 0, "a", before)[1]
    assert askew is not None
    assert np.array_equal(askew, Fault(shift=(5, 0)).apply(*before, contract, 0, "a")[1])


def test_noise_in_place_of_an_image_is_even_and_the_pair_s_own() -> None:
    def noise(image: np.ndarray, contract: ThermalContract = ThermalContract()) -> np.ndarray:  # noqa: B008
        drawn = grey_noise(image, contract, np.random.default_rng(0))
        assert (drawn.shape, drawn.dtype) == (image.shape, image.dtype)
        return drawn

    visible = noise(np.zeros((100, 100, 3), np.uint8))
    assert (visible.min(), visible.max()) == (0, 255)
    assert abs(visible.mean() - 127.5) < 2
    counts = np.zeros((100, 100), np.uint16)
    scaled = noise(counts, ThermalContract("mono16", (1000.0, 3000.0)))
    assert 1000 <= scaled.min() < 1010
    assert 2990 < scaled.max() <= 3000
    assert noise(counts, ThermalContract("mono16", (1.0, 99.0), percentile=True)).max() > 65000
    assert 20 <= noise(counts.astype(np.uint8), ThermalContract("mono8", (20.0, 500.0))).min() < 25
    pair = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)

    def lost(camera: str, seed: int = 0, stem: str = "a") -> np.ndarray:
        arrived = Fault(drop=camera, answer="noise").apply(*pair, ThermalContract(), seed, stem)
        image = arrived[camera == "thermal"]
        assert image is not None
        return image

    assert np.array_equal(lost("thermal"), lost("thermal"))
    assert not np.array_equal(lost("thermal"), lost("visible")[..., 0])
    assert not np.array_equal(lost("visible"), lost("visible", seed=1))
    assert not np.array_equal(lost("visible"), lost("visible", stem="b"))


# --- the command line ----------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, predictor: Predictor, data: DataConfig, *words: str) -> None:
    monkeypatch.setattr(evaluation, "Predictor", lambda *args, **kwargs: predictor)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--model", "m", "--data", data.spec, "--split", "train", *words])
    evaluation.main()


def test_the_command_tells_keeps_and_draws(
    predictor: Predictor, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data, pairs = world
    out, picture = tmp_path / "missing.json", tmp_path / "new" / "missing.png"
    words = ["--protocol", "missing", "--rates", "30,12.5,30", "--lost-as", "noise", "black", "--seed", "3"]
    run(monkeypatch, predictor, data, *words, "--json", str(out), "--plot", str(picture))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "train: 8 pairs"
    assert "12.5 %" in "".join(told)
    written = json.loads(out.read_text())
    assert (written["protocol"], written["split"], written["seed"], written["pairs"]) == ("missing", "train", 3, 8)
    assert written["rates"] == [12.5, 30]
    cells = {(c["answer"], c["lost_as"], c["which"], c["rate"]): c for c in written["cells"]}
    assert len(cells) == 3 * 3 * 3
    who = [("branch", None), ("fused", "noise"), ("fused", "black")]
    assert [(m["answer"], m["lost_as"]) for m in written["means"]] == who
    lost = evaluate(predictor, data, pairs, drop="thermal")
    cell = cells["branch", None, "thermal", 100]
    assert (cell["mAP50"], cell["per_class"]) == (lost["mAP50"], lost["per_class"])
    tables = tmp_path / "missing_tables"
    assert sorted(file.name for file in tables.iterdir()) == sorted(entry["file"] for entry in written["tables"])
    assert read_table(tables / "either_12.5.csv", pairs) == lost_cameras(STEMS, 0.125, seed=3)
    assert cv2.imread(str(picture)).shape[1] > 1000
    run(monkeypatch, predictor, data, "--protocol", "missing", "--json", str(out))
    assert json.loads(out.read_text())["rates"] == [30, 50, 70]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rates", "30"], "--rates goes with --protocol missing"),
        (["--lost-as", "black"], "--lost-as goes with --protocol missing"),
        (["--protocol", "missing", "--rates", "30,x"], "--rates 30,x: give percentages from 0 to 100"),
        (["--protocol", "missing", "--rates", "-5,30"], "--rates -5,30: give percentages"),
        (["--protocol", "missing", "--rates", "130"], "--rates 130: give percentages"),
        (["--protocol", "missing", "--rates", "nan"], "--rates nan: give percentages"),
        (["--protocol", "missing", "--seed", "-1"], "--seed -1: give 0 or more"),
        (["--protocol", "missing", "--plot", "a.txt"], "ends? in .png"),
        *(
            (["--protocol", "missing", *words], f"^{words[0]} does not go with --protocol")
            for words in (
                ["--drop", "visible"],
                ["--answer", "ensemble"],
                ["--noise", "0"],
                ["--on", "thermal"],
                ["--shift", "4,0"],
                ["--dark", "0.5"],
                ["--time-offset", "1"],
            )
        ),
    ],
)
def test_mistakes_are_told(
    words: list[str], message: str, predictor: Predictor, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, predictor, world[0], *words)
