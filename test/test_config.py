"""Configuration and detections: validated once, where they are made."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from rscmd_model.config import FLAGS, LINEAR_SPPF, ModelConfig
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError, run_cli
from rscmd_model.methods import METHODS, method_class, method_config, parse_method


@pytest.mark.parametrize("method", METHODS)
def test_config_round_trip(method: str) -> None:
    config = method_config(method, scale="s")
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_methods_are_the_table_of_the_paper() -> None:
    assert method_config("rscmd").answers == ("fused", "visible", "thermal")
    assert method_config("sum").answers == method_config("aux").answers == ("fused",)
    assert method_config("thermal").answers == ("thermal",)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scale": "xl"}, "scale 'xl'"),
        ({"rsc": "off"}, "rsc 'off' is not one of own, shared"),
        ({"lambda_visible": 0.0}, "more than 0"),
        ({"lambda_visible": float("nan")}, "not a number"),
        ({"md": "half"}, "md 'half'"),
        ({"md_from": 0.5, "md_until": 0.5}, "md_from < md_until"),
        ({"md_until": 2.0}, "md_from < md_until"),
        ({"branch": "thin"}, "branch 'thin'"),
        ({"fusion": "concat"}, "fusion 'concat'"),
        ({"modalities": "visible"}, "has no setting 'modalities'"),
        ({"lambda_visble": 1.0}, "did you mean lambda_visible"),
    ],
)
def test_senseless_settings(changes: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        method_config("rscmd", **changes)


def test_a_method_has_its_own_settings_alone() -> None:
    for method, setting in (("thermal", "rsc"), ("sum", "branch"), ("rsc", "md")):
        with pytest.raises(UserError, match=f"method {method} has no setting '{setting}'"):
            method_config(method, **{setting: "own"})
    with pytest.raises(UserError, match="not one of"):
        method_config("fusion")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lambda": 1.0}, "unknown model setting 'lambda'"),
        ({"modalities": ["thermal", "visible"]}, "in this order"),
        ({"answers": ["visible", "fused"]}, "begin with fused"),
        ({"answers": ["fused", "thermal", "thermal"]}, "name one twice"),
        ({"answers": ["fused", "lidar"]}, "answers are a list"),
        ({"settings": {"md": ["map"]}}, "no word by name"),
        ({"settings": {"lambda_visible": float("inf")}}, "no word by name"),
        ({"method": ""}, "no name of a method"),
    ],
)
def test_a_config_that_says_what_cannot_be(changes: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ModelConfig.from_dict({**method_config("rscmd").to_dict(), **changes})


FLAGS_OF = {
    "visible": {"modalities": ["visible"], "rsc": "off", "md": "off"},
    "thermal": {"modalities": ["thermal"], "rsc": "off", "md": "off"},
    "sum": {"rsc": "off", "md": "off"},
    "sum+fusion=adapt": {"rsc": "off", "md": "off", "fusion": "adapt"},
    "aux+branch=full": {"rsc": "aux", "md": "off", "branch": "full"},
    "rsc+lambda_thermal=3": {"md": "off", "lambda_thermal": 3.0},
    "rsc+rsc=shared": {"md": "off", "rsc": "shared", "branch": "full"},
    "rscmd": {},
    "rscmd+md=stop+md_until=0.5": {"md": "stop", "md_until": 0.5},
}


@pytest.mark.parametrize(("text", "flags"), FLAGS_OF.items())
def test_flags_of_old_files_are_the_methods_of_today(text: str, flags: dict) -> None:
    """In headers, and in the objects that old checkpoints hold."""
    old = {**FLAGS, **flags}
    today = parse_method(text, family=LINEAR_SPPF)
    assert ModelConfig.from_flags(old) == today
    assert today.title == text
    unpickled = ModelConfig.__new__(ModelConfig)
    unpickled.__setstate__({**old, "modalities": tuple(old["modalities"])})
    assert unpickled == today
    with pytest.raises(UserError, match="unknown or missing"):
        ModelConfig.from_flags({**old, "neck": "wide"})


@pytest.mark.parametrize(
    ("boxes", "scores", "classes", "says"),
    [
        (np.zeros((2, 5)), np.zeros(2), np.zeros(2, int), r"\(N, 4\), got \(2, 5\)"),
        (np.zeros((2, 4)), np.zeros(3), np.zeros(2, int), "scores: expected shape"),
        (np.zeros((2, 4)), np.zeros(2), np.zeros(2), "integers"),
        (np.zeros((1, 4)), np.array([1.5]), np.zeros(1, int), r"\[0, 1\]"),
        (np.array([[5, 0, 1, 1]]), np.zeros(1), np.zeros(1, int), "corners"),
        (np.array([[np.nan, 0, 1, 1]]), np.zeros(1), np.zeros(1, int), "finite"),
    ],
)
def test_detections_refuse_what_they_cannot_be(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Detections(boxes, scores, classes)


def test_empty_detections() -> None:
    assert len(Detections.empty()) == 0
    assert Detections.empty().boxes.shape == (0, 4)


def test_what_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def full_disk() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.json")

    with pytest.raises(SystemExit) as ended:
        run_cli(full_disk)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: out.json: No space left on device\n"


def test_a_method_with_changes() -> None:
    assert parse_method("rscmd") == method_config("rscmd")
    assert parse_method("rsc+rsc=shared+lambda_visible=2", scale="s") == method_config(
        "rsc", rsc="shared", lambda_visible=2.0, scale="s"
    )
    assert parse_method("rscmd+md=project") == parse_method("rscmd"), "what is so anyway changes nothing"
    for text, says in (
        ("rscm", "method 'rscm' is not one of"),
        ("rscmd+map", "expected setting=value"),
        ("rscmd+mdd=map", "did you mean md"),
        ("rscmd+md=map+md=stop", "md is given twice"),
        ("rscmd+md_until=late", "md_until needs a number"),
        ("thermal+fusion=adapt", "no setting 'fusion'; it has none"),
    ):
        with pytest.raises(UserError, match=says):
            parse_method(text)


def test_a_preset_is_the_settings_it_stands_for() -> None:
    config = parse_method("rscmd+preset=paper", scale="s")
    assert (
        config
        == parse_method("rscmd+md=stop+branch=full", scale="s")
        == method_config("rscmd", preset="paper", scale="s")
    )
    assert config.settings == {"md": "stop", "branch": "full"}, "a model file names no preset"
    assert parse_method("rscmd+lambda_visible=2+preset=paper") == parse_method(
        "rscmd+md=stop+branch=full+lambda_visible=2"
    ), "settings that it leaves open stand beside it"
    assert parse_method("rscmd+md=stop+preset=paper") == parse_method("rscmd+preset=paper+md=stop")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rscmd+preset=paper+md=map", "md=map contradicts preset=paper, which means md=stop"),
        ("rscmd+branch=lean+preset=paper", "branch=lean contradicts preset=paper"),
        ("rscmd+preset=paper+rsc=shared", "rsc=shared contradicts preset=paper"),
        ("rscmd+preset=papers", "preset 'papers' of method rscmd is not one of paper"),
        ("rscmd+prest=paper", "did you mean preset"),
        ("rscmd+preset=paper+preset=paper", "preset is given twice"),
        ("rscmd+preset=paper+md=half", "md=half contradicts"),
        ("rscmd+preset=a\nb", r"preset 'a\\nb' of"),
        ("rsc+preset=paper", "method rsc has no presets"),
        ("thermal+preset=paper", "method thermal has no presets"),
    ],
)
def test_a_preset_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        parse_method(text)
    assert "\n" not in str(refused.value)


def test_presets_name_settings_of_their_methods() -> None:
    for method in METHODS:
        for preset in method_class(method).presets:
            assert method_config(method, preset=preset).method == method
