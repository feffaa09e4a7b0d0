"""The node under load for long: its memory, threads, open handles and ledger while cameras misbehave.

    python benchmarks/soak.py                                    # 20 minutes, and the flood
    python benchmarks/soak.py --minutes 1 --json soak.json

Two camera processes publish 640x512 best effort at 30 Hz each. Seeded, at random, they drop images, hold some back and
send them in a burst, repeat a stamp or send one that is zero, an hour ahead or a second back, change the size of their
images, and send garbage: short data, no data, an unknown encoding, a size that the data do not have. Every 20 to 40
seconds a camera, or both, is killed (SIGKILL or SIGTERM) and comes back up to five seconds later. The node is the real
one, with a model of random weights at 96 px that finds something in every pair.

Fails, with exit code 1, when after the warm-up (a third of the run, five minutes at most)
  - a line fitted to the resident memory (median of slopes between any two seconds) rises by more than 8 MB in all;
    the frames that wait while a camera is away are some 30 MB, so less than five minutes are not judged by this,
  - the least number of threads or of open handles in the last quarter is above that of the first quarter,
  - a report's counters do not add up, reports cease, or the node ends or writes a traceback,
or when in the flood, where small images come ten times as fast as a 640 px network can take them,
  - the latency's 95th percentile grows by more than a half from the first third to the last,
  - an image sent (reliable here) is not in the ledger.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from running_node import (
    OtherSide,
    detector_command,
    environment,
    image_publisher,
    ledger_problems,
    make_image,
    process,
    random_model,
    wait_until,
)

from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import write_json
from rscmd_ros.pairing.frames import STREAMS, Stream

HZ = 30
SECOND = 1_000_000_000
SIZES = ((640, 512), (640, 512), (320, 256), (512, 640))
GARBAGE = ("encoding", "short", "empty", "size", "zero", "future", "back", "again")
BOUND_MB = 8.0
WARM_UP = 300.0
LEAST_JUDGED = 300


# --- a camera's process ---------------------------------------------------------------------------------------------


def spoilt(image: Any, kind: str, stamp: int) -> int:
    """Make garbage of a fresh image; returns its stamp."""
    if kind == "encoding":
        image.encoding = "rgb5551"
    elif kind == "short":
        image.data = image.data[:-1]
    elif kind == "empty":
        image.data = image.data[:0]
    elif kind == "size":
        image.height, image.width = 2**31, 2**31
    return {"zero": 0, "future": stamp + 3600 * SECOND, "back": stamp - SECOND}.get(kind, stamp)


def play_camera(stream: Stream, seed: str) -> None:
    """Publish until killed; SIGTERM lets it take its leave."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from rscmd_ros.cameras.conversions import time_msg

    leaving: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: leaving.append(number))
    rng = random.Random(f"{stream} {seed}")
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    publisher = image_publisher(rclpy.create_node(f"{stream}_camera"), stream)
    images = {size: make_image(stream, *size) for size in SIZES}
    size, held_until, last = SIZES[0], 0.0, 0
    held: list[tuple[Any, int]] = []
    due = time.monotonic()
    while not leaving:
        due = max(due + 1 / HZ, time.monotonic() - 1)
        time.sleep(max(0.0, due - time.monotonic()))
        stamp, chance = time.time_ns(), rng.random()
        size = rng.choice(SIZES) if rng.random() < 1 / (10 * HZ) else size
        if chance < 0.03:
            continue  # dropped
        image = images[size]
        if chance < 0.05:
            kind, image = rng.choice(GARBAGE), make_image(stream, *size)
            stamp = last if kind == "again" else spoilt(image, kind, stamp)
        elif chance < 0.06:
            held_until = time.monotonic() + rng.uniform(0.05, 0.5)
        last = stamp
        held.append((image, stamp))
        if time.monotonic() >= held_until:
            for image, its_stamp in held:
                image.header.stamp = time_msg(its_stamp)
                publisher.publish(image)
            held = []
    rclpy.try_shutdown()


