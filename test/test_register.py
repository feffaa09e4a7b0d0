"""Estimating a registration: known ones are found again, wrong pictures are refused, points and pictures from files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from rscmd_model.errors import UserError
from rscmd_model.imaging.estimate_registration import from_images, from_points
from rscmd_model.imaging.images import read_thermal, read_visible
from rscmd_model.imaging.picked_points import read_points
from rscmd_model.imaging.registration import Registration, corners, load_registration, map_points
from rscmd_model.register import main as register
from rscmd_model.synthetic.world import WorldConfig, generate

SIZE = (320, 256)


def known(size: tuple[int, int], x: float, y: float, scale: float, degrees: float) -> np.ndarray:
    """A homography about the middle of images of `size`, with a little perspective."""
    middle = (size[0] / 2 - 0.5, size[1] / 2 - 0.5)
    turn = np.vstack((cv2.getRotationMatrix2D(middle, degrees, scale), [0, 0, 1]))
    turn[:2, 2] += x, y
    turn[2, 0] = 0.01 / size[0]
    return turn


def as_seen(thermal: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """What a thermal camera sees whose pixels go by `matrix` to where they are in `thermal`."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(thermal, matrix, thermal.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def corner_error(registration: Registration, matrix: np.ndarray) -> float:
    """Largest distance, in px, at the corners of the thermal image."""
    ends = corners(registration.thermal_size)
    return float(np.hypot(*(map_points(registration.homography, ends) - map_points(matrix, ends)).T).max())


@pytest.fixture(scope="module")
def world() -> list[tuple[np.ndarray, np.ndarray]]:
    """Aligned pairs, each of another scene: grey visible images and thermal ones."""
    frames = generate(3, 1, 6, *SIZE, WorldConfig(), 1)
    return [(cv2.cvtColor(frame.visible, cv2.COLOR_BGR2GRAY), frame.thermal) for _, frame in frames]


@pytest.mark.parametrize("matrix", [np.eye(3), known(SIZE, 24, -16, 1.05, 1.5), known(SIZE, -12, 8, 0.8, -4)])
def test_a_known_registration_is_found_again(world: list[tuple[np.ndarray, np.ndarray]], matrix: np.ndarray) -> None:
    pairs = [(visible, as_seen(thermal, matrix)) for visible, thermal in world]
    estimate = from_images(pairs)
    assert estimate.problem is None
    assert corner_error(estimate.registration, matrix) < 5
    assert estimate.error < 1.5


def test_pictures_that_do_not_belong_together_are_refused(world: list[tuple[np.ndarray, np.ndarray]]) -> None:
    mixed = [(world[i][0], world[(i + 3) % len(world)][1]) for i in range(len(world))]
    rng = np.random.default_rng(0)
    noise = [(rng.integers(0, 256, SIZE[::-1], np.uint8), rng.integers(0, 256, SIZE[::-1], np.uint8)) for _ in "ab"]
    flat = [(np.full(SIZE[::-1], 90, np.uint8), np.full(SIZE[::-1], 90, np.uint8))]
    for pairs in (mixed, noise, flat):
        try:  # refused at the search already, or at the judgement of what it found
            problem = from_images(pairs).problem
        except UserError as error:
            problem = str(error)
        assert problem is not None
    with pytest.raises(UserError, match="no image pairs"):
        from_images([])
    size = f"{SIZE[0]}x{SIZE[1]}"
    with pytest.raises(UserError, match=rf"differ in size \({size}, then {size} and {SIZE[0]}x100\)"):
        from_images([world[0], (world[1][0], world[1][1][:100])])


def test_photographs(llvip_mini: Path) -> None:
    """The photographs are not aligned themselves to the last pixel, so a known shift is found relative to that."""
    stems = sorted(path.name for path in (llvip_mini / "visible/val").iterdir())
    pairs = []
    for stem in stems:
        visible = cv2.cvtColor(read_visible(llvip_mini / "visible/val" / stem), cv2.COLOR_BGR2GRAY)
        thermal = read_thermal(llvip_mini / "thermal/val" / stem)
        pairs.append(tuple(cv2.resize(im, (480, 384), interpolation=cv2.INTER_AREA) for im in (visible, thermal)))
    as_they_are = from_images(pairs)
    assert as_they_are.problem is None
    assert corner_error(as_they_are.registration, np.eye(3)) < 10
    matrix = known((480, 384), 24, -16, 1.05, 1.5)
    moved = from_images([(visible, as_seen(thermal, matrix)) for visible, thermal in pairs])
    assert moved.problem is None
    assert corner_error(moved.registration, np.array(as_they_are.registration.homography) @ matrix) < 5


def picked(matrix: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).uniform((5, 5), (SIZE[0] - 5, SIZE[1] - 5), (count, 2))
    points[:4] = [[20, 20], [300, 25], [290, 240], [15, 230]]
    return np.hstack((points, map_points(matrix, points)))


def test_picked_points() -> None:
    matrix = known(SIZE, 6, -4, 0.9, 2)
    exact = from_points(picked(matrix, 4), SIZE, SIZE)
    assert corner_error(exact.registration, matrix) < 1e-3
    points = picked(matrix, 12)
    points[:, 2:] += np.random.default_rng(1).normal(0, 0.5, (12, 2))
    points[7, 2:] = (60, 200)  # a slip of the hand
    estimate = from_points(points, SIZE, SIZE)
    assert estimate.problem is None
    assert not estimate.inliers[7]
    assert estimate.inliers.sum() >= 10
    assert corner_error(estimate.registration, matrix) < 4


