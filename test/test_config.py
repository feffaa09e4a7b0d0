"""Configuration and detections: validated once, where they are made."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from rscmd_model.config import METHODS, ModelConfig, method_config, parse_method
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError, run_cli


@pytest.mark.parametrize("method", METHODS)
def test_config_round_trip(method: str) -> None:
    config = method_config(method, scale="s")
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_methods_are_the_table_of_the_paper() -> None:
    assert method_config("rscmd").branches == ("fused", "visible", "thermal")
    assert method_config("sum").branches == ("fused",)
    assert method_config("thermal").branches == ("thermal",)
    assert (method_config("rsc").md, method_config("rscmd").md) == ("off", "project")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scale": "xl"}, "scale 'xl'"),
        ({"rsc": "off"}, "needs a unimodal loss"),
        ({"rsc": "aux"}, "needs a unimodal loss"),
        ({"lambda_visible": 0.0}, "more than 0"),
        ({"md": "half"}, "md 'half'"),
        ({"md_from": 0.5, "md_until": 0.5}, "md_from < md_until"),
        ({"md_until": 2.0}, "md_from < md_until"),
        ({"branch": "thin"}, "branch 'thin'"),
        ({"fusion": "concat"}, "fusion 'concat'"),
    ],
)
def test_senseless_settings(changes: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        method_config("rscmd", **changes)
    with pytest.raises(UserError, match="nothing to fuse"):
        method_config("thermal", rsc="own")
    with pytest.raises(UserError, match="not one of"):
        method_config("fusion")


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean lambda_visible"):
        ModelConfig.from_dict({"lambda_visble": 1.0})


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
    for text, says in (
        ("rscm", "method 'rscm' is not one of"),
        ("rscmd+map", "expected setting=value"),
        ("rscmd+mdd=map", "did you mean md"),
        ("rscmd+md_until=late", "md_until needs a number"),
        ("thermal+fusion=adapt", "nothing to fuse"),
    ):
        with pytest.raises(UserError, match=says):
            parse_method(text)
