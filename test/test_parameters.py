"""The table of parameters: the file that shows it, and what is refused."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from rscmd_ros.node.parameters import (
    TABLE,
    Settings,
    as_double,
    as_row,
    problem_with,
    problem_with_change,
    unknown_classes,
)
from rscmd_ros.node.unused_parameters import unused
from rscmd_ros.parameter_pages import to_markdown, to_yaml

DEFAULTS = asdict(Settings())
FILE = Path(__file__).resolve().parent.parent / "config" / "detector.yaml"


def test_file_shows_the_table():
    assert FILE.read_text() == to_yaml(), "run: python -m rscmd_ros.parameter_pages > config/detector.yaml"
    shown = {n: as_row(n, value) for n, value in yaml.safe_load(to_yaml())["/**"]["ros__parameters"].items()}
    assert shown == DEFAULTS
    # rclpy takes the types from the file: 50 would be an integer.
    assert {name: type(value) for name, value in shown.items()} == {n: type(v) for n, v in DEFAULTS.items()}


def test_page_shows_the_descriptors():
    page = to_markdown()
    shown = (FILE.parent.parent / "docs" / "parameters.md").read_text()
    assert shown == page, "run: python -m rscmd_ros.parameter_pages --markdown > docs/parameters.md"
    rows = [line for line in page.partition("| name |")[2].splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(TABLE)


def test_defaults_are_allowed():
    assert problem_with(DEFAULTS) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"confidence_threshold": 1.01}, "'confidence_threshold' is 1.01; it must lie between 0.0 and 1.0"),
        ({"iou_threshold": -0.1}, "'iou_threshold' is -0.1"),
        ({"slop_ms": math.nan}, "'slop_ms' is nan"),
        ({"max_detections": 0}, "'max_detections' is 0; it must lie between 1 and 10000"),
        ({"queue_size": 0}, "'queue_size' is 0"),
        ({"pairing_policy": "closest"}, "'pairing_policy' is 'closest'; choose one of nearest, approximate, exact"),
        ({"thermal_reliability": "maybe"}, "'thermal_reliability' is 'maybe'; choose one of best_effort, reliable"),
        ({"classes": ("car", "person", "car")}, "'classes' names 'car' more than once"),
        ({"backend": "tvm"}, "'backend' is 'tvm'; choose one of auto, torch, onnxruntime, openvino"),
        ({"tracker": "sort"}, "'tracker' is 'sort'; choose one of none, bytetrack"),
        ({"stream_timeout": 0.0}, "'stream_timeout' is 0.0; it must lie between 0.05 and 60.0"),
        ({"reuse": True, "pairing_policy": "approximate"}, "'reuse' works with pairing_policy nearest only"),
        ({"slop_ms": 0.0, "pairing_policy": "approximate"}, "with which pairing_policy approximate never pairs"),
    ],
)
def test_what_is_wrong_is_named(values, words):
    assert words in problem_with({**DEFAULTS, **values})


def test_changes_are_judged_together():
    """Each of two changes may be wrong alone and right together, and the other way round."""
    exact = {**DEFAULTS, "pairing_policy": "exact"}
    assert problem_with_change(exact, {"reuse": True}, configured=False)
    assert problem_with_change(exact, {"reuse": True, "pairing_policy": "nearest"}, configured=False) is None
    assert problem_with_change(DEFAULTS, {"confidence_threshold": 0.5, "iou_threshold": 2.0}, configured=True)


def test_a_configured_node_takes_live_parameters_only():
    live = {
        "confidence_threshold": 0.5,
        "iou_threshold": 0.5,
        "max_detections": 10,
        "classes": ["car"],
        "enable": False,
        "lazy": True,
        "fallback": "hold",
        "stream_timeout": 2.0,
        "shutter_time": 4.0,
        "pairing_policy": "exact",
        "slop_ms": 10.0,
        "deadline_ms": 10.0,
        "thermal_offset_ms": 10.0,
        "use_measured_offset": True,
        "reuse": False,
    }
    assert {name for name, row in TABLE.items() if row.metadata["live"]} == set(live)
    assert problem_with_change(DEFAULTS, live, configured=True) is None
    for name in TABLE.keys() - live.keys():
        changed = {name: object()}
        assert f"'{name}' can be set only while the node is unconfigured" in problem_with_change(
            DEFAULTS, {**live, **changed}, configured=True
        )
        assert problem_with_change(DEFAULTS, {name: DEFAULTS[name]}, configured=True) is None  # no change at all


def test_unknown_classes_are_named_with_those_there_are():
    assert unknown_classes([""], ["person", "car"]) is None
    assert unknown_classes(["car"], ["person", "car"]) is None
    assert unknown_classes(["car", "cat"], ["person", "car"]) == (
        "parameter 'classes' names 'cat'; the model's classes are person, car"
    )


def test_integers_serve_as_doubles_and_nothing_else_does():
    assert as_double("slop_ms", 50) == 50.0
    assert isinstance(as_double("slop_ms", 50), float)
    assert isinstance(as_double("max_detections", 50), int)
    assert as_double("slop_ms", True) is True
    assert as_double("slop_ms", "50") == "50"


def test_names_that_nobody_uses_are_found():
    override = "qos_overrides./visible/image.subscription.depth"
    said = unused(["model", override, "confidence_treshold"], [override])
    assert said == ["parameter 'confidence_treshold' is unknown and not used; did you mean 'confidence_threshold'?"]
    assert len(unused([f"x{n}" for n in range(10**5)], ())) == 9


def test_ten_thousands_of_classes_are_judged_in_no_time():
    """The executor takes no images meanwhile."""
    started = time.monotonic()
    many = [f"class {n}" for n in range(50_000)]
    assert problem_with({**DEFAULTS, "classes": tuple(many)}) is None
    for classes in (tuple(many * 2), ("a",) * 100_000):
        assert "more than once" in problem_with({**DEFAULTS, "classes": classes})
    assert len(unknown_classes(many, [f"{n}" for n in range(1000)])) < 20_000
    assert len(unknown_classes(many, ["a"])) < 300
    assert time.monotonic() - started < 1
