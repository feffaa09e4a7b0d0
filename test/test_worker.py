"""The worker that always takes the newest job, the loader that can be left behind, and what is said of topics."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from rscmd_ros.node.worker import Latencies, StoppedError, Worker, run_unless

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


def test_throttle_keeps_subjects_apart():
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    from rscmd_ros.node.diagnostics import Throttle

    throttle = Throttle(seconds=1000.0)
    assert [throttle.allows(subject) for subject in ("a", "b", "a", "b", "c")] == [True, True, False, False, True]
    assert [Throttle(seconds=0.0).allows("a") for _ in range(2)] == [True, True]
