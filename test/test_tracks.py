"""Objects through a recording, followed both ways: who is one, who is a flash, and what is put in between."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from rscmd_model.detections import Detections
from rscmd_ros.bags.tracks import Frame, _joined, fill, follow
from rscmd_ros.node.tracking import is_jump

STEP = 0.1  # s
SIZE = 40.0  # px
Path = Sequence[tuple[float, float] | None]
"""Of one object for each frame the left edge in px and the score, or None where it is not found."""


def recording(paths: Mapping[str, Path], tops: Mapping[str, float], labels: Mapping[str, int] = {}) -> list[Frame]:
    """Squares that move sideways; in each frame those that are found, in the order of `paths`."""
    frames = []
    for k in range(len(next(iter(paths.values())))):
        here = [(name, place) for name, path in paths.items() if (place := path[k]) is not None]
        boxes = [[x, tops[name], x + SIZE, tops[name] + SIZE] for name, (x, _) in here]
        scores = [score for _, (_, score) in here]
        classes = [labels.get(name, 0) for name, _ in here]
        frames.append((100 + k * STEP, detections(boxes, scores, classes)))
    return frames


def detections(boxes: Sequence[Sequence[float]], scores: Sequence[float], classes: Sequence[int]) -> Detections:
    return Detections(np.array(boxes).reshape(-1, 4), np.array(scores), np.array(classes, np.int64))


def steady(count: int, score: float = 0.9, x: float = 50.0, speed: float = 3.0) -> list[tuple[float, float] | None]:
    return [(x + speed * k, score) for k in range(count)]


def test_a_track_has_its_first_box_and_its_last() -> None:
    """A tracker that runs one way gives the first box no number, since it may be a flash."""
    late = [None, None, None, *steady(6, x=200)]
    frames = recording({"a": steady(9), "b": late}, {"a": 20, "b": 120})
    assert follow(frames, 0.5) == [[1]] * 3 + [[1, 2]] * 6


def test_crossing_objects_stay_themselves() -> None:
    """They pass over each other at one height, by a fourth of their size between two frames."""
    count = 25
    right, left = steady(count, speed=8), [(250 - 8.0 * k, 0.8) for k in range(count)]
    frames = recording({"a": right, "b": left}, {"a": 20, "b": 32})
    tracks = follow(frames, 0.5)
    assert tracks == [[1, 2]] * count


def test_a_flash_is_in_no_track() -> None:
    for when in (0, 4, 9):  # in the first frame a tracker takes everything for an object
        flash = [(300.0, 0.95) if k == when else None for k in range(10)]
        frames = recording({"a": steady(10), "flash": flash}, {"a": 20, "flash": 120})
        assert follow(frames, 0.5) == [[1, None] if k == when else [1] for k in range(10)]


def test_weak_boxes_belong_to_a_track_from_either_side() -> None:
    """Weak, sure, weak, sure, weak: forward alone leaves the beginning out."""
    scores = [0.2] * 4 + [0.9] * 4 + [0.15] * 6 + [0.8] * 4 + [0.2] * 4
    path = [(50 + 2.0 * k, score) for k, score in enumerate(scores)]
    weak = [(300.0, 0.3)] * len(path)  # never sure: nothing
    assert follow(recording({"a": path, "weak": weak}, {"a": 20, "weak": 120}), 0.5) == [[1, None]] * len(path)


def test_a_gap_is_one_track_and_is_filled() -> None:
    path = steady(16, speed=4)
    path[3] = (62.0, 0.6)
    path[4:8] = [None] * 4
    frames = recording({"a": path}, {"a": 20})
    tracks = follow(frames, 0.5)
    assert tracks == [[1]] * 4 + [[]] * 4 + [[1]] * 8
    filled = fill(frames, tracks, longest=4)
    for k, here in enumerate(filled):
        np.testing.assert_allclose(here.found.boxes, [[50 + 4 * k, 20, 90 + 4 * k, 60]], atol=1e-4)
        assert here.rows.tolist() == ([-1] if 4 <= k < 8 else [0])
        assert here.tracks.tolist() == [1]
        assert here.best.tolist() == pytest.approx([0.9])
        assert here.found.scores.tolist() == pytest.approx([0.6 if 3 <= k < 8 else 0.9])
    assert [len(here.found) for here in fill(frames, tracks, longest=3)] == [len(found) for _, found in frames]


def test_a_gap_is_filled_by_the_stamps() -> None:
    """Two of five frames are lost: what moves evenly in time is where it was."""
    path = steady(12, speed=4)
    path[5:7] = [None] * 2
    frames = recording({"a": path}, {"a": 20})
    late = [frame for k, frame in enumerate(frames) if k != 5]
    here = fill(late, follow(late, 0.5), longest=2)[5]
    np.testing.assert_allclose(here.found.boxes, [[74, 20, 114, 60]], atol=1e-4)


def test_what_lies_in_a_gap_is_taken_instead() -> None:
    frames = recording({"a": [*steady(4), None, *steady(4, x=65)]}, {"a": 20})
    tracks = follow(frames, 0.5)
    there = detections([[64, 22, 104, 60]], [0.12], [3])
    frames[4] = (frames[4][0], there)
    tracks[4] = [None]
    here = fill(frames, tracks, longest=1)[4]
    np.testing.assert_allclose(here.found.boxes, there.boxes)
    assert (here.rows.tolist(), here.found.classes.tolist()) == ([0], [0])
    assert here.found.scores.tolist() == pytest.approx([0.12])
    for label, expected in ((0, [0]), (1, [0, -1])):  # another track's object, of this class and of another
        frames[4] = (frames[4][0], detections([[64, 22, 104, 60]], [0.9], [label]))
        beside = [[7], *([[]] * 8)]
        other = [(0.0, detections([[64, 22, 104, 60]], [0.9], [label])), *frames]
        tracks[4] = [7]
        assert fill(other, [*beside[:1], *tracks], longest=1)[5].rows.tolist() == expected


def test_a_track_has_the_class_of_most_of_its_scores() -> None:
    frames = recording({"a": steady(6)}, {"a": 20})
    said = [(0, 0.9), (1, 0.55), (0, 0.9), (1, 0.55), (1, 0.55), (1, 0.9)]
    frames = [
        (stamp, detections(f.boxes.tolist(), [score], [label])) for (stamp, f), (label, score) in zip(frames, said)
    ]
    filled = fill(frames, follow(frames, 0.5), longest=2)
    assert [here.found.classes.tolist() for here in filled] == [[1]] * 6  # 2.55 against 1.8
    np.testing.assert_allclose([here.found.scores for here in filled], [[score] for _, score in said], atol=1e-6)


@pytest.mark.parametrize("jump", [-3.0, 20.0])
def test_no_track_goes_over_a_jump_in_time(jump: float) -> None:
    assert is_jump(jump)
    frames = recording({"a": [(50.0, 0.9)] * 12}, {"a": 20})
    frames[6:] = [(stamp + jump, found) for stamp, found in frames[6:]]
    frames[5] = (frames[5][0], detections([], [], []))
    tracks = follow(frames, 0.5)
    assert tracks == [[1]] * 5 + [[]] + [[2]] * 6
    assert len(fill(frames, tracks, longest=3)[5].found) == 0


def test_no_track_has_two_boxes_in_one_frame_and_reversed_time_gives_the_same() -> None:
    """Thirty objects that come, go, cross and are lost: in reversed time the same boxes belong together."""
    rng = np.random.default_rng(3)
    paths: dict[str, Path] = {}
    for i in range(30):
        speed, x = rng.uniform(-5, 5), rng.uniform(0, 500)
        begin, end = sorted(rng.integers(0, 80, 2))
        path = [(x + speed * k, float(rng.uniform(0.2, 0.95))) if begin <= k < end else None for k in range(80)]
        paths[str(i)] = [None if rng.random() < 0.15 else place for place in path]
    frames = recording(paths, {str(i): 25.0 * i for i in range(30)})
    tracks = follow(frames, 0.4)
    for row in tracks:
        numbers = [number for number in row if number]
        assert len(numbers) == len(set(numbers))
    back = follow([(-stamp, found) for stamp, found in reversed(frames)], 0.4)[::-1]
    together = [groups(tracks), groups(back)]
    assert len(together[0]) > 20
    assert len(together[0] & together[1]) >= 0.9 * max(map(len, together))


def groups(tracks: list[list[int | None]]) -> set[frozenset[tuple[int, int]]]:
    """The boxes (frame, place) of each track."""
    found: dict[int, list[tuple[int, int]]] = {}
    for k, row in enumerate(tracks):
        for i, number in enumerate(row):
            if number is not None:
                found.setdefault(number, []).append((k, i))
    return {frozenset(boxes) for boxes in found.values()}


def test_where_the_two_ways_contradict_each_other_forward_is_kept() -> None:
    """They swap two objects that cross: each track keeps one box in each frame, and no box is lost."""
    frame_of = np.repeat(np.arange(6), 2)
    forward = np.array([0, 0, 1, 2, 1, 2, 2, 1, 2, 1, 2, 1])
    backward = np.array([1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 0, 0])
    assert _joined(forward, backward, frame_of).tolist() == [1, 2, 1, 2, 1, 2, 2, 1, 2, 1, 2, 1]


def test_nothing_at_all() -> None:
    assert follow([], 0.5) == []
    assert fill([], [], 3) == []
    frames = [(float(k), Detections.empty()) for k in range(3)]
    assert follow(frames, 0.5) == [[], [], []]
    assert [len(here.found) for here in fill(frames, [[], [], []], 3)] == [0, 0, 0]


def test_the_work_grows_with_the_recording() -> None:
    """Not with its square: joining takes four times as long for four times the frames, give or take."""

    def seconds(count: int) -> float:
        frame_of = np.repeat(np.arange(count), 10)
        forward = np.arange(10 * count) % 10 + 1 + 10 * (np.arange(10 * count) // 500)  # a new track every 50 frames
        backward = forward + np.where(np.arange(10 * count) % 500 >= 250, 10, 0)
        begin = time.process_time()
        tracks = _joined(forward, backward, frame_of)
        assert tracks.max() == 10
        return time.process_time() - begin

    few, many = seconds(1000), seconds(4000)
    assert many < 12 * few + 0.2
