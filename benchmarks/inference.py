"""What a pair costs, from its images to boxes, with each backend, against what people use today; one run, one machine.

    python benchmarks/inference.py                                  # 640x512 pairs, scales n and s
    python benchmarks/inference.py --scales n --rounds 5            # a short trial
    python benchmarks/inference.py --accuracy MODEL DATA ...        # and mAP of every backend, for a trained model
    python benchmarks/inference.py --startup                        # instead: process start to first detection
    python benchmarks/inference.py --ensemble                       # instead: all answers joined against the fused one

Everything takes turns, one call each, so that what else the machine does hits all alike; p50 and p95 over the rounds,
ratios of p50 against two `predict` calls of ultralytics' YOLOv8 (what a single-camera node calls for each of two
cameras), by the same runtime, and against its default, eager one. Weights are random (nothing is found: no time goes
into overlapping boxes); "forward" is the network alone, its input ready. The floor is the network's FLOPs over the
rate of a large float32 matrix product. ultralytics' own OpenVINO and ONNX models are exported by it for 512x640 and run
as it runs them: OpenVINO takes bfloat16 by itself where the processor has it, with ours only what --half exported.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import write_json

EXPORTED = ("onnx", "openvino")
WARMUP = 2
TOGETHER = 8
"""Pairs of a batch that is timed beside single ones."""
# Prints when each part was over, seconds after the interpreter started this program.
STARTUP = """
import sys, time
start = float(sys.argv[2])
at = lambda: time.time() - start
marks = {"interpreter": at()}
import numpy as np
from rscmd_model.inference.predictor import Predictor
marks["imports"] = at()
predictor = Predictor(sys.argv[1], device="cpu")
marks["load"] = at()
width, height = map(int, sys.argv[3:])
predictor.predict(np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8))
marks["first detection"] = at()
predictor.warm_up()
marks["warm-up of the other branches"] = at()
import json; print(json.dumps({**marks, "torch": "torch" in sys.modules}))
"""


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", nargs="+", default=["n", "s"], choices=list("nsmlx"), help="default: n s")
    parser.add_argument("--rounds", type=int, default=50, help="calls of each that are timed (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 512), metavar=("W", "H"), help="of the pictures")
    parser.add_argument(
        "--formats", nargs="*", choices=EXPORTED, default=list(EXPORTED), help="beside torch (default: all)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--accuracy", nargs=2, action="append", default=[], metavar=("MODEL", "DATA"),
        help="a trained model.safetensors and the data whose val split scores every backend; may be repeated",
    )  # fmt: skip
    parser.add_argument("--startup", action="store_true", help="measure the start of a process instead")
    parser.add_argument(
        "--ensemble", action="store_true", help="measure all answers joined against the fused one instead"
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args()
    if args.rounds < 2:
        raise UserError(f"--rounds {args.rounds}: give 2 or more")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results: dict[str, Any] = {}
        for scale in args.scales:
            files = make_files(scale, folder, tuple(args.size), args.formats)
            if not (args.startup or args.ensemble) and args.device == "cpu":
                files |= make_smaller(files["torch"], folder, tuple(args.size), args.formats)
            if args.startup:
                results[scale] = startup(files, args.rounds, args.size)
                print_startup(scale, results[scale], args.size)
            elif args.ensemble:
                results[scale] = ensemble(files, args.rounds, args.size, args.device)
                print_ensemble(scale, results[scale], args.size)
            else:
                results[scale] = speed(scale, files, folder, args)
                print_speed(scale, results[scale], args.size)
        if not (args.startup or args.ensemble):
            results["accuracy"] = [accuracy(Path(m), d, folder) for m, d in args.accuracy]
    if args.json:
        write_json(args.json, results)


def make_files(scale: str, folder: Path, size: tuple[int, int], formats: Sequence[str]) -> dict[str, Path]:
    """A model with random weights, and what can be exported of it here: format to file."""
    import torch

    from rscmd_model.imaging.thermal import ThermalContract
    from rscmd_model.inference.export_file import export
    from rscmd_model.methods import method_config
    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.model_file import ModelHeader, save_model

    torch.manual_seed(0)
    model = RscmdModel(method_config("rscmd", scale=scale), {0: "person", 1: "car"})
    files = {"torch": folder / f"{scale}.safetensors"}
    save_model(files["torch"], model, ModelHeader(model.config, model.names, max(size), ThermalContract()))
    for form in formats:
        out = folder / f"{scale}.{form}"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                export(files["torch"], form, out, size=size, half=False)
            files[form] = out
        except UserError as error:
            print(f"left out: {error}")
    return files


def make_smaller(model: Path, folder: Path, size: tuple[int, int], formats: Sequence[str]) -> dict[str, Path]:
    """The model in 16 and 8 bits: name to file. The time does not depend on what the 8 bits were calibrated on."""
    from rscmd_model.inference.export_file import export

    world = folder / "world"
    if not world.is_dir():
        command = [sys.executable, "-m", "rscmd_model.synthetic", "--out", str(world), "--train", "4", "--val", "1"]
        subprocess.run([*command, "--size", *map(str, size)], check=True, stdout=subprocess.DEVNULL)
    files = {}
    for form, kind in (("onnx", "int8"), ("openvino", "int8"), ("openvino", "half")):
        if form not in formats:
            continue
        out = folder / f"{model.stem}-{kind}.{form}"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                export(model, form, out, size=size, data=open_data(str(world / "data.yaml")), **{kind: True})  # type: ignore[arg-type]
            files[f"{form} {kind}"] = out
        except UserError as error:
            print(f"left out: {error}")
    return files


def speed(scale: str, files: dict[str, Path], folder: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Times in ms by name: p50, p95, and where it is ours those of the stages."""
    import torch
    from ultralytics import YOLO

    from rscmd_model.inference.predictor import Predictor
    from rscmd_model.network.model_file import load_model
    from rscmd_model.training.cost import gflops

    rng = np.random.default_rng(0)
    width, height = args.size
    visible = rng.integers(0, 256, (height, width, 3), np.uint8)
    thermal = rng.integers(0, 256, (height, width), np.uint8)
    calls: dict[str, Callable[[], Any]] = {}
    ours: dict[str, Predictor] = {}
    for form, file in files.items():
        if form in ("onnx", "openvino") and args.device != "cpu":
            continue
        ours[form] = predictor = Predictor(file, device=args.device)
        stack = rng.integers(0, 256, (1, height, width, 4), np.uint8)
        calls[f"ours, {form}"] = partial(predictor.predict_timed, [visible], [thermal])
        calls[f"forward, {form}"] = partial(predictor.backend.forward, stack, ["fused"])
    together = f"{TOGETHER} at once, torch"
    calls[together] = partial(ours["torch"].predict_batch, [visible] * TOGETHER, [thermal] * TOGETHER)

    two = (visible, np.repeat(thermal[..., None], 3, 2))
    yolos = {"torch": YOLO(f"yolov8{scale}.yaml")}
    yolos["torch"].save(folder / f"yolov8{scale}.pt")  # random weights
    for form in ("onnx", "openvino"):
        if form in files and args.device == "cpu":
            with contextlib.redirect_stdout(io.StringIO()):
                made = YOLO(folder / f"yolov8{scale}.pt").export(format=form, imgsz=[height, width], verbose=False)
            yolos[form] = YOLO(made, task="detect")

    def twice(yolo: Any, **options: Any) -> None:
        for picture in two:
            yolo.predict(picture, imgsz=[height, width], device=args.device, verbose=False, **options)

    for form, yolo in yolos.items():
        calls[f"two ultralytics predict, {form}"] = partial(twice, yolo)
    if args.device != "cpu":
        halved = YOLO(folder / f"yolov8{scale}.pt")
        calls["two ultralytics predict, torch half"] = partial(twice, halved, half=True)

    plain = load_model(files["torch"])[0].to(args.device)
    x = torch.rand(1, 4, height, width, device=args.device)

    def plain_forward() -> None:
        with torch.no_grad():
            plain.answers(x, ["fused"])
            if x.is_cuda:
                torch.cuda.synchronize()

    calls["two-stream sum, plain eager forward"] = plain_forward
    work = gflops(plain, ["fused"], 640) * height / 640  # convolutions: in proportion to the pixels
    times: dict[str, list[float]] = {name: [] for name in calls}
    stages: dict[str, list[Any]] = {name: [] for name in ours}
    for turn in range(args.rounds + WARMUP):
        for name, call in calls.items():
            started = time.perf_counter()
            given = call()
            if turn >= WARMUP:
                elapsed = time.perf_counter() - started
                times[name].append(1e3 * elapsed / (TOGETHER if name == together else 1))
                if name.startswith("ours, "):
                    stages[name.removeprefix("ours, ")].append(given[1])
    results = {n: {"p50": statistics.median(t), "p95": float(np.percentile(t, 95))} for n, t in times.items()}
    for form, records in stages.items():
        for stage in ("preprocess", "inference", "postprocess"):
            results[f"ours, {form}"][stage] = statistics.median(getattr(r, stage) for r in records)
    results[f"floor of {work:.1f} GFLOPs"] = {"p50": 1e3 * work / peak_gflops(args.device), "p95": float("nan")}
    for name, row in results.items():
        form = name.partition(", ")[2]
        runtime = form.partition(" ")[0]
        for key, other in (
            ("of two predict, same runtime", f"two ultralytics predict, {runtime}"),
            ("of two default predict", "two ultralytics predict, torch"),
            ("of bare forward", f"forward, {form}"),
        ):
            if name.startswith("ours") and other in results:
                row[key] = row["p50"] / results[other]["p50"]
    return results


