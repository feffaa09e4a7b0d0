"""What is written from the table of parameters: the file that shows it and the page that explains it.

python -m rscmd_ros.parameter_pages > config/detector.yaml
python -m rscmd_ros.parameter_pages --markdown > docs/parameters.md
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from rscmd_model.errors import run_cli
from rscmd_ros.node.parameters import TABLE, descriptor_of
from rscmd_ros.node.unused_parameters import reaches

_NODES = ("/rscmd_detector", "/front/rscmd_detector")
_SECTIONS = (
    "rscmd_detector",
    "/front/rscmd_detector",
    "/**",
    "/*",
    "/**/rscmd_detector",
    "/front/*",
    "detector_node",
)


def reached(section: str, node: str) -> str:
    """A cell of the table of sections."""
    return "yes" if reaches(section, node) else ""


def to_yaml() -> str:
    """A parameter file that sets every parameter to its default and tells its meaning and range."""
    lines = [
        "# Parameters of the detector node, with their defaults. Copy this file and keep the lines you change:",
        "#   python -m rscmd_ros.detector_node --ros-args --params-file detector.yaml",
        "# Those marked (live) can be set on a running node; the others take effect at configure.",
        "/**:",
        "  ros__parameters:",
    ]
    for name, row in TABLE.items():
        about, value = row.metadata, row.default
        extent = f" One of {', '.join(about['choices'])}." if about["choices"] else ""
        if about["low"] is not None:
            extent = f" From {about['low']} to {about['high']}."
        text = f"{about['text']}{extent}{' (live)' if about['live'] else ''}"
        lines += ["", *(f"    # {line}" for line in textwrap.wrap(text, 110))]
        lines.append(f"    {name}: {json.dumps(value)}")  # JSON is YAML
    return "\n".join(lines) + "\n"


def to_markdown() -> str:
    """The page on the parameters, from the descriptors that a running node declares."""
    from rclpy.parameter import Parameter

    lines = [
        "# Parameters of the detector node",
        "",
        "Written from the node's own descriptors by",
        "`python -m rscmd_ros.parameter_pages --markdown > docs/parameters.md`.",
        "A running node tells the same: `ros2 param describe /rscmd_detector slop_ms`.",
        "[config/detector.yaml](../config/detector.yaml) is a parameter file with every default.",
        "",
        "| takes effect | |",
        "|---|---|",
        "| live | at once, in every state of the node |",
        "| configure | while the node is unconfigured: deactivate and clean it up first; refused otherwise |",
        "| start | from the command line, launch or a parameter file only |",
        "",
        "Values set together are judged together, and all or none are taken. `50` is taken for `50.0`. The node's",
        "first log line names the parameters that differ from their defaults. A name that is no parameter is warned of",
        "at start, with the nearest one.",
        "",
        "ROS gives a node those sections of a parameter file whose name fits its full name, and is silent on others:",
        "",
        "| section | reaches `/rscmd_detector` | reaches `/front/rscmd_detector` |",
        "|---|---|---|",
        *(f"| `{name}:` | {' | '.join(reached(name, node) for node in _NODES)} |" for name in _SECTIONS),
        "",
        "The node warns of a file that has no section for it, and names the sections that it has; and of a parameter",
        "that stands twice in a section, of which the last value counts.",
        "",
        "QoS of the image topics is overridden by `qos_overrides.TOPIC.subscription.POLICY`, POLICY one of `history`,",
        "`depth`, `reliability` and `durability`, on the command line or in a file. TOPIC is the full name,",
        "`/visible/image` or in a namespace `/front/visible/image`; where it is remapped, or ends in `/compressed`,",
        "either name will do, and that in force wins.",
        "",
        "| name | type | default | values | takes effect | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in TABLE.items():
        about, descriptor = row.metadata, descriptor_of(row)
        default: Any = list(row.default) if isinstance(row.default, tuple) else row.default
        kind = Parameter.Type.from_parameter_value(default).name.lower()
        values = ", ".join(f"`{choice}`" for choice in about["choices"])
        for extent in [*descriptor.floating_point_range, *descriptor.integer_range]:
            values = f"{extent.from_value:g} to {extent.to_value:g}"
        effect = "start" if descriptor.read_only else "live" if about["live"] else "configure"
        cells = [f"`{name}`", kind, f"`{json.dumps(default)}`", values, effect, descriptor.description]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m rscmd_ros.parameter_pages",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--markdown", action="store_true", help="write the page, and not the file")
    print(to_markdown() if parser.parse_args(argv).markdown else to_yaml(), end="")


if __name__ == "__main__":
    run_cli(main)
