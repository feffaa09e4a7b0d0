"""The log of the node: whatever goes into it is printable, and every line is one of ours.

Messages, requests and the graph hold text that strangers wrote, and it gets into errors of all kinds. A line break in
it would forge lines of the log, an escape would reach the terminal, a megabyte would come again and again.
`errors.shown` makes such a text fit where it is named; this is for those that were forgotten.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from rclpy.impl import rcutils_logger
from rclpy.logging import LoggingSeverity

from rscmd_model.errors import as_line

_MOST_LINES = 100

# rclpy tells callers apart, and names them on /rosout, by the first file on the stack that is none of these.
rcutils_logger.CallerId()
getattr(rcutils_logger, "_internal_callers", []).append(__file__)  # a private name: without it they are named wrongly


@cache
def clean_logger(name: str) -> CleanLogger:
    """The logger of this name."""
    return CleanLogger(name)


class CleanLogger(rcutils_logger.RcutilsLogger):
    """rclpy's logger, for printable lines. Of severity debug a text may have several (tracebacks): one message each."""

    def log(self, message: Any, severity: LoggingSeverity, **options: Any) -> bool:
        """Log a message, as rclpy's own method does.

        Returns:
            Whether it was written.
        """
        text = str(message)
        lines = text.splitlines()[-_MOST_LINES:] if severity == LoggingSeverity.DEBUG else [text]
        said = [super(CleanLogger, self).log(as_line(line), severity, **options) for line in lines]
        return all(said)
