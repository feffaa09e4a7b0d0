"""From answers to figures: which frames count, average precision, ledger, |dt| and latency of one evaluated bag."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.scoring import Score, score
from rscmd_ros.bag_pairs import Pairing
from rscmd_ros.truth import FrameTruths

WHICH_FRAMES_COUNT = """\
mAP is taken over the visible frames that belong to a pair (by the pairing options, over the bag's own stamps) and
carry truth. A pair that got no answer, because a message was lost or the node was too slow, counts as nothing found.
Frames in no pair do not count: a visible camera three times as fast as the thermal one has a surplus by design, and the
ledger tells it from losses. `all_frames` gives the stricter figure, over every visible frame with truth, where a frame
without an answer counts as nothing found."""


@dataclass(frozen=True)
class Answer:
    """What was found in one visible frame, |dt| of its pair and how long the answer took; both in ns."""

    detections: Detections
    dt: int
    latency: int


@dataclass(frozen=True)
class Figures:
    """The summary as it goes into the JSON, the score (None without truth), and the values behind the percentiles."""

    summary: dict[str, Any]
    score: Score | None
    dt_ms: list[float]
    latency_ms: list[float]


def figures(
    pairing: Pairing,
    answers: Mapping[int, Answer],
    truths: FrameTruths | None,
    names: Mapping[int, str],
    *,
    ledger: Mapping[str, Mapping[str, int]],
    pairs: int,
) -> Figures:
    """Put the figures of a run together.

    answers: by header stamp (ns) of the visible frame. names: the model's classes. ledger: stream -> counter -> frames.
    pairs: how many pairs were made. Raises UserError when truth is given and fits no frame.
    """
    dt_ms = [abs(answer.dt) / 1e6 for answer in answers.values()]
    latency_ms = [answer.latency / 1e6 for answer in answers.values()]
    summary: dict[str, Any] = {}
    result: Score | None = None
    if truths is not None:
        sizes = pairing.visible_frames
        every = [stamp for stamp in sorted(truths.by_stamp) if stamp in sizes]
        if not every:
            raise UserError(
                f"the truth does not fit the bag: none of its {len(truths.by_stamp)} stamps is that of a visible frame"
            )
        due = {pair.visible for pair in pairing.pairs} | set(answers)
        paired = [stamp for stamp in every if stamp in due]
        if not paired:
            raise UserError(
                "no visible frame with truth found a partner within the slop: nothing to score; see --slop-ms"
            )

        def over(stamps: Sequence[int]) -> Score:
            found = [answers[s].detections if s in answers else Detections.empty() for s in stamps]
            return score([truths.for_classes(s, names) for s in stamps], found, names, [sizes[s] for s in stamps])

        result = over(paired)
        whole = over(every)
        summary.update(result.to_dict())
        summary["frames_scored"] = len(paired)
        summary["all_frames"] = {"mAP50": whole.mAP50, "mAP50_95": whole.mAP50_95, "frames": len(every)}
        unknown = truths.unknown(names)
        if unknown:
            summary["classes_not_scored"] = unknown
    summary["frames"] = dict(pairing.frames)
    summary["frames_without_detections"] = sum(stamp not in answers for stamp in pairing.visible_frames)
    summary["ledger"] = {stream: dict(counts) for stream, counts in ledger.items()}
    summary["pairs"] = pairs
    summary["dt_ms"] = {"mean": float(np.mean(dt_ms)) if dt_ms else None, **_percentiles(dt_ms, (50, 95))}
    summary["dt_ms"]["max"] = max(dt_ms) if dt_ms else None
    summary["latency_ms"] = _percentiles(latency_ms, (50, 95, 99))
    return Figures(summary, result, dt_ms, latency_ms)


def _percentiles(values: Sequence[float], which: Iterable[int]) -> dict[str, float | None]:
    return {f"p{p}": float(np.percentile(values, p)) if values else None for p in which}


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Up to `count` items, evenly spread over the whole, ends left out."""
    if len(items) <= count:
        return list(items)
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]
