"""Spoilt pictures: decoded to what their header says, or refused by one line; never more memory than that."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mutations import examples, mutated
from test_pictures import JPEG, PICTURE, PNG, PROGRESSIVE, chunk, encode, with_orientation

from rscmd_model.errors import UserError
from rscmd_model.imaging.images import Glance, glance, read_thermal, read_visible
from rscmd_model.imaging.pictures import PictureHeader, decode, picture_header

SOUND = (
    JPEG,
    PROGRESSIVE,
    PNG,
    encode(PICTURE[..., 0].astype(np.uint16) * 257, "png"),
    with_orientation(JPEG, 6),
    with_orientation(PNG, 8),
    PNG[:33] + chunk(b"tEXt", b"comment\0" + bytes(40)) + PNG[33:],
    JPEG + JPEG,
)
OTHER = tuple(encode(PICTURE, codec) for codec in ("tiff", "bmp"))
MOST_MEGABYTES = 200
T = TypeVar("T")


def spoilt(sound: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    return st.sampled_from(sound).flatmap(mutated)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def outcome(read: Callable[[], T]) -> T | str:
    """What a reader gives, or the one line by which it refuses."""
    before = peak_megabytes()
    try:
        return read()
    except UserError as error:
        return str(error)
    finally:
        assert peak_megabytes() - before < MOST_MEGABYTES


@given(spoilt(SOUND) | st.binary(max_size=80).map(lambda tail: JPEG[:3] + tail))
@examples(150)
def test_a_spoilt_picture_is_decoded_or_refused(data: bytes) -> None:
    header, image = outcome(lambda: picture_header(data)), outcome(lambda: decode(data))
    if isinstance(image, str):
        assert image.isprintable()
        assert len(image) < 200
    else:
        assert isinstance(header, PictureHeader)
        assert image.shape[1::-1] == (header.width, header.height)
        assert image.dtype in (np.uint8, np.uint16)


@given(spoilt(SOUND + OTHER), st.sampled_from(["a.png", "a.jpg", "a.tiff"]))
@examples(60)
def test_a_spoilt_file_has_one_size_or_is_refused_by_name(data: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(data)
        seen = [outcome(partial(read, file)) for read in (read_visible, read_thermal, glance)]
    assert all(str(file) in said and said.isprintable() for said in seen if isinstance(said, str))
    sizes = [s.size if isinstance(s, Glance) else s.shape[1::-1] for s in seen if not isinstance(s, str)]
    assert len(set(sizes)) < 2
