"""The evaluation of bags, of one directly or live and of many together, with what its figures rest on.

Every way ends in an `Evaluation`, which is written as JSON and as a report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rscmd_model.files import write_json
from rscmd_model.imaging.registration import Registration, load_registration
from rscmd_ros.bags.job import LOWEST_SCORE, Job
from rscmd_ros.bags.pairs import BagPair, load_pictures
from rscmd_ros.bags.reader import open_bag
from rscmd_ros.bags.report import ReportData, Sample, write_report
from rscmd_ros.bags.run import run, sample, truths_of
from rscmd_ros.bags.score import Figures, figures, outcome, remarks, spread

if TYPE_CHECKING:
    from rscmd_model.network.model_file import ModelHeader

SAMPLES = 8
"""Pairs shown in the report."""
OF_THE_MODEL = "of the model"
LATENCY_MEANING = {
    "offline": ("Pairing delay", "From recording the later frame until the pair was decided; inference not counted."),
    "live": ("Latency", "From sending the later frame of the pair to the arrival of its detections."),
}


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave.

    Attributes:
        title: of the report.
        model: the model's file.
        header: of that file.
        figures: the score, and the values behind the percentiles.
        summary: the JSON's content but for the notes.
        notes: sentences that the figures need to be read rightly.
        samples: pairs to show.
        failed: by bag, why it is left out.
    """

    title: str
    model: Path
    header: ModelHeader
    figures: Figures
    summary: Mapping[str, Any]
    notes: Sequence[str]
    samples: Sequence[Sample] = ()
    failed: Mapping[Path, str] = field(default_factory=dict)

    def write(self, *, json: Path | None, report: Path | None, drawn_from: float) -> None:
        """Write what is asked for.

        Args:
            json: file of the figures.
            report: HTML file.
            drawn_from: boxes of a lower score are not drawn in the report, 0 to 1.

        Raises:
            UserError: a file cannot be written.
        """
        if json:
            write_json(json, {**self.summary, "notes": self.notes})
        if report:
            write_report(report, self._report(), drawn_from=drawn_from)

    def lines(self) -> list[str]:
        """The figures and notes as lines of text for a terminal."""
        summary, lines = self.summary, []
        if "mAP50" in summary:
            lines.append(f"mAP50 {100 * summary['mAP50']:.1f}, mAP50:95 {100 * summary['mAP50_95']:.1f}")
        frames, latency, dt = summary["frames"], summary["latency_ms"], summary["dt_ms"]
        lines.append(f"frames {frames['visible']} visible, {frames['thermal']} thermal; {summary['pairs']} pairs")
        for stream, counts in summary["ledger"].items():
            lines.append(f"  {stream}: " + ", ".join(f"{name} {count}" for name, count in counts.items() if count))
        if latency["p50"] is not None:
            lines.append(f"|dt| p50 {dt['p50']:.1f} ms, p95 {dt['p95']:.1f} ms, max {dt['max']:.1f} ms")
            delay = "latency" if summary["config"]["mode"] == "live" else "pairing delay"
            lines.append(
                f"{delay} p50 {latency['p50']:.1f} ms, p95 {latency['p95']:.1f} ms, p99 {latency['p99']:.1f} ms"
            )
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def _report(self) -> ReportData:
        header, score = self.header, self.figures.score
        latency_title, latency_meaning = LATENCY_MEANING[self.summary["config"]["mode"]]
        return ReportData(
            title=self.title,
            summary=self.summary,
            names=header.names,
            dt_ms=self.figures.dt_ms,
            latency_ms=self.figures.latency_ms,
            latency_title=latency_title,
            latency_meaning=latency_meaning,
            model={
                "file": self.model.name,
                "architecture": header.config.to_dict(),
                "classes": ", ".join(header.names.values()),
                "image size": header.image_size,
                "thermal contract": header.thermal.to_dict(),
                "training data": header.data,
                "own validation": header.metrics,
                "written by": f"rscmd {header.code_version}",
            },
            curve=None if score is None else tuple(axis.tolist() for axis in score.curve),
            samples=self.samples,
            notes=self.notes,
        )


