"""The detector node: from messages to detections. May import cameras, pairing, and `rscmd_model`'s inference."""
