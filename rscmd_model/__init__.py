"""RSC-MD: representation space constrained RGB-thermal object detection with modality decoupling (arXiv 2511.15433).

This package never imports ROS.
"""

import os

__version__ = "0.1.0"

# Nothing is fetched, installed or reported behind the user's back. ultralytics reads these when it is first imported:
# with them it sends no usage events, downloads no weights and installs no packages. Its check of mixed precision
# fetches a model all the same; training/trainer.py does without it.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

# A robot's processor is never idle. By default, OpenMP's threads spin while they wait for one another; when another
# process holds a core, each of the network's many small steps then waits for a time slice, and an answer that takes
# 30 ms takes a second. Waiting asleep costs little. Has to be set before torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
