"""What damage looks like: spoilt bytes and odd values for the fuzz tests (test_fuzz_*.py).

A fuzz test says what always holds, such as "decoded, or refused by a UserError", and is tried on few examples in
`make test` and on as many as fit in `make fuzz`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def examples(few: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Settings of a fuzz test: `few` examples in `make test`, a multiple of them in a round of `make fuzz`."""
    factor = int(os.environ.get("FUZZ_FACTOR", "1"))
    return settings(max_examples=few * factor, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@st.composite
def mutated(draw: Callable[..., Any], sound: bytes, most: int = 4) -> bytes:
    """`sound` after one to `most` changes: a flipped bit, other bytes, a cut, an insertion, a copy, a false length."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, most))):
        # Headers lie at the start and directories at the end, so half of the changes fall there.
        place = draw(st.sampled_from(("start", "end", "anywhere", "anywhere")))
        last = max(len(data) - 1, 0)
        near = min(last, 256)
        low, high = {"start": (0, near), "end": (last - near, last), "anywhere": (0, last)}[place]
        at = draw(st.integers(low, high))
        match draw(st.sampled_from(("bit", "bytes", "cut", "insert", "copy", "number"))):
            case "bit" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "bytes":
                other = draw(st.binary(min_size=1, max_size=16))
                data[at : at + len(other)] = other
            case "cut":
                del data[at : at + draw(st.sampled_from((1, 4, 64, len(data))))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "copy":
                data[at:at] = data[at : at + draw(st.integers(1, 256))]
            case "number":
                order = draw(st.sampled_from(("big", "little")))
                data[at : at + 4] = draw(st.sampled_from(_EXTREMES)).to_bytes(4, order)
    return bytes(data)


def odd_json() -> st.SearchStrategy[Any]:
    """Values that JSON and YAML can hold and a reader does not expect: of any kind, extreme, nested."""
    plain = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.sampled_from((-1, 0, 2**31, 2**63, 10**400))
        | st.floats()
        | st.text(max_size=20)
    )
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    )
