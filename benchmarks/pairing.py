"""Policy `nearest` against message_filters' ApproximateTimeSynchronizer, on the same recorded arrivals, in one run.

    python benchmarks/pairing.py
    python benchmarks/pairing.py --rates 30/9 60/30 --json pairing.json

Every case is a list of (arrival, stream, stamp), made once from the seed and given to both. Cameras run freely: their
phases are random and their rates off by up to 0.1 %, so that the phase wanders. Images come 20 ms after their stamp,
and those of one camera in order. The cases:

  equal          nothing more
  visible +40    visible images come 40 ms later, thermal +40 likewise
  jitter         each stamp up to a tenth of its period early or late, each arrival up to 20 ms later
  bursts         every two seconds or so a camera's images are held back for 150 ms and come all at once
  loops          stamps jump back to the first every five seconds, as with `ros2 bag play --loop`

Both have the slop and the queue of the node's defaults; ours its deadline too, looked at every 10 ms as in the node.
"Best" is the offline nearest neighbour: nearest pairs first over all frames of a pass, each frame once, within the
slop. The ratio is mean |dt| over that of "best". "Wait" is the time from the arrival of a pair's later image to its
emission; message_filters has none. "Age" runs from the earlier stamp of the pair to its emission. "Back" counts pairs
that are older, in either stream, than the pair before them in the same pass.
"""

from __future__ import annotations

import argparse
import random
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import message_filters
from builtin_interfaces.msg import Time

from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import write_json
from rscmd_ros.node.parameters import Settings
from rscmd_ros.pairing.frames import STREAMS, Stream
from rscmd_ros.pairing.nearest import NearestPairer

MS = 1_000_000
SECOND = 1000 * MS
POLL = 10 * MS
LATENCY = 20 * MS
PASS = 5 * SECOND
CASES = ("equal", "visible +40", "thermal +40", "jitter", "bursts", "loops")
RATES = ("30/30", "60/30", "30/25", "30/9", "9/30", "120/30", "120/5", "5/120", "120/120")
UNDERLAY = Path(__file__).resolve().parent.parent / "underlay" / "message_filters" / "__init__.py"


@dataclass(frozen=True)
class Frame:
    """One image of a recording: which pass over the bag it belongs to (0 except in loops), its times in ns."""

    arrival: int
    stream: Stream
    stamp: int
    loop: int


@dataclass(frozen=True)
class Made:
    """A pair and when it was emitted."""

    visible: Frame
    thermal: Frame
    at: int

    @property
    def dt(self) -> int:
        return abs(self.thermal.stamp - self.visible.stamp)


def record(rates: tuple[float, float], case: str, seconds: float, seed: int) -> list[Frame]:
    """The arrivals of a case, in order."""
    frames: list[Frame] = []
    passes = max(1, round(seconds * SECOND / PASS)) if case == "loops" else 1
    length = PASS if case == "loops" else round(seconds * SECOND)
    for stream, nominal in zip(STREAMS, rates):
        rng = random.Random(f"{stream} {rates} {case} {seed}")
        period = SECOND / nominal / (1 + rng.uniform(-1e-3, 1e-3))
        phase = rng.uniform(0, period)
        jitter = period / 10 if case == "jitter" else 0.0
        stamps = [
            SECOND + round(phase + n * period + rng.uniform(-jitter, jitter)) for n in range(int(length / period))
        ]
        held = rng.uniform(0, 4 * SECOND)  # when the next burst begins
        last = 0
        for loop in range(passes):
            for stamp in stamps:
                arrival = stamp + loop * length + LATENCY
                arrival += 40 * MS if case == f"{stream} +40" else 0
                arrival += round(rng.uniform(0, 20) * MS) if case == "jitter" else 0
                if case == "bursts":
                    while arrival > held + 150 * MS:
                        held += rng.uniform(0, 4 * SECOND)
                    arrival = round(max(arrival, held + 150 * MS)) if arrival >= held else arrival
                last = max(last + 1, arrival)
                frames.append(Frame(last, stream, stamp, loop))
    return sorted(frames, key=lambda frame: frame.arrival)


def best(frames: Iterable[Frame], slop: int) -> list[int]:
    """|dt| of the offline nearest neighbour, in ns: nearest pairs first, each frame once."""
    found: list[int] = []
    passes: dict[int, dict[Stream, list[int]]] = {}
    for frame in frames:
        passes.setdefault(frame.loop, {"visible": [], "thermal": []})[frame.stream].append(frame.stamp)
    for streams in passes.values():
        visible, thermal = sorted(streams["visible"]), sorted(streams["thermal"])
        possible = [
            (abs(v - t), v, t)
            for v in visible
            for t in thermal[bisect_left(thermal, v - slop) : bisect_right(thermal, v + slop)]
        ]
        used_v: set[int] = set()
        used_t: set[int] = set()
        for dt, v, t in sorted(possible):
            if v not in used_v and t not in used_t:
                used_v.add(v)
                used_t.add(t)
                found.append(dt)
    return found


