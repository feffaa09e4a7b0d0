"""The launch file as it stands, without launch: every name in it is known to the node, the package and the docs.

`make test LAUNCH=FOLDER` runs it for real; see test_launch.py.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from rscmd_ros import transport
from rscmd_ros.node.parameters import TABLE

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "launch" / "detector.launch.py"
SOURCE = FILE.read_text()
OF_EVERY_NODE = {"use_sim_time": False}


def constants(tree: ast.Module) -> dict[str, Any]:
    """The module's tables of plain values."""
    found = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            try:
                found[statement.targets[0].id] = ast.literal_eval(statement.value)
            except ValueError:
                continue  # PROFILE, which is made from __file__
    return found


def calls(tree: ast.AST, name: str) -> Iterator[dict[str, ast.expr]]:
    """The keyword arguments of each call of this function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield {keyword.arg or "**": keyword.value for keyword in node.keywords}


def looked_up(tree: ast.AST, table: str, store: bool = False) -> Iterator[str]:
    """Every text by which a dictionary is asked: t["x"], t.get("x"), "x" in t; with `store`, those it is set by."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key)), ctx=context):
                if name == table and isinstance(context, ast.Store) == store:
                    yield key
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="get"), args=[ast.Constant(value=str(key))]):
                if name == table and not store:
                    yield key
            case ast.Compare(left=ast.Constant(value=str(key)), ops=[ast.In()], comparators=[ast.Name(id=name)]):
                if name == table and not store:
                    yield key


