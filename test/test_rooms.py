"""The rooms of the house (docs/ARCHITECTURE.md): which of them may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "rscmd_model": ["train", "evaluate", "predict", "export", "diagnose", "ablate", "register", "assemble", "remember"],
    "rscmd_ros": [
        "detector_node",
        "evaluate_bag",
        "make_bag",
        "demo",
        "annotations",
        "parameter_pages",
        "register_bag",
        "label_bag",
        "self_train",
    ],
}
# What each room of a package may import besides itself and the ground (its modules that are no commands), which imports
# the ground alone. What only type checkers import is left aside.
MAY_IMPORT = {
    "rscmd_model": {
        "imaging": "",
        "datasets": "imaging",
        "synthetic": "imaging datasets",
        "methods": "",
        "network": "imaging methods",
        "inference": "imaging datasets synthetic network",
        "labelling": "imaging datasets network inference",
        "evaluation": "imaging datasets network methods inference",
        "training": "imaging datasets network methods inference evaluation",
        "diagnosis": "imaging datasets network methods inference evaluation training",
    },
    "rscmd_ros": {
        "pairing": "",
        "cameras": "pairing",
        "node": "pairing cameras",
        "bags": "pairing cameras node",
    },
}
GROUND = "the ground"


def imports(file: Path) -> Iterator[str]:
    """The modules of ours that a file imports when it runs, wherever in it."""
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rscmd_"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("rscmd_"))
        waiting += ast.iter_child_nodes(node)


def room(package: str, path: list[str]) -> str:
    """The room in which a module lies: a folder, "commands" or the ground."""
    if not path or path[0] in ("__init__", "__version__"):
        return GROUND
    if path[0] in MAY_IMPORT[package]:
        return path[0]
    return "commands" if path[0] in COMMANDS[package] else GROUND


def arrows(package: str) -> dict[tuple[str, str], list[str]]:
    """Room and room it imports -> the files that do."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        place = file.relative_to(ROOT / package)
        here = room(package, [*place.parts[:-1], place.stem])
        if place.stem == "__main__" or str(place) in ("model.py", "lens.py", "thermal.py", "camera.py"):
            continue  # commands, and names of earlier versions
        for module in imports(file):
            other, *path = module.split(".")
            if other == package:
                found.setdefault((here, room(package, path)), []).append(str(place))
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_room_imports_those_below_it_alone(package: str) -> None:
    allowed = {name: {name, GROUND, *rooms.split()} for name, rooms in MAY_IMPORT[package].items()}
    allowed |= {GROUND: {GROUND}, "commands": {GROUND, *MAY_IMPORT[package]}}
    wrong = {arrow: files for arrow, files in arrows(package).items() if arrow[1] not in allowed[arrow[0]]}
    assert not wrong


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_folder_is_a_room_and_every_room_a_folder(package: str) -> None:
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT[package])


def test_the_model_knows_no_ros_and_pairing_no_package_of_others() -> None:
    ros = {"rclpy", "rosbags", "cv_bridge", "message_filters", "sensor_msgs", "vision_msgs", "std_msgs"}
    for folder in ("rscmd_model", "rscmd_ros/pairing"):
        for file in (ROOT / folder).rglob("*.py"):
            if file.name == "standard.py":  # hands over to message_filters
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert not {name.partition(".")[0] for name in named} & ros, file


def test_ultralytics_trainer_is_named_in_one_room() -> None:
    """Its internals are used where its version is looked at, and nowhere else."""
    named = set()
    for file in (ROOT / "rscmd_model").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if any(
            word in text for word in ("ultralytics.engine", "ultralytics.models", "DetectionTrainer", "YOLODataset")
        ):
            named.add(file.parent.name)
    assert named == {"training"}


def test_names_of_earlier_versions_go_on() -> None:
    program = (
        "from rscmd_model.inference import Predictor\n"
        "from rscmd_ros.pairing import COUNTERS, NearestPairer, Frame, Ledger, Pair, make_pairer\n"
        "from rscmd_model.lens import Lens\nfrom rscmd_model.thermal import ThermalContract\n"
        "from rscmd_ros.camera import Camera\n"
        "import sys\nassert 'torch' not in sys.modules\n"
        "from rscmd_model.model import RscmdModel, Backbone, Branch, Head, LeanBranch, LeanHead, Adapter\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
