"""The launch file, with the real launch, the installed package and the real node.

Where there is no launch, test_launch_file.py reads the file alone.
"""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
import torch
from launch_sources import installed, launch_folder, on_path
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python

from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.methods import method_config
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import ModelHeader, save_model

if launch_folder() is None and not (installed("launch") and installed("launch_ros")):
    pytest.skip("no launch among the wheels of ROS: make test LAUNCH=FOLDER", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
# What `ros2 launch FILE NAME:=VALUE ...` does.
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [tuple(argument.split(":=", 1)) for argument in sys.argv[2:]]
service = LaunchService(argv=sys.argv[2:])
source = PythonLaunchDescriptionSource(sys.argv[1])
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)]))
sys.exit(service.run())
"""


@pytest.fixture(scope="module", autouse=True)
def launch_is_found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Here and in child processes, in the folder that LAUNCH names."""
    with pytest.MonkeyPatch.context() as patch:
        if folder := launch_folder():
            places = on_path(folder, tmp_path_factory.mktemp("generated"))
            patch.setattr(sys, "path", [*places, *sys.path])
            patch.setenv("PYTHONPATH", os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with random weights."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    torch.manual_seed(0)
    network = RscmdModel(method_config("rscmd"), {0: "person"})
    save_model(path, network, ModelHeader(network.config, {0: "person"}, 128, ThermalContract()))
    return path


class Launched:
    """`detector.launch.py` of the installed package or another `file`, running; and a node that asks about its node."""

    def __init__(
        self,
        prefix: Path,
        name: str,
        arguments: list[str],
        hidden: tuple[str, ...] = PROFILES,
        file: Path | None = None,
    ) -> None:
        environ = {key: value for key, value in os.environ.items() if key not in hidden}
        modules = next(prefix.glob("lib/python3*/site-packages"))
        environ["PYTHONPATH"] = os.pathsep.join([str(modules), *filter(None, [environ.get("PYTHONPATH")])])
        environ["AMENT_PREFIX_PATH"] = str(prefix)
        self.file = file or prefix / "share" / "rscmd_ros" / "launch" / "detector.launch.py"
        command = [sys.executable, "-c", LAUNCH, str(self.file), *arguments]
        self.process = subprocess.Popen(
            command,
            env=environ,
            cwd=prefix,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.name = name
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("asker", context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def wait(self, reached: Callable[[], bool]) -> None:
        """Until it is so, or the launch ended, or two minutes have passed."""
        for _ in range(1200):
            if reached() or self.process.poll() is not None:
                break
            time.sleep(0.1)
        assert reached(), self.output()

    def ask(self, kind: Any, service: str, request: Any) -> Any:
        client = self.node.create_client(kind, f"{self.name}/{service}")
        self.wait(lambda: bool(client.wait_for_service(0.1)))
        future = client.call_async(request)
        self.executor.spin_until_future_complete(future, timeout_sec=120)  # it may be loading
        self.node.destroy_client(client)
        assert future.done(), self.output()
        return future.result()

    def state(self) -> int:
        return int(self.ask(GetState, "get_state", GetState.Request()).current_state.id)

    def change(self, transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return bool(self.ask(ChangeState, "change_state", request).success)

    def parameters(self, *names: str) -> list[Any]:
        answer = self.ask(GetParameters, "get_parameters", GetParameters.Request(names=names))
        return [parameter_value_to_python(value) for value in answer.values]

    def node_environment(self) -> dict[str, str]:
        """That of the node's process."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and any(word.endswith(b"/detector_node") for word in words):
                    pairs = (folder / "environ").read_bytes().split(b"\0")
                    return dict(pair.decode().split("=", 1) for pair in pairs if b"=" in pair)
            except OSError:
                continue
        raise AssertionError("the launch runs no detector_node")

    def output(self) -> str:
        """Everything launch and node have said; ends both, as Ctrl-C in a terminal does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            return self.process.communicate(timeout=30)[0]
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return "launch did not end on SIGINT\n" + self.process.communicate()[0]

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)
        if self.process.poll() is None:
            self.output()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def launched(installed_package: Path) -> Iterator[Callable[..., Launched]]:
    running: list[Launched] = []

    def start(name: str, *arguments: str, **options: Any) -> Launched:
        running.append(Launched(installed_package, name, list(arguments), **options))
        return running[-1]

    yield start
    for one in running:
        one.close()


def test_the_node_comes_up_active_with_what_was_given(launched: Any, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("/**:\n  ros__parameters:\n    slop_ms: 12.5\n    model: not this one\n    queue_size: 7\n")
    topics = ("visible_topic:=/left/image", "thermal_topic:=right")
    given = (f"params_file:={file}", f"model:={model}", "namespace:=robot", "use_sim_time:=true", "log_level:=warn")
    launch = launched("/robot/rscmd_detector", *given, *topics)
    launch.wait(lambda: launch.state() == State.PRIMARY_STATE_ACTIVE)
    # The command line over the file, the file over the node, the node where nobody said anything.
    assert launch.parameters("model", "slop_ms", "queue_size", "use_sim_time", "autostart", "pairing_policy") == [
        str(model),
        12.5,
        7,
        True,
        True,
        "nearest",
    ]
    subscribed = dict(launch.node.get_subscriber_names_and_types_by_node("rscmd_detector", "/robot"))
    assert {"/left/image", "/robot/right"} <= set(subscribed)
    assert not {name for name in subscribed if name.endswith(("visible/image", "thermal/image"))}
    published = dict(launch.node.get_publisher_names_and_types_by_node("rscmd_detector", "/robot"))
    assert published["/robot/detections"] == ["vision_msgs/msg/Detection2DArray"]
    profile = launch.file.parent.parent / "config" / "fastdds.xml"
    assert Path(launch.node_environment()[PROFILES[0]]).samefile(profile)
    said = launch.output()
    assert launch.process.returncode == 0, said
    assert "finished cleanly" in said
    assert "Traceback" not in said
    # Activated once, and nobody asked for it again.
    assert "ransition is not registered" not in said
    # log_level; without it the node says something, as the test below sees.
    assert "[detector_node-1] [INFO]" not in said


def test_nothing_given_changes_nothing(launched: Any) -> None:
    """Without a model the node cannot configure; it stays there to be told one."""
    launch = launched("/rscmd_detector")
    assert launch.parameters("model", "autostart", "use_sim_time", "slop_ms") == ["", True, False, 50.0]
    assert launch.state() == State.PRIMARY_STATE_UNCONFIGURED


def test_the_lifecycle_is_the_user_s_without_autostart(launched: Any, model: Path) -> None:
    mine = {"hidden": PROFILES[1:]}
    launch = launched("/rscmd_detector", "autostart:=false", f"model:={model}", **mine)
    assert launch.parameters("autostart") == [False]
    assert launch.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert launch.change(Transition.TRANSITION_CONFIGURE)
    assert launch.state() == State.PRIMARY_STATE_INACTIVE
    assert launch.change(Transition.TRANSITION_ACTIVATE)
    assert launch.state() == State.PRIMARY_STATE_ACTIVE
    # The profile that this test runs with is the user's, and stays.
    assert launch.node_environment()[PROFILES[0]] == os.environ[PROFILES[0]]
    assert PROFILES[1] not in launch.node_environment()
    assert "[detector_node-1] [INFO]" in launch.output()


MANAGED = """
from launch import LaunchDescription
from launch.actions import EmitEvent
from launch.events import matches_action
from launch_ros.actions import LifecycleNode
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

def generate_launch_description():
    node = LifecycleNode(
        package="rscmd_ros", executable="detector_node", name="rscmd_detector", namespace="", output="screen",
        parameters=[{{"model": {model!r}, "device": "cpu", "backend": "torch"}}],
    )
    wanted = (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    ask = [ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=number) for number in wanted]
    return LaunchDescription([node, *map(lambda event: EmitEvent(event=event), ask)])
"""


def test_a_launch_file_that_manages_what_manages_itself(launched: Any, model: Path, tmp_path: Path) -> None:
    """It asks an autostarted node to configure and activate: both are refused, and the node lives."""
    file = tmp_path / "managed.launch.py"
    file.write_text(MANAGED.format(model=str(model)))
    launch = launched("/rscmd_detector", file=file)
    launch.wait(lambda: launch.state() == State.PRIMARY_STATE_ACTIVE)
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert not launch.change(transition)
    assert launch.change(Transition.TRANSITION_DEACTIVATE)
    assert launch.change(Transition.TRANSITION_ACTIVATE)
    assert launch.state() == State.PRIMARY_STATE_ACTIVE
    said = launch.output()
    assert launch.process.returncode == 0, said
    for wanted in ("CONFIGURE", "ACTIVATE"):
        assert f"Failed to make transition 'TRANSITION_{wanted}' for LifecycleNode '/rscmd_detector'" in said
    # Launch asks for both at once, and one warning is enough for them.
    assert re.search("change_state refused: transition of id [13] is not possible while the node is active", said)
    assert "Traceback" not in said
    assert "process has died" not in said


def test_another_middleware_gets_no_profile(installed_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROFILES, "RMW_IMPLEMENTATION"):
        monkeypatch.delenv(name, raising=False)
    profile = runpy.run_path(str(installed_package / "share/rscmd_ros/launch/detector.launch.py"))["profile"]
    assert len(profile()) == len(PROFILES)
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp")
    assert profile() == []


@pytest.mark.parametrize("argument", ["params_file:=/no/such.yaml", "autostart:=perhaps"])
def test_a_mistake_ends_the_launch_and_is_named(launched: Any, argument: str) -> None:
    launch = launched("/rscmd_detector", argument)
    said = launch.process.communicate(timeout=60)[0]
    assert launch.process.returncode != 0
    assert argument.partition(":=")[2] in said
    assert "process started" not in said


def test_the_launch_file_names_every_argument_and_no_default(installed_package: Path) -> None:
    from launch.actions import DeclareLaunchArgument
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    file = installed_package / "share" / "rscmd_ros" / "launch" / "detector.launch.py"
    description = get_launch_description_from_python_launch_file(str(file))
    declared = [entity for entity in description.entities if isinstance(entity, DeclareLaunchArgument)]
    names = "params_file model visible_topic thermal_topic namespace use_sim_time log_level autostart"
    assert " ".join(argument.name for argument in declared) == names
    for argument in declared:
        assert "".join(part.text for part in argument.default_value) == ""
        assert argument.description
