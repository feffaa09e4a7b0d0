"""The Python interface of ROS 2's cv_bridge: sensor_msgs images to and from numpy arrays, on any NumPy and OpenCV."""

from cv_bridge.core import CvBridge, CvBridgeError

__all__ = ["CvBridge", "CvBridgeError"]