def peak_gflops(device: str) -> float:
    """The best rate of float32 matrix products of 2048 x 2048 on this device."""
    import torch

    a = torch.rand(2048, 2048, device=device)
    best = np.inf
    for _ in range(8):
        started = time.perf_counter()
        a @ a
        if a.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return float(2 * 2048**3 / best / 1e9)


def print_speed(scale: str, results: dict[str, dict[str, float]], size: tuple[int, int]) -> None:
    """A table in Markdown."""
    keys = ("p50", "p95", "preprocess", "inference", "postprocess")
    ratios = ("of two predict, same runtime", "of two default predict", "of bare forward")
    print(f"\nscale {scale}, {size[0]}x{size[1]} px, ms a pair\n\n| | {' | '.join((*keys, *ratios))} |")
    print("|---|" + "---|" * (len(keys) + len(ratios)))
    for name, row in results.items():
        cells = [f"{row[k]:.1f}" if k in row and row[k] == row[k] else "" for k in keys]
        print(f"| {name} | " + " | ".join([*cells, *(f"{row[r]:.2f}" if r in row else "" for r in ratios)]) + " |")


def startup(files: dict[str, Path], rounds: int, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Seconds from process start to the end of each part, the medians over fresh processes."""
    results = {}
    for form, file in files.items():
        runs = []
        for _ in range(rounds):
            command = [sys.executable, "-c", STARTUP, str(file), repr(time.time()), *map(str, size)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"{form}: the process failed: {done.stderr.strip().splitlines()[-1]}")
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        results[form] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return results


def print_startup(scale: str, results: dict[str, dict[str, float]], size: tuple[int, int]) -> None:
    """A table in Markdown: the seconds of each part."""
    parts = [key for key in next(iter(results.values())) if key != "torch"]
    print(f"\nscale {scale}, {size[0]}x{size[1]} px, s\n")
    print(f"| | {' | '.join(parts)} | to the first detection | imports torch |")
    print("|---|" + "---|" * (len(parts) + 2))
    for form, row in results.items():
        lengths = [row[part] - (row[parts[i - 1]] if i else 0) for i, part in enumerate(parts)]
        cells = [*(f"{length:.2f}" for length in lengths), f"{row['first detection']:.2f}"]
        print(f"| {form} | {' | '.join(cells)} | {'yes' if row['torch'] else 'no'} |")


def ensemble(files: dict[str, Path], rounds: int, size: tuple[int, int], device: str) -> dict[str, dict[str, float]]:
    """Ms of a pair by the fused answer and by all answers joined, taking turns: medians and least, and their ratios."""
    from rscmd_model.inference.predictor import Predictor

    rng = np.random.default_rng(0)
    width, height = size
    pair = [rng.integers(0, 256, (height, width, 3), np.uint8)], [rng.integers(0, 256, (height, width), np.uint8)]
    predictors = {
        form: Predictor(file, device=device) for form, file in files.items() if device == "cpu" or form == "torch"
    }
    calls = {
        (form, answer): partial(p.predict_batch, *pair, answer=answer)
        for form, p in predictors.items()
        for answer in ("fused", "ensemble")
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for turn in range(rounds + WARMUP):
        for key, call in calls.items():
            started = time.perf_counter()
            call()
            if turn >= WARMUP:
                times[key].append(1e3 * (time.perf_counter() - started))
    results = {}
    for form in predictors:
        row: dict[str, float] = {}
        for word, of in (("median", statistics.median), ("least", min)):
            fused, joint = (float(of(times[form, answer])) for answer in ("fused", "ensemble"))
            row |= {f"fused, {word}": fused, f"ensemble, {word}": joint, f"ratio, {word}": joint / fused}
        results[form] = row
    return results


def print_ensemble(scale: str, results: dict[str, dict[str, float]], size: tuple[int, int]) -> None:
    """A table in Markdown."""
    keys = list(next(iter(results.values())))
    print(f"\nscale {scale}, {size[0]}x{size[1]} px, ms a pair\n\n| | {' | '.join(keys)} |\n|---|{'---|' * len(keys)}")
    for form, row in results.items():
        print(f"| {form} | " + " | ".join(f"{row[k]:.2f}" for k in keys) + " |", flush=True)


def accuracy(model: Path, spec: str, folder: Path) -> dict[str, Any]:
    """mAP of each backend on a val split, 0 to 100, printed."""
    from rscmd_model.evaluation.sweep import LOWEST_SCORE, evaluate
    from rscmd_model.inference.export_file import export
    from rscmd_model.inference.predictor import Predictor

    data = open_data(spec)
    pairs = find_pairs(data, "val")
    kinds = [("onnx", {}), ("onnx", {"int8": True}), ("openvino", {}), ("openvino", {"int8": True})]
    kinds += [("openvino", {"half": True})]
    files = {"torch": model}
    for form, options in kinds:
        name = " ".join([form, *options])
        out = folder / f"accuracy-{name.replace(' ', '-')}.{form}"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                export(model, form, out, data=data, **{"half": False, **options})  # type: ignore[arg-type]
            files[name] = out
        except UserError as error:
            print(f"left out: {error}")
    print(f"\n{model} on {len(pairs)} pairs of {spec}\n\n| | mAP50 | mAP50:95 | difference |\n|---|---|---|---|")
    scores: dict[str, Any] = {"model": str(model), "data": spec}
    for name, file in files.items():
        result = evaluate(Predictor(file, device="cpu", conf=LOWEST_SCORE, max_det=100), data, pairs)
        scores[name] = {"mAP50": 100 * result["mAP50"], "mAP50_95": 100 * result["mAP50_95"]}
        gap = scores[name]["mAP50_95"] - scores["torch"]["mAP50_95"]
        print(f"| {name} | {scores[name]['mAP50']:.1f} | {scores[name]['mAP50_95']:.1f} | {gap:+.2f} |")
    return scores


if __name__ == "__main__":
    run_cli(main)
