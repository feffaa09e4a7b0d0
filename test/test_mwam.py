"""Weights from the frequencies of the images: the ratio, as published and mended, and what it does to gradients."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objective import make_batch, make_model
from test_ogm import assert_same_step, step
from torch import Tensor

from rscmd_model.errors import UserError
from rscmd_model.methods import parse_method
from rscmd_model.methods.mwam import FrequencyRatio, weights

GREY = 114 / 255  # of the letterbox and of what an augmentation moves in


def stack(visible: Tensor, thermal: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) and (B, 1, H, W) -> (B, 4, H, W)."""
    return torch.cat([visible.expand(-1, 3, -1, -1), thermal], 1)


def grey_levels(seed: int, channels: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, channels, 64, 64), generator=g) / 255


def equal_batch() -> dict[str, Tensor]:
    """Both cameras see the same grey image."""
    batch = make_batch()
    batch["img"] = batch["img"][:, :1].expand(-1, 4, -1, -1).contiguous()
    return batch


def test_the_ratio_is_that_of_the_definition() -> None:
    """Block by block, with OpenCV's DCT."""
    x = stack(grey_levels(0, 3), grey_levels(1))
    sums = []
    for images in (x[:, :3], x[:, 3:]):
        total = 0.0
        for image in images.flatten(0, 1).double().numpy():
            for top in range(0, 64, 8):
                for left in range(0, 64, 8):
                    dct = cv2.dct(image[top : top + 8, left : left + 8])
                    low, high = dct[:2, :2], dct[7:5:-1, 7:5:-1]
                    total += np.abs(low / (high + 1e-6)).sum()
        sums.append(total / 1e6)
    published, mended = FrequencyRatio("published")(x), FrequencyRatio("mended")(x)
    assert published.tolist() == pytest.approx([*sums, 2 * 64], rel=1e-3)
    assert mended.tolist() == pytest.approx([sums[0] / 3, sums[1], 2 * 64], rel=1e-3)


def test_a_flat_block_is_what_the_published_ratio_is_made_of() -> None:
    flat, natural = torch.full((2, 1, 64, 64), GREY), grey_levels(0)
    published = FrequencyRatio("published")(stack(flat, natural))
    assert float(published[0] / 3 / published[2]) == pytest.approx(3.6, abs=0.1), "in millions, in each channel"
    assert float(published[1] / published[2]) < 0.1
    assert FrequencyRatio("mended")(stack(flat, natural)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("where", ["visible", "thermal"])
def test_blocks_that_are_flat_in_either_image_are_left_out(where: str) -> None:
    visible, thermal = grey_levels(0, 3), grey_levels(1)
    whole = FrequencyRatio("mended")(stack(visible[..., 8:], thermal[..., 8:]))
    image = visible if where == "visible" else thermal
    image[..., :8] = 0.3
    torch.testing.assert_close(FrequencyRatio("mended")(stack(visible, thermal)), whole)
    visible[:, 0, :8, 7] = 0.7  # in one block of each image
    assert float(FrequencyRatio("mended")(stack(visible, thermal))[2]) == float(whole[2]) + 2 * (where == "visible")


def test_a_letterboxed_image_has_the_ratio_of_the_unpadded_one() -> None:
    visible, thermal = grey_levels(0, 3), grey_levels(1)
    plain = stack(visible, thermal)
    padded = torch.nn.functional.pad(plain, (0, 0, 16, 16), value=GREY)
    torch.testing.assert_close(FrequencyRatio("mended")(padded), FrequencyRatio("mended")(plain))
    model: Any = make_model(parse_method("mwam")).method
    published: Any = make_model(parse_method("mwam+frm=published")).method
    for method in (model, published):
        method._count(method.ratio(padded))
    assert float(published.bank[0] / published.bank[1]) == pytest.approx(3, abs=0.3), "3 channels of padding to 1"
    assert float(model.bank[0] / model.bank[1]) != pytest.approx(3, abs=0.3)


def test_doubling_a_channel_changes_nothing() -> None:
    """The visible image is read as three channels, whatever is in them; the published sum counts each."""
    grey, other = grey_levels(0), grey_levels(1)
    for frm, times in (("mended", 1.0), ("published", 3.0)):
        seen_as_visible, seen_as_thermal = (
            FrequencyRatio(frm)(stack(grey, other)),
            FrequencyRatio(frm)(stack(other, grey)),
        )
        assert float(seen_as_visible[0]) == pytest.approx(times * float(seen_as_thermal[1]), rel=1e-5)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e4), st.floats(0, 1e4), st.sampled_from(["off", "on"]))
