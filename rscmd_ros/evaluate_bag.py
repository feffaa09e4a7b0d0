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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rscmd_model.errors import UserError, run_cli
from rscmd_ros.bags.arguments import pairing_arguments, pairing_options, topic_arguments
from rscmd_ros.bags.job import BATCH, Job
from rscmd_ros.bags.topics import TRUTH_TOPIC

if TYPE_CHECKING:
    from rscmd_ros.bags.evaluation import Evaluation

_WHICH_FRAMES_COUNT = """\
mAP is taken over the visible frames that belong to a pair (by the pairing options, over the bag's own stamps) and
carry truth. A pair that got no answer, because a message was lost or the node was too slow, counts as nothing found.
Frames in no pair do not count: a visible camera three times as fast as the thermal one has a surplus by design, and the
ledger tells it from losses. `all_frames` gives the stricter figure, over every visible frame with truth, where a frame
without an answer counts as nothing found."""


def _parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_ros.evaluate_bag",
        description=summary,
        epilog=f"{details}\n{_WHICH_FRAMES_COUNT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bags", type=Path, nargs="+", metavar="BAG", help="rosbag2 folder, or a .mcap or .db3 file")
    parser.add_argument(
        "--model", type=Path, required=True, help="model.safetensors; with --live the one the node runs"
    )
    parser.add_argument(
        "--registration", type=Path, help="registration.yaml in place of the model's own; a node has its parameter"
    )
    parser.add_argument(
        "--answer",
        choices=("fused", "ensemble"),
        help="what answers a pair: fused, or ensemble, all answers of the model joined (default: as the model says); a "
        "node has its parameter",
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--report", type=Path, help="write a self-contained HTML report here")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default %(default)s)")
    parser.add_argument("--conf", type=float, default=0.25, help="boxes drawn in the report (default %(default)s)")
    topic_arguments(parser)
    truth = parser.add_mutually_exclusive_group()
    truth.add_argument(
        "--truth-topic", metavar="T", help=f"Detection2DArray in the bag (default {TRUTH_TOPIC}, if there)"
    )
    truth.add_argument(
        "--truth", type=Path, metavar="FILE", help="COCO json whose images carry a 'stamp' in ns instead"
    )
    pairing_arguments(parser, "as the node's parameters; with --live the node's own are asked for")
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
    if args.answer and args.live:
        raise UserError(f"with --live the node answers: start it with -p answer:={args.answer}")
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
    found = _evaluate(args, ros_args)
    for line in found.lines():
        print(line)
    found.write(json=args.json, report=args.report, drawn_from=args.conf)
    if args.report:
        print(f"report: {args.report}")
    if found.failed:
        named = ", ".join(map(str, found.failed))
        raise UserError(f"{len(found.failed)} of {len(args.bags)} bags failed: {named}; call again to retry only these")


def _evaluate(args: argparse.Namespace, ros_args: list[str]) -> Evaluation:
    from rscmd_ros.bags.evaluation import SAMPLES, evaluate_directly, evaluate_live, evaluate_many

    options = pairing_options(args)
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
            answer=args.answer,
            device=args.device,
            batch=args.batch,
            samples=1 if many else SAMPLES if args.report else 0,
        )
        for bag in args.bags
    ]
    if args.live:
        return evaluate_live(jobs[0], rate=args.rate, wait=args.wait, ros_args=ros_args, progress=_progress)
    if many:
        return evaluate_many(
            jobs, args.results, ray=args.ray, workers=args.workers, threads=args.threads, progress=_progress
        )
    return evaluate_directly(jobs[0], threads=args.threads, progress=_progress)


def _progress(line: str) -> None:
    print(line, flush=True)


def cli() -> NoReturn:
    """What the installed command runs: a user's mistake is one line and exit code 2."""
    run_cli(main)


if __name__ == "__main__":
    cli()
