"""ROS 2 side of RSC-MD: pairing, message conversion, the detector node, bags and reports.

Importing this package loads nothing else, so that an entry point can set up its signal handling before rclpy and
torch take their seconds to load.
"""
