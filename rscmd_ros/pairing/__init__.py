"""Which frames belong together: integers of nanoseconds, no ROS. Imports nothing of the other rooms."""

from rscmd_ros.pairing.frames import COUNTERS, STREAMS, Counter, Frame, Ledger, Pair, Pairer, Stream
from rscmd_ros.pairing.nearest import DEFAULT_CAPACITY, POLICIES, NearestPairer, make_pairer

__all__ = [
    "COUNTERS",
    "DEFAULT_CAPACITY",
    "POLICIES",
    "STREAMS",
    "Counter",
    "Frame",
    "Ledger",
    "NearestPairer",
    "Pair",
    "Pairer",
    "Stream",
    "make_pairer",
]
