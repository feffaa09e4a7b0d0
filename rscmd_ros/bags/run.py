"""One bag evaluated directly: from a job to its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from rscmd_model.imaging.images import lay_over
from rscmd_model.imaging.registration import Registration, load_registration
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_ros.bags.answers import answer_pairs
from rscmd_ros.bags.job import LOWEST_SCORE, Job
from rscmd_ros.bags.pairs import Pictures
from rscmd_ros.bags.reader import Bag, open_bag
from rscmd_ros.bags.report import Sample
from rscmd_ros.bags.score import Answer, Outcome, outcome, remarks
from rscmd_ros.bags.topics import DETECTIONS, IMAGE, TRUTH_TOPIC
from rscmd_ros.bags.truth import FrameTruths, truth_from_file, truth_from_topic

if TYPE_CHECKING:
    from rscmd_model.inference.predictor import Predictor


@dataclass(frozen=True)
class Result:
    """What a job gave.

    Attributes:
        outcome: for the figures.
        samples: pairs to show.
        truth: the file or topic that the truth came from; None where there is none.
        seconds: of reading and inference, for telling only.
        messages: by topic used, how many were announced and how many read.
        notes: what of the bag was left aside, or is not as announced.
    """

    outcome: Outcome
    samples: Sequence[Sample]
    truth: str | None
    seconds: dict[str, float] = field(default_factory=dict)
    messages: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def run(job: Job, *, threads: int | None = None, progress: Callable[[str], None] | None = None) -> Result:
    """Evaluate the bag in this process.

    Args:
        job: what to evaluate and how.
        threads: of torch; None leaves its setting.
        progress: called every few seconds with a line that tells how far it is.

    Raises:
        UserError: the bag, its truth or the model cannot be used.
    """
    with open_bag(job.bag) as bag:
        truths, source = truths_of(bag, job)
        # Not before the bag is known good: torch and a model take seconds to load.
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        predictor = _predictor(job.model, _changed(job.model), job.device, job.registration, job.answer)
        answers = answer_pairs(
            bag, job.topics, job.options, predictor, batch=job.batch, samples=job.samples, progress=progress
        )
        messages, notes = bag.counts(), bag.notes()
    pairing = answers.pairing
    if answers.unseen:
        low, high = predictor.thermal.scale
        notes.append(
            f"The thermal images of {answers.unseen} of {len(pairing.pairs)} pairs lie wholly outside the scale of the "
            f"model's thermal contract, {low:g} to {high:g}: the model saw nothing on them."
        )
    found = outcome(pairing, answers.by_stamp, truths, predictor.names, ledger=pairing.ledger, pairs=len(pairing.pairs))
    samples = [
        sample(pictures, answers.by_stamp, truths, predictor.names, predictor.thermal, predictor.registration)
        for pictures in answers.samples
    ]
    return Result(found, samples, source, answers.seconds, messages, [*notes, *remarks(pairing, truths)])


def _changed(model: Path) -> int:
    """When the file was changed last, 0 where there is none: the predictor says so."""
    return model.stat().st_mtime_ns if model.exists() else 0


@lru_cache(maxsize=1)
def _predictor(model: Path, changed: int, device: str, registration: Path | None, answer: str | None) -> Predictor:
    """Loaded once for all the bags that this process gets."""
    from rscmd_model.inference.predictor import Predictor

    given = load_registration(registration) if registration else None
    predictor = Predictor(model, device=device, conf=LOWEST_SCORE, registration=given, answer=answer)
    predictor.warm_up()
    return predictor


def truths_of(bag: Bag, job: Job) -> tuple[FrameTruths | None, str | None]:
    """Make sure that a bag has the job's topics, and read its truth.

    Returns:
        The truth, and the file or topic that it comes from; None twice where there is none.

    Raises:
        UserError: a topic is missing or of another type, or the truth cannot be read.
    """
    bag.require(job.visible_topic, IMAGE, "--visible-topic")
    bag.require(job.thermal_topic, IMAGE, "--thermal-topic")
    if job.truth:
        return truth_from_file(job.truth), str(job.truth)
    if job.truth_topic is None and not bag.holds(TRUTH_TOPIC, DETECTIONS):
        return None, None
    topic = job.truth_topic or TRUTH_TOPIC
    return truth_from_topic(bag, topic), topic


def sample(
    pictures: Pictures,
    answers: Mapping[int, Answer],
    truths: FrameTruths | None,
    names: Mapping[int, str],
    contract: ThermalContract,
    registration: Registration | None,
) -> Sample:
    """A pair as the report shows it.

    Args:
        pictures: the pair.
        answers: by header stamp (ns) of the visible frame.
        truths: None where there is no truth.
        names: the model's classes.
        contract: by which thermal counts become grey.
        registration: by which thermal is laid over visible; None: both show the same view.
    """
    pair, visible, thermal = pictures
    return Sample(
        visible,
        lay_over(contract.apply(thermal), visible.shape[1::-1], registration),
        answers[pair.visible].detections,
        truths.for_classes(pair.visible, names) if truths is not None and pair.visible in truths.by_stamp else None,
        f"{pair.visible // 10**9}.{pair.visible % 10**9:09d} s, dt {pair.dt / 1e6:+.1f} ms",
    )
