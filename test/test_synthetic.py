"""The synthetic world: same seed same bytes, the layout that other tools read, objects only one camera sees."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs, read_labels
from rscmd_model.errors import UserError
from rscmd_model.imaging.images import read_thermal, read_visible
from rscmd_model.synthetic.__main__ import main
from rscmd_model.synthetic.world import CLASS_NAMES, Sequence, WorldConfig, generate
from rscmd_model.synthetic.writing import write_world


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("w") / "world", train=12, val=26, size=(160, 128), seed=3).parent


def test_same_seed_same_bytes_and_another_seed_differs(world: Path, tmp_path: Path) -> None:
    arguments = ["--train", "12", "--val", "26", "--size", "160", "128"]
    main(["--out", str(tmp_path / "again"), *arguments, "--seed", "3"])
    main(["--out", str(tmp_path / "other"), *arguments, "--seed", "4"])
    assert contents(tmp_path / "again") == contents(world)
    other = contents(tmp_path / "other")
    pictures = [name for name in other if name.endswith(".png")]
    assert len(pictures) == 2 * (12 + 26)
    assert all(other[name] != contents(world)[name] for name in pictures)


def test_native_layout(world: Path) -> None:
    raw = yaml.safe_load((world / "data.yaml").read_text())
    assert raw["train"] == "visible/train"
    assert raw["val"] == "visible/val"
    assert raw["thermal"] == {"train": "thermal/train", "val": "thermal/val"}
    data = open_data(world / "data.yaml")
    assert data.names == CLASS_NAMES
    seen: set[int] = set()
    for split, count in (("train", 12), ("val", 26)):
        pairs = find_pairs(data, split)
        assert len(pairs) == count
        for pair in pairs:
            assert read_visible(pair.visible).shape == (128, 160, 3)
            thermal = read_thermal(pair.thermal)
            assert (thermal.shape, thermal.dtype) == ((128, 160), np.uint8)
            seen |= set(read_labels(data, pair)[:, 0].astype(int).tolist())  # refuses boxes outside
    assert seen == {0, 1, 2}


def test_splits_are_different_scenes(world: Path) -> None:
    files = contents(world)
    train = {data for name, data in files.items() if name.startswith("visible/train")}
    assert not train & {data for name, data in files.items() if name.startswith("visible/val")}


def test_sorted_stems_play_as_motion() -> None:
    """Within a sequence the pictures change a little, at a cut a lot; stems sort in playing order."""
    config = WorldConfig(visible_noise=0, thermal_noise=0)
    frames = list(generate(5, 1, 24, 160, 128, config, 12))
    stems = [stem for stem, _ in frames]
    assert stems == sorted(stems)
    pictures = [frame.visible.astype(float) for _, frame in frames]
    steps = [np.abs(b - a).mean() for a, b in pairwise(pictures)]
    cut = steps.pop(11)
    assert 0 < max(steps) < cut


def test_long_sequences_play_in_the_order_of_their_stems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sequence, "render", lambda self, index: index)
    for length, first, last in ((100, "000000_00", "000000_99"), (101, "000000_000", "000000_100")):
        stems = [stem for stem, _ in generate(0, 0, length, 64, 64, WorldConfig(objects=0), length)]
        assert (stems[0], stems[-1]) == (first, last)
        assert stems == sorted(stems)


@pytest.mark.parametrize(("seed", "night"), [(24, False), (49, True)])
def test_what_drives_away_beyond_the_horizon_is_gone(seed: int, night: bool) -> None:
    scene = Sequence((seed, 1, 0), 64, 64, night, WorldConfig(), 600)
    assert min(scene._where(thing, 0.0)[2] for thing in scene._things) < 0  # a long sequence begins with one there
    scene.render(0)


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    config = WorldConfig()
    short, long = list(generate(1, 0, 3, 96, 96, config, 4)), list(generate(1, 0, 9, 96, 96, config, 4))
    assert [stem for stem, _ in short] == [stem for stem, _ in long[:3]]
    for (_, a), (_, b) in zip(short, long):
        np.testing.assert_array_equal(a.visible, b.visible)
        np.testing.assert_array_equal(a.thermal, b.thermal)


@pytest.mark.parametrize("camera", ["visible", "thermal"])
def test_hidden_objects_are_labelled_and_hardly_seen(camera: str) -> None:
    """With everything hidden from one camera its picture hardly depends on the objects, yet they stay labelled."""
    still = dict(visible_noise=0.0, thermal_noise=0.0, visible_decoys=0.0, thermal_decoys=0.0, night=1.0)
    shares = {"hidden_in_visible": 0.0, "hidden_in_thermal": 0.0}
    plain = WorldConfig(**still, **shares)
    hidden = WorldConfig(**still, **{**shares, f"hidden_in_{camera}": 1.0})
    edges = {}
    for name, config in (("plain", plain), ("hidden", hidden)):
        values = []
        for _, frame in generate(2, 0, 12, 160, 128, config, 1):
            picture = getattr(frame, camera).astype(float)
            for label, cx, cy, w, h in frame.labels:
                if camera == "thermal" and label == 0:
                    continue  # at night people stay warm, whatever the dial says
                rows = slice(int((cy - h / 2) * 128), int((cy + h / 2) * 128))
                columns = slice(int((cx - w / 2) * 160), int((cx + w / 2) * 160))
                values.append(np.abs(np.diff(picture[rows, columns], axis=1)).mean())
        assert len(values) > 10
        edges[name] = np.median(values)
    assert edges["hidden"] < 0.5 * edges["plain"]


@pytest.mark.parametrize("camera", ["visible", "thermal"])
def test_the_dial_for_imbalance_makes_one_camera_worse(camera: str) -> None:
    other = "thermal" if camera == "visible" else "visible"
    plain = WorldConfig()
    assert plain.weaken(camera) == plain
    worse = plain.weaken(camera, weak=1.0, noisy=1.0, misleading=1.0)
    for name in ("noise", "blur", "decoys"):
        assert getattr(worse, f"{camera}_{name}") > getattr(plain, f"{camera}_{name}")
        assert getattr(worse, f"{other}_{name}") == getattr(plain, f"{other}_{name}")
    assert getattr(worse, f"hidden_in_{camera}") == pytest.approx(0.7)
    assert getattr(worse, f"hidden_in_{other}") == 0.0
    # Seen on the pictures: the worse camera's carry more noise, the other one's do not.
    grain = {}
    for name, config in (("plain", plain), ("worse", plain.weaken(camera, noisy=1.0))):
        frames = [frame for _, frame in generate(3, 0, 6, 96, 96, config, 1)]
        for which in (camera, other):
            grain[name, which] = np.mean(
                [np.abs(np.diff(getattr(f, which).astype(float), axis=0)).mean() for f in frames]
            )
    assert grain["worse", camera] > 1.3 * grain["plain", camera]
    assert grain["worse", other] == grain["plain", other]


def test_share_of_nights() -> None:
    """Nights are dark, and their share is kept exactly in a split of few sequences."""
    for share, nights in ((0.0, 0), (0.25, 2), (1.0, 8)):
        frames = generate(7, 0, 8, 96, 96, WorldConfig(night=share), 1)
        assert sum(frame.visible.mean() < 60 for _, frame in frames) == nights


def test_an_earlier_world_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    small = dict(train=1, val=1, size=(64, 64), seed=0)
    out = tmp_path / "world"
    write_world(out, **small)  # type: ignore[arg-type]
    (tmp_path / ".world.partial/new/world").mkdir(parents=True)  # as a killed run leaves it
    (tmp_path / ".world.partial/.lock").touch()
    mine = [tmp_path / "world.partial/notes.txt", tmp_path / "world.old/precious.txt"]
    for file in mine:
        file.parent.mkdir()
        file.write_text("mine")
    write_world(out, **{**small, "train": 2})  # type: ignore[arg-type]
    assert len(list((out / "visible/train").iterdir())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["world", "world.old", "world.partial"]
    assert [file.read_text() for file in mine] == ["mine", "mine"]
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        write_world(out, **small)  # type: ignore[arg-type]
    assert (out / "thesis.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no synthetic world"):
        write_world(tmp_path / "other", **small)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "0"], "--train"),
        (["--size", "8", "8"], "--size"),
        (["--night", "1.5"], "night"),
        (["--hidden-in-visible", "0.6", "--hidden-in-thermal", "0.6"], "hidden in both"),
        (["--thermal-noise", "nan"], "thermal_noise"),
        (["--visible-blur", "1e6"], "visible_blur must be at most 100"),
        (["--objects", "1e20"], "objects must be at most 200"),
        (["--val-sequence", "100000"], "val_sequence must be at most 1000"),
        (["--seed", "-1"], "--seed"),
        (["--imbalance", "0.5"], "need --weaker"),
        (["--weaker", "thermal", "--weak", "1.5"], "weak is a dial"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(["--out", str(tmp_path / "w"), *arguments])
    assert not (tmp_path / "w").exists()
