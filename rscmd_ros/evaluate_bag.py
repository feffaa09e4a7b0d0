"""Score a model on a recorded bag: average precision, what became of every frame, |dt| of the pairs, latency.

    python -m rscmd_ros.evaluate_bag BAG --model model.safetensors --json summary.json --report report.html
    python -m rscmd_ros.evaluate_bag BAG --model model.safetensors --live --json summary.json --report report.html
    python -m rscmd_ros.evaluate_bag BAG BAG... --model model.safetensors --ray local --json summary.json

By default the bag is read directly: the pairing and the predictor of the node, on the recording's own clock, the same
result every time. Latency is then what pairing costs, from the recording of a pair's later frame until the pair is
decided; inference takes no time on that clock. With --live the bag is played to a running detector node over DDS, and
latency is measured: from sending a pair's later frame to the arrival of its detections.

Several bags are put together to one result, mAP over all their frames, with a row for each bag. A bag that fails is
named and the others are kept; finished bags are not evaluated again by a later call.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import write_json
from rscmd_model.registration import load_registration
from rscmd_ros.bag_answers import BATCH
from rscmd_ros.bag_job import LOWEST_SCORE, Job, run, sample, truths_of
from rscmd_ros.bag_pairs import BagPair, PairingOptions, load_pictures
from rscmd_ros.bag_score import WHICH_FRAMES_COUNT, Figures, figures, outcome, spread
from rscmd_ros.bags import THERMAL_TOPIC, TRUTH_TOPIC, VISIBLE_TOPIC, open_bag
from rscmd_ros.pairing import POLICIES
from rscmd_ros.report import ReportData, Sample, write_report

if TYPE_CHECKING:
    from rscmd_model.model_file import ModelHeader

SAMPLES = 8  # pairs shown in the report
OF_THE_MODEL = "of the model"
LATENCY_MEANING = {
    "offline": ("Pairing delay", "From recording the later frame until the pair was decided; inference not counted."),
    "live": ("Latency", "From sending the later frame of the pair to the arrival of its detections."),
}


def _parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_ros.evaluate_bag",
        description=summary,
        epilog=f"{details}\n{WHICH_FRAMES_COUNT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bags", type=Path, nargs="+", metavar="BAG", help="rosbag2 folder, or a .mcap or .db3 file")
    parser.add_argument(
        "--model", type=Path, required=True, help="model.safetensors; with --live the one the node runs"
    )
    parser.add_argument(
        "--registration", type=Path, help="registration.yaml in place of the model's own; a node has its parameter"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--report", type=Path, help="write a self-contained HTML report here")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default %(default)s)")
    parser.add_argument("--conf", type=float, default=0.25, help="boxes drawn in the report (default %(default)s)")
    parser.add_argument("--visible-topic", default=VISIBLE_TOPIC, metavar="T", help="in the bag (default %(default)s)")
    parser.add_argument("--thermal-topic", default=THERMAL_TOPIC, metavar="T", help="in the bag (default %(default)s)")
    truth = parser.add_mutually_exclusive_group()
    truth.add_argument(
        "--truth-topic", metavar="T", help=f"Detection2DArray in the bag (default {TRUTH_TOPIC}, if there)"
    )
    truth.add_argument(
        "--truth", type=Path, metavar="FILE", help="COCO json whose images carry a 'stamp' in ns instead"
    )
    pairing = parser.add_argument_group("pairing", "as the node's parameters; with --live the node's own are asked for")
    for field in dataclasses.fields(PairingOptions):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        if isinstance(default, bool):
            pairing.add_argument(flag, action="store_true", default=default)
        elif isinstance(default, str):
            pairing.add_argument(flag, choices=POLICIES, default=default)
        else:
            unit = "MS" if field.name.endswith("_ms") else "N"
            pairing.add_argument(flag, type=type(default), default=default, metavar=unit, help="(default %(default)s)")
    speed = parser.add_argument_group("speed and many bags")
    speed.add_argument(
        "--batch", type=int, default=BATCH, metavar="N", help="pairs through the network together (default %(default)s)"
    )
    speed.add_argument(
        "--ray", metavar="ADDRESS", help="bags side by side through Ray: local, or HOST:PORT of a cluster"
    )
    speed.add_argument("--workers", type=int, metavar="N", help="with --ray: bags at once (default: one per processor)")
    speed.add_argument(
        "--threads", type=int, metavar="N", help="of torch for each bag (default: the processors, shared out)"
    )
    speed.add_argument(
        "--results",
        type=Path,
        default=Path("runs/bags"),
        metavar="DIR",
        help="several bags: finished ones are kept here and used again (default %(default)s)",
    )
    live = parser.add_argument_group("live", "names are remapped as for any node, after --ros-args")
    live.add_argument("--live", action="store_true", help="play to a running node instead of reading the bag directly")
    live.add_argument("--rate", type=float, default=1.0, help="speed of play (default %(default)s, as recorded)")
    live.add_argument("--wait", type=float, default=20.0, metavar="S", help="for the node to be there (default 20)")
    return parser


def _checked(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--ros-args") if "--ros-args" in words else len(words)
    args = _parser().parse_args(words[:at])
    if words[at:] and not args.live:
        raise UserError("--ros-args only makes sense with --live")
    if args.registration and args.live:
        raise UserError(f"with --live the node registers: start it with -p registration:={args.registration}")
    if args.live and (len(args.bags) > 1 or args.ray):
        raise UserError("--live plays one bag to one node: give a single bag, without --ray")
    if args.workers is not None and not args.ray:
        raise UserError("--workers only makes sense with --ray (--ray local for this machine)")
    for option in ("batch", "workers", "threads"):
        if getattr(args, option) is not None and not 1 <= getattr(args, option) <= 1024:
            raise UserError(f"--{option} must be within 1..1024, got {getattr(args, option)}")
    if not 0 <= args.conf <= 1:
        raise UserError(f"--conf must be within 0..1, got {args.conf}")
    if not 0.01 <= args.rate <= 100:
        raise UserError(f"--rate must be within 0.01..100, got {args.rate}")
    return args, words[at:]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    args, ros_args = _checked(argv)
    options = PairingOptions(**{field.name: getattr(args, field.name) for field in dataclasses.fields(PairingOptions)})
    many = len(args.bags) > 1 or args.ray is not None
    jobs = [
        Job(
            bag=bag,
            model=args.model,
            visible_topic=args.visible_topic,
            thermal_topic=args.thermal_topic,
            options=options,
            truth=args.truth,
            truth_topic=args.truth_topic,
            registration=args.registration,
            device=args.device,
            batch=args.batch,
            samples=1 if many else SAMPLES if args.report else 0,
        )
        for bag in args.bags
    ]
    if many:
        _many(args, jobs)
    elif args.live:
        _live(args, jobs[0], ros_args)
    else:
        _direct(args, jobs[0])


def _direct(args: argparse.Namespace, job: Job) -> None:
    found = run(job, threads=args.threads, said=lambda line: print(line, flush=True))
    header = _header(args.model)
    pairs = found.outcome.pairs
    if pairs:
        spent = 1e3 / pairs
        told = f"inference {spent * found.seconds['inference']:.1f} ms per pair"
        print(f"{told}, waiting for pictures {spent * found.seconds['reading']:.1f} ms")
    result = figures([found.outcome], header.names)
    config = _config(args, str(job.bag), "offline", job.options, found.truth, args.registration, header)
    summary = {**result.summary, "messages": found.messages, "config": config}
    notes = [*found.notes, *_notes(summary)]
    _finish(args, header, result, summary, notes, f"{args.model.name} on {job.bag.name}", found.samples)


def _live(args: argparse.Namespace, job: Job, ros_args: list[str]) -> None:
    with open_bag(job.bag) as bag:
        truths, source = truths_of(bag, job)
        header = _header(args.model)
        from rscmd_ros.replay import replay

        played = replay(
            bag,
            job.topics,
            job.options,
            header.names,
            contract=header.thermal,
            rate=args.rate,
            wait=args.wait,
            ros_args=ros_args,
        )
        answers, extra = played.answers, dict(played.extra)
        found = outcome(played.pairing, answers, truths, header.names, ledger=played.ledger, pairs=played.pairs)
        result = figures([found], header.names)
        config = _config(args, str(job.bag), "live", played.options, source, extra.pop("registration"), header)
        config["lowest_score"] = extra.pop("confidence_threshold")
        summary = {**result.summary, "messages": bag.counts(), **extra, "config": config}
        notes = [*bag.notes(), *played.notes, *_notes(summary)]
        samples: list[Sample] = []
        if args.report:
            used, registration = config["registration"], header.registration
            if used not in (None, OF_THE_MODEL):
                if Path(used).is_file():
                    registration = load_registration(used)
                else:
                    notes.append(
                        f"The node's registration {used} is not to be found from here: pictures are drawn without it."
                    )
            best: dict[int, BagPair] = {}
            for pair in played.pairing.pairs:
                if pair.visible in answers and (pair.visible not in best or abs(pair.dt) < abs(best[pair.visible].dt)):
                    best[pair.visible] = pair
            chosen = spread([best[stamp] for stamp in sorted(best)], SAMPLES)
            for pictures in load_pictures(bag, job.topics, chosen, header.thermal):
                samples.append(sample(pictures, answers, truths, header.names, header.thermal, registration))
    _finish(args, header, result, summary, notes, f"{args.model.name} on {job.bag.name}, live", samples)


def _many(args: argparse.Namespace, jobs: list[Job]) -> None:
    header = _header(args.model)
    if args.registration:
        load_registration(args.registration)  # what is wrong for all is said once, before the first bag
    from rscmd_ros.many_bags import evaluate_bags

    found = evaluate_bags(
        jobs,
        header.names,
        args.results,
        ray=args.ray,
        workers=args.workers,
        threads=args.threads,
        said=lambda line: print(line, flush=True),
    )
    truths = {result.truth for result in found.results.values()} - {None}
    config = _config(
        args,
        [str(job.bag) for job in jobs],
        "offline",
        jobs[0].options,
        truths.pop() if truths else None,
        args.registration,
        header,
    )
    summary = {**found.merged.summary, "bags": found.rows, "config": config}
    notes = [f"{bag} failed and is left out: {reason}" for bag, reason in found.failed.items()]
    notes += [f"{bag}: {note}" for bag, result in found.results.items() for note in result.notes]
    bare = sum(result.outcome.scored is None for result in found.results.values())
    if 0 < bare < len(found.results):
        notes.append(f"{bare} of {len(found.results)} bags hold no truth; they do not count in mAP.")
    samples = [
        dataclasses.replace(shown, title=f"{bag.name}: {shown.title}")
        for bag, result in found.results.items()
        for shown in result.samples
    ]
    title = f"{args.model.name} on {len(found.results)} bags"
    _finish(args, header, found.merged, summary, notes + _notes(summary), title, spread(samples, SAMPLES))
    if found.failed:
        named = ", ".join(map(str, found.failed))
        raise UserError(f"{len(found.failed)} of {len(jobs)} bags failed: {named}; call again to retry only these")


def _header(model: Path) -> ModelHeader:
    from rscmd_model.header import read_header

    if model.suffix == ".safetensors":
        return read_header(model)
    from rscmd_model.inference import Predictor  # an exported file: its runtime has to open it

    return Predictor(model).header


def _config(
    args: argparse.Namespace,
    bag: str | list[str],
    mode: str,
    options: PairingOptions,
    truth: str | None,
    registration: Path | str | None,
    header: ModelHeader,
) -> dict[str, Any]:
    """What the figures rest on, for JSON and report."""
    return {
        "bag": bag,
        "model": str(args.model),
        "mode": mode,
        "visible_topic": args.visible_topic,
        "thermal_topic": args.thermal_topic,
        "truth": truth,
        **dataclasses.asdict(options),
        "registration": _registration_in_use(registration, header),
        "lowest_score": LOWEST_SCORE,
        "device": "of the node" if mode == "live" else args.device,
        **({} if mode == "live" else {"batch": args.batch}),
    }


def _registration_in_use(given: Path | str | None, header: ModelHeader) -> str | None:
    """The file, or that it is the model's own, or None where the images are taken as aligned."""
    if given:
        return str(given)
    return OF_THE_MODEL if header.registration else None


