"""A drawn world of two cameras, for tests and demos. May import imaging and data sets."""
