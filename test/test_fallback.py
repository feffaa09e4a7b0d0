"""Which camera answers when the other one fails, on made-up arrivals."""

from __future__ import annotations

import numpy as np
import pytest

from rscmd_ros.pairing.fallback import Fallback, fingerprint

MS = 1_000_000
SECOND = 1000 * MS


class Rig:
    """Two cameras on one clock; each sends at its own rate unless told otherwise."""

    def __init__(
        self, fallback: str = "both", branches: tuple[str, ...] = ("visible", "thermal"), thermal_ms: int = 111
    ):
        self.now = SECOND
        self.fallback = Fallback(fallback, timeout=SECOND, shutter=3 * SECOND, branches=branches, now=self.now)
        self.periods = {"visible": 33, "thermal": thermal_ms}
        self.fates: dict[str, list[str]] = {"visible": [], "thermal": []}
        self.modes: list[str] = []
        self._picture = 0

    def run(self, seconds: float, visible: str = "sends", thermal: str = "sends") -> Rig:
        """Each stream `sends`, is `silent` or `frozen` for a while, in steps of 1 ms."""
        doing = {"visible": visible, "thermal": thermal}
        for _ in range(round(seconds * 1000)):
            self.now += MS
            for stream, period in self.periods.items():
                if doing[stream] == "silent" or self.now // MS % period:
                    continue
                self._picture += 1
                picture = -1 if doing[stream] == "frozen" else self._picture
                self.fates[stream].append(self.fallback.frame(stream, picture, self.now))
            if self.now // MS % 10 == 0:  # as the node polls
                self.fallback.update(self.now)
            if self.fallback.mode != (self.modes or ["none"])[-1]:
                self.modes.append(self.fallback.mode)
        return self

    def health(self, stream: str) -> str:
        return self.fallback.health(stream, self.now)


@pytest.mark.parametrize("how", ["silent", "frozen"])
@pytest.mark.parametrize(("lost", "left"), [("visible", "thermal"), ("thermal", "visible")])
def test_the_other_camera_answers_until_the_lost_one_returns(lost, left, how):
    rig = Rig().run(3)
    assert rig.modes == ["fused"]
    assert set(rig.fates["visible"]) | set(rig.fates["thermal"]) == {"pair"}
    rig.fates = {"visible": [], "thermal": []}
    rig.run(6, **{lost: how})
    assert rig.modes == ["fused", left]
    assert rig.fates[left][-1] == "alone"
    assert rig.fates[left].count("alone") >= 4 * 1000 // rig.periods[left]
    assert rig.health(left) == "live"
    assert rig.health(lost) == how
    if how == "frozen":  # not one of the old pictures is paired once it is lost
        assert rig.fates[lost][-1] == "frozen"
    rig.run(1)
    assert rig.modes == ["fused", left, "fused"]
    assert rig.fates[left][-1] == rig.fates[lost][-1] == "pair"
    assert rig.fallback.losses == {lost: 1, left: 0}
    assert rig.fallback.shutters == 0


@pytest.mark.parametrize("how", ["silent", "frozen"])
def test_a_shutter_is_told_from_a_loss(how):
    rig = Rig().run(3).run(2, thermal=how)
    assert rig.fallback.mode == "visible"
    assert rig.health("thermal") == "shutter"
    assert "flat-field correction" in rig.fallback.describe("thermal", rig.now)
    rig.run(1)
    assert (rig.fallback.shutters, rig.fallback.losses["thermal"]) == (1, 0)
    rig.run(2, visible=how)  # a visible camera has none
    assert rig.health("visible") == how


def test_a_gap_without_a_publisher_is_no_shutter():
    rig = Rig().run(3)
    rig.fallback.watch["thermal"].has_publisher = False
    rig.run(2, thermal="silent")
    assert rig.health("thermal") == "silent"
    rig.run(0.5)
    assert (rig.fallback.shutters, rig.fallback.losses["thermal"]) == (0, 1)


def test_a_short_gap_changes_nothing():
    assert Rig().run(3).run(0.8, thermal="silent").run(1).run(0.8, visible="frozen").run(1).modes == ["fused"]


def test_a_camera_that_was_never_there_is_named():
    rig = Rig().run(0.9, thermal="silent")
    assert rig.fallback.mode == "none"  # not yet
    rig.run(1, thermal="silent")
    assert rig.fallback.mode == "visible"
    assert rig.health("thermal") == "never"
    assert "has not sent an image in the 2 s since" in rig.fallback.describe("thermal", rig.now)
    assert rig.run(1).fallback.mode == "fused"


def test_after_a_pause_of_both_the_first_to_return_does_not_answer_alone():
    rig = Rig().run(3).run(5, visible="silent", thermal="silent")
    assert rig.modes == ["fused", "none"]
    rig.run(0.5, thermal="silent").run(1)
    assert rig.modes == ["fused", "none", "fused"]
    assert "alone" not in rig.fates["visible"]


