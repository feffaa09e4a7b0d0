"""An executor that goes on: what raises in a callback is logged, and who called a service is answered all the same.

rclpy's own executors end with the first exception of any callback, also of rclpy's own (ros2/rclpy#1209): one call of
`set_parameters` with a type that does not exist, or one /clock message with negative seconds, would end the process.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor, await_or_execute

from rscmd_model.errors import as_line, one_line, quoted, shown
from rscmd_ros.node.diagnostics import Throttle

_SAY_AGAIN_AFTER = 10.0
_PAUSE = 0.1
_LONGEST = 200


class GuardedExecutor(SingleThreadedExecutor):
    """An executor that goes on whatever a callback raises; see the module.

    Args:
        logger: gets each kind of fault at most every ten seconds, as error; the traceback goes to debug.
        context: of rclpy; None for the default one.
    """

    def __init__(self, logger: Any, *, context: Any = None) -> None:
        super().__init__(context=context)
        self._logger = logger
        self._faults = Throttle(_SAY_AGAIN_AFTER)

    def add_node(self, node: Any) -> bool:
        """Manage the callbacks of a node. Its services answer from now on also where their callback raises."""
        for service in node.services:
            service.callback = self._answering(service)
        return bool(super().add_node(node))

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Wait for one callback and execute it. Raises nothing, whatever the callback does."""
        try:
            super().spin_once(timeout_sec)
        except ExternalShutdownException:
            pass  # who spins asks rclpy.ok()
        except Exception as error:  # not in a callback, where the two below catch it
            self._tell("waiting for callbacks", error)
            time.sleep(_PAUSE)  # it may come again at once

    def _make_handler(self, entity: Any, node: Any, take_from_wait_list: Callable[[Any], Any]) -> Any:
        """rclpy's task for an entity that is ready: what takes the message, and what calls the callback with it.

        Both are guarded in here and not around the task: an exception out of the first would leave the entity and its
        callback group marked as busy, and nothing of the node would be called any more.
        """

        def take(entity: Any) -> Callable[[], Awaitable[None]] | None:
            try:
                work = take_from_wait_list(entity)
            except Exception as error:  # a message that cannot be deserialised
                self._tell(_name(entity), error)
                return None
            if work is None:
                return None

            async def run() -> None:
                try:
                    await work()
                except Exception as error:
                    self._tell(_name(entity), error)

            return run

        return super()._make_handler(entity, node, take)

    def _answering(self, service: Any) -> Callable[[Any, Any], Awaitable[Any]]:
        """The callback of a service, with a refusal for an answer where it raises."""
        callback = service.callback

        async def answer(request: Any, response: Any) -> Any:
            try:
                answered = await await_or_execute(callback, request, response)
                if isinstance(answered, service.srv_type.Response):
                    return answered
                raise TypeError(f"its callback returned {type(answered).__name__}, which is no response")
            except Exception as error:
                self._tell(_name(service), error)
                return refusal(request, response, shown(one_line(error), _LONGEST))

        return answer

    def _tell(self, what: str, error: Exception) -> None:
        if self._faults.allows(f"{what} {type(error).__name__}"):
            self._logger.error(f"{what} failed, and the node goes on: {shown(one_line(error), _LONGEST)}")
            self._logger.debug("\n".join(map(as_line, traceback.format_exc().splitlines())))


def refuse_impossible_transitions(node: Any) -> None:
    """Have the service change_state of a node answer `success: false` to what is not possible in its state.

    rclpy's own callback may raise there.

    A warning says what was asked and what would be possible, at most every ten seconds.
    """
    refusals = Throttle(_SAY_AGAIN_AFTER)

    def answer(change: Callable[[Any, Any], Any], request: ChangeState.Request, response: ChangeState.Response) -> Any:
        wanted, possible = request.transition, node._state_machine.available_transitions
        if any(label == wanted.label if wanted.label else number == wanted.id for number, label, *_ in possible):
            return change(request, response)
        if refusals.allows("change_state"):
            asked = quoted(wanted.label) if wanted.label else f"of id {wanted.id}"
            choice = ", ".join(f"{label} ({number})" for number, label, *_ in possible) or "none"
            node.get_logger().warning(
                f"change_state refused: transition {asked} is not possible while the node is "
                f"{node._state_machine.current_state[1]}; possible: {choice}"
            )
        response.success = False
        return response

    for service in node.services:
        if service.srv_type is ChangeState:
            service.callback = partial(answer, service.callback)


def refusal(request: Any, response: Any, reason: str) -> Any:
    """The response of a service that says no, as far as its type has words for it.

    Args:
        request: what was asked.
        response: what the callback was given to fill, and may have filled in part.
        reason: why.
    """
    no = SetParametersResult(successful=False, reason=reason)
    if hasattr(response, "results") and hasattr(request, "parameters"):  # set_parameters: those before it are set
        missing = len(request.parameters) - len(response.results)
        response.results = [*response.results, *[no] * missing]
    elif hasattr(response, "result") and isinstance(response.result, SetParametersResult):
        response.result = no
    for flag in ("success", "successful"):
        if hasattr(response, flag):
            setattr(response, flag, False)
    for words in ("message", "failure_reason"):
        if hasattr(response, words):
            setattr(response, words, reason)
    return response


def _name(entity: Any) -> str:
    """What a message or a call came to, in words."""
    for kind, attribute in (("topic", "topic_name"), ("service", "service_name")):
        try:
            if hasattr(entity, attribute):
                return f"{kind} {getattr(entity, attribute)}"
        except Exception:  # it has just been destroyed
            return f"a {kind}"
    return f"a callback of rclpy's {type(entity).__name__}"
