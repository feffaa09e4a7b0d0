"""Identities of objects: what ByteTrack keeps, when it starts anew, and that nothing is installed for it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from rscmd_model.detections import Detections
from rscmd_ros.node.overlay import draw_overlay
from rscmd_ros.node.tracking import MOST_TRACKED, Tracker


def scene(step: int, scores: tuple[float, float] = (0.9, 0.8)) -> Detections:
    """Two objects that drift apart."""
    boxes = [[60 - 4 * step, 10, 90 - 4 * step, 70], [100 + 3 * step, 20, 150 + 3 * step, 80]]
    return Detections(np.array(boxes), np.array(scores), np.array([0, 1]))


def test_objects_keep_their_identity():
    tracker = Tracker()
    for step in range(8):
        # A weak score prolongs a track; it would not begin one.
        scores = (0.9, 0.15) if step == 4 else (0.9, 0.8)
        assert tracker.update(scene(step, scores), 0.25, step / 10) == ["1", "2"]
    assert tracker.update(Detections.empty(), 0.25, 0.85) == []
    assert tracker.update(scene(9), 0.25, 0.9) == ["1", "2"]


def test_a_weak_box_begins_no_track():
    tracker = Tracker()
    assert tracker.update(scene(0, (0.9, 0.15)), 0.25, 0.0) == ["1", ""]
    assert tracker.update(scene(1, (0.9, 0.5)), 0.8, 0.1) == ["1", ""]  # the threshold follows the parameter


def test_of_very_many_the_strongest_are_tracked():
    """The work of a frame grows with the square of their number."""
    corners = np.stack(np.meshgrid(np.arange(50) * 10.0, np.arange(60) * 10.0), axis=-1).reshape(-1, 2)
    scores = np.linspace(0.3, 0.9, len(corners))
    many = Detections(np.concatenate([corners, corners + 8], axis=1), scores, np.zeros(len(corners), np.int64))
    tracker = Tracker()
    for step in range(3):
        identities = tracker.update(many, 0.25, step / 10)
        assert [bool(identity) for identity in identities] == [i >= len(many) - MOST_TRACKED for i in range(len(many))]
        assert len(set(filter(None, identities))) == MOST_TRACKED


@pytest.mark.parametrize("jump", [-3.0, 20.0])
def test_a_jump_in_time_starts_anew(jump):
    tracker = Tracker()
    for step in range(3):
        tracker.update(scene(step), 0.25, 100 + step / 10)
    far = Detections(np.array([[300.0, 300, 340, 380]]), np.array([0.9]), np.array([0]))
    tracker.update(far, 0.25, 100.3)
    assert tracker.update(far, 0.25, 100.3 + jump) == ["1"]


@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_installed(there: bool) -> None:
    """Ultralytics would call pip for lap; where that is missing, one line says so."""
    hide = "" if there else "sys.modules['lap'] = None"
    code = (
        "import sys\n"
        "def watch(event, args):\n"
        "    if event == 'subprocess.Popen' and 'pip' in str(args): raise SystemExit(f'started {args}')\n"
        "sys.addaudithook(watch)\n"
        f"{hide}\n"
        "from rscmd_model.errors import run_cli\n"
        "from rscmd_ros.node.tracking import Tracker\n"
        "run_cli(lambda: Tracker() and None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (0 if there else 2), done.stderr
    if not there:
        (line,) = done.stderr.splitlines()
        assert "needs the package lap" in line
        assert "pip install lap" in line


@pytest.mark.parametrize("lost", [None, "visible", "thermal"])
def test_the_overlay_shows_both_cameras_or_says_which_is_lost(lost):
    visible, thermal = np.full((96, 160, 3), 90, np.uint8), np.full((96, 160), 40, np.uint8)
    args = (None if lost == "visible" else visible, None if lost == "thermal" else thermal)
    empty = draw_overlay(*args, Detections.empty(), {}, "fused", "mode fused")
    found = draw_overlay(*args, scene(0), {0: "person", 1: "car"}, "fused", "mode fused", ["1", ""])
    assert empty.shape == found.shape
    assert empty.shape[1:] == (320, 3)
    left, right = (np.any(found[:, half] != empty[:, half]) for half in (slice(0, 160), slice(160, 320)))
    assert (left, right) == (lost != "visible", lost != "thermal")
    assert (visible == 90).all()  # the camera's own picture is left alone
