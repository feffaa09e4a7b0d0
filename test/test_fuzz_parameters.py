"""Odd parameters: values, names, and texts of parameter files are taken, or refused in one printable line, at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from mutations import examples, mutated, odd_json

from rscmd_model.errors import as_line, several, shown
from rscmd_ros.node.parameters import (
    TABLE,
    Settings,
    as_double,
    as_row,
    changed,
    problem_with_change,
    unknown_classes,
    wanted_classes,
)
from rscmd_ros.node.unused_parameters import reaches, sections, unreached, unused
from rscmd_ros.parameter_pages import to_yaml

DEFAULTS = asdict(Settings())
LONG = "y" * 1_000_000
HOSTILE = (
    st.sampled_from(("", "x\n[INFO] forged", "\x1b]0;title\x07", "\u202eab", "\udc80", "a'b", LONG, "\0")) | st.text()
)
NUMBERS = st.integers() | st.floats() | st.sampled_from((10**400, -(10**400), 2**63, -1, 0))
VALUES = odd_json() | NUMBERS | HOSTILE | st.lists(HOSTILE, max_size=5) | st.lists(NUMBERS, max_size=9)
MANY = st.sampled_from((("a",) * 50_000, tuple(f"c{n}" for n in range(50_000)), (0.0,) * 50_000))
CHANGES = st.dictionaries(st.sampled_from(list(TABLE)), VALUES | MANY, min_size=1, max_size=3)
WORDS = st.sampled_from(("--ros-args", "--", "-p", "--param", "--params-file", "-r")) | HOSTILE


@contextmanager
def at_once(seconds: float = 1.0) -> Iterator[None]:
    started = time.process_time()
    yield
    assert time.process_time() - started < seconds


def check_line(text: str, most: int = 2000) -> None:
    assert text.isprintable()
    assert 0 < len(text) <= most


@examples(150)
@given(
    changes=st.dictionaries(st.sampled_from(list(TABLE)), VALUES | MANY, min_size=1, max_size=3), ready=st.booleans()
)
@example(changes={"classes": ("a",) * 50_000}, ready=False)
@example(changes={"extrinsics": (0.0,) * 50_000}, ready=True)
@example(changes={"slop_ms": 10**400}, ready=False)
@example(changes={"fallback": LONG}, ready=True)
@example(changes={"model": None}, ready=False)
def test_values_are_taken_or_refused(changes: dict[str, Any], ready: bool) -> None:
    with at_once():
        changes = {name: as_double(name, value) for name, value in changes.items()}
        problem = problem_with_change(DEFAULTS, changes, ready)
        if problem is not None:
            check_line(problem)
            return
        settings = Settings(**{**DEFAULTS, **{name: as_row(name, value) for name, value in changes.items()}})
        check_line(changed(settings), 10_000)
        wanted_classes(settings.classes)
        check_line(unknown_classes(settings.classes, ["person"]) or "none")


@examples(50)
@given(names=st.lists(HOSTILE | mutated(b"confidence_threshold").map(lambda b: b.decode("latin-1")), max_size=30))
@example(names=[f"a.b{n}" for n in range(50_000)])
@example(names=["qos_overrides." + LONG, LONG, "." * 10_000])
def test_names_that_are_no_parameter_are_said_in_few_lines(names: list[str]) -> None:
    with at_once():
        lines = unused(names, ["qos_overrides./visible/image.subscription.depth"])
    assert len(lines) <= 9
    assert bool(lines) == any(name not in TABLE for name in names)
    for line in lines:
        check_line(line)


@examples(30)
@given(text=mutated(to_yaml().encode(), 20).map(lambda data: data.decode("utf-8", "replace")))
def test_spoilt_files_are_read_through(text: str) -> None:
    with at_once(2.0):
        for section, names in sections(text).items():
            reaches(section, "/front/rscmd_detector")
            for line in unused(names, ()):
                check_line(line)


@examples(80)
@given(text=odd_json().map(lambda value: yaml.safe_dump(value, default_flow_style=None)) | HOSTILE)
@example(text="[" * 100_000)
@example(text="{a: " * 100_000)
@example(text="? " * 10_000)
@example(text="a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b]\n" * 100)
@example(text="ros__parameters: {" + ", ".join(f"p{n}: 1" for n in range(20_000)) + "}")
@example(text="\n".join(f"n{n}: {{ros__parameters: {{a: 1}}}}" for n in range(5_000)))
def test_files_of_any_text_are_spoken_of_in_one_line(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "p.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with at_once(3.0):
        lines = unreached(["--ros-args", "--params-file", str(file)], "/rscmd_detector")
    assert len(lines) <= 1
    for line in lines:
        check_line(line)


@examples(100)
@given(
    words=st.lists(st.sampled_from(("--ros-args", "--", "-p", "--param", "--params-file", "-r")) | HOSTILE, max_size=12)
)
def test_command_lines_of_any_words_are_looked_through(words: list[str]) -> None:
    for line in unreached(words, "/rscmd_detector"):
        check_line(line)


@examples(100)
@given(section=st.text(alphabet="/*ab_.(+", max_size=200), node=st.sampled_from(("/a", "/a/b", "/a/a/a/a/a/a/a/a/b")))
@example(section="/**" * 60, node="/a/a/a/a/a/a/a/a/b")
@example(section="/**/*" * 30, node="/a/a/a/a/a/a/a/a/b")
def test_patterns_of_sections_are_matched_at_once(section: str, node: str) -> None:
    with at_once():
        reaches(section, node)


@examples(100)
@given(text=HOSTILE, most=st.integers(1, 200))
def test_text_from_elsewhere_becomes_short_and_printable(text: str, most: int) -> None:
    for line in (shown(text, most), as_line(text), several([text] * 100)):
        assert line.isprintable()
        assert "\n" not in line
    assert len(shown(text, most)) <= 2 * most + 30
    assert len(as_line(text)) < 25_000
    if text.isprintable() and len(text) <= most:
        assert shown(text, most) == text
