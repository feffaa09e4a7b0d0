"""`DetectorNode`: visible and thermal images in, vision_msgs detections out, as a managed (lifecycle) node.

Image callbacks check, store and return. One worker thread takes the newest pair, converts it, runs the Predictor and
publishes; nothing is locked meanwhile. Everything else happens in the executor's thread, which has to be a single one.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import message_filters
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, ROSClock
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from vision_msgs.msg import Detection2DArray

from rscmd_model.errors import UserError
from rscmd_ros import parameters
from rscmd_ros.camera import image_topic, info_topic
from rscmd_ros.conversions import ConversionError, stamp_ns
from rscmd_ros.detection import Arrival, PairDetector, load_predictor, one_line
from rscmd_ros.diagnostics import Throttle, diagnostic_array, pairing_status, topic_problem
from rscmd_ros.pairing import STREAMS, Pair, Pairer, Stream, make_pairer
from rscmd_ros.parameters import Settings
from rscmd_ros.worker import StoppedError, Worker, run_unless

_MS = 1_000_000
_LEAST_QUEUE_OF_MIDDLEWARE = 10
_GRACE_FOR_PUBLISHERS = 5.0
_WAIT_FOR_INFERENCE = 2.0
_WAIT_FOR_INFERENCE_AT_END = 1.0

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class DetectorNode(LifecycleNode):
    """See the module. `stopping` is set from outside when the process is to end, and cuts loading short.

    Raises rclpy's parameter exceptions when the values it was started with are refused.
    """

    def __init__(self, stopping: threading.Event | None = None) -> None:
        super().__init__("rscmd_detector")
        self._stopping = stopping or threading.Event()
        parameters.declare(self)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._take_parameters)
        self._settings = Settings(**parameters.current(self))

        self._detector: PairDetector | None = None
        self._pairer: Pairer | None = None
        self._worker: Worker[Pair] | None = None
        self._subscribers: dict[Stream, message_filters.Subscriber] = {}
        self._info_subscriptions: list[Any] = []
        self._finished_work = dict.fromkeys(("submitted", "done", "failed", "replaced", "discarded", "in_hand"), 0)
        self._active_since = 0.0
        self._warnings = Throttle(10.0)
        self._refused: dict[Stream, str] = {}

        self._detections: Any = None
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # These tick in real time, whatever a bag's clock does.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._deadline_timer = self.create_timer(0.01, self._poll, clock=steady)
        self._deadline_timer.cancel()
        self.create_timer(1.0, self._report, clock=steady)

    # Parameters

    @property
    def state(self) -> str:
        """The label of the lifecycle state: unconfigured, inactive, active, finalized or a transition's."""
        return str(self._state_machine.current_state[1])

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        configured = self.state not in ("unconfigured", "finalized")
        values = {parameter.name: parameter.value for parameter in changes if parameter.name in parameters.TABLE}
        problem = parameters.problem_with_change(parameters.current(self), values, configured)
        return SetParametersResult(successful=problem is None, reason=problem or "")

    def _take_parameters(self, _: list[Parameter]) -> None:
        self._settings = Settings(**parameters.current(self))
        if self._detector is not None:
            self._detector.settings = self._settings

    # Lifecycle

    def start(self) -> None:
        """Configure and activate, unless parameter `autostart` is false."""
        if not self._settings.autostart:
            return
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()
        elif not self._stopping.is_set():
            name = self.get_fully_qualified_name()
            self.get_logger().error(
                f"the node stays unconfigured: correct the parameter (ros2 param set {name} ...), then "
                f"ros2 lifecycle set {name} configure, and activate"
            )

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and make the pairer."""
        return self._transition("configure", self._configure, partial(super().on_configure, state))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the worker."""
        return self._transition("activate", partial(super().on_activate, state), self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and let the worker end; frames still waiting are counted `reset`."""
        return self._transition("deactivate", self._deactivate, partial(super().on_deactivate, state))

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of the model."""
        return self._transition("clean up", self._clean_up, partial(super().on_cleanup, state))

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End everything, from whatever state."""
        return self._transition("shut down", self._deactivate, self._clean_up, partial(super().on_shutdown, state))

    def _transition(self, name: str, *steps: Callable[[], TransitionCallbackReturn | None]) -> TransitionCallbackReturn:
        """Run the steps of a transition; what goes wrong is told here, because rclpy swallows it."""
        try:
            for step in steps:
                if step() not in (None, SUCCESS):
                    return FAILURE
            return SUCCESS
        except StoppedError:
            return FAILURE
        except Exception as error:  # a wrong parameter, memory, a driver: the node stays up
            self.get_logger().error(f"cannot {name}: {one_line(error)}")
            self.get_logger().debug(traceback.format_exc())
        return FAILURE

    def _configure(self) -> None:
        settings = self._settings
        if problem := parameters.problem_with(parameters.current(self)):
            raise UserError(problem)
        if not settings.model:
            raise UserError("parameter 'model' is empty; it is the path of the model.safetensors that training wrote")
        self._detector = None
        self.get_logger().info(f"loading {settings.model}")
        started = time.monotonic()
        predictor = run_unless(self._stopping, partial(load_predictor, settings))
        self.get_logger().info(
            f"loaded: classes {', '.join(predictor.names.values())}, thermal {predictor.thermal.source}"
            f"{' or a palette' if predictor.thermal.palette_ok else ''}, "
            f"{'registered' if predictor.registration else 'taken as aligned'}, in {time.monotonic() - started:.1f} s"
        )
        self._pairer = make_pairer(
            settings.pairing_policy,
            slop=round(settings.slop_ms * _MS),
            thermal_offset=round(settings.thermal_offset_ms * _MS),
            deadline=round(settings.deadline_ms * _MS),
            reuse=settings.reuse,
            capacity=settings.queue_size,
        )
        self._finished_work = dict.fromkeys(self._finished_work, 0)
        if self._detections is None:
            self._detections = self.create_lifecycle_publisher(Detection2DArray, "detections", 10)
        logger = self.get_logger()
        self._detector = PairDetector(predictor, self._detections, logger, self._settings, self._stopping)

    def _activate(self) -> None:
        assert self._detector is not None
        self._worker = Worker(self._detector.detect, self._detector.failed)
        self._refused = {}
        for stream in STREAMS:
            reliable = getattr(self._settings, f"{stream}_reliability") == "reliable"
            qos = QoSProfile(
                history=QoSHistoryPolicy.KEEP_LAST,
                depth=max(_LEAST_QUEUE_OF_MIDDLEWARE, self._settings.queue_size),
                reliability=QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT,
            )
            camera, base = self._detector.rig.cameras[stream], self.resolve_topic_name(f"{stream}/image")
            kind = Image if camera.transport == "raw" else CompressedImage
            subscriber = message_filters.Subscriber(self, kind, image_topic(base, camera.transport), qos_profile=qos)
            subscriber.registerCallback(self._receive, stream)
            self._subscribers[stream] = subscriber
            if camera.calibrated:
                latest = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
                take = partial(self._take_info, stream)
                self._info_subscriptions.append(self.create_subscription(CameraInfo, info_topic(base), take, latest))
        self._active_since = time.monotonic()
        self._deadline_timer.reset()
        topics = " and ".join(self._topic(stream) for stream in STREAMS)
        self.get_logger().info(f"active: listening to {topics}, publishing {self._detections.topic_name}")

    def _deactivate(self) -> None:
        self._deadline_timer.cancel()
        for subscriber in self._subscribers.values():
            self.destroy_subscription(subscriber.sub)
        self._subscribers = {}
        for subscription in self._info_subscriptions:
            self.destroy_subscription(subscription)
        self._info_subscriptions = []
        if self._worker is not None:
            ending = self._stopping.is_set()
            done = self._worker.stop(_WAIT_FOR_INFERENCE_AT_END if ending else _WAIT_FOR_INFERENCE)
            if not done and not ending:
                self.get_logger().warning("the last inference is still running; its result will not be published")
            self._finished_work = self._work_counts()
            self._worker = None
        if self._pairer is not None:
            self._pairer.reset()

    def _clean_up(self) -> None:
        self._detector = None
        if self._detections is not None:
            self.destroy_lifecycle_publisher(self._detections)
            self._detections = None

    # Images in

    def _now(self) -> int:
        """The clock of deadlines: steady, or a bag's own time, in which a slowed replay pairs as a live camera does."""
        clock = self.get_clock()
        in_bag_time = isinstance(clock, ROSClock) and clock.ros_time_is_active
        return int(clock.now().nanoseconds) if in_bag_time else time.monotonic_ns()

    def _take_info(self, stream: Stream, msg: CameraInfo) -> None:
        if self._detector is None:
            return
        try:
            self._detector.rig.cameras[stream].info(msg)
        except ConversionError as error:
            self._warn(str(error))

    def _receive(self, msg: Image | CompressedImage, stream: Stream) -> None:
        pairer, detector, worker = self._pairer, self._detector, self._worker
        if pairer is None or detector is None or worker is None:
            return  # unsubscribed, and this one was already on its way
        arrival = Arrival(msg, time.monotonic_ns())
        try:
            detector.rig.cameras[stream].check(msg)
            if stamp_ns(msg.header) <= 0:
                raise ConversionError(f"{stream} image has no stamp (0); the driver has to set header.stamp")
        except ConversionError as error:
            pairer.invalid(stream)
            self._refused[stream] = f"{self._topic(stream)}: {error}"
            self._warn(self._refused[stream])
            return
        for pair in pairer.add(stream, stamp_ns(msg.header), arrival, self._now()):
            worker.submit(pair)

    def _poll(self) -> None:
        if self._pairer is not None and self._worker is not None:
            for pair in self._pairer.poll(self._now()):
                self._worker.submit(pair)

    # Telling

    def _topic(self, stream: Stream) -> str:
        subscriber = self._subscribers.get(stream)
        return str(subscriber.sub.topic_name) if subscriber else self.resolve_topic_name(f"{stream}/image")

    def _warn(self, text: str) -> None:
        if self._warnings.allows(text):
            self.get_logger().warning(text)

    def _work_counts(self) -> dict[str, int]:
        """Counts since configure: of the workers that have ended and the one that runs."""
        running = self._worker.counts() if self._worker is not None else {}
        return {name: n + running.get(name, 0) for name, n in self._finished_work.items()}

    def _topic_problems(self) -> list[str]:
        problems = []
        for stream, subscriber in self._subscribers.items():
            publishers = self.get_publishers_info_by_topic(subscriber.sub.topic_name)
            if not publishers and time.monotonic() - self._active_since < _GRACE_FOR_PUBLISHERS:
                continue  # discovery takes its time
            reliability = getattr(self._settings, f"{stream}_reliability")
            transport = getattr(self._settings, f"{stream}_transport")
            if problem := topic_problem(self._topic(stream), publishers, reliability, transport):
                self._warn(problem)
                problems.append(problem)
        return problems

    def _report(self) -> None:
        """Publish /diagnostics, in every lifecycle state."""
        work, detector = self._work_counts(), self._detector
        numbers: dict[str, int | float | None] = {
            "pairs": work["submitted"],
            "pairs_inferred": work["done"],
            "pairs_replaced": work["replaced"],
            "pairs_failed": work["failed"],
            "pairs_discarded": work["discarded"],
            "pairs_in_hand": work["in_hand"],
            "time_resets": self._pairer.resets if self._pairer is not None else 0,
            "latency_p50_ms": detector.latency.percentile(50) if detector else None,
            "latency_p95_ms": detector.latency.percentile(95) if detector else None,
            "inference_p50_ms": detector.inference.percentile(50) if detector else None,
            "inference_p95_ms": detector.inference.percentile(95) if detector else None,
        }
        problems = [*self._topic_problems(), *self._refused.values()]
        self._refused = {}
        ledger = self._pairer.ledger.as_dict() if self._pairer is not None else {}
        name = self.get_fully_qualified_name().lstrip("/")
        status = pairing_status(name, self.state, ledger, numbers, problems)
        self._diagnostics.publish(diagnostic_array(status, self.get_clock().now().to_msg()))
