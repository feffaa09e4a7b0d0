"""The demo's machinery, with a recipe far too small to learn anything: what it leaves, how it goes on, how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rclpy

import rscmd_ros.demo
from rscmd_model.errors import UserError
from rscmd_ros.demo import Demo, Recipe, _module

TINY = Recipe(train=8, val=24, size=(64, 64), epochs=1, imgsz=64, batch=4, workers=0, confidence=0.0001)


def test_the_whole_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    stopped = Demo(out, TINY)
    stopped._live = lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    made = (out / "model.safetensors").read_bytes()
    capsys.readouterr()

    Demo(out, TINY).run()  # goes on: the same model, not a new one
    assert sorted(path.name for path in out.iterdir()) == [
        "bag",
        "data",
        "model.safetensors",
        "report.html",
        "summary.json",
    ]
    assert (out / "model.safetensors").read_bytes() == made
    summary = json.loads((out / "summary.json").read_text())
    for stream in ("visible", "thermal"):
        assert sum(summary["ledger"][stream].values()) + summary["lost"][stream] == summary["frames"][stream]
    assert 0 < summary["pairs"] <= summary["frames"]["thermal"]
    screen = capsys.readouterr().out
    assert screen.count("done before") == 3
    for row in ("mAP50 ", "mAP50:95", "frames in", "pairs", "latency p50 / p95", str(out / "report.html")):
        assert row in screen


def test_a_stage_is_done_again_when_one_before_it_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stages(first: int) -> list[bool]:
        demo = Demo(tmp_path, TINY)
        demo._begin()
        for name, number in (("a", first), ("b", 0)):
            write = f"open({str(tmp_path / name)!r}, 'w').write('{number}')"
            demo._stage(name, [sys.executable, "-c", write], tmp_path / name)
        return ["done before" in line for line in capsys.readouterr().out.splitlines() if line.startswith("==")]

    assert stages(1) == [False, False]
    assert stages(1) == [True, True]
    assert stages(2) == [False, False]
    (tmp_path / "b").unlink()
    assert stages(2) == [True, False]


def test_a_failing_stage_is_told_in_one_line_with_its_log(tmp_path: Path) -> None:
    demo = Demo(tmp_path, TINY)
    demo._begin()
    with pytest.raises(UserError) as caught:
        demo._stage("recording", _module("rscmd_ros.make_bag", "--data", "nowhere.yaml", "--out", "b"), tmp_path / "b")
    message = str(caught.value)
    assert "\n" not in message
    assert "exit code 2" in message
    assert "cannot read nowhere.yaml" in message
    log = tmp_path / ".work/make_bag.log"
    assert str(log) in message
    assert log.is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_ending_it_ends_what_it_started(number: int, tmp_path: Path) -> None:
    """A stage runs in a session of its own and may have children; it ends with the demo, even where that is killed."""
    code = (
        "import sys; from pathlib import Path; from rscmd_model.errors import run_cli; from rscmd_ros import demo\n"
        "d = demo.Demo(Path(sys.argv[1]), demo.Recipe()); d._begin()\n"
        "say = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'\n"
        "run_cli(lambda: d._stage('x', [sys.executable, '-c', say], Path('y')))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    pid = 0
    for line in process.stdout:
        if line.strip().isdigit():
            pid = int(line)
            break
    process.send_signal(number)
    process.wait(timeout=60)
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return  # it has ended, and nobody has asked for its code
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} still runs")


@pytest.mark.parametrize("name", ["model.safetensors", "summary.json", "report.html", "data", "bag", ".work"])
def test_a_folder_of_something_else_is_refused_and_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    Demo(tmp_path, TINY)._refuse_foreign()  # it stands in nobody's way
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}, .*choose another --out"):
        Demo(tmp_path, TINY).run()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"notes.txt": "mine", name: "mine"}


def test_a_finished_demo_is_known_by_all_that_it_left(tmp_path: Path) -> None:
    for name in ("data/world.json", "bag/metadata.yaml", "model.safetensors", "summary.json", "report.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    demo = Demo(tmp_path, TINY)
    demo._begin()
    refuse = [sys.executable, "-c", "raise SystemExit(2)"]
    with pytest.raises(UserError, match="exit code 2"):
        demo._stage("drawing", refuse, tmp_path / "data")
    assert (tmp_path / "summary.json").exists()  # nothing goes before there is something new
    with pytest.raises(UserError, match="exit code 2"):
        demo._stage("training", refuse, tmp_path / "x", outdated=[tmp_path / "summary.json"])
    assert not (tmp_path / "summary.json").exists()
    (tmp_path / ".work/.lock").unlink()
    (tmp_path / ".work").rename(tmp_path / "work")
    with pytest.raises(UserError, match=r"holds data, but not all .*summary\.json"):
        Demo(tmp_path, TINY)._begin()


def test_ros_reads_the_path_of_the_model_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows := is YAML to ROS: " #" would begin a comment, ": " end a name."""
    out = tmp_path / "drives: cam #2 'é\""
    started: list[list[str]] = []

    def start(command: list[str], log: Path, environment: dict[str, str]) -> None:
        started.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(rscmd_ros.demo, "_process", start)
    with pytest.raises(KeyboardInterrupt):
        Demo(out, TINY)._live()
    context = rclpy.Context()
    context.init(args=started[0][started[0].index("--ros-args") :])
    node = rclpy.create_node("rscmd_detector", context=context, automatically_declare_parameters_from_overrides=True)
    read = node.get_parameter("model").value
    node.destroy_node()
    context.try_shutdown()
    assert read == str(out / "model.safetensors")
