"""The thermal contract."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import PaletteError, ThermalContract, thermal_plane

PERCENT = {True: (1.0, 99.0), False: (20000.0, 31000.0)}
images = st.sampled_from(("mono8", "mono16")).flatmap(
    lambda source: hnp.arrays(
        np.uint8 if source == "mono8" else np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)
    )
)


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


@given(images, st.booleans())
def test_a_warmer_pixel_is_never_darker(image: np.ndarray, percentile: bool) -> None:
    scale = (2.0, 97.5) if percentile else (10.0, 200.0) if image.dtype == np.uint8 else (3000.0, 40000.0)
    contract = ThermalContract("mono8" if image.dtype == np.uint8 else "mono16", scale, percentile)
    plane = contract.apply(image)
    assert plane.dtype == np.uint8
    assert plane.shape == image.shape
    order = np.argsort(image, axis=None, kind="stable")
    assert (np.diff(plane.ravel()[order].astype(int)) >= 0).all()


@given(images, st.floats(0, 100), st.floats(0, 100))
def test_percentiles_are_numpy_s(image: np.ndarray, a: float, b: float) -> None:
    low, high = sorted((a, b))
    if high - low < 1e-6:
        return
    bounds = np.percentile(image, (low, high))
    if bounds[0] == np.iinfo(image.dtype).max:
        return  # all counts are the last one, where no scale of counts may begin
    contract = ThermalContract("mono8" if image.dtype == np.uint8 else "mono16", (low, high), percentile=True)
    by_counts = ThermalContract(contract.source, (float(bounds[0]), float(max(bounds[1], bounds[0] + 1))))
    # Rounding may turn a count that lies between two values the other way.
    assert np.abs(contract.apply(image).astype(int) - by_counts.apply(image)).max() <= 1


def test_identity_for_plain_mono8() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (ThermalContract().apply(image) == image).all()


def test_percentiles_do_not_care_about_drift_and_a_fixed_scale_does() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(20000, 21000, (40, 50)).astype(np.uint16)
    percentile = ThermalContract("mono16", (1, 99), percentile=True)
    fixed = ThermalContract("mono16", (18000, 26000))
    assert (percentile.apply(image) == percentile.apply(image + 3000)).all()
    # 3000 of 8000 counts are 96 of 256 grey levels.
    assert (np.abs(fixed.apply(image + 3000).astype(int) - fixed.apply(image) - 95.6) <= 1).all()


def test_what_a_driver_stretched_cannot_be_undone_by_a_fixed_scale() -> None:
    """A cup of coffee comes into view: on a fixed scale the person stays as bright; stretched per frame, they fade."""
    celsius = np.full((60, 80), 18.0)
    celsius[10:50, 30:45] = 31.0  # a person
    hot = celsius.copy()
    hot[20:25, 5:10] = 80.0  # the cup
    centikelvin = [np.rint((c + 273.15) * 100).astype(np.uint16) for c in (celsius, hot)]
    fixed = ThermalContract("mono16", (28000, 32500))
    person = [int(fixed.apply(c)[30, 37]) for c in centikelvin]
    assert person[0] == person[1]

    def driver(counts: np.ndarray) -> np.ndarray:
        return cv2.normalize(counts, None, 0, 255, cv2.NORM_MINMAX, dtype=cv2.CV_8U)

    stretched = [int(ThermalContract().apply(driver(c))[30, 37]) for c in centikelvin]
    assert stretched == [255, 53]
    # Percentiles of the raw counts pass over so small a spot.
    percentile = ThermalContract("mono16", (1, 99), percentile=True)
    assert percentile.apply(centikelvin[0])[30, 37] == percentile.apply(centikelvin[1])[30, 37]


@pytest.mark.parametrize("source", ["mono8", "mono16"])
@pytest.mark.parametrize("percentile", [False, True])
def test_a_flat_image_stays_flat(source: str, percentile: bool) -> None:
    image = np.full((4, 5), 200, np.uint8 if source == "mono8" else np.uint16)
    scale = (1.0, 99.0) if percentile else (100.0, 300.0)
    plane = ThermalContract(source, scale, percentile).apply(image)
    assert (plane == plane[0, 0]).all()


def test_byte_order_and_strides_make_no_difference() -> None:
    image = np.random.default_rng(0).integers(0, 65536, (30, 40)).astype(np.uint16)
    for contract in (ThermalContract("mono16", (9000, 50000)), ThermalContract("mono16", (1, 99), percentile=True)):
        plane = contract.apply(image)
        assert (contract.apply(image.astype(">u2")) == plane).all()
        assert (contract.apply(image.T) == plane.T).all()
        assert (contract.apply(image[..., None]) == plane).all()


@pytest.mark.parametrize(
    "form",
    [
        {"source": "mono8", "scale": [0.0, 255.0]},
        {"source": "mono16", "scale": {"percentile": [1.0, 99.0]}},
        {"source": "mono8", "scale": [0.0, 255.0], "palette_ok": True},
    ],
)
def test_yaml_form_round_trip(form: dict) -> None:
    assert ThermalContract.from_dict(form).to_dict() == form


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"source": "mono8"}, "source and scale"),
        ({"source": "mono8", "scale": [5, 5]}, "below its second"),
        ({"source": "mono8", "scale": [0, float("nan")]}, "below its second"),
        ({"source": "mono8", "scale": ["a", "b"]}, "two numbers"),
        ({"source": "mono8", "scale": {"percentiles": [1, 99]}}, "percentile"),
        ({"source": "mono16", "scale": {"percentile": [1, 200]}}, "outside 0 to 100"),
        ({"source": "mono12", "scale": [0, 1]}, "mono12"),
        ({"source": "mono8", "scale": [0, 255], "pallete_ok": True}, "source and scale"),
        ({"source": "mono8", "scale": [0, 255], "palette_ok": "yes"}, "true or false"),
        ({"source": "mono16", "scale": [0, 255], "palette_ok": True}, "goes with source mono8"),
    ],
)
def test_bad_contracts(form: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ThermalContract.from_dict(form)


@pytest.mark.parametrize(
    ("source", "dtype", "says"),
    [
        ("mono16", np.uint8, "mono16.*8 bits cannot hold raw counts, and a JPEG never"),
        ("mono8", np.uint16, "thermal contract is mono8.*train with source mono16"),
        ("mono16", np.float32, "float32.*unsigned integers"),
        ("mono8", np.int16, "int16.*unsigned integers"),
    ],
)
def test_wrong_type_of_image(source: str, dtype: type, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ThermalContract(source, (0, 100)).apply(np.zeros((4, 4), dtype))


def test_counts_that_a_scale_does_not_show() -> None:
    contract = ThermalContract("mono16", (28000, 32500))
    eight_bits_in_sixteen = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert contract.misses(eight_bits_in_sixteen)
    assert not contract.misses(eight_bits_in_sixteen + 28000)
    assert not ThermalContract("mono16", (1, 99), percentile=True).misses(eight_bits_in_sixteen)
    assert not ThermalContract().misses(np.zeros((4, 4), np.uint8))


def test_three_equal_channels_are_one_plane() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert (thermal_plane(np.dstack([grey] * 3)) == grey).all()
    assert (ThermalContract(palette_ok=True).apply(np.dstack([grey] * 3)) == grey).all()
    assert (thermal_plane(grey[..., None]) == grey).all()
    with pytest.raises(UserError, match="shape"):
        thermal_plane(np.zeros((4, 4, 4), np.uint8))


def test_a_palette_is_refused_or_taken_by_its_luma() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    iron = cv2.applyColorMap(ramp, cv2.COLORMAP_JET)
    with pytest.raises(PaletteError, match=r"colours are not temperatures.*--palette-ok"):
        ThermalContract().apply(iron)
    plane = ThermalContract(palette_ok=True).apply(iron)
    expected = iron.astype(float) @ (0.114, 0.587, 0.299)
    assert np.abs(plane - expected).max() <= 0.51
    # What docs/thermal.md warns of: warmer is not brighter.
    assert (np.diff(plane.ravel().astype(int)) < 0).any()
