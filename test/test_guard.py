"""What raises in a callback, of ours or of rclpy's: it is logged, the caller gets an answer, and the node goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")

from builtin_interfaces.msg import Time
from detector_process import MS, Cameras, Detector, check_ledger, random_model
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.msg import ParameterType, ParameterValue, SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.context import Context
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from type_description_interfaces.srv import GetTypeDescription

from rscmd_ros.cameras.conversions import time_msg
from rscmd_ros.node.guard import GuardedExecutor
from rscmd_ros.pairing.frames import STREAMS


class Log(list[str]):
    """A logger that keeps its errors."""

    error = list.append

    def debug(self, _: str) -> None:
        pass


@pytest.fixture
def guarded() -> Iterator[SimpleNamespace]:
    """A node without callbacks of its own under the guard, its log, and a way to wait for something."""
    context = Context()
    context.init(args=[])
    log = Log()
    node, executor = Node("guarded", context=context), GuardedExecutor(log, context=context)

    def spin_until(true: Any) -> None:
        until = time.monotonic() + 30
        while not true():
            assert time.monotonic() < until, log
            executor.spin_once(timeout_sec=0.02)

    def call(kind: type, name: str, request: Any) -> Any:
        client = node.create_client(kind, name)
        spin_until(client.service_is_ready)
        future = client.call_async(request)
        spin_until(future.done)
        return future.result()

    yield SimpleNamespace(node=node, executor=executor, log=log, spin_until=spin_until, call=call)
    executor.shutdown()
    node.destroy_node()
    context.try_shutdown()


def fail(*_: Any) -> Any:
    raise ValueError("first line\x1b[31m\n[INFO] second line")


def test_the_rest_goes_on_while_callbacks_of_all_kinds_raise(guarded: SimpleNamespace) -> None:
    node, ticks, heard = guarded.node, [], []
    node.create_timer(0.01, fail)
    node.create_timer(0.01, lambda: ticks.append(1))
    node.create_subscription(String, "bad", fail, 10)
    node.create_subscription(String, "good", heard.append, 10)
    publishers = [node.create_publisher(String, name, 10) for name in ("bad", "good")]
    guarded.executor.add_node(node)
    guarded.executor.create_task(fail)
    guarded.spin_until(lambda: all(publisher.get_subscription_count() for publisher in publishers))
    for n in range(20):
        for publisher in publishers:
            publisher.publish(String(data=str(n)))
        guarded.spin_until(lambda n=n: len(heard) == n + 1 and len(ticks) > 10 * n)
    kinds = sorted(line.partition(" failed, and the node goes on: ")[0] for line in guarded.log)
    # Each once, however often it came.
    assert kinds == ["a callback of rclpy's Timer", "topic /bad", "waiting for callbacks"]
    assert all("ValueError: first line\\x1b[31m" in line and "second" not in line for line in guarded.log)


def test_a_message_that_cannot_be_taken_blocks_nothing(guarded: SimpleNamespace, monkeypatch: Any) -> None:
    """Taking it is rclpy's part, before any callback."""
    heard: list[String] = []
    guarded.node.create_subscription(String, "topic", heard.append, 10)
    publisher = guarded.node.create_publisher(String, "topic", 10)
    guarded.executor.add_node(guarded.node)
    guarded.spin_until(publisher.get_subscription_count)
    with monkeypatch.context() as spoilt:
        spoilt.setattr(guarded.executor, "_take_subscription", fail)
        publisher.publish(String())
        guarded.spin_until(lambda: bool(guarded.log))
    publisher.publish(String(data="sound"))
    guarded.spin_until(lambda: bool(heard) and heard[-1].data == "sound")


@pytest.mark.parametrize("kind", [SetBool, Trigger, ChangeState, SetParametersAtomically, GetTypeDescription])
@pytest.mark.parametrize("how", ["raises", "returns nothing"])
def test_every_caller_is_refused(guarded: SimpleNamespace, kind: Any, how: str) -> None:
    guarded.node.create_service(kind, "service", fail if how == "raises" else lambda *_: None)
    guarded.executor.add_node(guarded.node)
    for _ in range(3):
        answer = guarded.call(kind, "service", kind.Request())
        said = getattr(answer, "result", answer)
        assert getattr(said, "success", None) is False or said.successful is False
        reasons = [getattr(said, name, "") for name in ("message", "reason", "failure_reason")]
        assert kind is ChangeState or any("ValueError: first line" in r or "no response" in r for r in reasons)
    assert len(guarded.log) == 1


def test_parameters_set_before_the_fault_are_told_apart(guarded: SimpleNamespace) -> None:
    """rclpy sets the parameters of one request one after the other."""
    guarded.node.declare_parameter("a", 1)
    guarded.executor.add_node(guarded.node)
    one = ParameterMsg(name="a", value=ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=2))
    odd = ParameterMsg(name="a", value=ParameterValue(type=99))
    request = SetParameters.Request(parameters=[one, odd, one])
    answer = guarded.call(SetParameters, "/guarded/set_parameters", request)
    assert [result.successful for result in answer.results] == [True, False, False]
    assert "99" in answer.results[1].reason
    assert guarded.node.get_parameter("a").value == 2


def test_a_parameter_callback_that_raises_refuses(guarded: SimpleNamespace) -> None:
    guarded.node.declare_parameter("a", 1)
    guarded.node.add_on_set_parameters_callback(fail)
    guarded.executor.add_node(guarded.node)
    one = ParameterMsg(name="a", value=ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=2))
    result = guarded.call(
        SetParametersAtomically,
        "/guarded/set_parameters_atomically",
        SetParametersAtomically.Request(parameters=[one]),
    ).result
    assert isinstance(result, SetParametersResult)
    assert (result.successful, guarded.node.get_parameter("a").value) == (False, 1)


