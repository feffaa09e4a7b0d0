"""Score a model on a recorded bag: average precision, what became of every frame, |dt| of the pairs, latency.

    python -m rscmd_ros.evaluate_bag BAG --model model.safetensors --json summary.json --report report.html
    python -m rscmd_ros.evaluate_bag BAG --model model.safetensors --live --json summary.json --report report.html

By default the bag is read directly: the pairing and the predictor of the node, on the recording's own clock, the same
result every time. Latency is then what pairing costs, from the recording of a pair's later frame until the pair is
decided; inference takes no time on that clock. With --live the bag is played to a running detector node over DDS, and
latency is measured: from sending a pair's later frame to the arrival of its detections.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import write_json
from rscmd_model.images import lay_over
from rscmd_model.registration import load_registration
from rscmd_ros.bag_pairs import BagPair, Pairing, PairingOptions, load_pictures, pair_up
from rscmd_ros.bag_score import WHICH_FRAMES_COUNT, Answer, figures, spread
from rscmd_ros.bags import IMAGE, THERMAL_TOPIC, TRUTH_TOPIC, VISIBLE_TOPIC, Bag, open_bag
from rscmd_ros.pairing import POLICIES
from rscmd_ros.truth import FrameTruths, truth_from_file, truth_from_topic

if TYPE_CHECKING:
    from rscmd_model.inference import Predictor
    from rscmd_model.model_file import ModelHeader

LOWEST_SCORE = 0.001  # the curve is measured down to here; --conf is for drawing only
SAMPLES = 8  # pairs shown in the report
OF_THE_MODEL = "of the model"
LATENCY_MEANING = {
    "offline": ("Pairing delay", "From recording the later frame until the pair was decided; inference not counted."),
    "live": ("Latency", "From sending the later frame of the pair to the arrival of its detections."),
}


def evaluate_offline(
    bag: Bag, topics: dict[str, str], pairing: Pairing, predictor: Predictor
) -> tuple[dict[int, Answer], float]:
    """Answer every pair. Returns the answers by visible stamp, and the median time of one inference in ms.

    Where one visible frame is in several pairs (reuse), the pair nearest in time gives its answer.
    """
    answers: dict[int, Answer] = {}
    spent: list[float] = []
    said = time.monotonic()
    for done, (pair, visible, thermal) in enumerate(load_pictures(bag, topics, pairing.pairs, predictor.thermal), 1):
        started = time.perf_counter()
        found = predictor.predict(visible, thermal)
        spent.append((time.perf_counter() - started) * 1e3)
        known = answers.get(pair.visible)
        if known is None or abs(pair.dt) < abs(known.dt):
            answers[pair.visible] = Answer(found, pair.dt, pair.wait)
        if time.monotonic() - said > 2 or done == len(pairing.pairs):
            said = time.monotonic()
            print(f"{done} of {len(pairing.pairs)} pairs", flush=True)
    return answers, sorted(spent)[len(spent) // 2] if spent else math.nan


def _parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_ros.evaluate_bag",
        description=summary,
        epilog=f"{details}\n{WHICH_FRAMES_COUNT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bag", type=Path, help="rosbag2 folder, or a .mcap or .db3 file")
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
    if not 0 <= args.conf <= 1:
        raise UserError(f"--conf must be within 0..1, got {args.conf}")
    if not 0.01 <= args.rate <= 100:
        raise UserError(f"--rate must be within 0.01..100, got {args.rate}")
    return args, words[at:]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    args, ros_args = _checked(argv)
    options = PairingOptions(**{field.name: getattr(args, field.name) for field in dataclasses.fields(PairingOptions)})
    topics = {"visible": args.visible_topic, "thermal": args.thermal_topic}
    mode = "live" if args.live else "offline"
    with open_bag(args.bag) as bag:
        bag.require(args.visible_topic, IMAGE, "--visible-topic")
        bag.require(args.thermal_topic, IMAGE, "--thermal-topic")
        truths = _truths(bag, args)
        from rscmd_model.model_file import read_header  # torch takes seconds to load: not before the bag is known good

        header = read_header(args.model)
        extra: dict[str, Any] = {}
        notes: list[str] = []
        if args.live:
            from rscmd_ros.replay import replay

            run = replay(
                bag,
                topics,
                options,
                header.names,
                contract=header.thermal,
                rate=args.rate,
                wait=args.wait,
                ros_args=ros_args,
            )
            pairing, answers, options = run.pairing, run.answers, run.options
            ledger, pairs, extra, notes = run.ledger, run.pairs, run.extra, list(run.notes)
        else:
            from rscmd_model.inference import Predictor

            pairing = pair_up(bag, topics, options, header.thermal)
            given = load_registration(args.registration) if args.registration else None
            predictor = Predictor(args.model, device=args.device, conf=LOWEST_SCORE, registration=given)
            predictor.warm_up()
            answers, median = evaluate_offline(bag, topics, pairing, predictor)
            ledger, pairs = pairing.ledger, len(pairing.pairs)
            print(f"inference: median {median:.1f} ms per pair on {predictor.device}")
        result = figures(pairing, answers, truths, header.names, ledger=ledger, pairs=pairs)
        config = {
            "bag": str(args.bag),
            "model": str(args.model),
            "mode": mode,
            **{f"{stream}_topic": topic for stream, topic in topics.items()},
            "truth": str(args.truth) if args.truth else args.truth_topic if truths is not None else None,
            **dataclasses.asdict(options),
            "registration": _registration_in_use(extra.pop("registration", args.registration), header),
            "lowest_score": extra.pop("confidence_threshold", None) if args.live else LOWEST_SCORE,
            "device": "of the node" if args.live else args.device,
        }
        summary = {**result.summary, **extra, "config": config}
        notes += _notes(summary, mode)
        if args.report:
            _write_report(args, bag, topics, pairing, answers, truths, header, result, summary, notes, mode)
        if args.json:
            write_json(args.json, summary)
    _print(summary, notes)
    if args.report:
        print(f"report: {args.report}")


def _truths(bag: Bag, args: argparse.Namespace) -> FrameTruths | None:
    if args.truth:
        return truth_from_file(args.truth)
    if args.truth_topic is None:
        if not bag.has(TRUTH_TOPIC):
            return None
        args.truth_topic = TRUTH_TOPIC
    return truth_from_topic(bag, args.truth_topic)


def _registration_in_use(given: Path | str | None, header: ModelHeader) -> str | None:
    """The file, or that it is the model's own, or None where the images are taken as aligned."""
    if given:
        return str(given)
    return OF_THE_MODEL if header.registration else None


