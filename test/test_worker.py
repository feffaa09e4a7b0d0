"""The worker that takes the newest job, the loader that can be left behind, and what is said of topics and silence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from rscmd_ros.node.worker import Latencies, StoppedError, Worker, run_unless
from rscmd_ros.pairing.fallback import Fallback
from rscmd_ros.pairing.frames import STREAMS
from rscmd_ros.pairing.nearest import make_pairer

PATIENCE = 30.0


def check_counts(worker: Worker[int]) -> dict[str, int]:
    counts = worker.counts()
    ends = ("done", "failed", "replaced", "discarded", "skipped", "in_hand")
    assert counts["submitted"] == sum(counts[end] for end in ends)
    return counts


class Bench:
    """Work that waits for permission, one by one."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.failures: list[str] = []
        self.started = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def work(self, job: int) -> None:
        self.taken.append(job)
        self.started.release()
        assert self.may_end.acquire(timeout=PATIENCE)
        if job < 0:
            raise ValueError(f"job {job}")

    def failed(self, error: Exception) -> None:
        self.failures.append(str(error))


def test_newest_job_is_taken_and_every_job_counted():
    bench = Bench()
    worker: Worker[int] = Worker(bench.work, bench.failed)
    worker.submit(1)
    assert bench.started.acquire(timeout=PATIENCE)
    for job in (2, 3, 4):  # while 1 is being worked on
        worker.submit(job)
    assert check_counts(worker) == {
        "submitted": 4, "done": 0, "failed": 0, "replaced": 2, "discarded": 0, "skipped": 0, "in_hand": 2,
    }  # fmt: skip
    bench.may_end.release()
    assert bench.started.acquire(timeout=PATIENCE)
    worker.submit(5)
    assert not worker.stop(timeout=0.01)  # 4 is still being worked on
    worker.submit(6)
    bench.may_end.release()
    assert worker.stop(timeout=PATIENCE)
    assert bench.taken == [1, 4]
    assert check_counts(worker) == {
        "submitted": 6, "done": 2, "failed": 0, "replaced": 2, "discarded": 2, "skipped": 0, "in_hand": 0,
    }  # fmt: skip


def test_a_failing_job_does_not_end_the_worker():
    bench = Bench()
    worker: Worker[int] = Worker(bench.work, bench.failed)
    for job in (-1, -2, 3):
        worker.submit(job)
        assert bench.started.acquire(timeout=PATIENCE)
        bench.may_end.release()
    assert worker.stop(timeout=PATIENCE)
    assert bench.taken == [-1, -2, 3]
    assert bench.failures == ["job -1", "job -2"]
    assert check_counts(worker)["failed"] == 2
    assert check_counts(worker)["done"] == 1


def test_a_job_asks_before_its_result_goes_out():
    """It may have been worked on for long when the worker is stopped, or when nobody wants results any more."""
    bench, wanted, out = Bench(), True, []

    def work(job: int) -> None:
        bench.work(job)
        worker.check()
        out.append(job)

    worker: Worker[int] = Worker(work, bench.failed, wanted=lambda: wanted)
    assert worker.busy_for() == 0
    worker.submit(1)
    assert bench.started.acquire(timeout=PATIENCE)
    assert worker.busy_for() > 0
    worker.submit(2)
    wanted = False
    worker.submit(3)
    bench.may_end.release()  # 2 is not even begun
    until_idle(worker)
    wanted = True
    worker.submit(4)
    assert bench.started.acquire(timeout=PATIENCE)
    assert not worker.stop(timeout=0.01)
    bench.may_end.release()
    assert worker.stop(timeout=PATIENCE)
    assert (bench.taken, out, bench.failures) == ([1, 4], [], [])
    counts = check_counts(worker)
    assert (counts["skipped"], counts["discarded"]) == (3, 1)


def until_idle(worker: Worker[int]) -> None:
    idle = threading.Event()
    for _ in range(3000):
        if worker.counts()["in_hand"] == 0:
            return
        idle.wait(0.01)
    raise AssertionError(worker.counts())


