"""What the benchmarks of the running node share: processes in a ROS domain of their own, a model, the other side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from rscmd_model.errors import UserError
from rscmd_ros.pairing.frames import COUNTERS, STREAMS, Stream
from rscmd_ros.transport import config_file, free_domain

PATIENCE = 120.0
"""Seconds after which something is taken never to come; a busy machine takes its time to import torch."""


def environment(large_messages: bool) -> dict[str, str]:
    """Variables for all processes of a run: a domain of their own on this machine, with the shipped profile or not."""
    made = {**os.environ, "ROS_DOMAIN_ID": str(free_domain()), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    made.pop("ROS_LOCALHOST_ONLY", None)  # would override the line above
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        made.pop(name, None)
        if large_messages:
            made[name] = str(config_file("fastdds.xml"))
    return made


def random_model(path: Path, image_size: int) -> Path:
    """Write a model of random weights, scale n, for images of this size."""
    import torch

    from rscmd_model.imaging.thermal import ThermalContract
    from rscmd_model.methods import method_config
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.model_file import ModelHeader, save_model

    torch.manual_seed(1)
    config, names = method_config("rscmd"), {0: "person", 1: "car"}
    save_model(path, RscmdModel(config, names), ModelHeader(config, names, image_size, ThermalContract()))
    return path


@contextmanager
def process(command: Sequence[str], log: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A running process that writes into `log`; however the block is left, it has ended afterwards."""
    with log.open("ab") as output:
        child = subprocess.Popen([sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, env=variables)
    try:
        yield child
    finally:
        for number in (signal.SIGINT, signal.SIGKILL):
            if child.poll() is None:
                child.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=15)


def detector_command(model: Path, **values: Any) -> list[str]:
    """Arguments of Python that run the node on the CPU with these parameters."""
    words = [word for name, value in values.items() for word in ("-p", f"{name}:={value}")]
    # In quotes, for ROS reads the value as YAML, where " #" in a path would begin a comment.
    file = f"model:={json.dumps(str(model), ensure_ascii=False)}"
    return ["-m", "rscmd_ros.detector_node", "--ros-args", "-p", file, "-p", "device:=cpu", *words]


def wait_until(true: Callable[[], bool], what: str, log: Path) -> None:
    """Raises UserError, with the last line of a process's log, when it does not come about."""
    until = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > until:
            lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
            raise UserError(
                f"{what}: did not come about in {PATIENCE:g} s; {log} ends with: {(lines or ['nothing'])[-1]}"
            )
        time.sleep(0.05)


class OtherSide:
    """A node of this process: what the detector says, taken in by a thread. Set the environment before.

    answered   called with every Detection2DArray, in that thread
    """

    def __init__(self, answered: Callable[[Any], None]) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.context import Context
        from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
        from rclpy.node import Node
        from vision_msgs.msg import Detection2DArray

        self._context = Context()
        self._context.init(args=[])
        self.node = Node("other_side", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.status: dict[str, str] = {}
        self.reports = 0
        self.node.create_subscription(Detection2DArray, "detections", answered, 50)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnosed, 50)

        def spin() -> None:
            with suppress(ExternalShutdownException):
                self._executor.spin()

        self._thread = threading.Thread(target=spin, daemon=True)
        self._thread.start()

    def _diagnosed(self, message: Any) -> None:
        for status in message.status:
            if status.name == "rscmd_detector: pairing":
                self.status = {pair.key: pair.value for pair in status.values}
                self.reports += 1

    def publisher(self, stream: Stream, reliable: bool = False) -> Any:
        """Of images, best effort as camera drivers do unless `reliable`."""
        return image_publisher(self.node, stream, reliable)

    def counts(self) -> dict[str, int]:
        """The node's counters, as last reported."""
        return {key: int(value) for key, value in self.status.items() if value.isdigit()}

    def fresh_counts(self, log: Path) -> dict[str, int]:
        """The node's counters as of now: from a report later than the next one."""
        seen = self.reports
        wait_until(lambda: self.reports > seen + 1, "two reports on /diagnostics", log)
        return self.counts()

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join(timeout=5)
        self.node.destroy_node()
        self._context.try_shutdown()


def image_publisher(node: Any, stream: Stream, reliable: bool = False) -> Any:
    """A publisher of `<stream>/image`."""
    from rclpy.qos import QoSProfile, QoSReliabilityPolicy
    from sensor_msgs.msg import Image

    reliability = QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT
    return node.create_publisher(Image, f"{stream}/image", QoSProfile(depth=10, reliability=reliability))


def make_image(stream: Stream, width: int, height: int) -> Any:
    """A picture of noise; the caller sets the stamp."""
    from std_msgs.msg import Header

    from rscmd_ros.cameras.conversions import thermal_to_image, visible_to_image

    rng = np.random.default_rng(0)
    header = Header(frame_id=f"{stream}_optical")
    if stream == "visible":
        return visible_to_image(rng.integers(0, 256, (height, width, 3), np.uint8), header)
    return thermal_to_image(rng.integers(0, 256, (height, width), np.uint8), header)


def ledger_problems(counts: dict[str, int]) -> list[str]:
    """Where a report's counters do not add up, in words."""
    problems = []
    for stream in STREAMS:
        known = sum(counts[f"{stream}.{counter}"] for counter in COUNTERS) + counts[f"{stream}.pending"]
        if counts[f"{stream}.received"] != known:
            problems.append(f"{stream}: received {counts[f'{stream}.received']}, accounted for {known}")
    ends = sum(n for key, n in counts.items() if key.startswith("pairs_"))
    if counts["pairs"] != ends:
        problems.append(f"pairs {counts['pairs']}, accounted for {ends}")
    return problems
