"""What a replay gave: the node's answers and counters against what was sent, with notes on what was lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rscmd_ros.bags.pairs import BagPair, Pairing
from rscmd_ros.bags.score import Answer
from rscmd_ros.cameras.conversions import msg_to_detections, stamp_ns
from rscmd_ros.node.pairing_options import PairingOptions
from rscmd_ros.pairing.frames import COUNTERS, STREAMS


@dataclass(frozen=True)
class LiveRun:
    """What came of a replay.

    Attributes:
        pairing: of the bag, by the node's options.
        answers: by header stamp (ns) of the visible frame.
        options: the node's own.
        ledger: the node's own: stream -> counter -> frames, with `pending`, frames that still waited at the end.
        pairs: how many the node made.
        extra: what goes into the summary beside it.
        notes: sentences that the figures need to be read rightly.
    """

    pairing: Pairing
    answers: dict[int, Answer]
    options: PairingOptions
    ledger: dict[str, dict[str, int]]
    pairs: int
    extra: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Course:
    """What the node counted during the replay.

    Attributes:
        grown: by how much each counter grew.
        sent: images sent, by stream.
        received: images that the node received, by stream.
        ledger: stream -> counter -> frames.
        pending: frames that wait in the node at the end, by stream.
        earlier: frames that waited in it before the replay, by stream.
    """

    grown: dict[str, int]
    sent: dict[str, int]
    received: dict[str, int]
    ledger: dict[str, dict[str, int]]
    pending: dict[str, int]
    earlier: dict[str, int]

    @classmethod
    def between(cls, before: Mapping[str, int], after: Mapping[str, int], sent: dict[str, int]) -> _Course:
        """From the node's counters before and after."""
        grown = {key: after[key] - before.get(key, 0) for key in after}
        return cls(
            grown,
            sent,
            {stream: grown.get(f"{stream}.received", 0) for stream in STREAMS},
            {stream: {name: grown.get(f"{stream}.{name}", 0) for name in COUNTERS} for stream in STREAMS},
            {stream: after.get(f"{stream}.pending", 0) for stream in STREAMS},
            {stream: before.get(f"{stream}.pending", 0) for stream in STREAMS},
        )

    @property
    def lost(self) -> dict[str, int]:
        """Images that never reached the node, by stream; below 0 where it received others."""
        return {stream: self.sent[stream] - self.received[stream] for stream in STREAMS}

    @property
    def whole_ledger(self) -> dict[str, dict[str, int]]:
        """The ledger with `pending`."""
        return {stream: {**counts, "pending": self.pending[stream]} for stream, counts in self.ledger.items()}

    def notes_on_frames(self) -> list[str]:
        """What became of images on their way to the node, and counters that do not add up."""
        notes = []
        for stream, lost in self.lost.items():
            received, earlier = self.received[stream], self.earlier[stream]
            if lost > 0:
                notes.append(
                    f"Lost on the way to the node: {lost} of {self.sent[stream]} {stream} images. Large images need "
                    "the transport profile config/fastdds.xml on the sending side, which is the camera driver's in use."
                )
            if lost < 0:
                notes.append(f"The node received {stream} images that were not of this bag: {-lost}.")
            if earlier:
                notes.append(f"Counted too: {stream} frames that waited in the node before the replay, {earlier}.")
            if sum(self.ledger[stream].values()) + self.pending[stream] != received + earlier:
                notes.append(f"The node's {stream} counters do not add up to the {received} frames it received.")
        return notes

    def notes_on_answers(self, arrived: int, strangers: int) -> list[str]:
        """What became of the pairs, by how many answers arrived and how many of them are not of this bag."""
        notes = []
        pairs, inferred = self.grown.get("pairs", 0), self.grown.get("pairs_inferred", 0)
        if replaced := self.grown.get("pairs_replaced", 0):
            notes.append(f"Inference did not keep up: {replaced} of {pairs} pairs gave way to newer ones.")
        if failed := self.grown.get("pairs_failed", 0):
            notes.append(f"Inference failed on {failed} of {pairs} pairs; the node's log says why.")
        if arrived < inferred:
            notes.append(f"Lost on the way back: {inferred - arrived} answers of the node.")
        if strangers:
            notes.append(f"Left out: {strangers} answers whose stamp is not in this bag.")
        return notes


def account(
    pairing: Pairing,
    options: PairingOptions,
    names: Mapping[int, str],
    sent: Mapping[str, list[float]],
    arrived: list[tuple[float, Any]],
    before: Mapping[str, int],
    after: Mapping[str, int],
    told: Mapping[str, Any],
) -> LiveRun:
    """Put together what was sent, what arrived and what the node counted.

    Args:
        pairing: of the bag, by the node's options.
        options: the node's.
        names: classes of the node's model.
        sent: by stream, when each image was sent, s of the steady clock.
        arrived: when each answer came, s of the steady clock, and the answer.
        before: the node's counters before the replay.
        after: the same after it.
        told: parameters of the node, for the summary.
    """
    course = _Course.between(before, after, {stream: len(times) for stream, times in sent.items()})
    answers, strangers = _answers(pairing, options, names, sent, arrived)
    extra = {
        "sent": course.sent,
        "received": course.received,
        "lost": course.lost,
        "pairs_answered": len(answers),
        "pairs_replaced": course.grown.get("pairs_replaced", 0),
        **told,
    }
    notes = [*course.notes_on_frames(), *course.notes_on_answers(len(arrived), strangers)]
    return LiveRun(pairing, answers, options, course.whole_ledger, course.grown.get("pairs", 0), extra, notes)


def _answers(
    pairing: Pairing,
    options: PairingOptions,
    names: Mapping[int, str],
    sent: Mapping[str, list[float]],
    arrived: list[tuple[float, Any]],
) -> tuple[dict[int, Answer], int]:
    """The answers by header stamp (ns) of the visible frame, and how many have a stamp that is not in the bag."""
    partner: dict[int, BagPair] = {}
    for pair in pairing.pairs:
        if pair.visible not in partner or abs(pair.dt) < abs(partner[pair.visible].dt):
            partner[pair.visible] = pair
    answers: dict[int, Answer] = {}
    strangers = 0
    for moment, message in arrived:
        stamp = stamp_ns(message.header)
        where = pairing.places["visible"].get(stamp)
        if where is None:
            strangers += 1
            continue
        known = partner.get(stamp) or _nearest(pairing, stamp, where, options)
        later, dt = sent["visible"][where], 0
        if known is not None:
            later, dt = max(later, sent["thermal"][known.thermal_index]), known.dt
        answers[stamp] = Answer(msg_to_detections(message, dict(names)), dt, round((moment - later) * 1e9))
    return answers, strangers


def _nearest(pairing: Pairing, stamp: int, where: int, options: PairingOptions) -> BagPair | None:
    """The likely pair of an answered frame that the direct pairing leaves alone; losses on the way make such pairs."""
    offset = options.thermal_offset
    if not pairing.places["thermal"]:
        return None
    thermal = min(pairing.places["thermal"], key=lambda other: abs(other - offset - stamp))
    return BagPair(where, pairing.places["thermal"][thermal], stamp, thermal, thermal - offset - stamp, 0)
