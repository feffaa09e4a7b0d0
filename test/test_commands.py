"""The command lines of rscmd_model: their help, what stands anywhere on them, and the older names of their flags."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from test_pairs import write_world
from test_train import QUICK

from rscmd_model import train
from rscmd_model.arguments import command_parser, given_scale, option_words, parse, scale_argument
from rscmd_model.errors import UserError, did_you_mean
from rscmd_model.network.model_file import read_header

ROOT = Path(__file__).resolve().parent.parent
# Every module that is started by its name.
COMMANDS = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for file in (ROOT / "rscmd_model").rglob("*.py")
    if 'if __name__ == "__main__":' in file.read_text(encoding="utf-8")
)
HELP = """
import runpy, sys
for module, *words in [line.split() for line in sys.stdin]:
    sys.argv = [module, *words, "--help"]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, (module, end.code)
    heavy = {"torch", "ultralytics", "onnxruntime", "openvino"} & sys.modules.keys()
    assert not heavy, f"{module} {words} imports {heavy} for its help"
"""


def test_help_waits_for_no_torch() -> None:
    assert {"rscmd_model.train", "rscmd_model.datasets", "rscmd_model.diagnose"} <= set(COMMANDS)
    calls = [*COMMANDS, "rscmd_model.diagnose gradients", "rscmd_model.diagnose probe", "rscmd_model.datasets check"]
    calls.remove("rscmd_model.options")  # prints its table
    done = subprocess.run(
        [sys.executable, "-c", HELP], input="\n".join(calls), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for call in calls:
        assert f"python -m {call}" in done.stdout


def test_no_module_imports_a_command() -> None:
    rooms = {"rscmd_model.datasets", "rscmd_model.synthetic", "rscmd_model.options"}  # they are more than a command
    for file in [*(ROOT / "rscmd_model").rglob("*.py"), *(ROOT / "rscmd_ros").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                found = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert not (set(found) & {*COMMANDS} - rooms), file


def test_options_stand_anywhere_and_negative_values_are_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_parser("x", "about")
    parser.add_argument("--model", nargs="+")
    parser.add_argument("--shift", nargs="+", type=str.strip)
    parser.add_argument("--near", type=int)
    plain = parse(parser, ["--shift", "-4,0", "3", "--near", "-1"])
    assert (plain.shift, plain.near) == (["-4,0", "3"], -1)
    with pytest.raises(SystemExit):
        parse(parser, ["epochs=1"])
    option_words(parser)
    args = parse(parser, ["a=1", "--model", "m", "n", "b=2", "--near", "0", "c"])
    assert (args.model, args.near, args.options) == (["m", "n"], 0, ["a=1", "b=2", "c"])
    assert parse(parser, []).options == []
    with pytest.raises(SystemExit):
        parse(parser, ["--no-such-flag", "a=1"])
    assert "unrecognized arguments: --no-such-flag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "scale"),
    [([], None), (["--scale", "s"], "s"), (["--model", "s"], "s"), (["--scale", "s", "--model", "s"], "s")],
)
def test_the_scale_has_an_older_name(words: list[str], scale: str | None) -> None:
    parser = command_parser("x", "about")
    scale_argument(parser)
    assert given_scale(parse(parser, words)) == scale


def test_two_scales_are_refused() -> None:
    with pytest.raises(UserError, match=r"^--scale s and --model n: give one"):
        train.main(["--data", "d", "--scale", "s", "--model", "n"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--md", "map"], "--md map: write --method rscmd+md=map"),
        (["--method", "rsc", "--rsc", "shared"], "--rsc shared: write --method rsc+rsc=shared"),
        (
            ["--method", "rscmd+md=stop", "--lambda-visible", "2", "--lambda-thermal=3"],
            "--lambda-visible 2 --lambda-thermal 3: write --method rscmd+md=stop+lambda_visible=2+lambda_thermal=3",
        ),
    ],
)
def test_a_flag_of_earlier_versions_is_answered_with_todays_spelling(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        train.main(["--data", "d", *words])
    assert str(caught.value) == message


def test_a_run_is_named_after_its_method_and_all_changes(tmp_path: Path) -> None:
    data = write_world(tmp_path / "data", ("a", "b"))
    options = [f"{key}={value}" for key, value in QUICK.items()]
    train.main(["--data", str(data), "--method", "rsc+rsc=shared", "epochs=1", f"project={tmp_path}", *options])
    header = read_header(tmp_path / "rsc+rsc=shared" / "model.safetensors")
    assert header.config.title == "rsc+rsc=shared"


def test_the_nearest_name_is_offered() -> None:
    assert did_you_mean("epoch", ["epochs", "batch"]) == "; did you mean epochs?"
    assert did_you_mean("zzz", ["epochs"]) == ""
    assert did_you_mean("zzz", ["epochs"], "known: epochs") == "; known: epochs"
    assert did_you_mean("epochs" + 10**6 * "x", ["epochs"]) == ""