def _notes(summary: dict[str, Any], mode: str) -> list[str]:
    notes = []
    if "mAP50" not in summary:
        notes.append("The bag holds no truth, so there is no average precision.")
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
    if mode == "live" and "mAP50" in summary and lowest is not None and lowest > 0.05:
        notes.append(
            f"The node publishes from score {lowest:g}, which cuts the precision-recall curve and lowers mAP; run it "
            "with -p confidence_threshold:=0.001 to compare with the direct evaluation."
        )
    return notes


def _write_report(
    args: argparse.Namespace,
    bag: Bag,
    topics: dict[str, str],
    pairing: Pairing,
    answers: dict[int, Answer],
    truths: FrameTruths | None,
    header: ModelHeader,
    result: Any,
    summary: dict[str, Any],
    notes: list[str],
    mode: str,
) -> None:
    from rscmd_ros.report import ReportData, Sample, write_report

    used = summary["config"]["registration"]
    registration = header.registration
    if used not in (None, OF_THE_MODEL):
        if mode == "live" and not Path(used).is_file():
            notes.append(f"The node's registration {used} is not to be found from here: pictures are drawn without it.")
        else:
            registration = load_registration(used)
    best: dict[int, BagPair] = {}
    for pair in pairing.pairs:
        if pair.visible in answers and (pair.visible not in best or abs(pair.dt) < abs(best[pair.visible].dt)):
            best[pair.visible] = pair
    chosen = spread([best[stamp] for stamp in sorted(best)], SAMPLES)
    samples = []
    for pair, visible, thermal in load_pictures(bag, topics, chosen, header.thermal):
        known = truths is not None and pair.visible in truths.by_stamp
        samples.append(
            Sample(
                visible,
                lay_over(header.thermal.apply(thermal), visible.shape[1::-1], registration),
                answers[pair.visible].detections,
                truths.for_classes(pair.visible, header.names) if known and truths is not None else None,
                f"{pair.visible // 10**9}.{pair.visible % 10**9:09d} s, dt {pair.dt / 1e6:+.1f} ms",
            )
        )
    model = {
        "file": args.model.name,
        "architecture": header.config.to_dict(),
        "classes": ", ".join(header.names.values()),
        "image size": header.image_size,
        "thermal contract": header.thermal.to_dict(),
        "training data": header.data,
        "own validation": header.metrics,
        "written by": f"rscmd {header.code_version}, format {header.format_version}",
    }
    write_report(
        args.report,
        ReportData(
            title=f"{args.model.name} on {args.bag.name}" + (", live" if mode == "live" else ""),
            summary=summary,
            names=header.names,
            dt_ms=result.dt_ms,
            latency_ms=result.latency_ms,
            latency_title=LATENCY_MEANING[mode][0],
            latency_meaning=LATENCY_MEANING[mode][1],
            model=model,
            curve=None if result.score is None else tuple(axis.tolist() for axis in result.score.curve),
            samples=samples,
            notes=notes,
        ),
        drawn_from=args.conf,
    )


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
