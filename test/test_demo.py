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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ending_it_ends_what_it_started(number: int, tmp_path: Path) -> None:
    """A stage runs in a session of its own and may have children; SIGTERM or SIGHUP to the demo ends them all."""
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
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} still runs")
