"""Scores against cases worked out by hand under COCO's rules."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.evaluation.scoring import Score, Truth, score

NAMES = {0: "person", 1: "car", 2: "bicycle"}


def truth(*rows: tuple[float, float, float, float, int]) -> Truth:
    table = np.array(rows, np.float64).reshape(-1, 5)
    return Truth(table[:, :4].astype(np.float32), table[:, 4].astype(np.int64))


def found(*rows: tuple[float, float, float, float, int, float]) -> Detections:
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(table[:, :4].astype(np.float32), table[:, 5].astype(np.float32), table[:, 4].astype(np.int64))


def run(truths: list[Truth], predictions: list[Detections]) -> Score:
    return score(truths, predictions, NAMES, [(100, 80)] * len(truths))


def test_perfect_is_one_and_classes_without_truth_are_left_out() -> None:
    result = run(
        [truth((10, 10, 30, 50, 0)), truth((5, 5, 45, 25, 1), (50, 5, 60, 45, 0))],
        [found((10, 10, 30, 50, 0, 0.9)), found((5, 5, 45, 25, 1, 0.8), (50, 5, 60, 45, 0, 0.7))],
    )
    assert result.mAP50 == pytest.approx(1.0)
    assert result.mAP50_95 == pytest.approx(1.0)
    assert result.per_class["person"] == {"mAP50": pytest.approx(1.0), "mAP50_95": pytest.approx(1.0), "truths": 2}
    assert result.per_class["bicycle"] == {"mAP50": None, "mAP50_95": None, "truths": 0}
    assert result.curve[0].shape == result.curve[1].shape == (101,)
    assert result.curve[1].min() == pytest.approx(1.0)
    assert set(json.loads(json.dumps(result.to_dict()))) == {"mAP50", "mAP50_95", "per_class"}


def test_nothing_found_is_zero() -> None:
    result = run([truth((10, 10, 30, 50, 0))], [Detections.empty()])
    assert (result.mAP50, result.mAP50_95) == (0.0, 0.0)


def test_a_missed_class_counts_as_zero_in_the_mean() -> None:
    result = run([truth((10, 10, 30, 50, 0), (40, 10, 80, 40, 1))], [found((10, 10, 30, 50, 0, 0.9))])
    assert result.per_class["person"]["mAP50"] == pytest.approx(1.0)
    assert result.per_class["car"]["mAP50"] == 0.0
    assert result.mAP50 == pytest.approx(0.5)


def test_a_surer_false_alarm_halves_the_precision() -> None:
    """One truth; a false alarm ranks above the hit: precision at the only recall step is 1 of 2."""
    result = run([truth((10, 10, 30, 50, 0))], [found((60, 10, 80, 50, 0, 0.9), (10, 10, 30, 50, 0, 0.5))])
    assert result.mAP50 == pytest.approx(0.5)
    less_sure = run([truth((10, 10, 30, 50, 0))], [found((60, 10, 80, 50, 0, 0.3), (10, 10, 30, 50, 0, 0.5))])
    assert less_sure.mAP50 == pytest.approx(1.0)


def test_a_false_alarm_on_a_picture_without_truth_counts() -> None:
    result = run(
        [truth((10, 10, 30, 50, 0)), truth()], [found((10, 10, 30, 50, 0, 0.5)), found((10, 10, 30, 50, 0, 0.9))]
    )
    assert result.mAP50 == pytest.approx(0.5)


def test_half_of_the_truths_found() -> None:
    """Recall stops at 0.5: of the 101 recall points those from 0.00 to 0.50 hold precision 1, 51 of them."""
    result = run([truth((10, 10, 30, 50, 0), (60, 10, 80, 50, 0))], [found((10, 10, 30, 50, 0, 0.9))])
    assert result.mAP50 == pytest.approx(51 / 101)


def test_a_loose_box_passes_only_the_lower_thresholds() -> None:
    """IoU 20x32 of 20x40 = 0.8: a hit at 0.50, 0.55, ..., 0.80 and a miss at 0.85, 0.90, 0.95, so 7 of 10."""
    result = run([truth((10, 10, 30, 50, 0))], [found((10, 10, 30, 42, 0, 0.9))])
    assert result.mAP50 == pytest.approx(1.0)
    assert result.mAP50_95 == pytest.approx(0.7)


def test_a_second_box_on_the_same_truth_is_a_false_alarm() -> None:
    result = run(
        [truth((10, 10, 30, 50, 0), (60, 10, 80, 50, 0))],
        [found((10, 10, 30, 50, 0, 0.9), (10, 10, 30, 49, 0, 0.8), (60, 10, 80, 50, 0, 0.7))],
    )
    # Precision 1 up to recall 0.5 (51 points), then 2 of 3 up to recall 1 (50 points).
    assert result.mAP50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="must agree"):
        run([truth()], [])
    with pytest.raises(ValueError, match="class 7"):
        run([truth((1, 1, 5, 5, 0))], [found((1, 1, 5, 5, 7, 0.5))])
    with pytest.raises(UserError, match="nothing to score"):
        run([truth()], [found((1, 1, 5, 5, 0, 0.5))])
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        Truth(np.zeros((2, 5), np.float32), np.zeros(2, np.int64))


def test_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    run([truth((10, 10, 30, 50, 0))], [found((10, 10, 30, 50, 0, 0.9))])
    assert capfd.readouterr() == ("", "")
