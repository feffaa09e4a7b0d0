"""Faults on a pair, as numbers; and the evaluation that plays them: nothing changes unless something was asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_inference import model_file
from test_pairs import write_world

from rscmd_model import evaluate as evaluation
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import DataConfig, PairFiles, find_pairs
from rscmd_model.errors import UserError
from rscmd_model.evaluation.ablation_plot import plot_ablation
from rscmd_model.evaluation.curves import horizontal, plot_sweep
from rscmd_model.evaluation.faults import (
    Fault,
    add_noise,
    counts_per_level,
    darken,
    frame_of,
    shift_thermal,
    with_neighbours,
)
from rscmd_model.evaluation.sweep import evaluate, sweep
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.predictor import Predictor

STEMS = tuple(f"{sequence:06d}_{frame:02d}" for sequence in (0, 1) for frame in range(3))


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (48, 64, 3), np.uint8), rng.integers(0, 256, (48, 64), np.uint8)


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_a_sound_pair_is_left_as_it_is(pair: tuple[np.ndarray, np.ndarray]) -> None:
    visible, thermal = Fault(shift=(0, 0), noise=0, dark=1, time_offset=0).apply(*pair, ThermalContract(), 0, "a")
    assert visible is pair[0]
    assert thermal is pair[1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_shift_moves_whole_pixels_and_no_other_image(dtype: type, pair: tuple[np.ndarray, np.ndarray]) -> None:
    thermal = pair[1].astype(dtype) * (1 if dtype is np.uint8 else 257)
    before = thermal.copy()
    moved = shift_thermal(thermal, (5, -3), (48, 64))
    assert moved.dtype == dtype
    assert np.array_equal(moved[:-3, 5:], thermal[3:, :-5])
    assert np.array_equal(moved[:-3, :5], np.repeat(thermal[3:, :1], 5, 1)), "the edge is repeated"
    assert np.array_equal(thermal, before)
    small = cv2.resize(pair[1], (32, 24))
    assert np.array_equal(shift_thermal(small, (6, 0), (48, 64)), shift_thermal(small, (3, 0), (24, 32)))
    visible, _ = Fault(shift=(5, -3)).apply(*pair, ThermalContract(), 0, "a")
    assert visible is pair[0]


def test_noise_is_of_the_size_and_on_the_image_asked_for(pair: tuple[np.ndarray, np.ndarray]) -> None:
    grey = np.full((200, 200), 128, np.uint8)
    noisy = add_noise(grey, 10, rng())
    assert abs(noisy.std() - 10) < 0.3
    assert abs(noisy.mean() - 128) < 0.3
    white = add_noise(np.full((50, 50), 250, np.uint8), 20, rng())
    assert white.min() > 100, "clipped and not wrapped around"
    visible, thermal = Fault(noise=9, noise_on="thermal").apply(*pair, ThermalContract(), 0, "a")
    assert visible is pair[0]
    assert not np.array_equal(thermal, pair[1])
    visible, thermal = Fault(noise=9, noise_on="visible").apply(*pair, ThermalContract(), 0, "a")
    assert thermal is pair[1]
    assert not np.array_equal(visible, pair[0])
    # A grey level of a 16-bit image is what the thermal contract makes of it.
    contract = ThermalContract("mono16", (1000.0, 1000.0 + 255 * 16))
    counts = np.full((200, 200), 3000, np.uint16)
    _, noisy = Fault(noise=10).apply(np.zeros((200, 200, 3), np.uint8), counts, contract, 0, "a")
    assert abs(noisy.std() - 160) < 5
    percentile = ThermalContract("mono16", (0.0, 100.0), percentile=True)
    assert counts_per_level(percentile, np.array([[100, 355]], np.uint16)) == 1


def test_noise_is_a_pair_s_own_and_the_same_every_time(pair: tuple[np.ndarray, np.ndarray]) -> None:
    def noisy(seed: int, stem: str) -> np.ndarray:
        visible, _ = Fault(noise=10).apply(*pair, ThermalContract(), seed, stem)
        assert visible is not None
        return visible

    assert np.array_equal(noisy(0, "a"), noisy(0, "a"))
    assert not np.array_equal(noisy(0, "a"), noisy(0, "b"))
    assert not np.array_equal(noisy(0, "a"), noisy(1, "a"))


def test_a_name_that_is_no_utf_8_has_noise_of_its_own(pair: tuple[np.ndarray, np.ndarray]) -> None:
    seen = [Fault(noise=10, dark=0.5).apply(*pair, ThermalContract(), 0, stem)[0] for stem in ("\udce9", "\udcea")]
    assert not np.array_equal(*seen)  # type: ignore[arg-type]


def test_darkness_takes_light_and_leaves_noise() -> None:
    def linear(grey: np.ndarray) -> float:
        return float((((grey / 255 + 0.055) / 1.055) ** 2.4).mean())

    grey = np.full((100, 100, 3), 200, np.uint8)
    half = darken(grey, 0.5, rng())
    assert linear(half) == pytest.approx(0.5 * linear(grey), rel=0.01)
    assert half.std() > 0
    shadow = darken(np.full((100, 100, 3), 60, np.uint8), 0.1, rng())
    assert shadow.std() / shadow.mean() > 3 * half.std() / half.mean(), "noise weighs more where it is darker"
    assert darken(grey, 0.0, rng()).mean() < 3
    assert np.array_equal(darken(grey, 1.0, rng()), grey)
    everything = np.arange(256, dtype=np.uint8).reshape(1, -1, 1).repeat(3, 2)
    assert np.array_equal(darken(everything, 1.0, rng()), everything)


def test_a_lost_camera_is_no_image_or_a_black_one(pair: tuple[np.ndarray, np.ndarray]) -> None:
    contract = ThermalContract()
    assert Fault(drop="visible").apply(*pair, contract, 0, "a")[0] is None
    assert Fault(drop="thermal").apply(*pair, contract, 0, "a")[1] is None
    visible, thermal = Fault(drop="visible", answer="zeros").apply(*pair, contract, 0, "a")
    assert visible is not None
    assert not visible.any()
    assert thermal is pair[1]


@pytest.mark.parametrize(
    ("stem", "frame"),
    [
        ("000012_03", ("000012_", 3)),
        ("190001", ("19", 1)),
        ("010102", ("01", 102)),
        ("0012", ("", 12)),
        ("street-7", ("street-", 7)),
        ("FLIR_08863", ("FLIR_", 8863)),
        ("visible/test/190500", ("visible/test/19", 500)),
        ("set00/V000/I00019", ("set00/V000/I", 19)),
        ("street7/left", None),
        ("left", None),
        ("3_left", None),
    ],
)
def test_sequence_and_frame_come_from_the_stem(stem: str, frame: tuple[str, int] | None) -> None:
    assert frame_of(stem) == frame


def files(*stems: str) -> list[PairFiles]:
    return [PairFiles(s, Path(f"v/{s}.png"), Path(f"t/{s}.png"), None) for s in stems]


def test_neighbours_never_cross_a_sequence() -> None:
    for stems in (STEMS, ("010001", "010002", "010003", "020001", "020002", "020003")):
        kept, neighbours = with_neighbours(files(*stems), [0, 1])
        assert [p.stem for p in kept] == [stems[0], stems[1], stems[3], stems[4]]
        assert neighbours[stems[0], 1].stem == stems[1]
        assert neighbours[stems[3], 0].stem == stems[3]
        for (stem, offset), other in neighbours.items():
            (sequence, number), (other_sequence, other_number) = frame_of(stem), frame_of(other.stem)
            assert (other_sequence, other_number) == (sequence, number + offset)
    kept, _ = with_neighbours(files("000009_98", "000009_99", "000010_00", "019999", "020000"), [0, 1])
    assert [p.stem for p in kept] == ["000009_98"]
    assert [p.stem for p in with_neighbours(files(*STEMS), [-1, 0, 1])[0]] == [STEMS[1], STEMS[4]]
    with pytest.raises(UserError, match="stems must end in the frame's number"):
        with_neighbours(files("a", "b"), [0, 1])
    with pytest.raises(UserError, match="a_1 and a_01 are both frame 1"):
        with_neighbours(files("a_1", "a_01"), [0, 1])


@pytest.mark.parametrize(
    "values",
    [
        {"dark": -0.1},
        {"dark": 1.5},
        {"dark": float("nan")},
        {"noise": -1},
        {"noise": float("inf")},
        {"shift": (float("nan"), 0)},
        {"drop": "both"},
        {"answer": "guess"},
        {"drop": "visible", "answer": "ensemble"},
        {"noise_on": "none"},
    ],
)
def test_bad_values_are_told(values: dict) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        Fault(**values)


# --- the evaluation ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, list[PairFiles]]:
    """Two sequences of three noise pictures, the last of another size; what is labelled is what the model answers."""
    root = tmp_path_factory.mktemp("world")
    data = open_data(write_world(root, STEMS))
    random = np.random.default_rng(0)
    for stem in STEMS:
        height, width = (96, 64) if stem == STEMS[-1] else (64, 96)
        (root / f"thermal/train/{stem}.jpg").unlink()
        picture = random.integers(0, 256, (height, width, 4), np.uint8)
        cv2.imwrite(str(root / f"visible/train/{stem}.png"), picture[..., :3])
        cv2.imwrite(str(root / f"thermal/train/{stem}.png"), picture[..., 3])
    return data, find_pairs(data, "train")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory, world: tuple[DataConfig, list[PairFiles]]) -> Predictor:
    """Random weights. The truth becomes what it finds in the sound pairs, so that every change shows in its score."""
    data, pairs = world
    made = Predictor(model_file(tmp_path_factory.mktemp("model") / "m.safetensors"), device="cpu", conf=0.05)
    for pair in pairs:
        visible, thermal = cv2.imread(str(pair.visible)), cv2.imread(str(pair.thermal), cv2.IMREAD_UNCHANGED)
        found = made.predict(visible, thermal, max_det=12)
        scale = np.array([*visible.shape[1::-1]] * 2)
        boxes = found.boxes / scale
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        rows = [f"{c} {x} {y} {w} {h}" for c, (x, y), (w, h) in zip(found.classes, centre, size) if min(w, h) > 0.01]
        (data.root / f"labels/train/{pair.stem}.txt").write_text("\n".join(rows))
    return made


def test_neutral_values_are_the_plain_evaluation(predictor: Predictor, world: tuple) -> None:
    plain = evaluate(predictor, *world)
    assert plain["mAP50"] > 0.3
    assert (plain["pairs"], plain["left_out"], plain["drop"]) == (6, 0, None)
    for point in sweep(predictor, *world, [Fault(shift=(0, 0)), Fault(noise=0, noise_on="thermal"), Fault(dark=1)]):
        assert {**point, "noise_on": "both"} == plain


def test_points_of_a_sweep_are_the_single_evaluations(predictor: Predictor, world: tuple) -> None:
    faults = [Fault(), Fault(noise=20), Fault(shift=(8, 0)), Fault(dark=0.1), Fault(drop="thermal", noise=20)]
    together = sweep(predictor, *world, faults, seed=3)
    for fault, point in zip(faults, together):
        assert sweep(predictor, *world, [fault], seed=3) == [point]
    scores = [point["mAP50_95"] for point in together]
    assert scores[0] > max(scores[1:]), "each fault shows in the score"
    assert len(set(scores)) == len(scores)
    assert sweep(predictor, *world, [faults[1]], seed=4)[0]["mAP50_95"] != scores[1]


def test_branch_and_zeros_are_different_answers(predictor: Predictor, world: tuple, tmp_path: Path) -> None:
    for drop in ("visible", "thermal"):
        branch, zeros = sweep(predictor, *world, [Fault(drop=drop, answer=answer) for answer in ("branch", "zeros")])
        assert branch["per_class"] != zeros["per_class"]
        assert branch["per_class"] == evaluate(predictor, *world, drop=drop)["per_class"]
    plain_sum = Predictor(model_file(tmp_path / "sum.safetensors", "sum"), device="cpu", conf=0.05)
    with pytest.raises(UserError, match=r"no thermal branch to answer .* --answer zeros"):
        evaluate(plain_sum, *world, drop="visible")
    sweep(plain_sum, *world, [Fault(drop="visible", answer="zeros")])
    control = Predictor(model_file(tmp_path / "thermal.safetensors", "thermal"), device="cpu", conf=0.05)
    with pytest.raises(UserError, match="no fused head"):
        sweep(control, *world, [Fault(drop="visible", answer="zeros")])
    evaluate(control, *world, drop="visible")


def test_pairs_are_scored_by_the_answer_asked_for(
    predictor: Predictor, world: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    own, fused, joint = sweep(predictor, *world, [Fault(), Fault(answer="fused"), Fault(answer="ensemble")])
    assert own["per_class"] == fused["per_class"] != joint["per_class"]
    ensemble = Predictor(predictor._file, device="cpu", conf=0.05, answer="ensemble")
    faults = [Fault(), Fault(answer="fused"), Fault(drop="visible"), Fault(drop="visible", answer="zeros")]
    lost = sweep(predictor, *world, faults[2:])  # which has nothing to do with the answer to a pair
    for fault, expected in zip(faults, (joint, fused, *lost), strict=True):
        assert sweep(ensemble, *world, [fault])[0]["per_class"] == expected["per_class"]
    plain_sum = Predictor(model_file(tmp_path / "sum.safetensors", "sum"), device="cpu", conf=0.05)
    with pytest.raises(UserError, match="ensemble joins several answers, and this model has one"):
        sweep(plain_sum, *world, [Fault(answer="ensemble")])
    out = tmp_path / "out.json"
    words = ["--drop", "none", "visible", "--answer", "ensemble", "fused", "zeros", "--json", str(out)]
    run(monkeypatch, predictor, world[0], *words)
    points = json.loads(out.read_text())["points"]
    assert [(p["drop"], p["answer"], p["mAP50"]) for p in points[:2]] == [
        (None, "ensemble", joint["mAP50"]),
        (None, "fused", fused["mAP50"]),
    ]
    assert [(p["drop"], p["answer"]) for p in points[2:]] == [("visible", "zeros")]
    told = capsys.readouterr().out
    assert "ensemble answers" in told
    assert "fused answers" in told


def test_time_offset_is_the_neighbour_s_thermal_image(predictor: Predictor, world: tuple, tmp_path: Path) -> None:
    """The same figures come out when the neighbours' images are written into a data set under the pairs' names."""
    data, pairs = world
    sound, late = sweep(predictor, *world, [Fault(), Fault(time_offset=1)])
    assert sound["pairs"] == late["pairs"] == 4
    assert sound["left_out"] == late["left_out"] == 2
    kept = [pairs[i] for i in (0, 1, 3, 4)]
    assert sound["per_class"] == evaluate(predictor, data, kept)["per_class"]
    swapped = [PairFiles(p.stem, p.visible, pairs[i + 1].thermal, p.label) for i, p in zip((0, 1, 3, 4), kept)]
    assert late["per_class"] == evaluate(predictor, data, swapped)["per_class"]
    assert late["per_class"] != sound["per_class"]


def run(monkeypatch: pytest.MonkeyPatch, predictor: Predictor, data: DataConfig, *words: str) -> None:
    monkeypatch.setattr(evaluation, "Predictor", lambda *args, **kwargs: predictor)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--model", "m", "--data", data.spec, "--split", "train", *words])
    evaluation.main()


def test_another_thermal_contract_of_the_data_is_told(
    predictor: Predictor, world: tuple, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data, _ = world
    run(monkeypatch, predictor, data)
    assert "thermal contract" not in capsys.readouterr().out
    described = data.resolved | {"thermal_contract": {"source": "mono8", "scale": [10, 200], "palette_ok": True}}
    run(monkeypatch, predictor, open_data(json.dumps(described)))
    said = "thermal contract: of the model, {'source': 'mono8', 'scale': [0.0, 255.0]}; that of the data, "
    assert capsys.readouterr().out.startswith(said + "{'source': 'mono8', 'scale': [10.0, 200.0]}, is not used\n")


def test_classes_are_matched_by_name(
    predictor: Predictor, world: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def scored(names: dict[int, str], numbers: dict[str, str]) -> tuple[dict[str, dict], list[str]]:
        """The figures of the same boxes under other numbers, and what is printed before them."""
        for labels in (world[0].root / "labels/train").iterdir():
            rows = [line.partition(" ") for line in labels.read_text().splitlines()]
            kept = "\n".join(f"{numbers[c]} {box}" for c, _, box in rows if c in numbers)
            (tmp_path / "labels" / labels.name).write_text(kept)
        described = world[0].resolved | {"names": names, "labels": {"train": str(tmp_path / "labels")}}
        run(monkeypatch, predictor, open_data(json.dumps(described)), "--json", str(tmp_path / "out.json"))
        said = [line for line in capsys.readouterr().out.splitlines() if "left out of the score" in line]
        return json.loads((tmp_path / "out.json").read_text())["per_class"], said

    (tmp_path / "labels").mkdir()
    plain = evaluate(predictor, *world)["per_class"]
    assert min(figures["truths"] for figures in plain.values()) > 0
    assert scored({0: "car", 1: "person"}, {"0": "1", "1": "0"}) == (plain, [])
    person = {"person": plain["person"]}
    found, said = scored({0: "person"}, {"0": "0"})
    assert (found, said) == (
        person,
        ["the model finds classes that the data do not have; they are left out of the score: 'car'"],
    )
    found, said = scored({0: "bus", 1: "person"}, {"0": "1", "1": "0"})
    assert found == person
    assert said[0] == "the data have classes that the model does not know; they are left out of the score: 'bus'"
    with pytest.raises(UserError, match=r"the model finds person, car; .* has bus: no class has the same name in both"):
        scored({0: "bus"}, {"0": "0"})


def test_command_line_sweeps_and_draws(
    predictor: Predictor, world: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data, _ = world
    out, picture = tmp_path / "out.json", tmp_path / "new" / "curve.png"
    words = ["--drop", "none", "visible", "--answer", "branch", "zeros", "--shift", "-4,0", "0,0", "4,0"]
    run(monkeypatch, predictor, data, *words, "--json", str(out), "--plot", str(picture))
    written = json.loads(out.read_text())
    assert written["axis"] == "shift"
    assert [(p["drop"], p["answer"], p["shift"]) for p in written["points"]][:4] == [
        (None, "branch", [-4, 0]),
        (None, "branch", [0, 0]),
        (None, "branch", [4, 0]),
        ("visible", "branch", [-4, 0]),
    ]
    assert len(written["points"]) == 9
    assert cv2.imread(str(picture)).shape[0] > 300
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 9
    assert "-4,0" in table[2]
    assert table[3].split()[-2:] == [f"{100 * written['points'][1][name]:.1f}" for name in ("mAP50", "mAP50_95")]
    run(monkeypatch, predictor, data, "--time-offset", "-1", "--json", str(out))
    assert [p["time_offset"] for p in json.loads(out.read_text())["points"]] == [0, -1]
    assert "4 pairs (2 more left out" in capsys.readouterr().out
    run(monkeypatch, predictor, data, "--drop", "visible", "--json", str(out))
    single = json.loads(out.read_text())
    assert single["mAP50"] == evaluate(predictor, *world, drop="visible")["mAP50"]
    assert "visible lost, branch answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--noise", "1", "2", "--dark", "0.5", "0.1"], "--dark and --noise both have several values"),
        (["--on", "thermal"], "give --noise"),
        (["--answer", "zeros"], "give --drop"),
        (["--drop", "none", "--answer", "zeros"], "give --drop"),
        (["--answer", "fused", "branch"], "--answer branch says who answers for a lost camera"),
        (["--drop", "visible", "--answer", "zeros", "ensemble"], "--answer ensemble says who answers a whole pair"),
        (["--plot", "a.png"], "--plot draws a sweep"),
        (["--noise", "1", "2", "--plot", "a.txt"], "ends in .png"),
        (["--json", "/proc/x/a.json"], "cannot write /proc/x/a.json"),
        (["--shift", "4"], "--shift 4: give DX,DY"),
        (["--seed", "-1"], "--seed -1"),
        (["--dark", "2"], "dark 2"),
    ],
)
def test_mistakes_are_told(
    words: list[str], message: str, predictor: Predictor, world: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, predictor, world[0], *words)


def test_a_name_with_dollars_is_no_formula(tmp_path: Path) -> None:
    points = [(Fault(noise=noise), {"mAP50_95": 0.5}) for noise in (0.0, 10.0)]
    plot_sweep(tmp_path / "a.png", points, "noise", "a$b_$.safetensors on val")
    rows = [{"method": "sum", "branch": "fused", "mAP50_95": 0.5}]
    plot_ablation(tmp_path / "b.png", rows, "a$b_$, val: 2 pairs")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.png"))


def test_curves_lie_along_the_direction_of_the_shift() -> None:
    def along(*shifts: tuple[float, float]) -> list[float]:
        return horizontal([Fault(shift=s) for s in shifts], "shift")[0].tolist()

    assert along((-4, 0), (0, 0), (4, 0)) == [-4, 0, 4]
    assert along((0, -4), (0, 4)) == [-4, 4]
    assert along((0, 0), (3, 4)) == [0, 5]