def evaluate_directly(job: Job, *, threads: int | None, progress: Callable[[str], None]) -> Evaluation:
    """Evaluate a bag by reading it.

    Args:
        job: what to evaluate and how.
        threads: of torch; None leaves its setting.
        progress: called with lines that tell how far it is.

    Raises:
        UserError: the bag, its truth or the model cannot be used.
    """
    found = run(job, threads=threads, progress=progress)
    header = read_model_header(job.model)
    if pairs := found.outcome.pairs:
        inference, reading = (1e3 / pairs * found.seconds[part] for part in ("inference", "reading"))
        progress(f"inference {inference:.1f} ms per pair, waiting for pictures {reading:.1f} ms")
    result = figures([found.outcome], header.names)
    config = _config(job, str(job.bag), found.truth, header)
    summary = {**result.summary, "messages": found.messages, "config": config}
    notes = [*found.notes, *_notes(summary)]
    title = f"{job.model.name} on {job.bag.name}"
    return Evaluation(title, job.model, header, result, summary, notes, found.samples)


def evaluate_live(
    job: Job, *, rate: float, wait: float, ros_args: Sequence[str], progress: Callable[[str], None]
) -> Evaluation:
    """Evaluate a bag by playing it to a running detector node.

    Args:
        job: what to evaluate; the node has its own pairing options, registration and answer.
        rate: speed of play; 1 is as recorded.
        wait: how long to wait for the node, s.
        ros_args: remappings, after --ros-args.
        progress: called with lines that tell how far it is.

    Raises:
        UserError: the bag or its truth cannot be used, or no node of this model answers.
    """
    from rscmd_ros.bags.replay import replay

    with open_bag(job.bag) as bag:
        truths, source = truths_of(bag, job)
        header = read_model_header(job.model)
        played = replay(
            bag,
            job.topics,
            job.options,
            header.names,
            contract=header.thermal,
            rate=rate,
            wait=wait,
            ros_args=ros_args,
            progress=progress,
        )
        answers, extra = played.answers, dict(played.extra)
        found = outcome(played.pairing, answers, truths, header.names, ledger=played.ledger, pairs=played.pairs)
        result = figures([found], header.names)
        answer = extra.pop("answer")
        of_the_node = dataclasses.replace(
            job,
            options=played.options,
            registration=extra.pop("registration") or None,
            answer=None if answer == "auto" else answer,
        )
        config = {**_config(of_the_node, str(job.bag), source, header), "mode": "live", "device": "of the node"}
        del config["batch"]
        config["lowest_score"] = extra.pop("confidence_threshold")
        summary = {**result.summary, "messages": bag.counts(), **extra, "config": config}
        notes = [*bag.notes(), *remarks(played.pairing, truths), *played.notes, *_notes(summary)]
        samples: list[Sample] = []
        if job.samples:
            registration, remark = _registration_of_the_node(config["registration"], header)
            notes += remark
            best: dict[int, BagPair] = {}
            for pair in played.pairing.pairs:
                if pair.visible in answers and (pair.visible not in best or abs(pair.dt) < abs(best[pair.visible].dt)):
                    best[pair.visible] = pair
            chosen = spread([best[stamp] for stamp in sorted(best)], job.samples)
            for pictures in load_pictures(bag, job.topics, chosen, header.thermal):
                samples.append(sample(pictures, answers, truths, header.names, header.thermal, registration))
    title = f"{job.model.name} on {job.bag.name}, live"
    return Evaluation(title, job.model, header, result, summary, notes, samples)