class Camera:
    """A camera's process and when it is to be killed or to come back."""

    def __init__(self, stream: Stream, args: argparse.Namespace, variables: dict[str, str], log: Path) -> None:
        self._stream, self._seed, self._variables, self._log = stream, args.seed, variables, log
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._back_at = 0.0

    def start(self) -> None:
        """A new process, whose faults differ from those of the one before."""
        command = [sys.executable, __file__, "--camera", self._stream, "--camera-seed", f"{self._seed} {self.starts}"]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=self._variables)
        self.starts += 1

    def kill(self, number: int, away: float) -> None:
        """End it; it comes back after so many seconds."""
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._back_at = time.monotonic() + away

    def look_after(self) -> None:
        """Start it when its time has come."""
        if self._process is None and time.monotonic() >= self._back_at:
            self.start()


# --- what the kernel tells of the node ------------------------------------------------------------------------------


def kernel_figures(pid: int) -> dict[str, float]:
    """Resident memory in MB (all, and the part that is neither files nor shared), threads, open handles."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return {
        "rss_mb": int(fields["VmRSS"].split()[0]) * 1024 / 1e6,
        "anon_mb": int(fields["RssAnon"].split()[0]) * 1024 / 1e6,
        "threads": int(fields["Threads"]),
        "handles": len(os.listdir(f"/proc/{pid}/fd")),
    }


def fitted_growth(seconds: Sequence[float], values: Sequence[float]) -> float:
    """By how much a line through the points rises over their whole time: the median of slopes (Theil and Sen)."""
    step = max(1, len(values) // 400)
    points = list(zip(seconds, values))[::step]
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for n, earlier in enumerate(points)
        for later in points[n + 1 :]
        if later[0] > earlier[0]
    ]
    return statistics.median(slopes) * (seconds[-1] - seconds[0]) if slopes else 0.0


def still_there(node: subprocess.Popen[bytes], log: Path) -> None:
    """Raises UserError, with the last line of its log, when the node has ended."""
    if node.poll() is not None:
        lines = log.read_text(errors="replace").splitlines() or ["nothing was said"]
        raise UserError(f"the node ended with exit code {node.returncode}: {lines[-1]}")


# --- the two parts --------------------------------------------------------------------------------------------------


def soak(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Misbehaving cameras; what was seen, and `problems`."""
    variables = environment(large_messages=True)
    os.environ.update(variables)
    log, length = folder / "node.log", 60 * args.minutes
    command = detector_command(
        random_model(folder / "small.safetensors", 96), confidence_threshold=0, max_detections=20
    )
    cameras = [Camera(stream, args, variables, folder / f"{stream}.log") for stream in STREAMS]
    rng = random.Random(args.seed)
    seen: list[dict[str, float]] = []
    problems: list[str] = []
    answers: list[float] = []
    with ExitStack() as stack:
        node = stack.enter_context(process(command, log, variables))
        side = OtherSide(lambda _: answers.append(time.monotonic()))
        stack.callback(side.close)
        wait_until(lambda: side.status.get("lifecycle_state") == "active" or node.poll() is not None, "the node", log)
        for camera in cameras:
            stack.callback(camera.kill, signal.SIGKILL, 0.0)
            camera.start()
        wait_until(lambda: len(answers) > 10 or node.poll() is not None, "detections", log)
        still_there(node, log)
        started = said = time.monotonic()
        next_kill = started + min(length / 6, rng.uniform(20, 40))
        reports, reported, kills = side.reports, started, 0
        while (now := time.monotonic()) - started < length and node.poll() is None:
            seen.append({"s": now - started, **kernel_figures(node.pid)})
            if side.reports != reports:
                reports, reported = side.reports, now
                problems += ledger_problems(side.counts())
            if now >= next_kill:
                next_kill = now + rng.uniform(20, 40)
                for camera in rng.sample(cameras, rng.choice((1, 1, 2))):
                    camera.kill(rng.choice((signal.SIGKILL, signal.SIGTERM)), rng.uniform(0, 5))
                    kills += 1
            for camera in cameras:
                camera.look_after()
            if now - reported > 20:
                problems.append(f"no report on /diagnostics for {now - reported:.0f} s")
                break
            if now - said > 60:
                said = now
                print(f"{(now - started) / 60:.0f} min: {seen[-1]}", file=sys.stderr, flush=True)
            time.sleep(max(0.0, now + 1 - time.monotonic()))
        for camera in cameras:
            camera.kill(signal.SIGTERM, 3600.0)
        if node.poll() is None:
            counts = side.fresh_counts(log)
            problems += ledger_problems(counts)
            node.send_signal(signal.SIGINT)
            node.wait(timeout=30)
        else:
            counts = side.counts()
            problems.append(f"the node ended by itself, with exit code {node.returncode}")
    text = log.read_text(errors="replace")
    if node.returncode != 0 or "Traceback" in text:
        problems.append(f"the node ended with exit code {node.returncode}{', a traceback' * ('Traceback' in text)}")
    warm = [figures for figures in seen if figures["s"] >= min(length / 3, WARM_UP)]
    quarter = max(1, len(warm) // 4)
    summary: dict[str, Any] = {"kills": kills, "answers": len(answers), "counts": counts, "measured_s": len(warm)}
    for name in ("rss_mb", "anon_mb"):
        growth = fitted_growth([f["s"] for f in warm], [f[name] for f in warm])
        summary[name] = {"first": warm[0][name], "last": warm[-1][name], "fitted_growth": growth}
        if growth > BOUND_MB and len(warm) >= LEAST_JUDGED:
            problems.append(f"{name} grew by {growth:.1f} MB over {len(warm)} s (bound {BOUND_MB:g})")
    for name in ("threads", "handles"):
        first, last = (min(f[name] for f in part) for part in (warm[:quarter], warm[-quarter:]))
        summary[name] = {"first": first, "last": last, "most": max(f[name] for f in warm)}
        if last > first:
            problems.append(f"{name} grew from {first:.0f} to {last:.0f}")
    return {**summary, "problems": list(dict.fromkeys(problems)), "every_second": seen}


def flood(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ten times as many pairs as can be inferred: what becomes of latency and counts, and `problems`."""
    from rscmd_ros.cameras.conversions import stamp_ns, time_msg

    variables = environment(large_messages=True)
    os.environ.update(variables)
    log = folder / "flooded.log"
    values = {f"{stream}_reliability": "reliable" for stream in STREAMS}
    command = detector_command(random_model(folder / "large.safetensors", 640), confidence_threshold=0.9, **values)
    latencies: list[tuple[float, float]] = []
    images = {stream: make_image(stream, 160, 128) for stream in STREAMS}

    def answered(message: Any) -> None:
        latencies.append((time.monotonic(), (time.time_ns() - stamp_ns(message.header)) / 1e6))

    with ExitStack() as stack:
        node = stack.enter_context(process(command, log, variables))
        side = OtherSide(answered)
        stack.callback(side.close)
        publishers = {stream: side.publisher(stream, reliable=True) for stream in STREAMS}

        def heard() -> bool:
            return node.poll() is not None or all(p.get_subscription_count() for p in publishers.values())

        def send(pairs: int, hz: float) -> None:
            due = time.monotonic()
            for _ in range(pairs):
                stamp = time_msg(time.time_ns())
                for stream, publisher in publishers.items():
                    images[stream].header.stamp = stamp
                    publisher.publish(images[stream])
                due += 1 / hz
                time.sleep(max(0.0, due - time.monotonic()))

        wait_until(heard, "a node that listens", log)
        send(12, 2.0)
        still_there(node, log)
        if len(latencies) < 4:
            raise UserError(f"the node answered {len(latencies)} of 12 pairs sent at leisure; see its log (--logs)")
        alone = statistics.median(ms for _, ms in latencies[2:])
        before, began = side.fresh_counts(log), time.monotonic()
        hz = 10 * 1000 / alone
        pairs = round(hz * args.flood_seconds)
        send(pairs, hz)
        took = time.monotonic() - began
        wait_until(lambda: side.counts().get("pairs_in_hand") == 0, "the last inference", log)
        after = side.fresh_counts(log)
    grown = {key: after[key] - before[key] for key in after}
    problems = ledger_problems(after)
    for stream in STREAMS:
        if grown[f"{stream}.received"] != pairs:
            problems.append(f"flood: {pairs} {stream} images sent, {grown[f'{stream}.received']} in the ledger")
    thirds = [[ms for at, ms in latencies if began + n * took / 3 <= at < began + (n + 1) * took / 3] for n in range(3)]
    if not all(thirds):
        raise UserError(f"the flooded node gave too few answers ({len(latencies)}); see {log}")
    p95 = [sorted(third)[int(0.95 * len(third))] for third in thirds]
    if p95[2] > 1.5 * p95[0]:
        problems.append(f"flood: latency p95 grew from {p95[0]:.0f} to {p95[2]:.0f} ms")
    return {
        "alone_ms": alone,
        "sent_hz": pairs / took,
        "pairs": pairs,
        "answered": grown["pairs_inferred"],
        "replaced": grown["pairs_replaced"],
        "latency_p50_ms": [statistics.median(third) for third in thirds],
        "latency_p95_ms": p95,
        "problems": problems,
    }


def print_table(results: dict[str, Any]) -> None:
    """Both parts, for people."""
    if "soak" in results:
        s = results["soak"]
        print(f"\nsoak: {s['measured_s']} s after the warm-up, {s['kills']} cameras killed, {s['answers']} answers\n")
        print("| | first | last | |\n|---|---|---|---|")
        for name, label in (("rss_mb", "resident memory, MB"), ("anon_mb", "of it private, MB")):
            print(
                f"| {label} | {s[name]['first']:.1f} | {s[name]['last']:.1f} | fitted {s[name]['fitted_growth']:+.1f} |"
            )
        for name in ("threads", "handles"):
            print(f"| {name}, least | {s[name]['first']:.0f} | {s[name]['last']:.0f} | most {s[name]['most']:.0f} |")
        for stream in STREAMS:
            counts = {k.split(".")[1]: n for k, n in s["counts"].items() if k.startswith(f"{stream}.") and n}
            print(f"{stream}: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    if "flood" in results:
        f = results["flood"]
        print(
            f"\nflood: {f['sent_hz']:.0f} pairs/s against {f['alone_ms']:.0f} ms each; {f['pairs']} pairs sent, "
            f"{f['answered']} answered, {f['replaced']} gave way to newer ones\n"
        )
        print("| latency, ms | first third | second | last |\n|---|---|---|---|")
        for name in ("p50", "p95"):
            print(f"| {name} | " + " | ".join(f"{ms:.0f}" for ms in f[f"latency_{name}_ms"]) + " |")


def main() -> None:
    """Parse the command line, run both parts, print, and exit with 1 when something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="of the soak; 0: none (default: %(default)s)")
    parser.add_argument(
        "--flood-seconds", type=float, default=60.0, help="of the flood; 0: none (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--logs", type=Path, help="keep the processes' logs in this folder")
    parser.add_argument("--camera", choices=STREAMS, help=argparse.SUPPRESS)
    parser.add_argument("--camera-seed", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.camera:
        return play_camera(args.camera, args.camera_seed)
    if not (0 <= args.minutes <= 10_000 and 0 <= args.flood_seconds <= 10_000):
        raise UserError("--minutes and --flood-seconds must be within 0..10000")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left behind
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="soak_") as scratch:
        folder = args.logs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if args.minutes:
            results["soak"] = soak(args, folder)
        if args.flood_seconds:
            results["flood"] = flood(args, folder)
    print_table(results)
    if args.json:
        settings = {"minutes": args.minutes, "flood_seconds": args.flood_seconds, "seed": args.seed}
        write_json(args.json, {"settings": settings, **results})
    problems = [problem for part in results.values() for problem in part["problems"]]
    print("\n" + ("\n".join(f"failed: {problem}" for problem in problems) or "passed"))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    run_cli(main)
