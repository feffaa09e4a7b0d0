"""Spoilt model files: a model whose answers are finite, or one bounded line that names the file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import examples, mutated, odd_json
from safetensors.torch import load, save

from rscmd_model.config import ModelConfig
from rscmd_model.errors import UserError
from rscmd_model.imaging.registration import Registration
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.backends import ARCHIVE_HEADER, broken_seal, read_archive, sealed, write_archive
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import method_config
from rscmd_model.network.header import HEADER, ModelHeader, parse_header, read_header, read_metadata
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import save_model

NAMES = {0: "person", 1: "car"}
# Every field there is, and every setting by name, as files from before `UNWRITTEN` have them.
_HEADER = ModelHeader(
    ModelConfig(),
    NAMES,
    64,
    ThermalContract("mono16", (1.0, 99.0), True),
    {"name": "toy"},
    {"mAP50": 0.5},
    Registration(((1, 0, 0), (0, 1, 0), (0, 0, 1)), (64, 48), (64, 48)),
)
FULL = {**json.loads(_HEADER.to_json()), "config": ModelConfig().to_dict()}


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within a JSON value, and to the whole."""
    yield before
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*before, key))


def exchanged(value: Any, place: tuple[Any, ...], other: Any) -> Any:
    """A copy with another value at that place."""
    if not place:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = exchanged(value[place[0]], place[1:], other)
    return copy


def told(error: UserError, file: Path) -> None:
    """It is one line, not too long, that names the file."""
    assert str(file) in str(error)
    assert str(error).isprintable()
    assert len(str(error)) < 600 + len(str(file))


def tried(file: Path) -> None:
    """Load a model and let each branch answer; `UserError` is one good end, finite boxes the other."""
    try:
        predictor = Predictor(file, device="cpu", conf=0.001)
        predictor.warm_up()
        side = np.full((64, 64), 100, np.uint16 if predictor.thermal.source == "mono16" else np.uint8)
        if predictor.registration is None:
            found = predictor.predict(np.full((64, 64, 3), 100, np.uint8), side)
            assert np.isfinite(found.boxes).all()
            assert np.isfinite(found.scores).all()
    except UserError as error:
        told(error, file)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model.safetensors of one camera."""
    file = tmp_path_factory.mktemp("fuzz") / "m.safetensors"
    torch.manual_seed(0)
    model = RscmdModel(method_config("thermal"), NAMES)
    save_model(file, model, ModelHeader(model.config, NAMES, 64, ThermalContract()))
    return file


@examples(250)
@given(place=st.sampled_from([*places(FULL)]), other=odd_json())
def test_headers(place: tuple[Any, ...], other: Any) -> None:
    file = Path("some/m.safetensors")
    try:
        text = json.dumps(exchanged(FULL, place, other))
    except ValueError:  # a number of more digits than Python writes
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            header = parse_header(file, text)
        except UserError as error:
            told(error, file)
            return
    assert parse_header(file, header.to_json()) == header or any(m != m for m in header.metrics.values())
    assert 0 < header.image_size <= 4096
    header.thermal.apply(np.zeros((4, 4), np.uint16 if header.thermal.source == "mono16" else np.uint8))


@examples(100)
@given(data=st.data())
def test_header_texts(data: st.DataObject) -> None:
    file = Path("some/m.safetensors")
    try:
        parse_header(file, data.draw(mutated(json.dumps(FULL).encode())).decode(errors="replace"))
    except UserError as error:
        told(error, file)


@examples(25)
@given(data=st.data())
def test_bytes_of_a_model_file(small: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """With a digest nothing but what was written is loaded, whatever was changed."""
    sound = small.read_bytes()
    file = small.with_name("bytes.safetensors")
    start = 8 + int.from_bytes(sound[:8], "little")
    spoilt = data.draw(st.one_of(mutated(sound), mutated(sound[:start]).map(lambda head: head + sound[start:])))
    file.write_bytes(spoilt)
    try:
        read_header(file)
        read_metadata(file, spoilt)
    except UserError as error:
        told(error, file)
        return
    tried(file)


@examples(6)
@given(data=st.data())
def test_weights_without_a_digest(small: Path, data: st.DataObject) -> None:
    sound = small.read_bytes()
    file = small.with_name("weights.safetensors")
    weights = load(sound)
    name = data.draw(st.sampled_from(sorted(weights)))
    number = data.draw(st.sampled_from((float("nan"), float("inf"), -1e38, 1e38, -1.0, 0.0)) | st.floats(width=32))
    weights[name] = torch.full_like(weights[name], 0 if weights[name].dtype == torch.int64 else number)
    file.write_bytes(save(weights, metadata={HEADER: read_metadata(small, sound)[HEADER]}))
    tried(file)


@examples(100)
@given(data=st.data())
def test_archives(small: Path, data: st.DataObject) -> None:
    """What comes out is what was put in: anything else is told by a checksum or by the directory."""
    file = small.with_name("m.openvino")
    members = {"model.xml": b"<net/>" * 50, "model.bin": bytes(range(256)) * 4}
    write_archive(file, {ARCHIVE_HEADER: _HEADER.to_json().encode(), **members})
    file.write_bytes(data.draw(mutated(file.read_bytes())))
    try:
        header, found = read_archive(file)
    except UserError as error:
        told(error, file)
        return
    assert header == _HEADER
    assert all(found[name] == members[name] for name in found if name in members)


@examples(100)
@given(data=st.data())
def test_the_end_of_an_onnx_file_vouches_for_the_rest(data: st.DataObject) -> None:
    content = b"\x08\x08" + b"weights" * 50
    spoilt = data.draw(mutated(sealed(content)))
    end = sealed(content)[len(content) : -64]
    if spoilt[-64 - len(end) : -64] == end and not broken_seal(spoilt):
        assert sealed(spoilt[: -64 - len(end)]) == spoilt