def test_the_books_of_a_worker_that_hangs_are_closed():
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    from rscmd_ros.node.diagnostics import JOB_KINDS, Tally

    bench, tally = Bench(), Tally()
    worker: Worker[int] = Worker(bench.work, bench.failed, JOB_KINDS)
    worker.submit(1, "lone")
    assert bench.started.acquire(timeout=PATIENCE)
    worker.submit(2, "pairs")
    assert not worker.stop(timeout=0.01)
    tally.close_worker(worker)
    bench.may_end.release()
    assert worker.stop(timeout=PATIENCE)
    for kind in JOB_KINDS:
        counts = tally.work(None)[kind]
        assert (counts["submitted"], counts["discarded"], counts["in_hand"]) == (1, 1, 0)


def test_long_work_is_left_behind_when_the_process_is_to_end():
    stopping, let_go = threading.Event(), threading.Event()
    assert run_unless(stopping, lambda: 7) == 7
    with pytest.raises(TimeoutError, match="mine"):
        run_unless(stopping, raise_timeout)
    threading.Timer(0.1, stopping.set).start()
    with pytest.raises(StoppedError):
        run_unless(stopping, lambda: let_go.wait(PATIENCE))
    let_go.set()


def raise_timeout() -> None:
    raise TimeoutError("mine")


def test_percentiles():
    latencies = Latencies(size=100)
    assert latencies.percentile(50) is None
    latencies._ms.extend(range(200))  # only the last 100 are kept
    assert (latencies.percentile(0), latencies.percentile(50), latencies.percentile(95)) == (100, 150, 195)
    assert latencies.percentile(100) == 199


def test_what_keeps_images_from_coming_is_named():
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    from rclpy.qos import QoSReliabilityPolicy

    from rscmd_ros.node.causes import IMAGE_TYPES, topic_problem

    image = IMAGE_TYPES["raw"]

    def publisher(kind: str, reliable: bool = True) -> SimpleNamespace:
        policy = QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT
        return SimpleNamespace(topic_type=kind, qos_profile=SimpleNamespace(reliability=policy))

    compressed = "sensor_msgs/msg/CompressedImage"
    assert "nothing publishes on /a/image" in topic_problem("/a/image", [], "best_effort")
    assert f"has type {compressed}; this node needs {image}" in topic_problem(
        "/a", [publisher(compressed)], "best_effort"
    )
    assert topic_problem("/a", [publisher(compressed), publisher(image)], "best_effort") is None
    assert topic_problem("/a", [publisher(image, reliable=False)], "best_effort") is None
    assert topic_problem("/a", [publisher(image)], "reliable") is None
    assert "best effort but asked for reliable" in topic_problem("/a", [publisher(image, reliable=False)], "reliable")


def test_no_offset_is_advised_that_cannot_be_set():
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    from rscmd_ros.node.causes import slop_problem

    said = [slop_problem(50.0, offset, {"visible": 9, "thermal": 9}) for offset in (-10_000.0, -900_000.0, 90.0)]
    assert "behind visible ones" in said[0]
    assert said[0].endswith("set thermal_offset_ms to -10000, or use_measured_offset")
    assert said[1].endswith("from one clock, or set use_measured_offset")
    assert said[2].endswith("or set thermal_offset_ms to 90")  # the other one would do nothing


def test_throttle_keeps_subjects_apart():
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    from rscmd_ros.node.diagnostics import Throttle

    throttle = Throttle(seconds=1000.0)
    assert [throttle.allows(subject) for subject in ("a", "b", "a", "b", "c")] == [True, True, False, False, True]
    assert [Throttle(seconds=0.0).allows("a") for _ in range(2)] == [True, True]