def evaluate_many(
    jobs: Sequence[Job],
    kept: Path,
    *,
    ray: str | None,
    workers: int | None,
    threads: int | None,
    progress: Callable[[str], None],
) -> Evaluation:
    """Evaluate several bags and put their figures together; a bag that fails is in `failed`.

    Args:
        jobs: one for each bag, with the same model and options.
        kept: folder of finished results, which are used again.
        ray: local, or HOST:PORT of a cluster; None: in this process.
        workers: bags at once, with `ray`.
        threads: of torch for each bag.
        progress: called with a line for each bag that is finished.

    Raises:
        UserError: every bag failed, or something is wrong for all of them.
    """
    from rscmd_ros.bags.many import evaluate_bags

    job = jobs[0]
    header = read_model_header(job.model)
    if job.registration:
        load_registration(job.registration)  # what is wrong for all is said once, before the first bag
    header.pair_answer(job.answer)
    found = evaluate_bags(jobs, header.names, kept, ray=ray, workers=workers, threads=threads, progress=progress)
    results = found.results
    truths = {result.truth for result in results.values()} - {None}
    config = _config(job, [str(each.bag) for each in jobs], truths.pop() if truths else None, header)
    summary = {**found.merged.summary, "bags": found.rows, "config": config}
    notes = [f"{bag} failed and is left out: {reason}" for bag, reason in found.failed.items()]
    notes += [f"{bag}: {note}" for bag, result in results.items() for note in result.notes]
    bare = sum(result.outcome.scored is None for result in results.values())
    if 0 < bare < len(results):
        notes.append(f"{bare} of {len(results)} bags hold no truth; they do not count in mAP.")
    samples = [
        dataclasses.replace(shown, title=f"{bag.name}: {shown.title}")
        for bag, result in results.items()
        for shown in result.samples
    ]
    title = f"{job.model.name} on {len(results)} bags"
    notes += _notes(summary)
    return Evaluation(title, job.model, header, found.merged, summary, notes, spread(samples, SAMPLES), found.failed)


def read_model_header(model: Path) -> ModelHeader:
    """The header of a model.safetensors, or of an exported file.

    Raises:
        UserError: it is no model file, or the runtime of an exported one is not there.
    """
    from rscmd_model.network.header import read_header

    if model.suffix == ".safetensors":
        return read_header(model)
    from rscmd_model.inference.predictor import Predictor  # an exported file: its runtime has to open it

    return Predictor(model).header


def _config(job: Job, bag: str | list[str], truth: str | None, header: ModelHeader) -> dict[str, Any]:
    """What the figures of a direct evaluation rest on, for JSON and report."""
    return {
        "bag": bag,
        "model": str(job.model),
        "mode": "offline",
        "visible_topic": job.visible_topic,
        "thermal_topic": job.thermal_topic,
        "truth": truth,
        **dataclasses.asdict(job.options),
        # A file, or that it is the model's own, or None where the images are taken as aligned.
        "registration": str(job.registration) if job.registration else OF_THE_MODEL if header.registration else None,
        "answer": header.pair_answer(job.answer),
        "lowest_score": LOWEST_SCORE,
        "device": job.device,
        "batch": job.batch,
    }


def _registration_of_the_node(used: str | None, header: ModelHeader) -> tuple[Registration | None, list[str]]:
    """The registration to draw with, from what the node says that it uses, and a note where its file is not here."""
    if used in (None, OF_THE_MODEL):
        return header.registration, []
    if Path(str(used)).is_file():
        return load_registration(str(used)), []
    return header.registration, [
        f"The node's registration {used} is not to be found from here: pictures are drawn without it."
    ]


def _notes(summary: dict[str, Any]) -> list[str]:
    notes = []
    if "mAP50" not in summary and summary["config"]["truth"]:
        notes.append(
            "The truth has no box of the model's classes in a frame that belongs to a pair, so there is no average "
            "precision."
        )
    elif "mAP50" not in summary:
        notes.append("There is no truth, so there is no average precision.")
    if "classes_not_scored" in summary:
        names = ", ".join(summary["classes_not_scored"])
        notes.append(f"The truth has classes that the model does not know; they are left out of the score: {names}.")
    if "all_frames" in summary:
        every = summary["all_frames"]
        note = (
            f"mAP counts the {summary['frames_scored']} visible frames with truth that belong to a pair; one without "
            "an answer counts as nothing found."
        )
        if every["frames"] != summary["frames_scored"]:
            note += (
                f" Over all {every['frames']} visible frames with truth, paired or not, it is "
                f"{100 * every['mAP50']:.1f} (mAP50) and {100 * every['mAP50_95']:.1f} (mAP50:95)."
            )
        notes.append(note)
    lowest = summary["config"]["lowest_score"]
    if summary["config"]["mode"] == "live" and "mAP50" in summary and lowest is not None and lowest > 0.05:
        notes.append(
            f"The node publishes from score {lowest:g}, which cuts the precision-recall curve and lowers mAP; run it "
            "with -p confidence_threshold:=0.001 to compare with the direct evaluation."
        )
    return notes
