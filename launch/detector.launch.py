"""Starts the detector node.

    ros2 launch rscmd_ros detector.launch.py model:=model.safetensors visible_topic:=/cam/image thermal_topic:=/ir/image

An argument left out changes nothing: the node's own default holds, or what the parameter file says. The node
configures and activates itself; nothing here asks it to, so no transition is ever asked for twice. With
`autostart:=false` it waits to be told, by a lifecycle manager or by hand: `ros2 lifecycle set /rscmd_detector
configure`, then `activate`.
"""

import os
from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.launch_description_entity import LaunchDescriptionEntity
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {
    "params_file": "YAML file with parameters of the node; see config/detector.yaml",
    "model": "path of the model.safetensors to run",
    "visible_topic": "topic of the visible images (sensor_msgs/Image)",
    "thermal_topic": "topic of the thermal images (sensor_msgs/Image)",
    "namespace": "namespace of the node and its topics",
    "use_sim_time": "true: take the time from /clock, as when a bag is played with --clock",
    "log_level": "debug, info, warn, error or fatal",
    "autostart": "true: the node configures and activates itself; false: it waits for a lifecycle manager",
}
CHOICES = {"use_sim_time": ["", "true", "false"], "autostart": ["", "true", "false"]}
# Large images are lost without shared memory; see the file. Fast DDS of Jazzy reads the first, later ones the second.
PROFILE = Path(__file__).resolve().parent.parent / "config" / "fastdds.xml"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def generate_launch_description() -> LaunchDescription:
    """What ros2 launch asks for."""
    arguments = [
        DeclareLaunchArgument(name, default_value="", description=text, choices=CHOICES.get(name))
        for name, text in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The node, told only what was given.

    Raises RuntimeError when the parameter file is not there: launch would start the node without it.
    """
    given = {name: context.launch_configurations[name] for name in ARGUMENTS if context.launch_configurations[name]}
    parameters: list[str | dict[str, bool | ParameterValue]] = []
    if "params_file" in given:
        if not os.path.isfile(given["params_file"]):
            raise RuntimeError(f"params_file:={given['params_file']} is not a file")
        parameters.append(given["params_file"])
    # After the file, so that what stands on the command line wins. A model called 1.0 is a string all the same.
    values: dict[str, bool | ParameterValue] = {name: given[name] == "true" for name in CHOICES if name in given}
    if "model" in given:
        values["model"] = ParameterValue(given["model"], value_type=str)
    if values:
        parameters.append(values)
    topics = {"visible/image": "visible_topic", "thermal/image": "thermal_topic"}
    node = Node(
        package="rscmd_ros",
        executable="detector_node",
        namespace=given.get("namespace"),
        parameters=parameters,
        remappings=[(topic, given[name]) for topic, name in topics.items() if name in given],
        ros_arguments=["--log-level", given["log_level"]] if "log_level" in given else None,
        output="screen",
    )
    return [*profile(), node]


def profile() -> list[LaunchDescriptionEntity]:
    """Chooses config/fastdds.xml, unless the user chose a profile or another middleware."""
    chosen = any(os.environ.get(name) for name in PROFILE_VARIABLES)
    # Set and empty, as an .env file may leave it, is to ROS as not set at all.
    fast_dds = (os.environ.get("RMW_IMPLEMENTATION") or "rmw_fastrtps_cpp").startswith("rmw_fastrtps")
    if chosen or not fast_dds:
        return []
    return [SetEnvironmentVariable(name, str(PROFILE)) for name in PROFILE_VARIABLES]
