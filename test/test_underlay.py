"""The generated vision_msgs, and how it and its neighbours in .venv are found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import rclpy
import vision_msgs.msg
from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header

if not (Path(sys.prefix) / ".setup").is_dir():
    pytest.skip("this Python is not that of .venv; a distribution has its own packages", allow_module_level=True)

# Those of vision_msgs in ROS 2 Jazzy: with the same hashes, DDS takes the types for the same, and the wire is.
HASHES = {
    "Detection2DArray": "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968",
    "Detection2D": "RIHS01_0d12b69df5c593b3455b7346fac8205437a7d4bcb09b9e0e0b2dde787ded38ea",
    "BoundingBox2D": "RIHS01_008eacbb0cf8f26e83795547bed013eec3675485ef386ec056d80eaaf1c1ce2f",
    "Pose2D": "RIHS01_b0b5d1d7b4c20dd4fcde3ed1d4b289a919290572007d67a97043814db25d3648",
    "Point2D": "RIHS01_eab0e83f44ab4de92ceaf76dd7d0e7638f2bdd1d16ffbe16c7a136c48e407247",
    "ObjectHypothesisWithPose": "RIHS01_41c12344c0396c48b81df12467c192d99b2a0eb1463c5c37194e4223251c80bc",
    "ObjectHypothesis": "RIHS01_51da43cec11c01957a64d1e05a24acd18aae7745ec30b74348ad5f6d634f7f90",
    "VisionInfo": "RIHS01_95d3116a17484ad91c9a2686e1d54890bbfc3ff6c6a2de137738c4950d45d284",
    "LabelInfo": "RIHS01_3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783",
    "VisionClass": "RIHS01_1e4a11f0fed50b5623cb8ff26ca0e37952a48a9c074d16f804b44e9164c2037a",
}


def test_type_hashes_on_the_wire_are_those_of_jazzy() -> None:
    """As DDS announces them, so from the compiled type support and not from a file beside it."""
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node("hashes", context=context)
        announced = {}
        for name in HASHES:
            node.create_publisher(getattr(vision_msgs.msg, name), f"type_{name}", 1)
            (endpoint,) = node.get_publishers_info_by_topic(f"type_{name}")
            assert endpoint.topic_type == f"vision_msgs/msg/{name}"
            announced[name] = str(endpoint.topic_type_hash)
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    assert announced == HASHES


def test_detections_survive_the_wire() -> None:
    message = vision_msgs.msg.Detection2DArray()
    message.header = Header(frame_id="kamera é", stamp=Time(sec=-1, nanosec=999_999_999))
    for index in range(3):
        detection = vision_msgs.msg.Detection2D(id=f"track {index}", header=message.header)
        detection.bbox.center.position.x, detection.bbox.center.position.y = 320.5 + index, -1e300
        detection.bbox.center.theta = 0.25
        detection.bbox.size_x, detection.bbox.size_y = 1 / 3, float("inf")
        for name, score in (("person", 0.75), ("", 0.0)):
            hypothesis = vision_msgs.msg.ObjectHypothesisWithPose()
            hypothesis.hypothesis.class_id, hypothesis.hypothesis.score = name, score
            hypothesis.pose.pose.position.z = 2.0
            hypothesis.pose.covariance[35] = 4.0
            detection.results.append(hypothesis)
        message.detections.append(detection)
    assert deserialize_message(serialize_message(message), vision_msgs.msg.Detection2DArray) == message
    empty = vision_msgs.msg.Detection2DArray()
    assert deserialize_message(serialize_message(empty), vision_msgs.msg.Detection2DArray) == empty


def test_label_messages_survive_the_wire() -> None:
    classes = [vision_msgs.msg.VisionClass(class_id=65535, class_name="person")]
    labels = vision_msgs.msg.LabelInfo(class_map=classes, threshold=0.5)
    assert deserialize_message(serialize_message(labels), vision_msgs.msg.LabelInfo) == labels
    info = vision_msgs.msg.VisionInfo(method="rscmd", database_location="/names", database_version=-(2**31))
    assert deserialize_message(serialize_message(info), vision_msgs.msg.VisionInfo) == info


def test_a_distribution_s_packages_win(tmp_path: Path) -> None:
    """A sourced distribution is on PYTHONPATH, which Python looks through before site-packages."""
    for name in ("vision_msgs", "message_filters", "cv_bridge", "rclpy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    code = "import vision_msgs, message_filters, cv_bridge; print(vision_msgs.__file__, message_filters.__file__, "
    code += "cv_bridge.__file__); import os; print(os.environ.get('LD_LIBRARY_PATH'))"
    # As from a shell: without the mark, and the libraries of the environment, that this process has.
    environ = {key: value for key, value in os.environ.items() if key != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    environ.update(PYTHONPATH=str(tmp_path), LD_LIBRARY_PATH="/opt/distribution/lib")
    found = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    packages, libraries = found.stdout.splitlines()
    assert all(Path(path).is_relative_to(tmp_path) for path in packages.split())
    # And its libraries are loaded before those of the wheels.
    assert libraries.split(os.pathsep)[0] == "/opt/distribution/lib"


def test_libraries_are_found_from_any_process(tmp_path: Path) -> None:
    """From a shell, and from a process that inherited the mark of another environment: rclpy loads in both."""
    inherited = {**os.environ, "LD_LIBRARY_PATH": "/of/another", "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1"}
    shell = {key: value for key, value in inherited.items() if key not in ("_ROS_WHEELS_BOOTSTRAP_COMPLETE",)}
    code = "import rclpy, os; print(os.environ['LD_LIBRARY_PATH'])"
    answers = set()
    for environ in (inherited, shell, shell):
        found = subprocess.run([sys.executable, "-c", code], env=environ, cwd=tmp_path, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        answers.add(found.stdout)
    # In the same order every time, the environment's own first and the user's kept.
    (only,) = answers
    folders = only.strip().split(os.pathsep)
    assert folders[0] == str(Path(sys.prefix) / "lib")
    assert folders[-1] == "/of/another"
