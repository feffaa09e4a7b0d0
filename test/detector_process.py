"""A detector node in a process of its own, and the cameras on the other side of the wire; for the tests of the node."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.srv import GetParameters, SetParametersAtomically
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String
from vision_msgs.msg import Detection2DArray

from rscmd_ros.cameras.conversions import stamp_ns, thermal_to_image, time_msg, visible_to_image
from rscmd_ros.pairing.frames import COUNTERS, STREAMS

ROOT = Path(__file__).resolve().parent.parent
MEMORY = Path("/dev/shm")
MS = 1_000_000
NAMES = {0: "person", 1: "car"}
PATIENCE = 90.0
"""Seconds after which a condition is taken never to come; a busy machine takes its time to import torch."""


class Detector:
    """A detector node's process and what it has written."""

    def __init__(self, folder: Path, prelude: str = "", **parameters: Any) -> None:
        """`prelude` is Python that runs in the process first. The backend is torch, so that answers can be foretold."""
        self.log = folder / "detector.log"
        parameters = {"backend": "torch", **parameters}
        values = [argument for name, value in parameters.items() for argument in ("-p", f"{name}:={value}")]
        start = ["-c", f"{prelude}\nfrom rscmd_ros.detector_node import main; main()"]
        command = [sys.executable, *(start if prelude else ["-m", "rscmd_ros.detector_node"]), "--ros-args", *values]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, words: str, times: int = 1) -> None:
        """Until it has written this."""
        until = time.monotonic() + PATIENCE
        while True:
            ended, text = self.process.poll() is not None, self.text  # in this order: it may write, and end, meanwhile
            if text.count(words) >= times:
                return
            given_up = ended or "stays unconfigured" in text
            assert not given_up, f"gave up before '{words}':\n{text}"
            assert time.monotonic() < until, f"no '{words}' in:\n{text}"
            time.sleep(0.02)

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def close(self) -> None:
        """End it in order, so that it takes leave of its topics and services; by force if that does not help."""
        if self.process.poll() is None:
            try:
                self.end()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Cameras:
    """The other side of the wire: publishers of images, and all that the detector says."""

    def __init__(self) -> None:
        self.context = Context()
        self.context.init(args=[])
        self.node = Node("cameras", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.detections: list[Detection2DArray] = []
        self.status: dict[str, str] = {}
        self.reports = 0
        self.reported_at = 0
        self.mode: list[str] = []
        latched = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        self.node.create_subscription(String, "mode", lambda msg: self.mode.append(msg.data), latched)
        self.listen(True)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnosed, 50)
        self.publishers: dict[str, Any] = {}
        self.stamp = 1000 * 1000 * MS

    def close(self) -> None:
        self.executor.remove_node(self.node)
        self.node.destroy_node()
        self.context.try_shutdown()

    def _diagnosed(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            if status.name == "rscmd_detector: pairing":
                self.reports += 1
                self.reported_at = stamp_ns(msg.header)
                self.status = {pair.key: pair.value for pair in status.values}

    def listen(self, wanted: bool) -> None:
        """Subscribe to the detections, as at first, or leave them; those that came are forgotten."""
        self.detections.clear()
        if wanted:
            self._listening = self.node.create_subscription(Detection2DArray, "detections", self.detections.append, 50)
        else:
            self.node.destroy_subscription(self._listening)

    def spin_until(self, true: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < until, f"{what}: did not come about; last diagnostics: {self.status}"
            self.executor.spin_once(timeout_sec=0.02)

    def spin_until_known(self) -> None:
        """The detector has yet to learn of what is new here, and that cannot be seen: until then its best-effort
        subscription loses what comes, and its answer to a new client is lost (ros2/rmw_fastrtps#842)."""
        known = time.monotonic() + 0.5
        self.spin_until(lambda: time.monotonic() > known, "time to be known")

    def publish_to(self, stream: str, kind: type = Image, reliable: bool = True) -> None:
        """Replace the publisher of a topic and wait until the detector is there (or, for a wrong type, seen)."""
        self.unpublish(stream)
        reliability = QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=50, reliability=reliability)
        self.publishers[stream] = self.node.create_publisher(kind, f"{stream}/image", qos)
        if kind is Image:
            self.spin_until(lambda: self.publishers[stream].get_subscription_count() > 0, f"subscription of {stream}")
            self.spin_until_known()

    def unpublish(self, stream: str) -> None:
        if stream in self.publishers:
            self.node.destroy_publisher(self.publishers.pop(stream))

    def fresh_counts(self) -> dict[str, int]:
        """The node's counters as of now: from the second report made from now on."""
        asked = time.time_ns()
        self.spin_until(lambda: self.reported_at > asked, "a report on /diagnostics")
        seen = self.reports
        self.spin_until(lambda: self.reports > seen, "a second report on /diagnostics")
        return {key: int(value) for key, value in self.status.items() if value.isdigit()}

    def send_pair(self, dt_ms: float = 2.0) -> tuple[Image, Image]:
        """Publish the next pair, 100 ms after the last in stamps."""
        self.stamp += 100 * MS
        visible, thermal = images(self.stamp, round(dt_ms * MS))
        self.publishers["visible"].publish(visible)
        self.publishers["thermal"].publish(thermal)
        return visible, thermal

    def play(self, done: Callable[[], bool], what: str, visible: str = "sends", thermal: str = "sends") -> None:
        """Both cameras at 20 Hz, with stamps that go on, until `done`; each `sends`, is `silent` or `frozen`."""
        until = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < until, f"{what}: did not come about; last diagnostics: {self.status}, {self.mode}"
            self.stamp += 50 * MS
            fresh, old = images(self.stamp), images(1000 * MS)
            for message, frozen, stream, doing in zip(fresh, old, STREAMS, (visible, thermal)):
                if doing == "frozen":
                    message.data = frozen.data
                if doing != "silent" and stream in self.publishers:
                    self.publishers[stream].publish(message)
            tick = time.monotonic() + 0.05
            while time.monotonic() < tick:
                self.executor.spin_once(timeout_sec=0.01)

    def call(self, kind: type, name: str, request: Any) -> Any:
        client = self.node.create_client(kind, f"/rscmd_detector/{name}")
        self.spin_until(client.service_is_ready, f"service {name}")
        self.spin_until_known()
        future = client.call_async(request)
        self.spin_until(future.done, f"answer of {name}")
        self.node.destroy_client(client)
        return future.result()

    def state(self) -> str:
        return str(self.call(GetState, "get_state", GetState.Request()).current_state.label)

    def change(self, transition: str) -> bool:
        request = ChangeState.Request()
        request.transition.label = transition
        return bool(self.call(ChangeState, "change_state", request).success)

    def set(self, **values: Any) -> tuple[bool, str]:
        """Set parameters all together: whether it was done, and the reason if not."""
        wanted: list[ParameterMsg] = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        request = SetParametersAtomically.Request(parameters=wanted)
        result = self.call(SetParametersAtomically, "set_parameters_atomically", request).result
        return result.successful, result.reason

    def get(self, name: str) -> Any:
        answer = self.call(GetParameters, "get_parameters", GetParameters.Request(names=[name]))
        return Parameter.from_parameter_msg(ParameterMsg(name=name, value=answer.values[0])).value


def images(stamp: int, dt: int = 0) -> tuple[Image, Image]:
    """A pair that no other has the pixels of; the picture is no square and not of the network's size."""
    rng = np.random.default_rng(stamp)
    picture = np.kron(rng.integers(0, 255, (6, 10, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    counts = np.kron(rng.integers(0, 255, (6, 10)), np.ones((8, 8))).astype(np.uint8)
    header = Header(stamp=time_msg(stamp), frame_id="visible_optical")
    thermal_header = Header(stamp=time_msg(stamp + dt), frame_id="thermal_optical")
    return visible_to_image(picture, header), thermal_to_image(counts, thermal_header)


def check_ledger(counts: dict[str, int]) -> None:
    for stream in STREAMS:
        known = sum(counts[f"{stream}.{counter}"] for counter in COUNTERS) + counts[f"{stream}.pending"]
        assert counts[f"{stream}.received"] == known
    for kind in ("pairs", "lone"):
        ends = ("inferred", "replaced", "failed", "discarded", "skipped", "in_hand")
        assert counts[kind] == sum(counts[f"{kind}_{end}"] for end in ends)


def check_silent_leave(detector: Detector, cameras: Cameras) -> None:
    """It ended without complaint and left in order: otherwise it would stay in the graph until its lease of 20 s ends,
    and the services of a new detector would get no answer meanwhile.

    What it published tells, not its name: a last message about a node's topics that is read after the news that its
    process is gone puts the name back for good (`update_participant_entities` of ros2/rmw_dds_common).
    """
    assert "Traceback" not in detector.text
    assert "[ERROR]" not in detector.text
    ended = time.monotonic()
    cameras.spin_until(lambda: cameras.node.count_publishers("/diagnostics") == 0, "the node's leave")
    assert time.monotonic() - ended < 15


def shared_memory(process: subprocess.Popen[Any]) -> set[Path]:
    """The files of Fast DDS in /dev/shm that a process has open now: its own, and those of processes it knows."""
    try:
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:  # it has just ended
        return set()
    return set(map(Path, re.findall(rf"{MEMORY}/fast(?:rtps|dds)_[0-9a-f]+$", mapped, re.MULTILINE)))


def wait_for_handlers(process: subprocess.Popen[bytes], number: int) -> None:
    """Until the process catches this signal, as the kernel tells."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), 16)
        default_term = number == signal.SIGINT and not caught >> (signal.SIGTERM - 1) & 1
        # Python itself catches SIGINT from the start, by raising KeyboardInterrupt.
        if caught >> (number - 1) & 1 and not default_term:
            return
        time.sleep(0.002)
    raise AssertionError("no signal handler")


def random_model(path: Path, image_size: int, method: str = "rscmd") -> Path:
    """Write a model of random weights."""
    import torch

    from rscmd_model.imaging.thermal import ThermalContract
    from rscmd_model.methods import method_config
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.model_file import ModelHeader, save_model

    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = method_config(method)
        save_model(path, RscmdModel(config, NAMES), ModelHeader(config, NAMES, image_size, ThermalContract()))
    return path
