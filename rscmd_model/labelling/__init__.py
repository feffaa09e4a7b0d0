"""From what a model answers to labels. May import imaging, datasets, network and inference."""
