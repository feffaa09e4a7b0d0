"""What state the detector node is in: the report on /diagnostics, and the warning that says why nothing comes out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import QoSReliabilityPolicy

from rscmd_model.errors import UserError, origin
from rscmd_ros.node.causes import (
    IMAGE_TYPES,
    Cause,
    branch_problem,
    clock_problem,
    mismatch_problem,
    silence_problem,
    slop_problem,
    state_cause,
    topic_problem,
)
from rscmd_ros.node.detection import PairDetector
from rscmd_ros.node.diagnostics import Tally, Throttle, pairing_status, percentiles, work_numbers
from rscmd_ros.node.parameters import Settings
from rscmd_ros.node.worker import Worker
from rscmd_ros.pairing.fallback import Fallback
from rscmd_ros.pairing.frames import STREAMS, Pairer, Stream

_GRACE_FOR_PUBLISHERS = 5.0
"""Discovery takes its time: so long after watching began a topic without a publisher or an image is no news."""
_TIME_TO_MEASURE = 8.0
_ANSWER_IS_DUE = 3.0
_PERIODS = 3
"""So many frames of each camera may come without an answer, however slow it is."""
_CLOCK_STANDS = 3.0
_QUIET = 2.0
_FAILURE_IS_NEWS = 5.0
_WARN_EVERY = 10.0
_MOST_REASONS = 4


@dataclass(frozen=True)
class Facts:
    """What a report is made of. Detector, pairer, worker and fallback are None where the state has none."""

    node: Node
    """Asked about the graph alone."""
    state: str
    mode: str
    settings: Settings
    now: int
    """In ns of the clock that `fallback` goes by."""
    topics: Mapping[Stream, str]
    subscribed: Mapping[Stream, QoSReliabilityPolicy]
    """The reliability asked of each topic that is subscribed to."""
    tally: Tally
    watched: bool
    detector: PairDetector | None
    pairer: Pairer | None
    worker: Worker | None
    fallback: Fallback | None
    offset_measured: int | None
    """By how much thermal stamps are late, ns; None while unknown."""
    offset_in_use: int
    """Taken off thermal stamps, ns."""


class Condition:
    """Keeps what happened between reports, and makes them."""

    def __init__(self) -> None:
        self._warnings = Throttle(_WARN_EVERY)
        self.restart()

    def restart(self) -> None:
        """Begin anew, at activation."""
        self.mismatched: dict[Stream, str] = {}
        """The QoS policy in which a publisher of a stream offers too little; forgotten with its next image."""
        self._since = self._apart_since = time.monotonic()
        self._watching: int | None = None
        self._refused: dict[tuple[Stream, str], str] = {}
        self._course: deque[tuple[int, ...]] = deque(maxlen=4)
        self._due: tuple[float, dict[str, dict[str, int]]] | None = None
        """Since when an answer is due, in s of the steady clock, and the frames counted by then; None: none is."""
        self._ticked: tuple[int, float, int] | None = None
        """The time last seen on the clock in use, when that was in s of the steady clock, and the frames by then."""

    def refuse(self, stream: Stream, error: UserError, where: str = "") -> None:
        """Note why a message was refused, for the next report; of each kind of reason the last.

        The kind is where in the code the error comes from: the text may differ with every message.

        Args:
            stream: that the message came on.
            error: says why.
            where: goes before that.
        """
        self._refused[stream, origin(error)] = f"{where}{error}"

    def mode_change(self, mode: str, fallback: Fallback, now: int, topic: Callable[[Stream], str]) -> str:
        """A change of mode in words, with what led to it.

        Args:
            mode: the new one.
            fallback: knows the streams.
            now: ns of the clock that `fallback` goes by.
            topic: tells the name of a stream's topic.
        """
        lost = [s for s in STREAMS if s != fallback.survivor and fallback.health(s, now) != "live"]
        why = ", ".join(f"{topic(stream)} {fallback.describe(stream, now)}" for stream in lost)
        pairs = {"fused": "pairs are answered", "ensemble": "pairs are answered, by all answers joined"}
        answers = {"none": "nothing answers", **pairs}.get(mode, f"the {mode} branch answers")
        if (branch := fallback.lacks_branch()) is not None:
            answers = f"nothing answers, for {branch_problem(branch)}"
        return f"mode {mode}: {answers}{': ' if why else ''}{why}"

    def report(self, facts: Facts) -> tuple[DiagnosticStatus, str | None]:
        """The status for /diagnostics, and what is to be warned of now, if anything."""
        if facts.fallback is not None and facts.fallback.since != self._watching:  # after a jump of time too
            self._watching, self._since = facts.fallback.since, time.monotonic()
        causes, remarks = self._causes(facts), self._remarks(facts)
        self._refused = {}
        name = facts.node.get_fully_qualified_name().lstrip("/")
        problems = [cause.text for cause in causes]
        frames = facts.tally.frames(facts.pairer)
        status = pairing_status(name, facts.state, frames, self._numbers(facts), problems, remarks)
        return status, self._warning(facts, causes)

    def _warning(self, facts: Facts, causes: list[Cause]) -> str | None:
        asked = facts.node.count_subscribers(facts.node.resolve_topic_name("detections"))
        if facts.state != "active" and not asked:
            return None  # nobody waits for anything
        if not self._warnings.allows(*(cause.kind for cause in causes)):
            return None
        answered = facts.detector.published_at if facts.detector is not None else None
        quiet = facts.state != "active" or answered is None or time.monotonic() - max(answered, self._since) > _QUIET
        return f"{'no detections: ' if quiet else ''}{'; '.join(cause.text for cause in causes)}"

    def _causes(self, facts: Facts) -> list[Cause]:
        name = facts.node.get_fully_qualified_name()
        causes = []
        around = facts.node.get_node_names_and_namespaces()
        if [f"{space.rstrip('/')}/{own}" for own, space in around].count(name) > 1:
            causes.append(Cause("name", f"another node is called {name} too: give one another name or namespace"))
        if (cause := state_cause(facts.state, name)) is not None:
            return [*causes, cause]
        if not facts.settings.enable:
            causes.append(Cause("disabled", f"parameter 'enable' is false: ros2 param set {name} enable true"))
        causes += self._clock_causes(facts)
        for stream in STREAMS:
            causes += self._stream_causes(facts, stream)
        if facts.fallback is not None and (branch := facts.fallback.lacks_branch()) is not None:
            causes.append(Cause("branch", branch_problem(branch)))
        causes += self._slop_causes(facts)
        failure = facts.detector.failure if facts.detector is not None else None
        if failure is not None and time.monotonic() - failure[0] < _FAILURE_IS_NEWS:
            causes.append(Cause("inference", failure[1]))
        silence = self._silence_causes(facts)  # looked at in any case, for it counts from report to report
        return causes or silence

    def _stream_causes(self, facts: Facts, stream: Stream) -> list[Cause]:
        topic, fallback = facts.topics[stream], facts.fallback
        if stream not in facts.subscribed or fallback is None:
            return []
        publishers = facts.node.get_publishers_info_by_topic(topic)
        fallback.watch[stream].has_publisher = bool(publishers)
        if refused := [Cause(f"refused {kind}", text) for (of, kind), text in self._refused.items() if of == stream]:
            return refused[:_MOST_REASONS]
        early = time.monotonic() - self._since < _GRACE_FOR_PUBLISHERS
        if early and not publishers:
            return []
        asked = "reliable" if facts.subscribed[stream] == QoSReliabilityPolicy.RELIABLE else "best_effort"
        transport = getattr(facts.settings, f"{stream}_transport")
        there = facts.node.get_topic_names_and_types()
        others = [name for name, types in there if IMAGE_TYPES[transport] in types]
        others = [name for name in others if name not in facts.topics.values() and not name.endswith("overlay/image")]
        if problem := topic_problem(topic, publishers, asked, others, transport):
            return [Cause(f"{stream} topic", problem)]  # the list of other topics may change
        health = fallback.health(stream, facts.now)
        if health == "live":
            return []
        if stream in self.mismatched:
            return [Cause(f"qos {stream}", mismatch_problem(topic, self.mismatched[stream]))]
        if health in ("shutter", "refused") or (early and health == "never"):
            return []
        return [Cause(f"{stream} {health}", f"{topic} {fallback.describe(stream, facts.now)}")]

    def _slop_causes(self, facts: Facts) -> list[Cause]:
        frames, fallback = facts.tally.frames(facts.pairer), facts.fallback
        if fallback is None or not frames:
            return []
        self._course.append((frames["visible"]["paired"], *(frames[stream]["too_far"] for stream in STREAMS)))
        paired, *too_far = (last - first for last, first in zip(self._course[-1], self._course[0]))
        both_live = all(fallback.health(stream, facts.now) == "live" for stream in STREAMS)
        if paired or not all(too_far) or not both_live or fallback.survivor is not None:
            self._apart_since = time.monotonic()
            return []
        offset = facts.offset_measured
        explains = offset is not None and abs(offset - facts.offset_in_use) > facts.settings.slop_ms * 1e6
        if not explains and time.monotonic() - self._apart_since < _TIME_TO_MEASURE:
            return []  # the estimate is on its way, and a warning that names it is worth waiting for
        measured = offset / 1e6 if explains and offset is not None else None
        return [Cause("slop", slop_problem(facts.settings.slop_ms, measured, dict(zip(STREAMS, too_far))))]

    def _clock_causes(self, facts: Facts) -> list[Cause]:
        """Time that stands still while images come: no camera is ever taken for lost then."""
        now, frames = time.monotonic(), facts.tally.frames(facts.pairer)
        received = sum(counts["received"] for counts in frames.values())
        if self._ticked is None or self._ticked[0] != facts.now:
            self._ticked = facts.now, now, received
        _, since, before = self._ticked
        if received <= before or now - since < _CLOCK_STANDS:
            return []
        return [Cause("clock", clock_problem(now - since, facts.node.count_publishers("/clock") > 0))]

    def _silence_causes(self, facts: Facts) -> list[Cause]:
        """That both cameras send and nothing is published, whatever keeps it back."""
        now, frames, fallback = time.monotonic(), facts.tally.frames(facts.pairer), facts.fallback
        wanted = facts.settings.enable and (facts.watched or not facts.settings.lazy)
        both_live = fallback is not None and all(fallback.health(stream, facts.now) == "live" for stream in STREAMS)
        answered = facts.detector.published_at if facts.detector is not None else None
        if not wanted or not both_live or not frames:
            self._due = None
            return []
        if self._due is None or (answered is not None and answered > self._due[0]):
            self._due = now, frames
        since, before = self._due
        grown = {
            stream: {name: n - before[stream][name] for name, n in counts.items()} for stream, counts in frames.items()
        }
        waited = now - since
        # Of stamps that lie apart there is more to say, and it takes longer to know.
        apart = all(counts["too_far"] and not counts["paired"] for counts in grown.values())
        due = _TIME_TO_MEASURE + 2 if apart else _ANSWER_IS_DUE
        if waited < due or min(counts["received"] for counts in grown.values()) < _PERIODS:
            return []
        busy = facts.worker.busy_for() if facts.worker is not None else 0.0
        return [Cause("silence", silence_problem(waited, grown, busy if 2 * busy > waited else None))]

    def _remarks(self, facts: Facts) -> list[str]:
        """What is worth saying and no fault."""
        remarks = []
        if facts.fallback is not None and facts.fallback.health("thermal", facts.now) == "shutter":
            remarks.append(f"{facts.topics['thermal']} {facts.fallback.describe('thermal', facts.now)}")
        if facts.state == "active" and facts.settings.lazy and not facts.watched:
            remarks.append("idle, for nobody subscribes (parameter 'lazy')")
        return remarks

    def _numbers(self, facts: Facts) -> dict[str, int | float | str | None]:
        detector, fallback, tally = facts.detector, facts.fallback, facts.tally
        numbers: dict[str, int | float | str | None] = {"mode": facts.mode}
        if detector is not None:
            numbers |= {"answer": detector.predictor.answer, **detector.device()}
        if fallback is not None:
            for stream in STREAMS:
                numbers[f"{stream}.health"] = fallback.health(stream, facts.now)
                numbers[f"{stream}.rate_hz"] = fallback.watch[stream].rate(facts.now)
                numbers[f"{stream}.losses"] = fallback.losses[stream]
            numbers["thermal.shutter_events"] = fallback.shutters
            offset = facts.offset_measured
            numbers["thermal_ahead_ms"] = None if offset is None else offset / 1e6
            numbers["thermal_offset_in_use_ms"] = facts.offset_in_use / 1e6
        numbers |= work_numbers(tally.work(facts.worker))
        numbers["time_resets"] = tally.resets(facts.pairer)
        numbers["dt_mean_ms"], numbers["dt_p95_ms"] = tally.dt.mean(), tally.dt.percentile(95)
        if detector is not None:
            numbers |= percentiles("latency", detector.latency)
            for stage, latencies in detector.stages.items():
                numbers |= percentiles(stage, latencies)
            answered = detector.published_at
            numbers["output_age_s"] = None if answered is None else time.monotonic() - answered
        return numbers
