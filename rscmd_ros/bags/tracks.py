"""Objects through a whole recording: ByteTrack forward and backward in time, and what is missing in between.

A tracker that runs forward knows an object only after it has seen it surely. Backward it knows it before. So the weak
boxes of an object that comes near, and of one that goes away, both belong to a track.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rscmd_model.detections import Detections
from rscmd_model.inference.late_fusion import overlaps
from rscmd_ros.node.tracking import Tracker, is_jump

Frame = tuple[float, Detections]
"""Stamp of the visible image in s, and its detections in px with scores from `LOW_SCORE` on."""
_SAME = 0.5  # IoU from which a box is the one that was expected there


@dataclass(frozen=True, eq=False)
class Filled:
    """The objects of one frame that belong to a track.

    Attributes:
        found: them, each with the class of its track.
        tracks: (N,) int64, number of the track, from 1.
        best: (N,) float32, the highest score in the track.
        rows: (N,) int64, which of the frame's detections it is; -1 for a box that was interpolated.
    """

    found: Detections
    tracks: np.ndarray
    best: np.ndarray
    rows: np.ndarray


def follow(frames: Sequence[Frame], confidence: float) -> list[list[int | None]]:
    """Give the same object the same number throughout, whichever way in time it is followed.

    The tracks of the forward tracker stay as they are. The backward one adds the boxes that no forward track has, and
    joins forward tracks that are one to it. It joins nothing that would give a track two boxes in one frame; there the
    forward tracker is right. No track goes over a jump in time.

    Args:
        frames: of a recording, in order of time.
        confidence: score from which an object begins a track, 0 to 1.

    Returns:
        for each frame the track of each detection, numbered from 1 in order of appearance; None for a detection that
        is in no track, or alone in one: a flash.
    """
    sizes = np.array([len(found) for _, found in frames], np.int64)
    first = np.concatenate(([0], np.cumsum(sizes)))
    frame_of = np.repeat(np.arange(len(frames), dtype=np.int64), sizes)
    forward, backward = np.zeros((2, len(frame_of)), np.int64)
    for run in _runs(frames):
        _track(frames, run, first, 1, confidence, forward)
        _track(frames, run[::-1], first, -1, confidence, backward)
    tracks = _joined(forward, backward, frame_of)
    return [[int(t) or None for t in tracks[begin:end]] for begin, end in zip(first[:-1].tolist(), first[1:].tolist())]


def fill(frames: Sequence[Frame], tracks: Sequence[Sequence[int | None]], longest: int) -> list[Filled]:
    """What belongs to a track in each frame, with the boxes that are missing in between.

    The class of a track is the one whose scores add up to most in it: a frame in which its object is taken for
    something else does not change it. In a gap the box is interpolated by the stamps and has the lower score of both
    ends. A detection without a track that lies there is taken instead of it, with its own score. Where another track
    has an object of this class there, nothing is added.

    Args:
        frames: as for `follow`.
        tracks: what `follow` gave.
        longest: gap that is filled, in frames.
    """
    flat = np.array([number or 0 for row in tracks for number in row], np.int64)
    first = np.concatenate(([0], np.cumsum([len(row) for row in tracks], dtype=np.int64)))
    frame_of = np.repeat(np.arange(len(frames), dtype=np.int64), np.diff(first))
    classes, best = _of_tracks(frames, flat)
    added: dict[int, list[tuple[int, np.ndarray, float]]] = {}  # by frame: track, box in px, score
    for one, other in _links(flat, frame_of):
        start, end = int(frame_of[one]), int(frame_of[other])
        if not 1 < end - start <= longest + 1:
            continue
        (then, a), (later, b) = frames[start], frames[end]
        i, j = one - first[start], other - first[end]
        for k in range(start + 1, end):
            by_time = (frames[k][0] - then) / (later - then) if later > then else 0.0
            share = by_time if 0 < by_time < 1 else (k - start) / (end - start)
            box = a.boxes[i] * (1 - share) + b.boxes[j] * share
            added.setdefault(k, []).append((int(flat[one]), box, float(min(a.scores[i], b.scores[j]))))
    return [
        _filled(found, flat[first[k] : first[k + 1]], added.get(k, []), classes, best)
        for k, (_, found) in enumerate(frames)
    ]


def _runs(frames: Sequence[Frame]) -> Iterator[range]:
    """The stretches without a jump in time."""
    begin = 0
    for k in range(1, len(frames) + 1):
        if k == len(frames) or is_jump(frames[k][0] - frames[k - 1][0]):
            yield range(begin, k)
            begin = k


def _track(
    frames: Sequence[Frame], run: range, first: np.ndarray, way: int, confidence: float, numbers: np.ndarray
) -> None:
    """Number the boxes of a run as a tracker does, above all numbers that there are; 0 for none.

    Args:
        frames: all of them.
        run: which ones, in the order in which they are looked at.
        first: place of each frame's first box in `numbers`.
        way: 1 for forward, -1 for backward; a tracker's clock always goes forward.
        confidence: as for `follow`.
        numbers: (boxes of all frames,), changed in place.
    """
    tracker, above = Tracker(), int(numbers.max(initial=0))
    for k in run:
        stamp, found = frames[k]
        for i, identity in enumerate(tracker.update(found, confidence, way * stamp)):
            if identity:
                numbers[first[k] + i] = above + int(identity)


def _links(numbers: np.ndarray, frame_of: np.ndarray) -> Iterator[tuple[int, int]]:
    """Each box with the next one of its number, in order of time.

    Args:
        numbers: (N,) of boxes in order of their frames, 0 for none.
        frame_of: (N,) frame of each.
    """
    order = np.flatnonzero(numbers)
    order = order[np.lexsort((frame_of[order], numbers[order]))]
    same = numbers[order[1:]] == numbers[order[:-1]]
    one, other = order[:-1][same], order[1:][same]
    by_time = np.argsort(one, kind="stable")
    yield from zip(one[by_time].tolist(), other[by_time].tolist())


def _joined(forward: np.ndarray, backward: np.ndarray, frame_of: np.ndarray) -> np.ndarray:
    """One number of a track for each box, 0 for a box that is alone.

    Args:
        forward, backward: (N,) the trackers' numbers, 0 for none.
        frame_of: (N,) frame of each box.
    """
    own = forward.copy()
    lone = np.flatnonzero(forward == 0)
    own[lone] = int(forward.max(initial=0)) + 1 + np.arange(len(lone))  # each a track of its own to begin with
    boxes = np.argsort(own, kind="stable")
    cuts = np.flatnonzero(np.diff(own[boxes])) + 1
    members = {int(own[part[0]]): part for part in np.split(boxes, cuts) if len(part)}
    for one, other in _links(backward, frame_of):
        a, b = int(own[one]), int(own[other])
        if a == b or np.isin(frame_of[members[a]], frame_of[members[b]], assume_unique=True).any():
            continue
        small, large = sorted((a, b), key=lambda number: len(members[number]))
        own[members[small]] = large
        members[large] = np.concatenate((members[large], members.pop(small)))
    tracks = np.zeros(len(own), np.int64)
    kept = [part for part in members.values() if len(part) > 1]
    for number, part in enumerate(sorted(kept, key=lambda part: int(part.min())), 1):
        tracks[part] = number
    return tracks


def _of_tracks(frames: Sequence[Frame], tracks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By number of a track its class (int64) and its highest score (float32).

    Args:
        frames: all of them.
        tracks: (boxes of all frames,), 0 for none.
    """
    scores = np.concatenate([np.zeros(0, np.float32), *(found.scores for _, found in frames)])
    labels = np.concatenate([np.zeros(0, np.int64), *(found.classes for _, found in frames)])
    count = int(tracks.max(initial=0)) + 1
    best = np.zeros(count, np.float32)
    np.maximum.at(best, tracks, scores)
    both, place = np.unique(np.stack((tracks, labels)), axis=1, return_inverse=True)
    sums = np.bincount(place.ravel(), weights=scores, minlength=both.shape[1])
    classes = np.zeros(count, np.int64)
    rising = np.argsort(sums, kind="stable")  # so that the largest sum of a track is written last
    classes[both[0, rising]] = both[1, rising]
    return classes, best


