"""Start the detector node: `python -m rscmd_ros.detector_node --ros-args -p model:=model.safetensors`.

SIGINT and SIGTERM end it with exit code 0 at any moment, also while torch is being imported or a model is loaded. So
the handlers are set before anything slow is imported, they only set a flag, and the main thread does nothing but wait
for it: Python runs signal handlers in the main thread, between two of its own instructions, and never inside a wait of
the middleware or a long import. All of ROS lives in a second thread.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from rscmd_ros.transport import heed_help, shared_memory_problem

_HELP = """Visible and thermal images in, vision_msgs detections out: the RSC-MD detector as a lifecycle node.

    python -m rscmd_ros.detector_node --ros-args -p model:=model.safetensors -r visible/image:=/camera/image_raw
    python -m rscmd_ros.detector_node --ros-args --params-file detector.yaml

Listens to visible/image and thermal/image (sensor_msgs/Image) and publishes detections (vision_msgs/Detection2DArray).
config/detector.yaml has every parameter with its default and meaning.
"""

_GRACE = 4.0
"""Seconds that the node has to end in order; `ros2 launch` waits five."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the node until a signal ends it.

    Exits with code 0; or 2, with one line on stderr, when it cannot start as asked.

    Args:
        args: the program's name and the words after it; None: those of the command line.
    """
    words = list(sys.argv if args is None else args)
    heed_help("python -m rscmd_ros.detector_node", _HELP, words[1:])
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    outcome: list[int] = []
    ros = threading.Thread(target=lambda: outcome.append(_run(words, stopping)), name="ros", daemon=True)
    ros.start()
    while ros.is_alive() and not stopping.is_set():
        ros.join(0.1)
    ros.join(_GRACE)
    sys.stdout.flush()
    sys.stderr.flush()
    # No outcome means that a signal came during something long, or that an error was printed that we did not foresee.
    code = outcome[0] if outcome else 0 if stopping.is_set() else 1
    # Not sys.exit: a thread may still be inside an import or an inference that nothing can interrupt, and the
    # interpreter's own ending would pull the libraries away from under it.
    os._exit(code)


def _run(words: list[str], stopping: threading.Event) -> int:
    """Everything from the import of rclpy to the end of the node.

    Returns:
        The exit code.
    """
    try:
        import rclpy
        from rclpy.exceptions import NameValidationException, ParameterException
        from rclpy.signals import SignalHandlerOptions

        from rscmd_model.errors import UserError
        from rscmd_model.versions import EVERYWHERE, require
        from rscmd_ros.node.detector import DetectorNode
        from rscmd_ros.node.guard import GuardedExecutor
        from rscmd_ros.node.unused_parameters import unreached
    except ImportError as error:
        return _refuse(error, _which_python())
    try:
        require(*EVERYWHERE)
    except UserError as error:
        return _refuse(error)
    try:
        rclpy.init(args=words, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # rclpy's own kinds: unknown arguments, a parameter file that is not there or no YAML
        return _refuse(error)
    code = 0
    try:
        node = DetectorNode(stopping)
    except (ParameterException, NameValidationException, RuntimeError) as error:  # the last is the middleware's
        code = _refuse(error)
    else:
        for line in unreached(words, node.get_fully_qualified_name()):
            node.get_logger().warning(line)
        if (problem := shared_memory_problem()) is not None:
            node.get_logger().warning(problem)
        executor = GuardedExecutor(node.get_logger())
        executor.add_node(node)
        if not stopping.is_set():
            node.start()
        while not stopping.is_set() and rclpy.ok():
            executor.spin_once(timeout_sec=0.1)
        if node.state in ("unconfigured", "inactive", "active"):
            node.trigger_shutdown()
        executor.shutdown()
        node.destroy_node()
        del node, executor
    # The middleware takes leave only when the last handle on the node is gone, also on one that could not be made, and
    # its state machine keeps one that destroy_node leaves alone. Without this the node stays visible to others for
    # 20 s, services of a new one of the same name get no answer, and its shared memory, 70 MB, is never given back.
    gc.collect()
    rclpy.try_shutdown()
    return code


def _which_python() -> str:
    """Where a module was looked for: most often colcon built the command for a Python without the environment."""
    of = f"of the virtual environment {sys.prefix}" if sys.prefix != sys.base_prefix else "of no virtual environment"
    remedy = "build with the environment active that has the requirements, and source ROS 2 in this shell"
    return f"; this Python is {sys.executable}, {of}: {remedy}"


def _refuse(error: Exception, hint: str = "") -> int:
    kind = "unknown arguments after --ros-args: " if type(error).__name__ == "UnknownROSArgsError" else ""
    from rscmd_model.errors import as_line

    print(f"error: cannot start: {kind}{as_line(' '.join(str(error).split()))}{hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
