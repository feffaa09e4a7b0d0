"""Command-line arguments that the commands on bags share: the topics of the two cameras, and how they are paired."""

from __future__ import annotations

import argparse
import dataclasses

from rscmd_ros.bags.topics import THERMAL_TOPIC, VISIBLE_TOPIC
from rscmd_ros.node.pairing_options import PairingOptions
from rscmd_ros.pairing.nearest import POLICIES


def topic_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --visible-topic and --thermal-topic."""
    parser.add_argument("--visible-topic", default=VISIBLE_TOPIC, metavar="T", help="in the bag (default %(default)s)")
    parser.add_argument("--thermal-topic", default=THERMAL_TOPIC, metavar="T", help="in the bag (default %(default)s)")


def pairing_arguments(parser: argparse.ArgumentParser, about: str = "as the node's parameters") -> None:
    """Add a group with one flag for each of the `PairingOptions`; `pairing_options` reads them.

    Args:
        parser: of the command.
        about: the group, for the help.
    """
    pairing = parser.add_argument_group("pairing", about)
    for field in dataclasses.fields(PairingOptions):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        if isinstance(default, bool):
            pairing.add_argument(flag, action="store_true", default=default)
        elif isinstance(default, str):
            pairing.add_argument(flag, choices=POLICIES, default=default)
        else:
            unit = "MS" if field.name.endswith("_ms") else "N"
            pairing.add_argument(flag, type=type(default), default=default, metavar=unit, help="(default %(default)s)")


def pairing_options(args: argparse.Namespace) -> PairingOptions:
    """The options that a command line with `pairing_arguments` gives.

    Raises:
        UserError: one is out of range, or two do not go together.
    """
    return PairingOptions(**{field.name: getattr(args, field.name) for field in dataclasses.fields(PairingOptions)})
