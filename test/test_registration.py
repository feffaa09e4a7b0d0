"""A registration: what it does to pixels, that it is the same everywhere, and which ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rscmd_model.errors import UserError
from rscmd_model.imaging.images import lay_over, stack_pair
from rscmd_model.imaging.registration import (
    FILL,
    Registration,
    corners,
    load_registration,
    map_points,
    save_registration,
    scaling,
)

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def shift(x: float, y: float, thermal_size: tuple[int, int], visible_size: tuple[int, int]) -> Registration:
    return Registration(((1, 0, x), (0, 1, y), (0, 0, 1)), thermal_size, visible_size)


def smooth(height: int, width: int, seed: int = 0, channels: int | None = None) -> np.ndarray:
    shape = (height, width) if channels is None else (height, width, channels)
    noise = np.random.default_rng(seed).normal(0, 1, shape)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def test_the_identity_changes_nothing() -> None:
    visible, thermal = smooth(48, 64, 0, 3), smooth(48, 64, 1)
    same = Registration(IDENTITY, (64, 48), (64, 48))
    assert (stack_pair(visible, thermal, same) == stack_pair(visible, thermal)).all()
    # A thermal image of half the size: resizing, but for the rim, where the warp reaches for what is not there.
    half = cv2.resize(thermal, (32, 24), interpolation=cv2.INTER_AREA)
    stretch = Registration(tuple(map(tuple, scaling((32, 24), (64, 48)))), (32, 24), (64, 48))
    a, b = stack_pair(visible, half, stretch), stack_pair(visible, half)
    assert np.abs(a[2:-2, 2:-2].astype(int) - b[2:-2, 2:-2]).max() <= 1


def test_a_pixel_goes_where_the_homography_says_and_the_rest_is_filled() -> None:
    thermal = np.full((40, 60), 20, np.uint8)
    thermal[10, 30] = 250
    plane = lay_over(thermal, (100, 80), shift(15, 25, (60, 40), (100, 80)))
    assert plane.shape == (80, 100)
    assert plane[35, 45] == 250
    outside = np.ones(plane.shape, bool)
    outside[25:65, 15:75] = False
    assert (plane[outside] == FILL).all()
    assert (plane[~outside] != FILL).all()


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0.7, 1.4), st.floats(-0.2, 0.2), st.floats(-3e-4, 3e-4))
def test_scaled_images_map_as_the_images_do(x: float, y: float, scale: float, angle: float, tilt: float) -> None:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    registration = Registration(((c, -s, x), (s, c, y), (tilt, 0, 1)), (160, 128), (320, 256))
    points = corners((160, 128)) * 0.9 + 8
    there = map_points(registration.homography, points)
    for thermal_scale, visible_scale in ((0.5, 2), (4, 0.25), (1, 1)):
        small = (
            (int(160 * thermal_scale), int(128 * thermal_scale)),
            (int(320 * visible_scale), int(256 * visible_scale)),
        )
        moved = map_points(registration.matrix(*small), map_points(scaling((160, 128), small[0]), points))
        np.testing.assert_allclose(moved, map_points(scaling((320, 256), small[1]), there), atol=1e-6)


def test_warping_then_scaling_is_scaling_then_warping() -> None:
    registration = Registration(((1.05, -0.03, 9), (0.03, 1.05, -6), (1e-5, 0, 1)), (320, 256), (320, 256))
    thermal = smooth(256, 320)
    warped = cv2.resize(registration.warp(thermal, (320, 256)), (160, 128), interpolation=cv2.INTER_AREA)
    scaled = registration.warp(cv2.resize(thermal, (160, 128), interpolation=cv2.INTER_AREA), (160, 128))
    inside = cv2.erode((scaled != FILL).astype(np.uint8), np.ones((7, 7))) > 0
    gap = np.abs(warped.astype(int) - scaled)[inside]
    one_pixel = np.abs(np.diff(scaled.astype(int), axis=1)).max()
    assert gap.mean() < 1
    assert gap.max() <= one_pixel


def test_round_trip_of_the_file(tmp_path: Path) -> None:
    registration = Registration(((1.05, -0.03, 9), (0.03, 1.05, -6), (1.25e-5, 0, 1)), (640, 512), (1280, 1024))
    save_registration(tmp_path / "r.yaml", registration, ["Estimated from something."])
    assert load_registration(tmp_path / "r.yaml") == registration
    assert (tmp_path / "r.yaml").read_text().startswith("# Estimated from something.\n")
    assert Registration.from_dict(json.loads(json.dumps(registration.to_dict()))) == registration
    # A homography is defined up to a factor, its sign included.
    doubled = tuple(tuple(-2 * x for x in row) for row in registration.homography)
    np.testing.assert_allclose(Registration(doubled, (640, 512), (1280, 1024)).homography, registration.homography)


GOOD = {"homography": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "thermal_size": [64, 48], "visible_size": [64, 48]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"homografy": 1}, "unknown key 'homografy'; did you mean homography"),
        ({"thermal_size": None}, "thermal_size is"),
        ({"thermal_size": [64, 48.5]}, "thermal_size is"),
        ({"visible_size": [64, 0]}, "visible_size is"),
        ({"homography": [[1, 0], [0, 1]]}, "3 rows of 3"),
        ({"homography": [[1, 0, "x"], [0, 1, 0], [0, 0, 1]]}, "3 rows of 3"),
        ({"homography": [[1, 0, float("nan")], [0, 1, 0], [0, 0, 1]]}, "finite"),
        ({"homography": [[1, 0, 0], [2, 0, 0], [0, 0, 1]]}, "cannot be inverted"),
        ({"homography": [[-1, 0, 63], [0, 1, 0], [0, 0, 1]]}, "mirrors"),
        ({"homography": [[1, 0, 0], [0, 1, 0], [-0.05, 0, 1]]}, "infinity"),
        ({"homography": [[1, 0, 500], [0, 1, 0], [0, 0, 1]]}, "other way round"),
    ],
)
def test_registrations_that_are_refused(changes: dict, says: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**GOOD, **changes}))
    with pytest.raises(UserError, match=says) as error:
        load_registration(tmp_path / "r.yaml")
    assert "r.yaml" in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read registration .*absent"):
        load_registration(tmp_path / "absent.yaml")
    for text, says in (("[1, 2", "is not YAML"), ("hello", "expected the keys"), ("thermal_size: [1, 1]", "missing")):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(UserError, match=says):
            load_registration(tmp_path / "r.yaml")


def test_images_of_another_shape_are_refused() -> None:
    registration = shift(3, 4, (640, 512), (1280, 1024))
    with pytest.raises(UserError, match="thermal images of 640x512, and this one is 640x480"):
        lay_over(np.zeros((480, 640), np.uint8), (1280, 1024), registration)
    with pytest.raises(UserError, match="visible images of 1280x1024, and this one is 1280x720"):
        lay_over(np.zeros((512, 640), np.uint8), (1280, 720), registration)
    lay_over(np.zeros((205, 256), np.uint8), (213, 171), registration)  # copies whose sides had to be rounded
