"""The thermal contract."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rscmd_model.errors import UserError
from rscmd_model.thermal import ThermalContract, thermal_plane


@given(st.integers(0, 60000), st.integers(1, 5000))
def test_fixed_scale_is_linear_clipped_and_monotonic(low: int, span: int) -> None:
    contract = ThermalContract("mono16", (low, low + span))
    counts = np.array([[0, low, low + span, 65535]], np.uint16)
    plane = contract.apply(counts)
    assert plane.dtype == np.uint8
    assert plane[0, 1] == 0
    assert plane[0, 2] == 255 or low + span > 65535
    ramp = contract.apply(np.arange(0, 65536, 97, dtype=np.uint16)[None])[0]
    assert (np.diff(ramp.astype(int)) >= 0).all()


def test_identity_for_plain_mono8() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (ThermalContract().apply(image) == image).all()


def test_percentiles_do_not_care_about_drift() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(20000, 21000, (40, 50)).astype(np.uint16)
    contract = ThermalContract("mono16", (1, 99), percentile=True)
    assert (contract.apply(image) == contract.apply(image + 3000)).all()
    assert contract.apply(np.full((4, 4), 500, np.uint16)).dtype == np.uint8  # a flat image does not divide by nothing


@pytest.mark.parametrize(
    "form", [{"source": "mono8", "scale": [0.0, 255.0]}, {"source": "mono16", "scale": {"percentile": [1.0, 99.0]}}]
)
def test_yaml_form_round_trip(form: dict) -> None:
    assert ThermalContract.from_dict(form).to_dict() == form


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"source": "mono8"}, "source and scale"),
        ({"source": "mono8", "scale": [5, 5]}, "below its second"),
        ({"source": "mono8", "scale": ["a", "b"]}, "two numbers"),
        ({"source": "mono8", "scale": {"percentiles": [1, 99]}}, "percentile"),
        ({"source": "mono16", "scale": {"percentile": [1, 200]}}, "outside 0 to 100"),
        ({"source": "mono12", "scale": [0, 1]}, "mono12"),
    ],
)
def test_bad_contracts(form: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ThermalContract.from_dict(form)


def test_wrong_type_of_image() -> None:
    with pytest.raises(UserError, match="mono16"):
        ThermalContract("mono16", (0, 100)).apply(np.zeros((4, 4), np.uint8))


def test_three_equal_channels_are_one_plane() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert (thermal_plane(np.dstack([grey] * 3)) == grey).all()
    assert (thermal_plane(grey[..., None]) == grey).all()
    with pytest.raises(UserError, match="shape"):
        thermal_plane(np.zeros((4, 4, 4), np.uint8))
