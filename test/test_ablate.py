"""The ablation: what it trains, what it does not train again, and what it writes."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_pairs import write_world

from rscmd_model.evaluation.ablation_tables import (
    Row,
    compare,
    markdown,
    markdown_of,
    median_cost,
    summarize,
    write_results,
)
from rscmd_model.evaluation.trainings import copy_output, why_it_failed
from rscmd_model.methods import method_config
from rscmd_model.network.model import RscmdModel
from rscmd_model.training.cost import gflops

OPTIONS = ["epochs=1", "imgsz=64", "batch=4", "device=cpu", "workers=0"]


Ablate = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def ablate(command: Callable[..., subprocess.CompletedProcess[str]]) -> Ablate:
    """The command in this process; its trainings are processes of their own."""
    return lambda data, out, *words: command("rscmd_model.ablate", "--data", data, "--out", out, *words)


def test_an_ablation_is_trained_once_and_goes_on_where_it_stopped(ablate: Ablate, tmp_path: Path) -> None:
    data, out = write_world(tmp_path / "data", ("a", "b", "c", "d")), tmp_path / "out"
    words = ["--methods", "thermal,rsc+lambda_thermal=2", "--seeds", "1", *OPTIONS]
    first = ablate(data, out, *words)
    assert first.returncode == 0, first.stderr
    assert "2 runs, 0 of them finished before" in first.stdout
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["branch"]) for row in rows] == [
        ("thermal", "thermal"),
        *(("rsc+lambda_thermal=2", branch) for branch in ("fused", "ensemble", "visible", "thermal")),
    ]
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert "| rsc+lambda_thermal=2, visible branch alone |" in (out / "table.md").read_text()

    models = {run: (out / run / "model.safetensors") for run in ("thermal-seed0", "rsc+lambda_thermal=2-seed0")}
    before = {run: model.stat().st_mtime_ns for run, model in models.items()}
    (out / "thermal-seed0" / "scores.json").unlink()  # as if it had been killed before it was scored
    again = ablate(data, out, *words)
    assert again.returncode == 0, again.stderr
    assert "2 runs, 1 of them finished before" in again.stdout
    assert before == {run: model.stat().st_mtime_ns for run, model in models.items()}, "trained again"
    with (out / "results.csv").open() as file:
        assert rows == list(csv.DictReader(file))

    other = ablate(data, out, *words[:-5], "epochs=2", *OPTIONS[1:])
    assert other.returncode == 2
    assert "another options" in other.stderr

    # A run that fails is named, and the others are kept.
    shutil.rmtree(out / "thermal-seed0")
    os.rename(data.parent / "thermal" / "train" / "a.jpg", tmp_path / "a.jpg")
    (data.parent / "thermal" / "train" / "a.jpg").write_bytes(b"no image")
    failed = ablate(data, out, *words)
    assert failed.returncode == 2
    assert "1 of 2 runs failed: thermal-seed0; the first one said: 1 of 4 pairs cannot be used" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "rsc+lambda_thermal=2" in (out / "table.md").read_text()


def test_the_controls_that_a_method_learns_from_are_trained_first(ablate: Ablate, tmp_path: Path) -> None:
    data, out = write_world(tmp_path / "data", ("a", "b", "c", "d")), tmp_path / "out"
    done = ablate(data, out, "--methods", "frozen", "--seeds", "1", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "3 runs, 0 of them finished before" in done.stdout
    frozen, thermal = (load_file(out / f"{name}-seed0/model.safetensors") for name in ("frozen", "thermal"))
    assert all(torch.equal(frozen[name], value) for name, value in thermal.items() if name.startswith("backbones"))
    with (out / "results.csv").open() as file:
        cost = {row["method"]: row for row in csv.DictReader(file)}
    both = sum(float(cost[m]["step_ms"]) for m in ("visible", "thermal"))
    assert float(cost["frozen"]["teachers_ms"]) == pytest.approx(both)
    assert cost["visible"]["teachers_ms"] == ""
    assert f" + {both:.0f} |" in (out / "table.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stopping_an_ablation_stops_its_trainings(ablate: Ablate, number: int, tmp_path: Path) -> None:
    data, out = write_world(tmp_path / "data", ("a", "b", "c", "d")), tmp_path / "out"
    command = [sys.executable, "-m", "rscmd_model.ablate", "--data", str(data), "--out", str(out)]
    words = ["--methods", "visible", "--seeds", "1", "epochs=1000", *OPTIONS[1:]]
    run = subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    results = out / "visible-seed0" / "results.csv"
    try:
        while run.poll() is None and not results.exists():
            time.sleep(0.1)
        second = ablate(data, out, *words)
        assert second.returncode == 2
        assert f"another ablation is writing into {out} (process {run.pid} on " in second.stderr
        trainings = psutil.Process(run.pid).children(recursive=True)
        assert trainings
        run.send_signal(number)
        assert run.wait(timeout=60) == 130
    finally:
        left = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
        for process in [run, *left]:
            process.kill()
    assert run.stderr is not None
    assert b"Traceback" not in run.stderr.read()
    _, alive = psutil.wait_procs(trainings, timeout=30)
    for training in alive:
        training.kill()
    assert alive == [], "the training went on alone"


def test_the_last_line_of_a_process_is_known_on_a_full_disk(tmp_path: Path) -> None:
    say = "import sys; print('x' * 9000); sys.exit('\\nerror: No space left on device\\n')"
    for log, written in ((Path("/dev/full"), False), (tmp_path / "log", True)):
        process = subprocess.Popen([sys.executable, "-c", say], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert copy_output(process, log) == "No space left on device"
        assert process.wait() == 1
        assert not written or log.read_text().startswith("xxx")


def test_a_training_that_a_signal_ended_says_so() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert why_it_failed(process.wait(), "x") == "ended by signal 9 (SIGKILL), perhaps for want of memory"
    assert why_it_failed(-15, "x") == "ended by signal 15 (SIGTERM)"
    assert why_it_failed(2, "no such file") == "no such file"
    assert why_it_failed(0, "done") is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--methods", "rscm"], "method 'rscm'"),
        (["--methods", ""], "at least one method"),
        (["--seeds", "0"], "one seed"),
        (["seed=3"], "seed= is set by the ablation"),
        (["epoch=3"], "did you mean epochs"),
        (["classes=[0,"], "classes takes numbers of classes"),
        (["device=99"], "'99' is not there"),
        (["--weights", "nothing.pt"], "no weights file"),
        (["--workers", "2"], "--ray local: this machine"),
        (["--ray", "local", "--jobs", "2"], "with --ray give --workers"),
        (["--fold-count", "2"], "--fold-count makes folds of the drives that --folds FILE names"),
        (["--group", "block"], "--group names a column of --folds FILE or --frames FILE"),
        (["--folds", "a.csv", "--frames", "a.csv"], "leave out --frames"),
        (["--frames", "nothing.csv"], "nothing.csv"),
        (["--resamples", "-1"], "or 0 for no intervals"),
    ],
)
def test_mistakes_are_one_line(ablate: Ablate, tmp_path: Path, words: list[str], says: str) -> None:
    done = ablate(write_world(tmp_path / "data"), tmp_path / "out", *words)
    assert done.returncode == 2
    assert says in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def row(method: str, seed: int, value: float, branch: str = "fused", spread: float | None = None) -> Row:
    """A row; with `spread`, two resamples that lie so far to either side of it."""
    cost = {"parameters": 3_000_000, "gflops": 1.25, "step_ms": 10.0 * seed, "teachers_ms": None, "memory_mb": 100.0}
    both = np.array([value, value / 2])
    resampled = None if spread is None else np.stack([both - spread, both + spread])
    return Row(method, seed, branch, value, value / 2, cost, resampled)


def test_mean_and_spread_over_seeds() -> None:
    table = summarize([row("sum", 1, 0.5), row("sum", 2, 0.7), row("rsc", 1, 0.9)])
    assert table[0]["mAP50"] == pytest.approx(60)
    assert table[0]["mAP50_spread"] == pytest.approx(14.1421, rel=1e-4)
    assert table[0]["step_ms"] == 15
    assert table[1]["mAP50_spread"] is None
    assert markdown(table).splitlines()[2:] == [
        "| sum | 60.0 ± 14.1 | 30.0 ± 7.1 | 3.00 | 1.25 | 15 | 100 |",
        "| rsc | 90.0 | 45.0 | 3.00 | 1.25 | 10 | 100 |",
    ]


def test_what_a_run_cost_is_blank_where_it_is_not_known(tmp_path: Path) -> None:
    unknown = Row("sum", 1, "fused", 0.5, 0.25, median_cost([{}]))
    assert markdown(summarize([unknown])).splitlines()[2:] == ["| sum | 50.0 | 25.0 |  |  |  |  |"]
    some = Row("sum", 1, "fused", 0.5, 0.25, median_cost([{}, {"parameters": 2_000_000, "gflops": 1.5}]))
    assert markdown(summarize([some])).splitlines()[2:] == ["| sum | 50.0 | 25.0 | 2.00 | 1.50 |  |  |"]


def test_differences_csv_has_its_header_without_a_difference_too(tmp_path: Path) -> None:
    for name, spread in (("plain", None), ("intervals", 0.1)):
        for folder, methods in (("none", ["sum"]), ("some", ["sum", "rsc"])):
            write_results(tmp_path / name / folder, [row(method, 0, 0.5, spread=spread) for method in methods], "title")
        none, some = ((tmp_path / name / f / "differences.csv").read_text().splitlines() for f in ("none", "some"))
        assert none == some[:1]
        assert none[0].startswith("method,branch,over,over_branch,seeds,mAP50")


def test_each_answer_is_compared_with_its_control_of_the_same_seed() -> None:
    rows = [row("thermal", 1, 0.4, "thermal"), row("rsc", 1, 0.9), row("rsc", 1, 0.6, "thermal")]
    rows += [row("sum", 2, 0.7), row("rsc", 2, 0.8), row("sum", 1, 0.5), row("rsc", 2, 0.5, "visible")]
    assert markdown_of(compare(rows)).splitlines()[3:] == [
        "| thermal | sum | -5.0 | -5.0 |",
        "| rsc | sum | +20.0, +5.0 | +12.5 |",
        "| rsc, thermal branch alone | thermal | +10.0 | +10.0 |",
    ]
    assert markdown_of(compare(rows[:3]))  # no sum, but thermal
    assert markdown_of(compare([row("rsc", 1, 0.9)])) == ""


def test_a_branch_is_compared_with_the_fused_head_that_sees_black() -> None:
    rows = [row("rsc", 0, 0.6), row("rsc", 0, 0.5, "thermal"), row("rsc", 0, 0.2, "fused, visible lost")]
    assert markdown_of(compare(rows)).splitlines()[3:] == [
        "| rsc, thermal branch alone | rsc, visible lost | +15.0 | +15.0 |"
    ]


def test_a_fused_head_that_sees_black_is_compared_with_sum_s() -> None:
    lost = "fused, thermal lost"
    rows = [row("sum", 0, 0.6), row("sum", 0, 0.1, lost), row("opm", 0, 0.5), row("opm", 0, 0.3, lost)]
    assert markdown_of(compare(rows)).splitlines()[3:] == [
        "| opm | sum | -5.0 | -5.0 |",
        "| opm, thermal lost | sum, thermal lost | +10.0 | +10.0 |",
    ]


def test_an_interval_of_a_difference_is_that_of_paired_resamples() -> None:
    rows = [row("sum", 0, 0.5, spread=0.1), row("rsc", 0, 0.6, spread=0.1)]
    table = summarize(rows)
    assert (table[0]["mAP50_low"], table[0]["mAP50_high"]) == pytest.approx((40.5, 59.5))
    assert "| sum | 50.0 [40.5, 59.5] | 25.0 [15.5, 34.5] |" in markdown(table)
    (difference,) = compare(rows)
    line = difference.line()
    assert (line["mAP50"], line["mAP50_low"], line["mAP50_high"]) == pytest.approx((10, 10, 10))
    assert markdown_of([difference]).splitlines()[1:] == [
        "| points of mAP50:95 | over | seed by seed | mean | 95 % interval |",
        "|---|---|---|---|---|",
        "| rsc | sum | +5.0 | +5.0 | +5.0 to +5.0 |",
    ]


def test_arithmetic_of_the_plain_detector_is_ultralytics_figure() -> None:
    """YOLOv8n has 8.7 GFLOPs at 640 px with 80 classes, by ultralytics' own table."""
    model = RscmdModel(method_config("visible"), {i: str(i) for i in range(80)})
    assert gflops(model, ["visible"], 640) == pytest.approx(8.7, abs=0.15)
    assert model.training
