"""Words for every option: read as what was written, or refused by one short line; a name is never another one."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from mutations import examples, odd_json

from rscmd_model.errors import UserError
from rscmd_model.methods import method_class, parse_method
from rscmd_model.options import OPTIONS, check_options, parse_options, word

_TRAPS = (
    *("", " ", "0", "-1", "1e3", "1e999", "nan", "inf", "-inf", "1_0", "0x10", "010", "007", "1.", ".5", "٣", "²"),
    *("on", "off", "yes", "no", "true", "False", "null", "~", "None", "auto", "=", "==", "#", "a #b", "@x", "*a", "&a"),
    *("2026-11-26", "2026-11-26 10:00:00", "12:30", "!!python/object:os.system", "!x", "{a: b}", "- a", "|", ">"),
    *("[", "]", "[]", "[0,", "[0,1]", "(0,1)", "0,1", "0,1,", "[[0]]", "[64,96]", "'", '"', "'a", "a: b", "cuda:0"),
    *("cpu", "mps", "0,0", "-1,-1", "/", "..", "a/b", "a\nb", "a\x00b", "\x1b[31m", "\ud800", "\u202e", "x" * 5000),
)
values = st.sampled_from(_TRAPS) | st.text(max_size=30) | st.integers().map(str) | st.floats().map(str)
keys = st.sampled_from(sorted(OPTIONS)) | st.text(max_size=12)


def refused(error: UserError) -> None:
    message = str(error)
    assert message.isprintable(), "one line, nothing that a terminal would obey"
    assert len(message) < 500


def finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


SETTINGS = sorted(method_class("rscmd").Settings.__dataclass_fields__)


@examples(400)
@given(st.lists(st.tuples(keys, values), max_size=3))
@example([("name", "2026-11-26")])
@example([("classes", "[0,")])
@example([("name", "model")])
def test_words_are_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    try:
        options = parse_options([f"{key}={value}" for key, value in pairs])
    except UserError as error:
        return refused(error)
    given_words = dict(pairs)
    for key, value in options.items():
        assert finite(value)
        if key in ("name", "project", "split") or (key == "resume" and value):
            assert value == given_words[key]
    assert check_options(options) == options
    assert (
        parse_options([word(key, value) for key, value in options.items()]) == options
    )  # as an ablation hands them on
    return None


@examples(100)
@given(st.lists(st.text(max_size=20), max_size=3))
def test_any_words(words: list[str]) -> None:
    try:
        parse_options(words)
    except UserError as error:
        refused(error)


@examples(200)
@given(st.dictionaries(st.sampled_from(sorted(OPTIONS)), odd_json(), max_size=3))
def test_values_of_python_are_read_or_refused(options: dict[str, Any]) -> None:
    try:
        assert all(finite(value) for value in check_options(options).values())
    except UserError as error:
        refused(error)


@examples(100)
@given(
    st.sampled_from(("rscmd", "rsc", "sum", "thermal")) | st.text(max_size=6),
    st.lists(
        st.tuples(st.sampled_from(SETTINGS) | st.text(max_size=8), values),
        max_size=2,
    ),
)
def test_methods_are_read_or_refused(method: str, changes: list[tuple[str, str]]) -> None:
    try:
        config = parse_method("+".join([method, *(f"{key}={value}" for key, value in changes)]))
    except UserError:
        return
    assert all(finite(value) for value in config.to_dict().values())