def test_points_that_tell_nothing_are_refused() -> None:
    line = np.array([[x, x / 2, x, x / 2] for x in range(10, 200, 20)], float)
    wild = np.random.default_rng(0).uniform(0, 250, (12, 4))
    near = np.array([[x, y, x, y] for x in (100, 110) for y in (100, 110)], float)
    for points in (line, wild, near):
        try:
            problem = from_points(points, SIZE, SIZE).problem
        except UserError as error:
            problem = str(error)
        assert problem is not None
    with pytest.raises(UserError, match="4 points or more"):
        from_points(picked(np.eye(3), 4)[:3], SIZE, SIZE)
    with pytest.raises(UserError, match=r"point 2: \(1000, 25\) lies outside the thermal image of 320x256"):
        from_points(np.where(picked(np.eye(3), 4) == 300, 1000, picked(np.eye(3), 4)), SIZE, SIZE)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "x_thermal,y_thermal,x_visible,y_visible\n1,2,3,4\n# a remark\n\n5.5, 6, 7, -0.5\n"),
        ("a.csv", "1;2;3;4\n5.5;6;7;-0.5"),
        ("a.csv", "# by hand\nx_visible,y_visible,x_thermal,y_thermal\n3,4,1,2\n7,-0.5,5.5,6\n"),
        ("a.csv", '"x_thermal";"x_visible";"y_thermal";"y_visible"\n1;3;2;4\n5.5;7;6;-0.5\n'),
        ("a.txt", "# x_visible y_visible x_thermal y_thermal\n3 4 1 2\n7 -0.5 5.5 6\n"),  # as numpy.savetxt writes it
        ("a.txt", "1 2\t3   4\n 5.5 6 7 -0.5\n"),
        ("a.yaml", "- [1, 2, 3, 4]\n- [5.5, 6, 7, -0.5]\n"),
    ],
)
def test_points_from_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_points(tmp_path / name).tolist() == [[1, 2, 3, 4], [5.5, 6, 7, -0.5]]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "1,2,3\n", "row 1: expected x_thermal"),
        ("a.csv", "x_thermal,y_thermal,x_visible,y_visible\n1,2,3,4\n1,2,3,four\n", "row 2: expected"),
        ("a.csv", "x,y,u,v\n1,2,3,4\n", "heading 'x,y,u,v' does not name the columns x_thermal y_thermal"),
        ("a.csv", "1,2,3,inf\n", "not finite"),
        ("a.yaml", "points: 3", "expected a list"),
        ("a.yaml", "- 7", "row 1"),
        ("a.yaml", "[1, 2", "is not YAML"),
        ("b.csv", None, "cannot read points"),
    ],
)
def test_bad_point_files(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        read_points(tmp_path / name)


def test_the_command_writes_what_can_be_trusted_and_shows_all(
    tmp_path: Path, world: list[tuple[np.ndarray, np.ndarray]], capsys: pytest.CaptureFixture[str]
) -> None:
    visible, thermal = world[0]
    cv2.imwrite(str(tmp_path / "v.png"), visible)
    cv2.imwrite(str(tmp_path / "t.png"), thermal.astype(np.uint16) * 20 + 27000)
    matrix = known(SIZE, 6, -4, 0.9, 2)
    np.savetxt(tmp_path / "good.csv", picked(matrix, 9), delimiter=",")
    wild = np.clip(picked(matrix, 7) + np.random.default_rng(0).normal(0, 9, (7, 4)), 0, 250)
    np.savetxt(tmp_path / "wild.csv", wild, delimiter=",")
    pictures = ["--visible", str(tmp_path / "v.png"), "--thermal", str(tmp_path / "t.png")]
    out, shown = tmp_path / "r.yaml", tmp_path / "o.png"
    register([*pictures, "--points", str(tmp_path / "good.csv"), "--out", str(out), "--overlay", str(shown)])
    assert corner_error(load_registration(out), matrix) < 1e-2
    assert cv2.imread(str(shown)).shape == (640, 1600, 3)
    assert "9 of 9 points agree" in capsys.readouterr().out
    out.unlink()
    shown.unlink()
    with pytest.raises(UserError, match="not good enough to use, and not written"):
        register([*pictures, "--points", str(tmp_path / "wild.csv"), "--out", str(out), "--overlay", str(shown)])
    assert shown.exists()
    assert not out.exists()
    for command, says in (
        ([], "give --out"),
        (["--out", str(tmp_path / "r.png")], "give a .yaml file"),
        (["--overlay", str(tmp_path / "o.yaml")], "give a .png or .jpg"),
        (["--out", str(out)], "give the pictures"),
        (["--out", str(out), "--visible", "a.png"], "1 --visible and 0 --thermal"),
        (["--out", str(out), "--pairs", "0"], "--pairs 0"),
        (["--out", str(out), *pictures, "--data", "x.yaml"], "not both"),
    ):
        with pytest.raises(UserError, match=says):
            register(command)
