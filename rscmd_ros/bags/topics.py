"""The topics of a bag and the types of their messages, as the commands call them by default."""

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
DETECTIONS = "vision_msgs/msg/Detection2DArray"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
VISIBLE_TOPIC, THERMAL_TOPIC, TRUTH_TOPIC = "/visible/image", "/thermal/image", "/ground_truth"
