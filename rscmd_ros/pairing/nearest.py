"""Which visible and thermal frames belong together, and what became of every other one.

Plain Python without ROS; all times are integer nanoseconds. The result depends on nothing but the sequence of calls
(stream, stamp, now), so a bag replayed twice gives the same pairs twice.

Policy `nearest`, one to one: of all the ways to put a visible and a thermal frame together, the pair with the smallest
time difference is taken first, then the next smallest that neither uses a frame already taken nor crosses a pair
already taken, and so on within the slop. Neither stream has to be named the slower one. When the streams differ in
rate, every frame of the slower stream gets its nearest partner in the faster one; when two frames want the same
partner, as happens near equal rates, the nearer one has it. The rule looks at the whole recording;
`rscmd_ros.pairing.matching` does it online.
"""

from __future__ import annotations

from typing import Any

from rscmd_ros.pairing.frames import Frame, Pair, Pairer, Stream
from rscmd_ros.pairing.matching import OneToOne, Reusing

POLICIES = ("nearest", "approximate", "exact")

DEFAULT_CAPACITY = 30


class NearestPairer(Pairer):
    """Policy `nearest`: see the module's docstring for the rule.

    Args:
        slop: largest |dt| of a pair, ns, 0 or more; equal to it is still a pair.
        thermal_offset: how late thermal stamps are, ns, negative where visible ones are; subtracted before comparison.
            One number serves both streams: nothing here depends on more than the difference.
        deadline: a frame that has had a possible partner for so long (ns) is paired with the best partner known by
            then; None waits until no frame still to come could be nearer.
        reuse: pair every frame with its nearest partner, so that one slow frame serves several fast ones.
        capacity: frames kept waiting per stream, 1 or more; the oldest gives way.
        anticipate: count on a stream's next frame not coming sooner than 3/4 of the smallest of its last 16 gaps.
            Without it a pair whose earlier frame is of a slow stream waits for that stream's next frame (111 ms at
            9 Hz), only because one might come. False trusts nothing but what has arrived.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        slop: int,
        *,
        thermal_offset: int = 0,
        deadline: int | None = None,
        reuse: bool = False,
        capacity: int = DEFAULT_CAPACITY,
        anticipate: bool = True,
    ) -> None:
        if slop < 0:
            raise ValueError(f"slop must be 0 ns or more, got {slop}")
        if deadline is not None and deadline < 0:
            raise ValueError(f"deadline must be 0 ns or more, or None, got {deadline}")
        if capacity < 1:
            raise ValueError(f"capacity must be 1 or more frames, got {capacity}")
        self._matching: OneToOne | Reusing = (Reusing if reuse else OneToOne)(
            slop=slop, deadline=deadline, capacity=capacity, anticipate=anticipate
        )
        super().__init__(thermal_offset, self._matching.pending)
        self._matching.ledger = self.ledger

    def add(self, stream: Stream, stamp: int, payload: Any, now: int) -> list[Pair]:
        """Take in a frame; see `Pairer.add`."""
        self.ledger.received(stream)
        if stamp <= 0:
            self.ledger.count(stream, "invalid")
            return []
        time = self._time(stream, stamp)
        if self._judge(stream, time) != "new":
            self.ledger.count(stream, "duplicate" if time in self._matching.history[stream] else "late")
            return self._matching.decide(now)
        return self._matching.add(Frame(stream, stamp, payload), time, now)

    def poll(self, now: int) -> list[Pair]:
        """Return the pairs whose deadline has come."""
        return self._matching.decide(now)

    def flush(self) -> list[Pair]:
        """Decide everything: no frame will follow. Afterwards nothing is pending."""
        return self._matching.close()

    def clear(self) -> None:
        """Forget all frames waiting (each counted `reset`) and everything known about time."""
        self._matching.clear()
        self._forget_time()


def make_pairer(
    policy: str = "nearest",
    *,
    slop: int,
    thermal_offset: int = 0,
    deadline: int | None = None,
    reuse: bool = False,
    capacity: int = DEFAULT_CAPACITY,
) -> Pairer:
    """Make the pairer of a policy.

    `approximate` and `exact` hand over to message_filters, which is imported only here and needs ROS. They know neither
    `deadline` nor `reuse`.

    Args:
        policy: one of `POLICIES`.
        slop, thermal_offset, deadline, reuse, capacity: as for `NearestPairer`.

    Raises:
        ValueError: the policy is unknown or cannot do what is asked.
        ImportError: message_filters are needed and missing.
    """
    if policy == "nearest":
        return NearestPairer(slop, thermal_offset=thermal_offset, deadline=deadline, reuse=reuse, capacity=capacity)
    if policy not in POLICIES:
        raise ValueError(f"unknown pairing policy '{policy}': choose one of {', '.join(POLICIES)}")
    if reuse:
        raise ValueError(f"reuse works with pairing policy 'nearest' only, not with '{policy}'")
    from rscmd_ros.pairing.standard import StandardPairer

    return StandardPairer(policy, slop=slop, thermal_offset=thermal_offset, capacity=capacity)