class Watched:
    """What a node's condition finds, second by second of made-up time; both cameras send at `every` tenth of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("rclpy", reason="rclpy is not installed")
        from rscmd_ros.node.condition import Condition, Facts
        from rscmd_ros.node.diagnostics import Tally
        from rscmd_ros.node.parameters import Settings

        self.steps, self.n = 1000, 0
        monkeypatch.setattr("rscmd_ros.node.condition.time.monotonic", lambda: self.steps / 10)
        self.condition, self.facts = Condition(), Facts
        graph = {"get_fully_qualified_name": "/d", "get_node_names_and_namespaces": []}
        self.known = {
            "node": SimpleNamespace(count_publishers=lambda _: 0, **{k: lambda v=v: v for k, v in graph.items()}),
            "state": "active", "mode": "fused", "settings": Settings(), "topics": dict.fromkeys(STREAMS),
            "subscribed": {}, "tally": Tally(), "watched": False, "offset_measured": None, "offset_in_use": 0,
        }  # fmt: skip
        self.busy, self.every = 0.0, 1
        self.detector = SimpleNamespace(published_at=None, failure=None)
        self.pairer = make_pairer(slop=50 * MS)
        self.fallback = Fallback("both", timeout=5000 * MS, shutter=0, branches=STREAMS, now=self.steps * 100 * MS)

    def run(
        self, seconds: int, stamps: dict[str, Callable[[int], int]], answers: bool = False, clock: int | None = None
    ) -> list[str]:
        """What is said in the end, where each stream's `stamps` are a function of the time, in ns."""
        causes = []
        for step in range(10 * seconds):
            self.steps += 1
            now = self.steps * 100 * MS
            for stream in STREAMS if self.steps % self.every == 0 else ():
                self.n += 1
                self.fallback.frame(stream, self.n, now)
                pairs = self.pairer.add(stream, stamps.get(stream, int)(now), None, now)
                if pairs and answers:
                    self.detector.published_at = self.steps / 10
            if step % 10 == 9:
                worker = SimpleNamespace(busy_for=lambda: self.busy)
                parts = {"detector": self.detector, "pairer": self.pairer, "worker": worker, "fallback": self.fallback}
                causes = self.condition._causes(self.facts(now=clock or now, **self.known, **parts))
        return [cause.text for cause in causes]


MS = 1_000_000


def test_silence_is_told_with_the_counter_that_takes_the_frames(monkeypatch):
    watched = Watched(monkeypatch)
    assert watched.run(5, {}, answers=True) == []
    constant = {"thermal": lambda now: 105_000 * MS}
    assert watched.run(2, constant) == []  # not yet
    (said,) = watched.run(2, constant)
    assert "both cameras send, and nothing has been published for 4 s: 40 of 40 thermal frames" in said
    assert said.endswith("counter thermal.duplicate")
    assert "thermal frames have a stamp seen before" in said
    assert watched.run(3, {}, answers=True) == []
    watched.busy = 4.0
    (said,) = watched.run(5, {})
    assert "the worker has been at one pair for 4 s" in said


def test_of_counters_that_grow_the_cause_goes_before_the_consequence():
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    from rscmd_ros.node.causes import silence_problem

    visible = {"received": 600, "paired": 0, "too_far": 280, "reset": 310, "late": 10, "pending": 90}
    thermal = {"received": 90, "paired": 0, "too_far": 90, "reset": 0, "late": 0, "pending": 0}
    said = silence_problem(10.0, {"visible": visible, "thermal": thermal}, None)
    assert ": 310 of 600 visible frames waited when time jumped back" in said
    assert silence_problem(10.0, {"visible": visible | {"reset": 0}, "thermal": thermal}, None).endswith(
        "thermal.too_far"
    )
    assert silence_problem(10.0, {"thermal": {"received": 90}}, None).endswith("for 10 s")


def test_silence_is_no_news_where_nothing_is_wanted_or_a_camera_is_slow(monkeypatch):
    from rscmd_ros.node.parameters import Settings

    watched = Watched(monkeypatch)
    watched.known["settings"] = Settings(lazy=True)
    assert watched.run(8, {}) == []
    watched.known["watched"] = True
    assert len(watched.run(8, {})) == 1
    assert watched.run(1, {}, answers=True) == []
    watched.every = 20
    assert watched.run(4, {}) == []  # of pairs every two seconds
    assert len(watched.run(4, {})) == 1


def test_a_clock_that_stands_still_is_named(monkeypatch):
    watched = Watched(monkeypatch)
    assert watched.run(2, {}, answers=True, clock=5) == []
    (said,) = watched.run(4, {}, answers=True, clock=5)
    assert "ROS time has stood still" in said
    assert "'use_sim_time' is true and nothing publishes /clock" in said
    assert watched.run(4, {}, answers=True) == []
