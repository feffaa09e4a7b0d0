"""Dockerfile, compose.yaml and devcontainer: the linter's opinion, and what docs/container.md says of them.

No container is run here; test/stock/stock.py carries out the steps of the Dockerfile.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STEPS = DockerfileParser(str(ROOT / "Dockerfile")).structure


def values(instruction: str) -> list[str]:
    return [" ".join(step["value"].split()) for step in STEPS if step["instruction"] == instruction]


def services() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert isinstance(loaded, dict)
    return loaded


def test_hadolint_has_nothing_to_say() -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    hadolint = shutil.which("hadolint", path=path)
    assert hadolint is not None, "hadolint is not there; make setup installs it"
    said = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout + said.stderr == ""
    assert said.returncode == 0


def test_the_image_does_what_the_readme_says() -> None:
    """The same rosdep and pip lines, so that one cannot be mended without the other."""
    section = (ROOT / "README.md").read_text().partition("\n## On ROS 2 Jazzy\n")[2].partition("\n## ")[0]
    block = section.partition("```console\n")[2].partition("```")[0].replace("\\\n", " ")
    run = " ".join(values("RUN"))
    lines = [" ".join(line.split()) for line in block.splitlines()]
    for start in ("rosdep install", "python -m pip install"):
        (line,) = (line for line in lines if line.startswith(start))
        assert line.replace("python -m pip install", "python -m pip install --no-cache-dir") in run
    assert "python3 -m venv --system-site-packages" in block
    assert "python3 -m venv --system-site-packages" in run


def test_the_environment_is_first_and_active_before_pip_and_colcon() -> None:
    order = [(step["instruction"], step["value"]) for step in STEPS]
    set_at = max(at for at, (kind, value) in enumerate(order) if kind == "ENV")
    assert values("ENV") == ["VIRTUAL_ENV=/opt/venv", "PATH=/opt/venv/bin:$PATH"]
    assert all(at > set_at for at, (_, value) in enumerate(order) if "pip install" in value or "colcon build" in value)


def test_it_ends_by_sigint_and_runs_as_the_host_s_user() -> None:
    assert values("STOPSIGNAL") == ["SIGINT"]
    assert values("USER") == ["$HOST_UID:$HOST_GID"]
    # Exec form, or a shell between would keep the signal to itself.
    assert isinstance(json.loads(values("CMD")[-1]), list)
    assert 'exec "$@"' in json.loads(values("ENTRYPOINT")[-1])[2]


def test_what_is_copied_is_there_and_what_is_ours_alone_stays_out() -> None:
    for value in values("COPY"):
        assert all((ROOT / name).exists() for name in value.split()[:-1])
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert {".git", ".venv", "runs", "build", "install", "log"} <= set(ignored)


def test_compose_shares_what_dds_needs_and_the_model_read_only() -> None:
    assert set(services()) == {"detector", "detector-gpu"}
    for name, service in services().items():
        assert (service["network_mode"], service["ipc"], service["stop_signal"]) == ("host", "host", "SIGINT")
        assert service["user"] == "${HOST_UID:-1000}:${HOST_GID:-1000}"
        assert set(service["build"]["args"]) == set(re.findall(r"^ARG (\w+)=", DOCKERFILE, re.MULTILINE))
        (model,) = service["volumes"]
        assert model["read_only"] is True
        assert f"model:={model['target']}" in service["command"]
        assert service.get("gpus") == ("all" if name == "detector-gpu" else None)


def test_compose_starts_the_detector_again_however_it_ended() -> None:
    """`ros2 launch` ends with 0 when its node has crashed, which is no failure to Docker."""
    assert all(service["restart"] == "unless-stopped" for service in services().values())


def test_compose_launches_with_arguments_that_there_are() -> None:
    for service in services().values():
        assert service["command"][:4] == ["ros2", "launch", "rscmd_ros", "detector.launch.py"]
        launch = (ROOT / "launch" / "detector.launch.py").read_text()
        for word in service["command"][4:]:
            assert f'    "{word.partition(":=")[0]}": "' in launch


def test_the_devcontainer_is_of_this_dockerfile() -> None:
    file = ROOT / ".devcontainer" / "devcontainer.json"
    config = json.loads(file.read_text())
    assert (file.parent / config["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (file.parent / config["build"]["context"]).resolve() == ROOT
    assert set(config["build"]["args"]) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert config["runArgs"] == ["--network=host", "--ipc=host"]
    assert f"--create-home --shell /bin/bash {config['remoteUser']}" in " ".join(values("RUN"))


def test_the_page_s_commands_share_the_host_s_memory() -> None:
    """Docker's own 64 MB lose images, and what is not the host's memory the camera's driver cannot see."""
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        text = page.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            if "--shm-size" in line:
                assert "--ipc=host" in line, page
            if line.startswith("docker run"):
                assert "--ipc=host" in line
                assert "--network=host" in line