def _filled(
    found: Detections,
    tracks: np.ndarray,
    added: list[tuple[int, np.ndarray, float]],
    classes: np.ndarray,
    best: np.ndarray,
) -> Filled:
    """The objects of one frame.

    Args:
        found: what was detected.
        tracks: (N,) of each detection, 0 for none.
        added: track, box in px and score of what is missing.
        classes, best: by number of a track.
    """
    numbers = tracks.copy()
    boxes, scores, more = [], [], []
    for track, box, score in sorted(added, key=lambda item: -item[2]):
        over = overlaps(box[None], found.boxes)[0] if len(found) else np.zeros(0)
        free = np.where(numbers == 0, over, 0)
        if free.max(initial=0) >= _SAME:
            numbers[free.argmax()] = track
        elif over[(numbers > 0) & (classes[numbers] == classes[track])].max(initial=0) < _SAME:
            boxes.append(box)
            scores.append(score)
            more.append(track)
    rows = np.flatnonzero(numbers)
    of = np.concatenate((numbers[rows], np.array(more, np.int64)))
    return Filled(
        Detections(
            np.concatenate((found.boxes[rows], np.array(boxes, np.float32).reshape(-1, 4))),
            np.concatenate((found.scores[rows], np.array(scores, np.float32))),
            classes[of],
        ),
        of,
        best[of],
        np.concatenate((rows, np.full(len(more), -1))),
    )
