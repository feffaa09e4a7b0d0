"""What a command line and its parameter files say in vain: for other nodes, or of parameters that there are not.

rcl reads every file, takes the sections whose name fits the node's, and says nothing of the others; rclpy keeps every
value and says nothing of those that nobody asks for. Knows no ROS but its rules.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from rscmd_model.errors import several, shown
from rscmd_ros.node.parameters import TABLE

_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_DEEPEST = 64
_LONGEST_NAME = 100
_MOST_SAID = 8
_QOS = "qos_overrides."
_ITEM = ""
_MARK = "ros__parameters"
_OWN_NAMES = ("rscmd_detector", "detector_node")
"""How users call the node in a file: its name, and that of its executable."""


def unreached(args: Sequence[str], node: str) -> list[str]:
    """What the command line says in vain: one line for each file, or rule `-p NODE:NAME:=VALUE`, for other nodes.

    Args:
        args: the words that rclpy.init was given.
        node: the full name of the node, such as /front/rscmd_detector.
    """
    lines = []
    for option, word in _ros_arguments(args):
        if option == "--params-file":
            lines += _of_file(word, node)
        elif (name := _node_of_rule(word)) and not reaches(name, node):
            lines.append(f"-p {shown(word)} is for node {shown(full(name))} and not used: this one is {node}")
    return lines


def unused(names: Iterable[str], used: Sequence[str]) -> list[str]:
    """What is to be said of given names: a line for each of the first that are none of `used`, and one for the rest."""
    known = {*used, *TABLE}
    strangers = [name for name in names if name not in known]
    lines = [f"parameter '{shown(name)}' is unknown and not used{_hint(name, used)}" for name in strangers[:_MOST_SAID]]
    more = len(strangers) - _MOST_SAID
    return [*lines, f"{more} more parameters are unknown and not used"] if more > 0 else lines


def reaches(section: str, node: str) -> bool:
    """Whether rcl gives a section of this name to the node of this full name.

    `*` stands for one part of a name and `**` for any number of parts: /*/rscmd_detector, /front/**, /**.
    """
    pattern = re.sub(r"(/\*\*)+", "/**", full(section))  # as good as one, and quicker to match
    parts = re.escape(pattern).replace(r"/\*\*", r"(/\w+)*").replace(r"/\*", r"(/\w+)")
    return re.fullmatch(parts, node) is not None


def full(section: str) -> str:
    """The name of a section with the slash at its start that rcl lets users leave out."""
    return section if section.startswith("/") else f"/{section}"


def sections(text: str) -> dict[str, list[str]]:
    """The sections of a parameter file, with the names of the parameters in each; nested names joined as by rcl.

    The file is followed as rcl's own parser does it, and not by `text.parse_yaml`: a name that stands twice, which that
    refuses, is there twice here. Reads no further than the first thing that is no YAML: rcl has refused such a file.

    Args:
        text: of the file.

    Returns:
        By section, the names of its parameters in their order.
    """
    found: dict[str, list[str]] = {}
    keys: list[str | None] = []
    """Of every open mapping the key whose value comes next, None where a key comes next; `_ITEM` for a sequence."""
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.ScalarEvent) and keys and keys[-1] is None:
                keys[-1] = event.value
                continue
            if isinstance(event, yaml.ScalarEvent | yaml.SequenceStartEvent) and _MARK in keys and _ITEM not in keys:
                at = keys.index(_MARK)
                found.setdefault(_joined(keys[:at], "/"), []).append(_joined(keys[at + 1 :], "."))
            if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                keys.append(None if isinstance(event, yaml.MappingStartEvent) else _ITEM)
                if len(keys) > _DEEPEST:
                    break
                continue
            if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                keys.pop()
            if keys and keys[-1] != _ITEM:
                keys[-1] = None  # its value has been read
    except yaml.YAMLError:
        pass
    return found


def _joined(keys: Iterable[str | None], separator: str) -> str:
    return separator.join(key or "" for key in keys)


def _of_file(name: str, node: str) -> list[str]:
    try:
        there = sections(Path(name).read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):  # the latter of a name that no file has
        return []  # rcl has read it; it may be gone by now
    fitting = [section for section in there if reaches(section, node)]
    file = f"parameter file {shown(name, 200)}"
    if not there:
        return [f"{file} holds no parameters"]
    doubles = [line for section in fitting for line in _twice(file, section, there[section])]
    return doubles + _missed(file, there, fitting, node)


def _twice(file: str, section: str, names: Sequence[str]) -> list[str]:
    """A line on the parameters that stand in a section more than once: rcl takes the last value and says nothing."""
    doubles = [name for name, times in Counter(names).items() if times > 1]
    which = f"section '{shown(section)}' gives {several(doubles)} more than once: the last value counts"
    return [f"{file}: {which}"] if doubles else []


def _missed(file: str, there: Mapping[str, Sequence[str]], fitting: Sequence[str], node: str) -> list[str]:
    """A line on the sections that do not reach the node, where one of them seems to be meant for it."""
    if not fitting:
        remedy = f"name the section {node}, or /** for every node"
        return [f"{file} has no section for this node, {node}, and is not used; it has {several(there)}: {remedy}"]
    if any("*" not in section for section in fitting):
        return []  # it has one for this very node; the others are for others
    own = {f"{space}/{name}" for space in ("", node.rpartition("/")[0]) for name in _OWN_NAMES}
    if missed := [section for section in there if section not in fitting and full(section) in own]:
        return [f"{file}: section {several(missed)} is not for this node, {node}, and not used: name it {node}"]
    return []


def _ros_arguments(args: Sequence[str]) -> list[tuple[str, str]]:
    """(--params-file or -p, its word) of everything between `--ros-args` and `--`."""
    found, ours, option = [], False, ""
    for word in args:
        if option:
            found.append((option, word))
            option = ""
        elif not ours:
            ours = word == "--ros-args"
        elif word == "--":
            ours = False
        elif word in ("--params-file", "-p", "--param"):
            option = "--params-file" if word == "--params-file" else "-p"
    return found


def _node_of_rule(rule: str) -> str:
    """The node that a rule NODE:NAME:=VALUE is for; empty where it names none."""
    name, separator, _ = rule.partition(":=")[0].partition(":")
    return name if separator else ""


def _hint(name: str, used: Sequence[str]) -> str:
    name, last = name[:_LONGEST_NAME], name[:_LONGEST_NAME].rpartition(".")[2]
    if name.startswith(_QOS):
        there = [other for other in used if other.startswith(_QOS)]
        if not there:
            return "; overrides of QoS are read at the start alone, from the command line and parameter files"
        near = difflib.get_close_matches(name, there, n=1, cutoff=0.8)
        return f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(there)}"
    for wanted in (name.replace(".", "_"), last):
        if near := difflib.get_close_matches(wanted, TABLE, n=1):
            return f"; did you mean '{near[0]}'?"
    return f"; there are {', '.join(TABLE)}"
