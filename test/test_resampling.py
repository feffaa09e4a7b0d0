"""The bootstrap: scores of pictures that count several times are those of the pictures repeated."""

from __future__ import annotations

import numpy as np
import pytest

from rscmd_model.detections import Detections
from rscmd_model.evaluation.resampling import draw, interval, over_seeds, scores
from rscmd_model.evaluation.scoring import Truth, match, score

NAMES = {0: "person", 1: "car", 2: "tram"}


def drawn(rng: np.random.Generator, classes: int, ties: bool) -> tuple[list[Truth], list[Detections]]:
    """Pictures with a few boxes, some found well, some badly, and much that is wrong."""
    truths, found = [], []
    for _ in range(int(rng.integers(1, 12))):
        count = int(rng.integers(0, 5))
        corner = rng.integers(0, 60, (count, 2))
        boxes = np.hstack((corner, corner + rng.integers(8, 40, (count, 2)))).astype(np.float32)
        labels = rng.integers(0, classes, count)
        truths.append(Truth(boxes, labels))
        again = np.repeat(boxes, 2, axis=0) + rng.normal(0, 2, (2 * count, 4)).astype(np.float32)
        wrong = np.tile([5, 5, 30, 30], (int(rng.integers(0, 4)), 1)) + rng.normal(0, 4, 4)
        guesses = np.vstack((again, wrong)).astype(np.float32)
        guesses[:, 2:] = np.maximum(guesses[:, :2], guesses[:, 2:])
        kinds = np.concatenate((np.repeat(labels, 2), rng.integers(0, 3, len(wrong)))).astype(np.int64)
        sure = rng.integers(1, 6, len(guesses)) / 8 if ties else rng.random(len(guesses))
        found.append(Detections(guesses, sure, kinds))
    truths[0] = Truth(np.array([[1, 1, 20, 20]], np.float32), np.array([0]))
    return truths, found


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_every_picture_once_is_the_score(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    truths, found = drawn(rng, int(rng.integers(1, 4)), ties)
    sizes = [(100, 100)] * len(truths)
    whole = score(truths, found, NAMES, sizes)
    once = scores(match(truths, found, NAMES, sizes), np.ones((2, len(truths)), np.int64))
    assert once.tolist() == [[whole.mAP50, whole.mAP50_95]] * 2


@pytest.mark.parametrize("seed", range(12))
def test_a_picture_twice_is_the_score_of_its_copies(seed: int) -> None:
    """Without ties; copies of a picture with ties have an order of their own."""
    rng = np.random.default_rng(100 + seed)
    truths, found = drawn(rng, int(rng.integers(1, 4)), ties=False)
    matches = match(truths, found, NAMES, [(100, 100)] * len(truths))
    times = rng.multinomial(len(truths), np.full(len(truths), 1 / len(truths)), size=80)  # more than one block
    for row, figures in list(zip(times, scores(matches, times), strict=True))[::10]:
        some = np.repeat(np.arange(len(truths)), row)
        if not any(len(truths[n]) for n in some):
            assert np.isnan(figures).all()
            continue
        copies = score([truths[n] for n in some], [found[n] for n in some], NAMES, [(100, 100)] * len(some))
        assert figures.tolist() == [copies.mAP50, copies.mAP50_95]


def test_the_mean_is_over_the_classes_that_are_drawn() -> None:
    box = np.array([[1, 1, 20, 20]], np.float32)
    truths = [Truth(box, np.array([0])), Truth(box, np.array([1]))]
    found = [Detections(box, np.ones(1), np.array([0])), Detections(box + 30, np.ones(1), np.array([1]))]
    matches = match(truths, found, NAMES, [(100, 100)] * 2)
    assert scores(matches, np.array([[1, 1], [2, 0], [0, 2]])).tolist() == [[0.5, 0.5], [1, 1], [0, 0]]
    truths = [truths[0], Truth(np.zeros((0, 4)), np.zeros(0))]
    assert np.isnan(scores(match(truths, found, NAMES, [(100, 100)] * 2), np.array([[0, 2]]))).all()


def test_drives_and_seeds_are_drawn_the_same_every_time() -> None:
    times = draw(5, 2000, "drives")
    assert np.array_equal(times, draw(5, 2000, "drives"))
    assert not np.array_equal(times, draw(5, 2000, "seeds"))
    assert (times.sum(axis=1) == 5).all()
    assert times.mean(axis=0) == pytest.approx(1, abs=0.1)


def test_the_figure_of_a_method_is_the_mean_over_drawn_seeds() -> None:
    rng = np.random.default_rng(0)
    base = rng.random((500, 2))
    alone = {3: base}
    assert np.array_equal(over_seeds(alone), base)
    seeds = {0: base, 1: base + 1}
    spread = over_seeds(seeds) - base
    assert set(np.round(spread, 9).ravel()) == {0, 0.5, 1}
    # The same seeds are drawn for both sides of a difference.
    other = {seed: figures + 0.25 for seed, figures in seeds.items()}
    assert over_seeds(other) - over_seeds(seeds) == pytest.approx(0.25)


def test_an_interval_is_the_middle_95_percent() -> None:
    figures = np.append(np.arange(1001) / 1000, np.nan)
    assert interval(figures) == pytest.approx((0.025, 0.975))