def _notes(summary: dict[str, Any]) -> list[str]:
    notes = []
    if "mAP50" not in summary:
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


def _finish(
    args: argparse.Namespace,
    header: ModelHeader,
    result: Figures,
    summary: dict[str, Any],
    notes: list[str],
    title: str,
    samples: Sequence[Sample],
) -> None:
    """Write report and JSON, and print."""
    model = {
        "file": args.model.name,
        "architecture": header.config.to_dict(),
        "classes": ", ".join(header.names.values()),
        "image size": header.image_size,
        "thermal contract": header.thermal.to_dict(),
        "training data": header.data,
        "own validation": header.metrics,
        "written by": f"rscmd {header.code_version}",
    }
    meaning = LATENCY_MEANING[summary["config"]["mode"]]
    if args.report:
        data = ReportData(
            title=title,
            summary=summary,
            names=header.names,
            dt_ms=result.dt_ms,
            latency_ms=result.latency_ms,
            latency_title=meaning[0],
            latency_meaning=meaning[1],
            model=model,
            curve=None if result.score is None else tuple(axis.tolist() for axis in result.score.curve),
            samples=samples,
            notes=notes,
        )
        write_report(args.report, data, drawn_from=args.conf)
    if args.json:
        write_json(args.json, {**summary, "notes": notes})
    _print(summary, notes)
    if args.report:
        print(f"report: {args.report}")


def _print(summary: dict[str, Any], notes: list[str]) -> None:
    if "mAP50" in summary:
        print(f"mAP50 {100 * summary['mAP50']:.1f}, mAP50:95 {100 * summary['mAP50_95']:.1f}")
    frames, latency, dt = summary["frames"], summary["latency_ms"], summary["dt_ms"]
    print(f"frames {frames['visible']} visible, {frames['thermal']} thermal; {summary['pairs']} pairs")
    for stream, counts in summary["ledger"].items():
        print(f"  {stream}: " + ", ".join(f"{name} {count}" for name, count in counts.items() if count))
    if latency["p50"] is not None:
        print(f"|dt| p50 {dt['p50']:.1f} ms, p95 {dt['p95']:.1f} ms, max {dt['max']:.1f} ms")
        delay = "latency" if summary["config"]["mode"] == "live" else "pairing delay"
        print(f"{delay} p50 {latency['p50']:.1f} ms, p95 {latency['p95']:.1f} ms, p99 {latency['p99']:.1f} ms")
    for note in notes:
        print(f"note: {note}")


def cli() -> NoReturn:
    """What the installed command runs: a user's mistake is one line and exit code 2."""
    run_cli(main)


if __name__ == "__main__":
    cli()
