"""From answers to figures: which frames count, average precision, ledger, |dt| and latency of one bag or of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.evaluation.scoring import Score, Truth, score
from rscmd_ros.bags.pairs import Pairing
from rscmd_ros.bags.truth import FrameTruths


@dataclass(frozen=True)
class Answer:
    """What was found in one visible frame.

    Attributes:
        detections: boxes in px of that frame.
        dt: of its pair, ns.
        latency: how long the answer took, ns.
    """

    detections: Detections
    dt: int
    latency: int


@dataclass(frozen=True)
class ScoredFrame:
    """A visible frame with truth.

    Attributes:
        truth: what is in it.
        found: what was found.
        size: (width, height) in px.
        paired: whether it counts in mAP proper.
    """

    truth: Truth
    found: Detections
    size: tuple[int, int]
    paired: bool


@dataclass(frozen=True)
class Outcome:
    """What one bag gave, in a form that can be put together with others.

    Attributes:
        frames: by stream.
        ledger: stream -> counter -> frames.
        pairs: how many were made.
        unanswered: usable visible frames without an answer.
        dt_ms: |dt| of each answer, ms.
        latency_ms: of each answer, ms.
        scored: the frames with truth by rising stamp; None where the bag has no truth.
        unknown: classes of the truth that the model does not know.
    """

    frames: Mapping[str, int]
    ledger: Mapping[str, Mapping[str, int]]
    pairs: int
    unanswered: int
    dt_ms: Sequence[float]
    latency_ms: Sequence[float]
    scored: Sequence[ScoredFrame] | None
    unknown: Sequence[str] = ()


@dataclass(frozen=True)
class Figures:
    """The figures of one or several bags.

    Attributes:
        summary: as it goes into the JSON.
        score: None without truth.
        dt_ms: |dt| of each answer, ms.
        latency_ms: of each answer, ms.
    """

    summary: dict[str, Any]
    score: Score | None
    dt_ms: list[float]
    latency_ms: list[float]


def outcome(
    pairing: Pairing,
    answers: Mapping[int, Answer],
    truths: FrameTruths | None,
    names: Mapping[int, str],
    *,
    ledger: Mapping[str, Mapping[str, int]],
    pairs: int,
) -> Outcome:
    """Put together what a bag gave.

    Args:
        pairing: how it was paired.
        answers: by header stamp (ns) of the visible frame.
        truths: None where the bag has no truth.
        names: the model's classes.
        ledger: stream -> counter -> frames.
        pairs: how many were made.

    Raises:
        UserError: truth is given and fits no frame.
    """
    scored: list[ScoredFrame] | None = None
    if truths is not None:
        sizes = pairing.visible_frames
        due = {pair.visible for pair in pairing.pairs} | set(answers)
        scored = [
            ScoredFrame(
                truths.for_classes(stamp, names),
                answers[stamp].detections if stamp in answers else Detections.empty(),
                sizes[stamp],
                stamp in due,
            )
            for stamp in sorted(truths.by_stamp)
            if stamp in sizes
        ]
        if not scored:
            raise UserError(
                f"the truth does not fit the bag: none of its {len(truths.by_stamp)} stamps is that of a visible frame"
            )
        if not any(frame.paired for frame in scored):
            raise UserError(
                "no visible frame with truth found a partner within the slop: nothing to score; see --slop-ms"
            )
    return Outcome(
        dict(pairing.frames),
        {stream: dict(counts) for stream, counts in ledger.items()},
        pairs,
        sum(stamp not in answers for stamp in pairing.visible_frames),
        [abs(answer.dt) / 1e6 for answer in answers.values()],
        [answer.latency / 1e6 for answer in answers.values()],
        scored,
        truths.unknown(names) if truths is not None else (),
    )


def remarks(pairing: Pairing, truths: FrameTruths | None) -> list[str]:
    """What of a bag, or of its truth, is not scored; each a sentence to show to the user."""
    found, there = [], pairing.visible_frames
    # A file of truth may be of several recordings: what lies outside of this one is none of its frames.
    first, last = min(there, default=0), max(there, default=-1)
    due = [stamp for stamp in (truths.by_stamp if truths else ()) if first <= stamp <= last]
    if lost := len(due) - len(there.keys() & due):
        found.append(
            f"{lost} of the truth's {len(due)} stamps within the recording are those of no visible frame that can be "
            "used: what they say is not scored."
        )
    usable = pairing.frames["visible"] - pairing.ledger["visible"]["invalid"]
    if again := usable - len(pairing.visible_frames):
        found.append(
            f"{again} visible frames have the stamp of another one, as where a recording's stamps begin anew: of each "
            "stamp one frame counts."
        )
    return found


def figures(outcomes: Sequence[Outcome], names: Mapping[int, str]) -> Figures:
    """The figures of one bag, or of several together: counts are summed, mAP is taken over all frames of all of them.

    Without a box of the truth there is no mAP.
    """
    dt_ms = [value for one in outcomes for value in one.dt_ms]
    latency_ms = [value for one in outcomes for value in one.latency_ms]
    summary: dict[str, Any] = {}
    result: Score | None = None
    every = [frame for one in outcomes for frame in one.scored or ()]
    if any(len(frame.truth) for frame in every if frame.paired):
        paired = [frame for frame in every if frame.paired]
        result = _score(paired, names)
        whole = result if len(paired) == len(every) else _score(every, names)
        summary.update(result.to_dict())
        summary["frames_scored"] = len(paired)
        summary["all_frames"] = {"mAP50": whole.mAP50, "mAP50_95": whole.mAP50_95, "frames": len(every)}
    if unknown := sorted({name for one in outcomes for name in one.unknown}):
        summary["classes_not_scored"] = unknown
    summary["frames"] = _summed([one.frames for one in outcomes])
    summary["frames_without_detections"] = sum(one.unanswered for one in outcomes)
    summary["ledger"] = {s: _summed([one.ledger[s] for one in outcomes]) for s in outcomes[0].ledger}
    summary["pairs"] = sum(one.pairs for one in outcomes)
    summary["dt_ms"] = {"mean": float(np.mean(dt_ms)) if dt_ms else None, **_percentiles(dt_ms, (50, 95))}
    summary["dt_ms"]["max"] = max(dt_ms) if dt_ms else None
    summary["latency_ms"] = _percentiles(latency_ms, (50, 95, 99))
    return Figures(summary, result, dt_ms, latency_ms)


def _score(frames: Sequence[ScoredFrame], names: Mapping[int, str]) -> Score:
    return score([f.truth for f in frames], [f.found for f in frames], names, [f.size for f in frames])


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(one[name] for one in counts) for name in counts[0]}


def _percentiles(values: Sequence[float], which: Iterable[int]) -> dict[str, float | None]:
    return {f"p{p}": float(np.percentile(values, p)) if values else None for p in which}


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Up to `count` items, evenly spread over the whole, ends left out."""
    if len(items) <= count:
        return list(items)
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]
