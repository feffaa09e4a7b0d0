"""Which of two cameras takes which picture when, with their rates, jitter, drops and offset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rscmd_model.errors import UserError

START = 1_700_000_000 * 10**9  # ns; a fixed day, so that the same seed gives the same bytes
MS = 1_000_000


@dataclass(frozen=True)
class Timing:
    """How the two cameras run.

    Attributes:
        rate_visible: pictures of the visible camera per second, above 0 and at most 1000.
        rate_thermal: the same for the thermal camera.
        thermal_offset_ms: how late thermal stamps are, in ms, -10000 to 10000.
        jitter_ms: each picture is taken up to so many ms before or after its time, evenly spread; order is kept.
        drop: the share of either camera's frames that is not recorded, 0 to 1 (1 excluded).
        seed: of jitter and drops, 0 or more.
        pause: seconds that pass from one sequence of pictures to the next, 0 to 3600.
    """

    rate_visible: float = 10.0
    rate_thermal: float = 10.0
    thermal_offset_ms: float = 0.0
    jitter_ms: float = 0.0
    drop: float = 0.0
    seed: int = 0
    pause: float = 0.0

    def __post_init__(self) -> None:
        for option, value in (("--rate-visible", self.rate_visible), ("--rate-thermal", self.rate_thermal)):
            if not 0 < value <= 1000:
                raise UserError(f"{option} must be above 0 and at most 1000 Hz, got {value}")
        if not 0 <= self.drop < 1:
            raise UserError(f"--drop is a share of the frames and must be within 0..1 (1 excluded), got {self.drop}")
        if not 0 <= self.jitter_ms <= 10_000:
            raise UserError(f"--jitter-ms must be within 0..10000, got {self.jitter_ms}")
        if not abs(self.thermal_offset_ms) <= 10_000:
            raise UserError(f"--thermal-offset-ms must be within -10000..10000, got {self.thermal_offset_ms}")
        if self.seed < 0:
            raise UserError(f"--seed must be 0 or more, got {self.seed}")
        if not 0 <= self.pause <= 3600:
            raise UserError(f"--pause must be within 0..3600 s, got {self.pause}")


@dataclass(frozen=True)
class Shot:
    """One recorded frame.

    Attributes:
        stream: visible or thermal.
        pair: index of its pair.
        stamp: header stamp, ns.
        recorded: time of recording, ns.
    """

    stream: str
    pair: int
    stamp: int
    recorded: int


def plan(pairs: int, timing: Timing, sequences: Sequence[str] | None = None) -> list[Shot]:
    """Which camera takes which picture when.

    The pairs are the instants of the world, `timing.rate_visible` of them per second. Each thermal picture is that of
    the instant nearest in time. Jitter moves the moment at which a picture is taken; the offset moves only the thermal
    stamps, not the pictures. The same seed gives the same plan.

    Args:
        pairs: how many there are.
        timing: of the two cameras.
        sequences: of each pair the name of its sequence, for pauses between them; None: all are of one.

    Returns:
        The frames in the order of recording, without those that are dropped.
    """
    shots: list[Shot] = []
    names = sequences or [""] * pairs
    begins = np.cumsum([name != before for name, before in zip(names, [names[0], *names])]) * timing.pause
    later = [round(seconds * 1e9) for seconds in begins.tolist()]  # of each pair
    duration = pairs / timing.rate_visible
    for number, (stream, rate) in enumerate((("visible", timing.rate_visible), ("thermal", timing.rate_thermal))):
        rng = np.random.default_rng((timing.seed, number))
        count = max(1, math.floor(duration * rate + 1e-9))
        jitter = rng.uniform(-timing.jitter_ms, timing.jitter_ms, count)
        dropped = rng.uniform(size=count) < timing.drop
        offset = round(timing.thermal_offset_ms * MS) if stream == "thermal" else 0
        before = -(10**18)
        for k in range(count):
            taken = max(round(k / rate * 1e9 + jitter[k] * MS), before + MS)  # no camera steps back in time
            before = taken
            if dropped[k]:
                continue
            pair = min(max(round(taken * timing.rate_visible / 1e9), 0), pairs - 1)
            if stream == "visible":
                pair = k  # one visible picture per instant, whatever the jitter
            start = START + later[pair]
            stamp = start + taken + offset
            shots.append(Shot(stream, pair, stamp, max(stamp, start + taken)))
    return sorted(shots, key=lambda shot: (shot.recorded, shot.stream != "visible"))
