"""The files for RViz and Foxglove: well formed, and about topics that the node has."""

import json
from pathlib import Path
from xml.etree import ElementTree

import yaml

CONFIG = Path(__file__).resolve().parent.parent / "config"


def topics_of_the_node() -> set[str]:
    """As the policy lists them, which test_security.py compares with a running node; and those of `annotations`."""
    names = {str(element.text) for element in ElementTree.parse(CONFIG / "sros2_policy.xml").iter("topic")}
    return {name if name.startswith("/") else f"/{name}" for name in names} | {"/detections/annotations"}


def test_rviz_shows_topics_of_the_node() -> None:
    shown = yaml.safe_load((CONFIG / "rscmd.rviz").read_text())["Visualization Manager"]["Displays"]
    assert {display["Class"] for display in shown} == {"rviz_default_plugins/Image"}
    topics = {display["Topic"]["Value"] for display in shown}
    assert topics == {"/overlay/image", "/visible/image", "/thermal/image"}
    assert topics <= topics_of_the_node()
    # Cameras publish best effort, and a reliable display would stay black.
    assert {display["Topic"]["Reliability Policy"] for display in shown} == {"Best Effort"}


def test_foxglove_shows_topics_of_the_node() -> None:
    layout = json.loads((CONFIG / "foxglove.json").read_text())

    def leaves(part: "str | dict[str, object]") -> list[str]:
        return [part] if isinstance(part, str) else leaves(part["first"]) + leaves(part["second"])  # type: ignore[arg-type]

    panels = layout["configById"]
    assert sorted(leaves(layout["layout"])) == sorted(panels)
    images = [panel["imageMode"] for name, panel in panels.items() if name.startswith("Image!")]
    topics = {image["imageTopic"] for image in images} | {topic for image in images for topic in image["annotations"]}
    topics.add(panels["DiagnosticStatusPanel!detector"]["topicToRender"])
    topics |= {path["value"].removesuffix(".data") for path in panels["StateTransitions!mode"]["paths"]}
    assert topics <= topics_of_the_node()
    assert {"/visible/image", "/thermal/image", "/overlay/image", "/detections/annotations", "/mode"} <= topics