def test_k_is_within_its_bounds_and_falls_with_the_ratio(visible: float, thermal: float, normalise: str) -> None:
    bank = torch.tensor([visible, thermal])
    k = weights(bank, 1.5, 1.0, 6.0, 0.7, normalise)
    if normalise == "off" or not bank.any():
        assert ((k > 0.5) & (k < 1.5)).all()
    else:
        assert float(k.mean()) == pytest.approx(1)
    assert bool(k[0] <= k[1]) == (visible >= thermal) or k[0] == k[1]
    assert torch.equal(weights(bank.flip(0), 1.5, 1.0, 6.0, 0.7, normalise), k.flip(0))


def test_equal_spectra_have_equal_weights() -> None:
    batch = equal_batch()
    for normalise, expected in (("off", 1.5 - torch.sigmoid(torch.tensor(1.8))), ("on", torch.tensor(1.0))):
        model: Any = make_model(parse_method(f"mwam+normalise={normalise}"))
        step(model, batch)
        assert torch.equal(model.method.k[0], model.method.k[1])
        torch.testing.assert_close(model.method.k[0], expected, rtol=1e-6, atol=0)
    published: Any = make_model(parse_method("mwam+frm=published+normalise=on"))
    step(published, batch)
    assert float(published.method.bank[0] / published.method.bank[1]) == pytest.approx(3)
    assert published.method.k[0] < 0.7 < 1.3 < published.method.k[1]


def test_neutral_settings_are_sum() -> None:
    batch = equal_batch()
    expected = step(make_model(parse_method("sum")), batch)
    assert_same_step(step(make_model(parse_method("mwam+normalise=on")), batch), expected)
    assert_same_step(step(make_model(parse_method("mwam+alpha=1+beta=0+frm=published")), batch), expected)
    for fusion in ("mean", "adapt"):
        plain = step(make_model(parse_method(f"sum+fusion={fusion}")), batch)
        assert_same_step(step(make_model(parse_method(f"mwam+normalise=on+fusion={fusion}")), batch), plain)


@pytest.mark.parametrize("frm", ["mended", "published"])
def test_backbones_receive_k_times_what_sum_gives_them(frm: str) -> None:
    model: Any = make_model(parse_method(f"mwam+frm={frm}"))
    (losses, grads), (expected_losses, expected) = step(model), step(make_model(parse_method("sum")))
    assert {n: float(v) for n, v in losses.items()} == {n: float(v) for n, v in expected_losses.items()}
    assert set(grads) == set(expected)
    k = dict(zip(("visible", "thermal"), model.method.k))
    assert k["visible"] != k["thermal"]
    for name, grad in grads.items():
        if name.startswith("backbones."):
            scaled = k[name.split(".")[1]] * expected[name]
            torch.testing.assert_close(grad, scaled, rtol=1e-3, atol=1e-5 * float(scaled.abs().max()))
        else:
            assert torch.equal(grad, expected[name]), name


def test_the_bank_is_a_running_mean_and_a_batch_of_flat_images_is_left_out() -> None:
    method: Any = make_model(parse_method("mwam")).method
    assert method.k.tolist() == [1.0, 1.0], "nothing is known"
    batches = [stack(grey_levels(i, 3), grey_levels(i + 9)) for i in range(2)]
    found = [method.ratio(x) for x in batches]
    for x in (batches[0], torch.full((2, 4, 64, 64), GREY), batches[1]):
        method._count(method.ratio(x))
    expected = 0.25 * found[0][:2] / found[0][2] + 0.5 * found[1][:2] / found[1][2]
    torch.testing.assert_close(method.bank, expected)


def test_nothing_is_weighed_in_evaluation() -> None:
    x = make_batch()["img"]
    model, plain = make_model(parse_method("mwam")).eval(), make_model(parse_method("sum")).eval()
    with torch.no_grad():
        assert torch.equal(model.answers(x)["fused"][0], plain.answers(x)["fused"][0])
    assert set(model.state_dict()) - set(plain.state_dict()) == {"method.bank"}
    assert not model.state_dict()["method.bank"].any()


def test_the_ratio_is_taken_in_32_bits() -> None:
    x = stack(grey_levels(0, 3), grey_levels(1))
    exact = FrequencyRatio("mended")(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(FrequencyRatio("mended")(x), exact)


def test_what_cannot_be_is_told() -> None:
    for words in ("mwam+beta=1.5", "mwam+beta=-0.1", "mwam+alpha=0.5"):
        with pytest.raises(UserError, match="a gradient would turn round"):
            parse_method(words)