def run_ours(frames: list[Frame], settings: Settings) -> list[Made]:
    """Policy nearest, with the node's defaults."""
    pairer = NearestPairer(
        round(settings.slop_ms * MS), deadline=round(settings.deadline_ms * MS), capacity=settings.queue_size
    )
    made: list[Made] = []
    due = POLL
    for frame in frames:
        while due < frame.arrival:
            made += [Made(pair.visible.payload, pair.thermal.payload, due) for pair in pairer.poll(due)]  # type: ignore[arg-type]
            due += POLL
        pairs = pairer.add(frame.stream, frame.stamp, frame, frame.arrival)
        made += [Made(pair.visible.payload, pair.thermal.payload, frame.arrival) for pair in pairs]  # type: ignore[arg-type]
    for stream, counts in pairer.ledger.as_dict().items():
        if counts["received"] != sum(n for name, n in counts.items() if name != "received"):
            raise UserError(f"the ledger of {stream} does not add up: {counts}")
    return made


class Message:
    """What message_filters asks of a message: header.stamp. It has the frame along."""

    def __init__(self, frame: Frame) -> None:
        self.stamp = Time(sec=frame.stamp // SECOND, nanosec=frame.stamp % SECOND)
        self.header = self
        self.frame = frame


def run_theirs(frames: list[Frame], settings: Settings) -> list[Made]:
    """ApproximateTimeSynchronizer, as any node uses it."""
    made: list[Made] = []
    now = 0
    inputs = {stream: message_filters.SimpleFilter() for stream in STREAMS}
    synchronizer = message_filters.ApproximateTimeSynchronizer(
        list(inputs.values()), settings.queue_size, settings.slop_ms / 1000
    )
    synchronizer.registerCallback(lambda visible, thermal: made.append(Made(visible.frame, thermal.frame, now)))
    for frame in frames:
        now = frame.arrival
        inputs[frame.stream].signalMessage(Message(frame))
    return made


def percentile(values: list[float], percent: float) -> float | None:
    """By the nearest rank; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else None


def figures(made: list[Made]) -> dict[str, Any]:
    """Pairs, and their means and percentiles in ms. `across_passes`: pairs of frames of different passes of a loop."""
    dts = [pair.dt / MS for pair in made]
    waits = [(pair.at - max(pair.visible.arrival, pair.thermal.arrival)) / MS for pair in made]
    ages = [
        (pair.at - min(frame.stamp + frame.loop * PASS for frame in (pair.visible, pair.thermal))) / MS for pair in made
    ]
    return {
        "pairs": len(made),
        "dt_mean": sum(dts) / len(dts) if dts else None,
        "dt_p95": percentile(dts, 95),
        "wait_p95": percentile(waits, 95),
        "wait_max": max(waits, default=None),
        "age_p50": percentile(ages, 50),
        "age_p95": percentile(ages, 95),
        "across_passes": sum(pair.visible.loop != pair.thermal.loop for pair in made),
    }


def backward(made: list[Made]) -> int:
    """Of one run: pairs that are older in a stream than the pair before them, of the same pass."""
    same_pass = [(a, b) for a, b in pairwise(made) if a.visible.loop == b.visible.loop]
    return sum(b.visible.stamp < a.visible.stamp or b.thermal.stamp < a.thermal.stamp for a, b in same_pass)


def measure(rates: tuple[float, float], case: str, args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Both on the same recordings of one case; the runs of all seeds are taken together."""
    every: dict[str, list[Made]] = {"ours": [], "message_filters": []}
    bests: list[int] = []
    seconds = dict.fromkeys(every, 0.0)
    back = dict.fromkeys(every, 0)
    frames_in_all = 0
    runs: dict[str, Callable[[list[Frame], Settings], list[Made]]] = {"ours": run_ours, "message_filters": run_theirs}
    for n in range(args.recordings):
        frames = record(rates, case, args.seconds, args.seed + n)
        frames_in_all += len(frames)
        bests += best(frames, round(settings.slop_ms * MS))
        for name, run in runs.items():
            started = time.process_time()
            made = run(frames, settings)
            seconds[name] += time.process_time() - started
            back[name] += backward(made)
            every[name] += made
    mean = sum(bests) / len(bests) / MS if bests else None
    result: dict[str, Any] = {"rates": rates, "case": case, "best": {"pairs": len(bests), "dt_mean": mean}}
    for name, made in every.items():
        result[name] = {**figures(made), "back": back[name], "us_per_frame": 1e6 * seconds[name] / frames_in_all}
        result[name]["ratio"] = result[name]["dt_mean"] / mean if made and mean else None
    result["period_of_slower_ms"] = 1000 / min(rates) * 1.002  # as slow as it may run
    return result


def shown(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def row(result: dict[str, Any]) -> str:
    """A line of the table."""
    ours, theirs, most = result["ours"], result["message_filters"], result["best"]
    cells = ["{:g}/{:g}".format(*result["rates"]), result["case"], shown(most["dt_mean"], 2), str(most["pairs"])]
    for one in (ours, theirs):
        cells += [shown(one["dt_mean"], 2), shown(one["ratio"], 2), shown(one["dt_p95"])]
        cells += [str(one["pairs"]), f"{shown(one['age_p50'], 0)} / {shown(one['age_p95'], 0)}"]
        cells += [shown(one["wait_max"], 0)] if one is ours else [str(one["back"])]
    return f"| {' | '.join(cells)} |"


def two_rates(text: str) -> tuple[float, float]:
    """`30/9` as (30.0, 9.0)."""
    try:
        visible, thermal = (float(part) for part in text.split("/"))
    except ValueError:
        visible = thermal = 0.0
    if not (1 <= visible <= 1000 and 1 <= thermal <= 1000):
        raise UserError(f"--rates {text}: give visible/thermal in Hz, each within 1..1000, such as 30/9")
    return visible, thermal


def main() -> None:
    """Parse the command line, measure, print the table, and say where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=RATES, metavar="V/T", help="visible/thermal, Hz")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a recording (default: %(default)s)")
    parser.add_argument("--recordings", type=int, default=3, help="of each case (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first recording (default: %(default)s)")
    parser.add_argument("--deadline-ms", type=float, default=Settings.deadline_ms, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args()
    if not 1 <= args.seconds <= 3600 or not 1 <= args.recordings <= 1000:
        raise UserError("--seconds must be within 1..3600 and --recordings within 1..1000")
    settings = Settings(deadline_ms=args.deadline_ms)
    rates = [two_rates(text) for text in args.rates]
    module = Path(message_filters.__file__)
    same = UNDERLAY.is_file() and module.read_bytes() == UNDERLAY.read_bytes()
    source = "this project's, which stands in for it without a distribution" if same else "the installed one"
    print(
        f"slop {settings.slop_ms:g} ms, queue {settings.queue_size}, deadline {settings.deadline_ms:g} ms; "
        f"{args.recordings} recordings of {args.seconds:g} s, seed {args.seed}; message_filters: {source}\n"
    )
    print("| | | best | | nearest | | | | | | message_filters | | | | | |")
    print("|---|---" * 8 + "|")
    print(
        "| Hz | case | mean dt | pairs | mean dt | ratio | p95 dt | pairs | age p50 / p95 | longest wait "
        "| mean dt | ratio | p95 dt | pairs | age p50 / p95 | back |"
    )
    results = []
    for pair in rates:
        for case in args.cases:
            results.append(measure(pair, case, args, settings))
            print(row(results[-1]), flush=True)
    print("\ntimes in ms")
    for result in results:
        ours, name = result["ours"], "{:g}/{:g} {}".format(*result["rates"], result["case"])
        if ours["ratio"] is not None and ours["ratio"] > 1.05:
            print(f"goal missed: {name}: mean |dt| is {ours['ratio']:.3f} times the best (goal 1.05)")
        if ours["wait_max"] is not None and ours["wait_max"] > result["period_of_slower_ms"]:
            print(
                f"goal missed: {name}: a pair waited {ours['wait_max']:.0f} ms after its later image "
                f"(goal {result['period_of_slower_ms']:.0f}, p95 {ours['wait_p95']:.0f})"
            )
    cost = {name: max(result[name]["us_per_frame"] for result in results) for name in ("ours", "message_filters")}
    print(
        f"most processor time per frame: ours {cost['ours']:.0f} us, message_filters {cost['message_filters']:.0f} us"
    )
    if args.json:
        about = {"message_filters": source, "slop_ms": settings.slop_ms, "queue": settings.queue_size}
        about |= {"deadline_ms": settings.deadline_ms, "seconds": args.seconds, "seed": args.seed}
        write_json(args.json, {"settings": {**about, "recordings": args.recordings}, "results": results})


if __name__ == "__main__":
    run_cli(main)
