"""config/fastdds.xml: Fast DDS takes it, and with it images arrive."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from detector_process import MEMORY, ROOT, Detector

FRAMES = 30

# A camera driver and a viewer: 640x512 bgr8, best effort, each in a process of its own.
SUBSCRIBER = f"""
import time
from pathlib import Path
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("viewer")
got = []
whole = bytes([7]) * 512 * 1920
take = lambda message: got.append((message.header.frame_id, bytes(message.data) == whole))
qos = QoSProfile(depth={FRAMES}, reliability=ReliabilityPolicy.BEST_EFFORT)
node.create_subscription(Image, "image", take, qos)
mapped = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
shared = [Path(file) for file in mapped if file.startswith(("/dev/shm/fastrtps_", "/dev/shm/fastdds_"))]
print(max(file.stat().st_size for file in shared), flush=True)
last = time.monotonic() + 60
while time.monotonic() < last and not (got and got[-1][0] == "last"):
    rclpy.spin_once(node, timeout_sec=0.1)
print(sum(is_whole for _, is_whole in got), flush=True)
"""
PUBLISHER = f"""
import array, time
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("camera")
qos = QoSProfile(depth={FRAMES}, reliability=ReliabilityPolicy.BEST_EFFORT)
publisher = node.create_publisher(Image, "image", qos)
while publisher.get_subscription_count() == 0:
    time.sleep(0.05)
message = Image(height=512, width=640, step=1920, encoding="bgr8", data=array.array("B", bytes([7]) * 512 * 1920))
for _ in range({FRAMES}):
    publisher.publish(message)
    time.sleep(1 / 30)
# Small, so it arrives whatever became of the others; again and again until the viewer has gone.
while publisher.get_subscription_count():
    message = Image()
    message.header.frame_id = "last"
    publisher.publish(message)
    time.sleep(0.1)
"""


def test_large_images_arrive_best_effort() -> None:
    """Without the profile one in ten arrives."""
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < 3 * 64 * 2**20:
        pytest.skip("less than 192 MB of shared memory in /dev/shm (containers: --ipc=host)")
    viewer = subprocess.Popen([sys.executable, "-c", SUBSCRIBER], stdout=subprocess.PIPE, text=True)
    camera = subprocess.Popen([sys.executable, "-c", PUBLISHER])
    try:
        said, _ = viewer.communicate(timeout=90)
    finally:
        for process in (viewer, camera):
            process.kill()
            process.wait()
    segment, arrived = (int(line) for line in said.splitlines())
    # The profile is in force: the process shares what the file asks for.
    assert segment >= 64 * 2**20
    # Best effort: a loaded machine may lose a few. The default transports lose nine of ten.
    assert arrived >= 0.8 * FRAMES


@pytest.mark.parametrize("room", [True, False])
def test_a_node_without_shared_memory_says_so(room: bool, tmp_path: Path) -> None:
    """Fast DDS says that the platform has none. No process may make a large file here, as in a full /dev/shm."""
    if room and (not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < 2 * 64 * 2**20):
        pytest.skip("less than 128 MB of shared memory in /dev/shm (containers: --ipc=host)")
    limit = "" if room else "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24))"
    detector = Detector(tmp_path, limit)
    try:
        detector.wait_for("the node stays unconfigured")
        assert detector.end() == 0
    finally:
        detector.close()
    assert detector.text.count("no shared memory for images: the segment that") == (0 if room else 1), detector.text


def test_no_complaint_about_the_file(tmp_path: Path) -> None:
    """Fast DDS prints what it does not understand and goes on without it."""
    code = "import rclpy; rclpy.init(); rclpy.create_node('quiet')"
    profile = str(ROOT / "config" / "fastdds.xml")
    quiet, broken = (
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "FASTRTPS_DEFAULT_PROFILES_FILE": file, "FASTDDS_DEFAULT_PROFILES_FILE": file},
            capture_output=True,
            text=True,
        )
        for file in (profile, broken_copy(profile, tmp_path))
    )
    said = (quiet.stdout + quiet.stderr).splitlines()
    # From Kilted on it says of the variable that it has a new name, which is set too.
    assert [line for line in said if "FASTRTPS_DEFAULT_PROFILES_FILE" not in line] == []
    assert quiet.returncode == 0
    # So that silence means something.
    assert "XMLPARSER" in broken.stdout + broken.stderr


def broken_copy(profile: str, folder: Path) -> str:
    copy = folder / "broken.xml"
    copy.write_text(Path(profile).read_text().replace("segment_size", "segment_sizes"))
    return str(copy)
