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

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, ROSClock
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool

from rscmd_model.errors import UserError, as_line, one_line
from rscmd_ros.cameras.conversions import ConversionError
from rscmd_ros.node import parameters
from rscmd_ros.node.condition import Condition, Facts
from rscmd_ros.node.detection import PairDetector, load_predictor
from rscmd_ros.node.diagnostics import JOB_KINDS, Tally, diagnostic_array
from rscmd_ros.node.guard import refuse_impossible_transitions
from rscmd_ros.node.inputs import Inputs, image_names, overrides_of
from rscmd_ros.node.intake import Intake
from rscmd_ros.node.log import clean_logger
from rscmd_ros.node.outputs import ModeTopic, Outputs
from rscmd_ros.node.parameters import Settings
from rscmd_ros.node.unused_parameters import unused
from rscmd_ros.node.worker import StoppedError, Worker, run_unless
from rscmd_ros.pairing.fallback import Fallback
from rscmd_ros.pairing.frames import STREAMS, Frame, Pair, Stream

_WAIT_FOR_INFERENCE = 2.0
_WAIT_FOR_INFERENCE_AT_END = 1.0
_OF_LABELS = ("classes", "confidence_threshold")

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class DetectorNode(LifecycleNode):
    """The detector as a lifecycle node; see the module.

    Args:
        stopping: set from outside when the process is to end; it cuts loading short.

    Raises:
        ParameterException: rclpy's own, when the values that the node was started with are refused.
    """

    def __init__(self, stopping: threading.Event | None = None) -> None:
        super().__init__("rscmd_detector")
        self._stopping = stopping or threading.Event()
        parameters.declare(self)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._take_parameters)
        self._settings = Settings(**parameters.current(self))
        self.get_logger().info(f"parameters that differ from their defaults: {parameters.changed(self._settings)}")
        self._warn_of_unused()

        self._detector: PairDetector | None = None
        self._intake: Intake | None = None
        self._worker: Worker[Pair | Frame] | None = None
        self._outputs: Outputs | None = None
        self._inputs = Inputs(self._receive, self._take_info, self._note_mismatch)
        self._tally = Tally()
        self._condition = Condition()

        self._mode = ModeTopic(self)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(SetBool, "~/enable", self._enable)
        refuse_impossible_transitions(self)
        # These tick in real time, whatever a bag's clock does.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._deadline_timer = self.create_timer(0.01, self._poll, clock=steady)
        self._deadline_timer.cancel()
        self._reported_at = 0.0
        self.create_timer(1.0, self._each_second, clock=steady)

    def get_logger(self) -> Any:
        """The node's logger, whose lines are printable whatever gets into them."""
        return clean_logger(super().get_logger().name)

    # Parameters

    def _warn_of_unused(self) -> None:
        """Warn of what the command line and files set and nobody reads."""
        names = [name for s in STREAMS for name in image_names(self, s, getattr(self._settings, f"{s}_transport"))]
        given = [name for name in self._parameter_overrides if not self.has_parameter(name)]
        for line in unused(given, overrides_of(names)):
            self.get_logger().warning(line)

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """As rclpy's, which takes a parameter without a name; the reason to refuse is one printable line."""
        strange = [parameter.name for parameter in parameter_list if not self.has_parameter(parameter.name)]
        if strange:
            result = SetParametersResult(successful=False, reason="; ".join(unused(strange, ())))
        else:
            result = super().set_parameters_atomically(parameter_list)
        result.reason = as_line(result.reason)
        return result

    @property
    def state(self) -> str:
        """The label of the lifecycle state: unconfigured, inactive, active, finalized or a transition's."""
        return str(self._state_machine.current_state[1])

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        configured = self.state not in ("unconfigured", "finalized")
        values = {parameter.name: parameter.value for parameter in changes if parameter.name in parameters.TABLE}
        problem = parameters.problem_with_change(parameters.current(self), values, configured)
        if problem is None and self._detector is not None and "classes" in values:
            problem = parameters.unknown_classes(values["classes"], self._detector.predictor.names.values())
        return SetParametersResult(successful=problem is None, reason=problem or "")

    def _take_parameters(self, _: list[Parameter]) -> None:
        before, self._settings = self._settings, Settings(**parameters.current(self))
        if self._detector is None or before == self._settings:
            return
        self._detector.settings = self._settings

        if self._intake is not None:
            self._intake.take(self._settings)
        if parameters.differ(before, self._settings, _OF_LABELS):
            self._describe()

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """Service ~/enable: the parameter of that name, so that the two never differ."""
        result = self.set_parameters([Parameter("enable", value=bool(request.data))])[0]
        response.success = result.successful
        response.message = result.reason or f"detection is {'on' if request.data else 'off'}"
        return response

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
        """Load the model and make ready for images."""
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
        """Run the steps of a transition. What goes wrong is logged here, because rclpy says nothing of it."""
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
        self._clean_up()
        self._intake, self._tally = None, Tally()
        self.get_logger().info(f"loading {settings.model}")
        started = time.monotonic()
        predictor = run_unless(self._stopping, partial(load_predictor, settings), self._report_when_due)
        if problem := parameters.unknown_classes(settings.classes, predictor.names.values()):
            raise UserError(problem)
        self.get_logger().info(
            f"loaded: classes {', '.join(predictor.names.values())}, thermal {predictor.thermal.source}"
            f"{' or a palette' if predictor.thermal.palette_ok else ''}, "
            f"{'registered' if predictor.registration else 'taken as aligned'}, pairs answered by {predictor.answer}, "
            f"on {predictor.device} by {predictor.backend.name} ({predictor.backend.precision}), "
            f"in {time.monotonic() - started:.1f} s{'; ' if predictor.trial else ''}{predictor.trial}"
        )
        self._outputs = outputs = Outputs(self)
        self._detector = PairDetector(
            predictor,
            outputs.detections,
            self.get_logger(),
            self._settings,
            self._stopping,
            outputs.overlay,
            self._mode.read,
        )
        self._intake = Intake(
            self._settings,
            self._tally,
            self._detector.rig,
            submit=self._submit,
            hold=self._hold,
            tell=self._follow_mode,
        )
        self._describe()

    def _activate(self) -> None:
        assert self._detector is not None
        assert self._outputs is not None
        assert self._intake is not None
        self._detector.reset()
        self._worker = _start_worker(self._detector)
        self._intake.start(self._detector.predictor.modalities, self._now())
        self._condition.restart()
        try:
            self._inputs.open(self, self._detector.rig, self._settings)
        except Exception:  # a QoS override that means nothing
            self._deactivate()
            raise
        self._deadline_timer.reset()
        topics = " and ".join(self._topic(stream) for stream in STREAMS)
        self.get_logger().info(f"active: listening to {topics}, publishing {self._outputs.detections.topic_name}")

    def _deactivate(self) -> None:
        self._deadline_timer.cancel()
        self._inputs.close(self)
        self._mode.tell("none")
        if self._worker is not None:
            ending = self._stopping.is_set()
            done = self._worker.stop(_WAIT_FOR_INFERENCE_AT_END if ending else _WAIT_FOR_INFERENCE)
            if not done and not ending:
                self.get_logger().warning("the last inference is still running; its result will not be published")
            self._tally.close_worker(self._worker)
            self._worker = None
        if self._intake is not None:
            self._intake.stop()

    def _clean_up(self) -> None:
        self._detector = None
        if self._outputs is not None:
            self._outputs.close(self)
            self._outputs = None

    def _describe(self) -> None:
        """Publish what the model is, which classes come out and from which score on."""
        assert self._outputs is not None
        assert self._detector is not None
        now = self.get_clock().now().to_msg()
        wanted = parameters.wanted_classes(self._settings.classes)
        self._outputs.describe(now, self._detector.predictor, wanted, self._settings.confidence_threshold)

    # Images in

    def _now(self) -> int:
        """The time in ns by which deadlines are counted.

        It is that of the steady clock. With use_sim_time it is the time of the bag, so that a bag played slowly is
        paired as the cameras were.
        """
        clock = self.get_clock()
        in_bag_time = isinstance(clock, ROSClock) and clock.ros_time_is_active
        return int(clock.now().nanoseconds) if in_bag_time else time.monotonic_ns()

    def _take_info(self, stream: Stream, msg: CameraInfo) -> None:
        if self._detector is None:
            return
        try:
            self._detector.rig.info(msg, stream)
        except ConversionError as error:
            self._condition.refuse(stream, error)

    def _receive(self, stream: Stream, msg: Image | CompressedImage) -> None:
        if self._intake is None or self._intake.fallback is None:
            return  # unsubscribed, and this one was already on its way
        self._condition.mismatched.pop(stream, None)  # a publisher whose images arrive offers enough
        try:
            self._intake.receive(stream, msg, self._now())
        except ConversionError as error:
            self._condition.refuse(stream, error, f"{self._topic(stream)}: ")

    def _note_mismatch(self, stream: Stream, policy: str) -> None:
        self._condition.mismatched[stream] = policy

    def _poll(self) -> None:
        if self._intake is not None:
            self._intake.poll(self._now())

    def _follow_mode(self, fallback: Fallback) -> None:
        assert self._detector is not None
        full = self._detector.predictor.answer  # for a model of one camera its own
        mode = full if fallback.mode == "fused" else fallback.mode
        if mode != self._mode.current:
            self.get_logger().info(self._condition.mode_change(mode, fallback, self._now(), self._topic))
            self._mode.tell(mode)

    def _hold(self) -> None:
        """Repeat the last answer."""
        if self._detector is not None and self._detector.wanted():
            self._detector.hold()

    def _submit(self, job: Pair | Frame) -> None:
        if self._worker is None:
            return
        if isinstance(job, Pair):
            self._tally.paired(job)
        self._worker.submit(job, "pairs" if isinstance(job, Pair) else "lone")

    # Telling

    def _topic(self, stream: Stream) -> str:
        return self._inputs.topic(self, stream)

    def _report_when_due(self) -> None:
        if time.monotonic() - self._reported_at > 1.0:
            self._report()

    def _each_second(self) -> None:
        self._inputs.look_for_latched(self)
        if (
            self._worker is not None
            and self._intake is not None
            and (offset := self._intake.follow_offset()) is not None
        ):
            self.get_logger().info(f"thermal stamps are taken to be {offset / 1e6:.0f} ms late, as measured")
        self._report()

    def _report(self) -> None:
        """Publish /diagnostics, in every lifecycle state, and warn of what is wrong."""
        self._reported_at = time.monotonic()
        intake = self._intake
        facts = Facts(
            node=self,
            state=self.state,
            mode=self._mode.current,
            settings=self._settings,
            now=self._now(),
            topics={stream: self._topic(stream) for stream in STREAMS},
            subscribed=self._inputs.reliabilities(),
            tally=self._tally,
            watched=self._detector is not None and self._detector.watched,
            detector=self._detector,
            pairer=intake.pairer if intake is not None else None,
            worker=self._worker,
            fallback=intake.fallback if intake is not None else None,
            offset_measured=intake.clock_offset.estimate() if intake is not None else None,
            offset_in_use=intake.offset_in_use if intake is not None else 0,
        )
        status, warning = self._condition.report(facts)
        if warning:
            self.get_logger().warning(warning)
        self._diagnostics.publish(diagnostic_array(status, self.get_clock().now().to_msg()))


def _start_worker(detector: PairDetector) -> Worker[Pair | Frame]:
    """A worker whose jobs ask it, and not the one after it, before they publish. Its thread does not hold the node."""
    worker: Worker[Pair | Frame] = Worker(
        lambda job: detector.detect(job, worker.check), detector.failed, JOB_KINDS, detector.wanted
    )
    return worker
