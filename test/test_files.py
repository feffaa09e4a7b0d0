"""A folder has one writer; a program that is told to end tidies up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from rscmd_model.errors import UserError
from rscmd_model.files import check_writable, lock_folder, whole_folder

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import os, sys, time
from pathlib import Path
from rscmd_model.files import lock_folder
lock = lock_folder(Path(sys.argv[1]), "training")
if os.fork() == 0:  # as a loader's worker that outlives its training
    time.sleep(60)
print(os.getpid(), flush=True)
time.sleep(60)
"""
WRITE = """
import sys, time
from pathlib import Path
from rscmd_model.errors import run_cli
from rscmd_model.files import whole_file

def main():
    with whole_file(Path(sys.argv[1])) as aside:
        aside.write_text("half")
        try:
            print("writing", flush=True)
            time.sleep(60)
        finally:
            print("tidying", flush=True)
            time.sleep(1)

run_cli(main)
"""


def start(program: str, *words: object, **how: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, words)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, **how)  # type: ignore


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_what_can_be_written_is_known_before_and_nothing_is_left(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "a.json")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("kept")
    check_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    for path, says in ((tmp_path, "is a folder"), (tmp_path / "file" / "a.json", "cannot write")):
        with pytest.raises(UserError, match=says):
            check_writable(path)


def test_a_folder_has_one_writer_and_is_free_when_that_dies(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holder = start(HOLD, folder, start_new_session=True)
    try:
        assert line(holder) == str(holder.pid)
        with pytest.raises(UserError, match=rf"another training is writing into .*run \(process {holder.pid} on "):
            lock_folder(folder, "training")
        holder.kill()  # its child lives on
        holder.wait()
        lock_folder(folder, "training").close()
        lock_folder(folder, "training").close()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write into .*file/run: Not a directory"):
        lock_folder(tmp_path / "file/run", "training")


def make_folder(path: Path, text: str) -> None:
    with whole_folder(path) as folder:
        folder.mkdir()
        (folder / "made").write_text(text)
        if text == "failing":
            raise KeyError


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    made = tmp_path / "a" / "made"
    for text, there in (("one", "one"), ("two", "two"), ("failing", "two")):
        with suppress(KeyError):
            make_folder(tmp_path / "a", text)
        assert made.read_text() == there
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_a_killed_run_moved_aside_gets_its_name_back(tmp_path: Path) -> None:
    make_folder(tmp_path / ".a.partial/old", "one")
    (tmp_path / ".a.partial/.lock").touch()
    with suppress(KeyError):
        make_folder(tmp_path / "a", "failing")
    assert (tmp_path / "a/made").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    room = tmp_path / ".a.partial"  # where a folder `a` is made
    holder = start(HOLD, room, start_new_session=True)
    try:
        assert line(holder)
        with pytest.raises(UserError, match=f"another run .*process {holder.pid} on"):
            make_folder(tmp_path / "a", "one")
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
    (room / "new/a").mkdir(parents=True)  # as a killed one leaves it
    make_folder(tmp_path / "a", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("lock", [True, False])
def test_what_is_in_the_place_of_a_folder_to_be_made_stays(lock: bool, tmp_path: Path) -> None:
    notes = tmp_path / ".a.partial/notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    if lock:
        (notes.parent / ".lock").touch()
    with pytest.raises(UserError, match=r"\.a\.partial is in the way"):
        make_folder(tmp_path / "a", "one")
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("name", [".", "..", "../here", "/"])
def test_the_current_folder_is_not_replaced(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="the folder that you are in"):
        make_folder(Path(name), "one")
    make_folder(Path("../here/./there/."), "one")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["there"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing_half_written(number: signal.Signals, tmp_path: Path) -> None:
    process = start(WRITE, tmp_path / "out.txt", stderr=subprocess.PIPE)
    assert line(process) == "writing"
    process.send_signal(number)
    assert line(process) == "tidying"
    process.send_signal(signal.SIGTERM)  # a second one does not break that off
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_nohup_is_heeded(tmp_path: Path) -> None:
    process = start(WRITE, tmp_path / "out.txt", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert line(process) == "writing"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert line(process) == "tidying"
    assert process.wait(timeout=60) == 130