def test_a_world_without_movement_is_no_loss():
    rig = Rig().run(3).run(5, visible="frozen", thermal="frozen")
    assert rig.modes == ["fused"]
    assert set(rig.fates["visible"] + rig.fates["thermal"]) == {"pair"}


def test_both_lost_is_none():
    rig = Rig().run(3).run(2, thermal="silent").run(3, visible="silent", thermal="silent")
    assert rig.modes == ["fused", "visible", "none"]
    assert rig.health("visible") == rig.health("thermal") == "silent"


def test_a_slow_camera_is_not_lost_between_two_frames():
    assert Rig(thermal_ms=900).run(9).run(0).modes == ["fused"]
    rig = Rig(thermal_ms=2000).run(11)  # the first five frames tell its period, and until then it counts as lost
    known = len(rig.modes)
    assert rig.run(20).modes[known - 1 :] == ["fused"]
    assert rig.fallback.shutters + rig.fallback.losses["thermal"] == 4


def test_outages_are_no_periods():
    rig = Rig().run(3)
    for _ in range(5):
        rig.run(4, thermal="silent").run(2).run(4, thermal="frozen").run(2)
    assert rig.fallback.watch["thermal"].patience(SECOND) == SECOND
    still = Rig().run(0.3)  # a made-up world where something moves now and then only
    for _ in range(8):
        still.run(4, visible="frozen", thermal="frozen").run(0.2)
    assert still.fallback.watch["visible"].patience(SECOND) == SECOND


@pytest.mark.parametrize(
    ("fallback", "without_thermal", "without_visible"),
    [
        ("both", "visible", "thermal"),
        ("visible", "visible", "none"),
        ("thermal", "none", "thermal"),
        ("hold", "none", "none"),
        ("off", "none", "none"),
    ],
)
def test_what_may_answer(fallback, without_thermal, without_visible):
    rig = Rig(fallback).run(3).run(5, thermal="silent")
    assert rig.fallback.mode == without_thermal
    assert ("alone" in rig.fates["visible"]) == (without_thermal == "visible")
    rig = Rig(fallback).run(3).run(5, visible="silent")
    assert rig.fallback.mode == without_visible


def test_off_pairs_frozen_pictures_and_hold_does_not():
    assert set(Rig("off").run(3).run(5, thermal="frozen").fates["thermal"]) == {"pair"}
    assert "frozen" in Rig("hold").run(3).run(5, thermal="frozen").fates["thermal"]


def test_a_model_without_the_branch_answers_nothing():
    rig = Rig(branches=("thermal",)).run(3).run(3, thermal="silent")
    assert rig.fallback.mode == "none"
    assert rig.fallback.lacks_branch() == "visible"
    assert Rig(branches=("thermal",)).run(3).run(3, visible="silent").fallback.mode == "thermal"


@pytest.mark.parametrize("seconds", [-4, 1_700_000_000])
def test_a_clock_that_jumps_starts_anew(seconds):
    rig = Rig().run(5)
    rig.now += seconds * SECOND
    assert rig.run(0.5).fallback.mode == "fused"
    assert "alone" not in rig.fates["visible"]


def test_rates():
    fallback = Fallback("both", timeout=SECOND, shutter=SECOND, branches=(), now=0)
    for n in range(60):
        fallback.frame("visible", n, n * 50 * MS)
    assert fallback.watch["visible"].rate(60 * 50 * MS) == pytest.approx(20)


def test_fingerprints_tell_pictures_apart():
    noise = np.random.default_rng(0).integers(0, 255, (64, 80), np.uint8)
    other = noise + (np.random.default_rng(1).random(noise.shape) < 0.2).astype(np.uint8)
    assert fingerprint(noise.tobytes()) == fingerprint(noise.copy().tobytes()) != fingerprint(other.tobytes())
    assert fingerprint(b"") == 0


def test_after_a_jump_of_time_nothing_is_said_of_the_activation() -> None:
    """As after SIGSTOP and SIGCONT: what was known is forgotten, and that is said."""
    rig = Rig().run(3)
    assert rig.fallback.mode == "fused"
    rig.now += 20 * SECOND
    rig.fallback.update(rig.now)
    assert rig.fallback.mode == "none"
    said = rig.fallback.describe("visible", rig.now)
    assert said.startswith("has not sent an image in the 0 s since time jumped by 20 s (")
    rig.run(2, visible="silent")
    assert rig.fallback.describe("visible", rig.now).startswith("has not sent an image in the 2 s since time jumped by")
    fresh = Rig().run(2, visible="silent")
    assert fresh.fallback.describe("visible", fresh.now).endswith("in the 2 s since the node became active")
