"""From answers to labels: who saw what, the three bands of the score, and what a track changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_inference import assert_same, image, model_file

from rscmd_model.datasets.sidecars import (
    Found,
    Sidecar,
    label_text,
    numbers,
    read_sidecar,
    write_sidecar,
)
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.inference.predictor import Predictor
from rscmd_model.labelling.pseudo_labels import Candidates, Limits, candidates, pseudo_labels, sure_from

SIZE = (200, 100)
CLASSES = {0: "person", 1: "car"}
LIMITS = Limits({"person": 0.5, "car": 0.7}, followed=0.3, unsure=0.2)


def boxes(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_predict_each_gives_the_parts_of_the_ensemble(tmp_path: Path) -> None:
    predictor = Predictor(model_file(tmp_path / "model.safetensors"), conf=0.05)
    pairs = [image(90, 160, seed) for seed in range(3)]
    each = predictor.predict_each([v for v, _ in pairs], [t for _, t in pairs])
    for (visible, thermal), found in zip(pairs, each, strict=True):
        assert list(found) == ["fused", "visible", "thermal"]
        for name, alone in (("visible", (visible, None)), ("thermal", (None, thermal)), ("fused", (visible, thermal))):
            expected = predictor.predict(*alone, answer="fused")
            assert len(expected)
            assert_same(found[name], expected)


def test_who_saw_what() -> None:
    given = candidates(
        {
            "fused": boxes((10, 10, 50, 50, 0.4, 0)),
            "visible": boxes((11, 10, 50, 50, 0.6, 0), (100, 20, 140, 60, 0.3, 1)),
            "thermal": boxes((101, 21, 141, 61, 0.5, 0), (10, 10, 51, 51, 0.2, 0), (11, 11, 50, 50, 0.1, 0)),
        }
    )
    assert given.found.scores == pytest.approx([1 - 0.6 * 0.4 * 0.8, 0.5, 0.3], abs=1e-6)
    np.testing.assert_allclose(given.seen["visible"], [0.6, 0, 0.3], atol=1e-6)
    np.testing.assert_allclose(given.seen["thermal"], [0.2, 0.5, 0], atol=1e-6), "the best of an answer, of its class"


def test_a_model_without_single_answers_leaves_open_who_saw() -> None:
    given = candidates({"fused": boxes((10, 10, 50, 50, 0.9, 0))})
    found = pseudo_labels(given, CLASSES, SIZE, LIMITS).labels[0]
    assert (found.visible, found.thermal) == (None, None)
    assert found.seen_by("visible")
    assert found.seen_by("thermal")


def test_three_bands_of_the_score() -> None:
    given = Candidates(
        boxes((0, 0, 20, 50, 0.9, 0), (50, 0, 90, 50, 0.6, 1), (0, 0, 9, 9, 0.2, 0), (9, 9, 20, 20, 0.1, 1))
    )
    sidecar = pseudo_labels(given, CLASSES, SIZE, LIMITS)
    assert [found.line for found in sidecar.labels] == ["0 0.050000 0.250000 0.100000 0.500000"]
    assert [found.score for found in sidecar.ignore] == pytest.approx([0.6, 0.2], abs=1e-4)
    assert label_text(sidecar) == sidecar.labels[0].line + "\n"


def test_a_track_lifts_what_is_followed_and_drops_a_flash() -> None:
    given = Candidates(boxes((0, 0, 20, 50, 0.9, 0), (50, 0, 90, 50, 0.35, 0), (100, 0, 140, 50, 0.25, 0)))
    sidecar = pseudo_labels(given, CLASSES, SIZE, LIMITS, [None, (7, 0.8), (8, 0.8)])
    assert [(found.score, found.track) for found in sidecar.labels] == [(pytest.approx(0.35, abs=1e-4), 7)]
    assert [found.track for found in sidecar.ignore] == [None, 8]


def test_boxes_are_cut_at_the_edge_and_slivers_left_out() -> None:
    given = Candidates(boxes((-20, -10, 20, 50, 0.9, 0), (199, 0, 230, 50, 0.9, 0)))
    (found,) = pseudo_labels(given, CLASSES, SIZE, LIMITS).labels
    assert numbers(found.line) == pytest.approx((0, 0.05, 0.25, 0.1, 0.5))


@pytest.mark.parametrize("wrong", [{"followed": 1.1}, {"unsure": 0}, {"sure": {"car": 1.5}}])
def test_limits_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="score limits"):
        Limits(**{"sure": {"person": 0.5}, **wrong})


def test_the_limits_of_a_class_never_cross() -> None:
    assert Limits({"person": 0.25, "car": 0.1}).of("person") == (0.25, 0.25, 0.15)
    assert Limits({"person": 0.25, "car": 0.1}).of("car") == (0.1, 0.1, 0.1)


def test_sure_is_where_the_wanted_share_is_right() -> None:
    """Scores that are right as often as they say: the labels above the limit have the precision that was asked for."""
    random = np.random.default_rng(0)
    scores = {"person": random.uniform(0, 1, 4000), "car": random.uniform(0, 1, 4000) ** 2, "rare": np.array([0.6])}
    for precision in (0.7, 0.8, 0.9):
        sure = sure_from(scores, precision)
        for name in ("person", "car"):
            taken = scores[name][scores[name] >= sure[name]]
            right = random.uniform(0, 1, len(taken)) < taken
            assert right.mean() == pytest.approx(precision, abs=0.04)
        together = sure_from({"all": np.concatenate(list(scores.values()))}, precision)
        assert sure["rare"] == together["all"], "one box says nothing of its class"
    assert sure_from({"person": np.full(50, 0.3)}, 0.8) == {"person": 1.0}, "nothing is that sure"
    assert sure_from({"person": np.full(50, 0.99)}, 0.1)["person"] == pytest.approx(0.99)
    assert sure_from({"person": np.full(50, 0.2)}, 0.1) == {"person": 0.25}
    assert sure_from({"person": np.zeros(0)}) == {"person": 1.0}
    with pytest.raises(UserError, match="precision"):
        sure_from(scores, 1)


def test_a_sidecar_comes_back_and_knows_a_person_s_hand(tmp_path: Path) -> None:
    line = "0 0.500000 0.250000 0.100000 0.500000"
    sidecar = Sidecar((Found(line, 0.9, visible=0.8, thermal=0.0, track=3),), (Found(line, 0.3),))
    write_sidecar(tmp_path / "a/b.json", sidecar)
    assert read_sidecar(tmp_path / "a/b.json") == sidecar
    assert not sidecar.touched(f"\n{line}  \n")
    assert sidecar.touched("")
    assert sidecar.touched(f"{line}\n{line}\n")
    assert sidecar.labels[0].seen_by("visible")
    assert not sidecar.labels[0].seen_by("thermal")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"version": 1}',
        '{"version": 1, "person": false, "labels": [{"line": "0 1 2", "score": 1}], "ignore": []}',
        '{"version": 1, "person": false, "labels": [{"line": "0 0.1 0.1 0.1 nan", "score": 1}], "ignore": []}',
        '{"version": 1, "person": false, "labels": [{"line": "0 0.1 0.1 0.1 0.1", "score": 7}], "ignore": []}',
        '{"version": 2, "person": false, "labels": [], "ignore": []}',
    ],
)
def test_a_damaged_sidecar_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.json"):
        read_sidecar(file)