def local(tree: ast.AST, name: str) -> Any:
    """The plain value that is assigned to a local variable."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{name} is not assigned")


def subscribed() -> set[str]:
    """Topics of the node, of a file that test_security.py holds to the graph of a running one."""
    policy = ElementTree.parse(ROOT / "config" / "sros2_policy.xml").getroot()
    return {str(topic.text) for topics in policy.iter("topics") if topics.get("subscribe") for topic in topics}


def commands() -> dict[str, str]:
    """The commands that setup.py installs, by name, and the function of each."""
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, ast.keyword) and node.arg == "entry_points":
            pairs = [entry.split("=") for entry in ast.literal_eval(node.value)["console_scripts"]]
            return {name.strip(): function.strip() for name, function in pairs}
    raise AssertionError("setup.py installs no commands")


def problems(source: str) -> list[str]:
    """What is wrong with a launch file, one sentence each."""
    tree = ast.parse(source)
    table, start = constants(tree), next(f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == "start")
    arguments, choices, topics = table["ARGUMENTS"], table["CHOICES"], local(start, "topics")
    found = [f"argument {name} has no description" for name, text in arguments.items() if not text]

    # Every argument has an effect, and nothing is asked for that is no argument.
    used = {*looked_up(start, "given"), *choices, *topics.values()}
    found += [f"argument {name} has no effect" for name in arguments if name not in used]
    found += [f"{name} is asked for and is no argument" for name in used if name not in arguments]

    # No argument has a default: the node's holds.
    for declared in calls(tree, "DeclareLaunchArgument"):
        default = declared.get("default_value")
        if not isinstance(default, ast.Constant) or default.value != "":
            found.append("an argument has a default of its own")
    for name, values in choices.items():
        if sorted(values) != ["", "false", "true"]:
            found.append(f"argument {name} cannot be left out, true or false")

    # What is passed as a parameter is one, of that type.
    defaults = {**{name: row.default for name, row in TABLE.items()}, **OF_EVERY_NODE}
    for name in choices:
        if not isinstance(defaults.get(name), bool):
            found.append(f"{name} is no boolean parameter of the node")
    for name in looked_up(start, "values", store=True):
        if not isinstance(defaults.get(name), str):
            found.append(f"{name} is no text parameter of the node")
    for value in calls(start, "ParameterValue"):
        if ast.unparse(value["value_type"]) != "str":
            found.append("a text parameter is not passed as text")

    found += [f"the node does not subscribe to {topic}" for topic in topics if topic not in subscribed()]
    (node,) = calls(start, "Node")
    if ast.literal_eval(node["package"]) != ElementTree.parse(ROOT / "package.xml").getroot().findtext("name"):
        found.append("the node is in another package")
    if ast.literal_eval(node["executable"]) not in commands():
        found.append("setup.py installs no such executable")
    for keyword in ("namespace", "parameters", "remappings", "ros_arguments"):
        if keyword not in node:
            found.append(f"the node gets no {keyword}")
    if table["PROFILE_VARIABLES"] != transport._VARIABLES:
        found.append("the middleware's profile is named by other variables than elsewhere")
    return found


def test_every_name_in_it_is_known() -> None:
    assert problems(SOURCE) == []


@pytest.mark.parametrize(
    ("there", "instead", "said"),
    [
        ('    "model": "path', '    "modell": "path', "argument modell has no effect"),
        ('given["log_level"]]', 'given["loglevel"]]', "loglevel is asked for and is no argument"),
        ('    "log_level": "debug', '    "level": "", "log_level": "debug', "argument level has no effect"),
        ('default_value=""', 'default_value="true"', "an argument has a default of its own"),
        (
            '"autostart": ["", "true", "false"]',
            '"autostart": ["true", "false"]',
            "argument autostart cannot be left out",
        ),
        ('values["model"]', 'values["modell"]', "modell is no text parameter"),
        ('values["model"]', 'values["slop_ms"]', "slop_ms is no text parameter"),
        (
            'CHOICES = {"use_sim_time"',
            'CHOICES = {"model": ["", "true", "false"], "use_sim_time"',
            "model is no boolean",
        ),
        ("value_type=str", "value_type=float", "not passed as text"),
        ('"visible/image": "visible', '"rgb/image": "visible', "does not subscribe to rgb/image"),
        ('"thermal_topic"}', '"visible_topic"}', "argument thermal_topic has no effect"),
        ('package="rscmd_ros"', 'package="rscmd"', "in another package"),
        ('executable="detector_node"', 'executable="detector"', "installs no such executable"),
        ("        remappings=", "        # remappings=", "the node gets no remappings"),
        ('"FASTDDS_DEFAULT_PROFILES_FILE"', '"FASTDDS_PROFILES_FILE"', "named by other variables"),
    ],
)
def test_a_mistake_in_it_is_seen(there: str, instead: str, said: str) -> None:
    assert SOURCE.count(there) == 1
    assert any(said in problem for problem in problems(SOURCE.replace(there, instead)))


def test_the_profile_is_found_from_where_it_is_installed(installed_package: Path) -> None:
    file = installed_package / "share" / "rscmd_ros" / "launch" / FILE.name
    assert file.read_text() == SOURCE
    (value,) = (
        statement.value
        for statement in ast.parse(SOURCE).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "PROFILE"
    )
    profile = eval(compile(ast.Expression(value), str(file), "eval"), {"Path": Path, "__file__": str(file)})
    assert profile.read_text() == (ROOT / "config" / "fastdds.xml").read_text()
    for command in commands():
        assert (installed_package / "lib" / "rscmd_ros" / command).is_file()


@pytest.mark.parametrize(
    ("variables", "given"),
    [
        ({}, True),
        ({"RMW_IMPLEMENTATION": ""}, True),
        ({"RMW_IMPLEMENTATION": "rmw_fastrtps_dynamic_cpp"}, True),
        ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, False),
        ({"FASTDDS_DEFAULT_PROFILES_FILE": "mine.xml"}, False),
    ],
)
def test_fast_dds_gets_the_profile(variables: dict[str, str], given: bool) -> None:
    function = next(f for f in ast.parse(SOURCE).body if isinstance(f, ast.FunctionDef) and f.name == "profile")
    function.returns = None  # a class of launch, which the wheels of ROS have not
    there: dict[str, Any] = {"os": SimpleNamespace(environ=variables), "SetEnvironmentVariable": lambda *pair: pair}
    there |= {"PROFILE": FILE, "PROFILE_VARIABLES": transport._VARIABLES}
    exec(compile(ast.Module([function], []), str(FILE), "exec"), there)
    assert there["profile"]() == [(name, str(FILE)) for name in transport._VARIABLES if given]


def test_docs_give_it_arguments_that_it_has() -> None:
    arguments = constants(ast.parse(SOURCE))["ARGUMENTS"]
    seen = []
    for page in [FILE, ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"ros2 launch rscmd_ros detector\.launch\.py(.*)", text):
            seen += [(page.name, name) for name in re.findall(r"(\w+):=", line)]
    assert {name for _, name in seen} >= {"model", "visible_topic", "thermal_topic"}
    assert [where for where in seen if where[1] not in arguments] == []