# Over DDS


@pytest.fixture(scope="module")
def detector(cameras: Cameras, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Detector]:
    """An active detector in simulated time."""
    folder = tmp_path_factory.mktemp("guard")
    model = random_model(folder / "model.safetensors", 96)
    detector = Detector(folder, model=model, device="cpu", confidence_threshold=0, use_sim_time=True)
    detector.wait_for("active: listening")
    yield detector
    detector.close()


def test_a_transition_that_is_not_possible_is_refused(detector: Detector, cameras: Cameras) -> None:
    """As a lifecycle manager asks for it, that does not know of autostart."""
    for wanted in (
        Transition(id=Transition.TRANSITION_ACTIVATE),
        Transition(id=Transition.TRANSITION_CONFIGURE),
        Transition(id=0),
        Transition(id=255),
        Transition(label="activate"),
        Transition(label="x\n" * 100_000),
    ):
        answer = cameras.call(ChangeState, "change_state", ChangeState.Request(transition=wanted))
        assert answer.success is False
        assert cameras.state() == "active"
    said = [line for line in detector.text.splitlines() if "change_state refused" in line]
    assert "[WARN]" in said[0]
    assert "transition of id 3 is not possible while the node is active; possible: deactivate (4)" in said[0]
    assert len(said) <= 2, "not one for each call"
    assert cameras.change("deactivate")
    assert cameras.change("activate")


def test_calls_and_messages_that_nobody_should_send(detector: Detector, cameras: Cameras) -> None:
    """Each of them ended the process."""
    clock = cameras.node.create_publisher(Clock, "/clock", 10)
    for stream in STREAMS:
        cameras.publish_to(stream)

    def answers_in_simulated_time() -> bool:
        cameras.send_pair()
        clock.publish(Clock(clock=time_msg(cameras.stamp)))
        cameras.executor.spin_once(timeout_sec=0.05)
        return len(cameras.detections) > 2

    cameras.spin_until(answers_in_simulated_time, "answers to begin with")
    for kind in (99, 255):
        odd = [ParameterMsg(name="slop_ms", value=ParameterValue(type=kind))]
        answer = cameras.call(SetParameters, "set_parameters", SetParameters.Request(parameters=odd))
        assert [result.successful for result in answer.results] == [False]
        request = SetParametersAtomically.Request(parameters=odd)
        result = cameras.call(SetParametersAtomically, "set_parameters_atomically", request).result
        assert (result.successful, str(kind) in result.reason) == (False, True)
    nameless = [ParameterMsg(name="", value=ParameterValue(type=2, integer_value=1))]
    answer = cameras.call(SetParameters, "set_parameters", SetParameters.Request(parameters=nameless))
    assert [(r.successful, "'' is unknown and not used" in r.reason) for r in answer.results] == [(False, True)]
    asked = GetTypeDescription.Request(type_name="x/msg/Y", type_hash="RIHS01_00")
    assert not cameras.call(GetTypeDescription, "get_type_description", asked).successful
    for _ in range(50):
        for sec, nanosec in ((-5, 0), (-(2**31), 2**32 - 1)):
            clock.publish(Clock(clock=Time(sec=sec, nanosec=nanosec)))
        cameras.executor.spin_once(timeout_sec=0.01)
    detector.wait_for("topic /clock failed, and the node goes on: ValueError")
    cameras.detections.clear()
    cameras.spin_until(answers_in_simulated_time, "answers after all that")
    # The clock is the bag's still: reports are stamped with it.
    cameras.spin_until(
        lambda: answers_in_simulated_time() and abs(cameras.reported_at - cameras.stamp) < 10_000 * MS, ""
    )
    check_ledger({key: int(value) for key, value in cameras.status.items() if value.isdigit()})
    assert detector.text.count("topic /clock failed") < 10
    assert "Traceback" not in detector.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_still_ends_when_told_to(tmp_path: Path, number: int) -> None:
    """While a timer raises all the time."""
    spoilt = """
from rscmd_ros.node.detector import DetectorNode
def report(self):
    raise ValueError("no report")
DetectorNode._each_second = report
"""
    detector = Detector(tmp_path, spoilt, autostart=False)
    try:
        detector.wait_for("a callback of rclpy's Timer failed, and the node goes on: ValueError: no report")
        assert detector.end(number) == 0
        assert detector.text.count("no report") == 1
    finally:
        detector.close()


def test_images_of_nonsense_over_the_wire(detector: Detector, cameras: Cameras) -> None:
    """Bytes that are no message at all are the middleware's to refuse; the stream goes on after them."""
    assert detector.process.poll() is None
    for stream in STREAMS:
        cameras.publish_to(stream)
        for data in (b"", b"\0", b"\0\1\0\0" + b"\xff" * 64, b"\xff" * 1000):
            cameras.publishers[stream].publish(data)
        cameras.publishers[stream].publish(Image(width=2**32 - 1, height=2**32 - 1, step=2**32 - 1, encoding="bgr8"))
    cameras.detections.clear()

    def answers() -> bool:
        cameras.send_pair()
        cameras.executor.spin_once(timeout_sec=0.05)
        return len(cameras.detections) > 2

    cameras.spin_until(answers, "answers after nonsense")
    assert "Traceback" not in detector.text
