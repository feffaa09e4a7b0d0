"""RSC-MD: representation space constrained RGB-thermal object detection with modality decoupling (arXiv 2511.15433).

This package never imports ROS.
"""

import os

__version__ = "0.1.0"

# Nothing is fetched, installed or reported behind the user's back. ultralytics reads these when it is first imported:
# with them it sends no usage events, downloads no weights (not even for its AMP check) and installs no packages.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
