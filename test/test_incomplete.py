"""Tables of lost cameras: shares, nesting, what they depend on, and their files."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from rscmd_model.config import MODALITIES
from rscmd_model.datasets.incomplete import WHICH, lost_cameras, read_table, table_digest, write_table
from rscmd_model.datasets.pairs import PairFiles
from rscmd_model.errors import UserError

STEMS = [f"{sequence:06d}_{frame:02d}" for sequence in range(9) for frame in range(11)]  # 99
RATES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.95, 1.0)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("count", [1, 2, 7, 99])
def test_shares_are_within_one_pair_of_the_rate(which: str, count: int) -> None:
    for rate in RATES:
        lost = lost_cameras(STEMS[:count], rate, which)
        assert set(lost) <= set(STEMS[:count])
        assert abs(len(lost) - rate * count) < 1
        of = Counter(lost.values())
        if which == "either":
            assert set(of) <= set(MODALITIES)
            assert of["visible"] - of["thermal"] in (0, 1)
        else:
            assert set(of) <= {which}
    assert lost_cameras(STEMS, 0, which) == {}
    assert set(lost_cameras(STEMS, 1, which)) == set(STEMS)


@pytest.mark.parametrize("which", WHICH)
def test_what_is_lost_at_a_rate_is_lost_at_each_higher_one(which: str) -> None:
    for seed in range(3):
        tables = [lost_cameras(STEMS, rate, which, seed) for rate in RATES]
        for low, high in pairwise(tables):
            assert low.items() <= high.items(), "the same pairs, of the same camera"
            assert len(low) < len(high)


def test_a_table_follows_from_the_stems_and_the_seed() -> None:
    mixed = random.Random(0).sample(STEMS, len(STEMS))
    for which in WHICH:
        table = lost_cameras(STEMS, 0.5, which)
        assert list(lost_cameras(mixed, 0.5, which).items()) == list(table.items())
        other = lost_cameras(STEMS, 0.5, which, seed=1)
        assert other != table
        assert table_digest(STEMS, other) != table_digest(STEMS, table)
    # Drawn by hand: the pairs in order of the hash.
    row = sorted("abcd", key=lambda stem: hashlib.sha256(f"7 lost camera {stem}".encode()).hexdigest())
    assert lost_cameras("abcd", 0.75, "thermal", 7) == dict.fromkeys(row[:3], "thermal")
    assert lost_cameras("abcd", 0.75, "either", 7) == {row[0]: "visible", row[1]: "visible", row[3]: "thermal"}


def test_the_same_pairs_lose_the_one_camera_and_the_other() -> None:
    assert lost_cameras(STEMS, 0.3, "visible").keys() == lost_cameras(STEMS, 0.3, "thermal").keys()


@pytest.mark.parametrize("which", WHICH)
def test_a_pair_more_changes_little(which: str) -> None:
    for gone in STEMS[::7]:
        fewer = [stem for stem in STEMS if stem != gone]
        for rate in RATES:
            before, after = lost_cameras(STEMS, rate, which), lost_cameras(fewer, rate, which)
            changed = [stem for stem in fewer if before.get(stem) != after.get(stem)]
            assert len(changed) <= (2 if which == "either" else 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1.5, "visible"), "rate 1.5: give a share"),
        ((-0.1, "visible"), "rate -0.1"),
        ((float("nan"), "visible"), "rate nan"),
        ((0.5, "both"), "lost camera 'both' is not visible, thermal or either"),
    ],
)
def test_bad_values_are_told(values: tuple[float, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lost_cameras(STEMS, *values)
    with pytest.raises(ValueError, match="each stem once"):
        lost_cameras(["a", "a"], 0.5)


def files(*stems: str) -> list[PairFiles]:
    return [PairFiles(s, Path(f"v/{s}.png"), Path(f"t/{s}.png"), None) for s in stems]


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    stems = [*STEMS[:9], "day/a, b", 'night/"c"']
    lost = lost_cameras(stems, 0.5)
    file = tmp_path / "new" / "table.csv"
    write_table(file, reversed(stems), lost)
    assert read_table(file, files(*stems)) == lost
    lines = file.read_text().splitlines()
    assert lines[0] == "name,lost"
    assert len(lines) == 1 + len(stems), "the state of every pair"
    assert table_digest(stems, lost) == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    fewer = dict(list(lost.items())[1:])
    assert table_digest(stems, fewer) != table_digest(stems, lost)
    assert table_digest([*stems, "z"], lost) != table_digest(stems, lost)
    with pytest.raises(ValueError, match="z, which is no pair"):
        table_digest(stems, {"z": "visible"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,camera\na,visible\n", "no column lost"),
        ("name,lost\na,visible\n", "does not name 1 of 2 pairs: b"),
        ("name,lost\na,visible\nb,none\nc,none\n", "names 1 that are no pairs"),
        ("name,lost\na,visible\nb,thermel\n", "'b' has lost 'thermel': give visible, thermal or none; did you mean"),
        ("name,lost\na,visible\nb,\n", "line 3: no lost"),
        ("name,lost\na,visible\na,none\n", "line 3: 'a' stands there twice"),
        ("", "no column name"),
    ],
)
def test_a_damaged_table_is_told(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_table(file, files("a", "b"))
    with pytest.raises(UserError, match="nowhere"):
        read_table(tmp_path / "nowhere.csv", files("a", "b"))
