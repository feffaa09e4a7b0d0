"""The network: families of layers and the model. May import the ground only: errors, files, detections, config."""
