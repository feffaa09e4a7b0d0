"""Time and memory of a training step, each method against `sum` in the same run.

    python benchmarks/train_step.py                                       # every method, small, on the CPU
    python benchmarks/train_step.py rsc rscmd rscmd+md=map --size 640 --batch 16 --scale s --device cuda:0 --amp fp16

A step is what the trainer does with a batch that is already on the device: forward, loss, backward, and clipping,
AdamW and the moving average ("update"). The methods take turns, one step each, so that whatever else the machine is
doing hits all alike; a ratio is taken within a round, and its median and quartiles are reported. Time on a GPU is wall
time; on the CPU it is the process's own processor time, all threads together, so that it does not count the waiting
for other processes (with one thread on a quiet machine both are the same). Memory is the peak of a process of its own
for each method: on a GPU what torch's allocator handed out, on the CPU (Linux) the peak resident size less the
resident size before the model was built. Images are noise; every image has --objects boxes. FLOPs (two for each
multiplication and addition) are those that torch counts in convolutions and matrix products, forward, per pair.
Operations are torch's, views and memory asked for left out: on a GPU that is faster than its host each costs what its
start costs, so there their ratio bounds that of the steps. Those of the update depend on the device and are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.utils import NUM_THREADS
from ultralytics.utils.torch_utils import ModelEMA

from rscmd_model.config import MODALITIES, ModelConfig
from rscmd_model.errors import UserError, run_cli
from rscmd_model.files import write_json
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.methods import METHODS, method_config, needs_teachers, parse_method
from rscmd_model.network.detection_loss import MOST
from rscmd_model.network.distillation import OldAnswers
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import ModelHeader, save_model
from rscmd_model.network.teachers import Teachers

PARTS = ("forward", "loss", "backward", "update")
NAMES = {0: "a", 1: "b", 2: "c"}


def make_batch(args: argparse.Namespace) -> dict[str, Any]:
    """A batch as the trainer gives it to the model."""
    g = torch.Generator().manual_seed(0)
    count = args.batch * args.objects
    boxes = torch.rand(count, 4, generator=g) * torch.tensor([0.6, 0.6, 0.2, 0.3]) + torch.tensor([0.2, 0.2, 0.05, 0.1])
    batch = {
        "img": torch.rand(args.batch, 4, args.size, args.size, generator=g),
        "batch_idx": torch.arange(args.batch).repeat_interleave(args.objects).float(),
        "cls": torch.randint(3, (count, 1), generator=g).float(),
        "bboxes": boxes,
    }
    return {**{k: v.to(args.device) for k, v in batch.items()}, MOST: args.objects}


def untrained(config: ModelConfig, folder: str) -> Path:
    """The file of a model whose weights are random."""
    file = Path(folder, f"{config.title}.safetensors")
    save_model(file, RscmdModel(config, NAMES), ModelHeader(config, NAMES, 640, ThermalContract()))
    return file


def untrained_teachers(config: ModelConfig) -> Teachers:
    """Two single-camera controls as large as a model."""
    controls = {m: method_config(m, scale=config.scale, family=config.family) for m in MODALITIES}
    with tempfile.TemporaryDirectory() as folder:
        return Teachers({m: untrained(control, folder) for m, control in controls.items()})


class Stepper:
    """One model and all that its training step needs; `distil` teaches another one's answers besides."""

    def __init__(self, config: ModelConfig, channels_last: bool, distil: bool, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.model = RscmdModel(config, NAMES).to(args.device).train()
        if needs_teachers(config):
            self.model.teachers = untrained_teachers(config)
        if distil:
            with tempfile.TemporaryDirectory() as folder:
                self.model.old = OldAnswers(untrained(config, folder))
        self.model.method.start(self.model, lambda: [make_batch(args)])
        for part in self.model.method.frozen:
            self.model.get_submodule(part).requires_grad_(False).eval()
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.cuda = args.device.startswith("cuda")
        self.amp = bool(args.amp)
        self.bits = torch.bfloat16 if args.amp == "bf16" else torch.float16
        if args.compile and distil:
            raise UserError("--compile does not go with --distil: leave one of them out")
        if args.compile and self.model.method.differentiates_apart:  # torch.compile makes one node of the network
            raise UserError(f"--compile does not go with method {config.title}: leave one of them out")
        self.forward = torch.compile(self.model) if args.compile else self.model
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True if self.cuda else None)
        self.scaler = torch.amp.GradScaler("cuda", enabled=args.amp == "fp16")
        self.ema = ModelEMA(self.model)

    def parts(self, batch: dict[str, Any]) -> Iterator[None]:
        """The parts of a step, in the order of `PARTS`."""
        with torch.autocast(batch["img"].device.type, self.bits, enabled=self.amp):
            preds = self.forward(batch["img"])
        yield
        with torch.autocast(batch["img"].device.type, self.bits, enabled=self.amp):
            loss = self.model.loss(batch, preds)[0].sum()
        yield
        self.scaler.scale(loss).backward()
        yield
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=10.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.ema.update(self.model)
        yield

    def step(self, batch: dict[str, Any]) -> list[float]:
        """One step; seconds of each part."""
        clock = time.perf_counter if self.cuda else time.process_time
        seconds, start = [], clock()
        for _ in self.parts(batch):
            if self.cuda:
                torch.cuda.synchronize()
            seconds.append(clock() - start)
            start = clock()
        return seconds


def count_flops(config: ModelConfig, size: int) -> dict[str, float]:
    """GFLOPs of one forward pass over a pair in training: in all, and of each backbone and each branch."""
    model = RscmdModel(config, {0: "a", 1: "b", 2: "c"}).train()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 4, size, size))  # two pairs, since BatchNorm wants more than one value
    counts = {name: sum(ops.values()) / 2e9 for name, ops in counter.get_flop_counts().items()}
    rooms = {n: v for n, v in counts.items() if n.count(".") == 2 and n.split(".")[1] in ("backbones", "branches")}
    return {"all": counts["Global"], **{n.partition(".")[2]: v for n, v in rooms.items()}}


class Operations(TorchDispatchMode):
    """Counts what torch does, views and memory asked for left out."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (operation.is_view or operation.name().startswith("aten::empty"))
        return operation(*args, **(kwargs or {}))


def count_operations(stepper: Stepper, batch: dict[str, Any]) -> dict[str, int]:
    """The operations of a step's parts but the update."""
    counts = {}
    parts = stepper.parts(batch)
    for name in PARTS[:-1]:
        with Operations() as counted:
            next(parts)
        counts[name] = counted.count
    next(parts)
    return counts


def peak_memory(word: str, channels_last: bool, distil: bool, args: argparse.Namespace) -> float:
    """MB that training `word` takes at its peak, in a process of its own."""
    command = [sys.executable, __file__, word, "--peak", "--channels-last", "on" if channels_last else "off"]
    for name in ("scale", "size", "batch", "objects", "device", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    command += ["--amp", args.amp] if args.amp else []
    command += ["--compile"] * args.compile + ["--distil"] * distil
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"measuring the memory of {word} failed: {(done.stderr.strip() or '?').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def resident(field: str) -> float:
    """MB of this process's resident memory: "VmRSS" now, "VmHWM" at its peak."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024 / 1e6  # type: ignore[index]


def print_peak(args: argparse.Namespace) -> None:
    """What `peak_memory` runs: three steps, then the peak in MB on stdout."""
    batch = make_batch(args)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak that importing left; see proc(5)
    before = resident("VmRSS")
    stepper = Stepper(parse_method(args.variants[0], scale=args.scale), args.channels_last == "on", args.distil, args)
    for _ in range(3):
        stepper.step(batch)
    print(json.dumps(torch.cuda.max_memory_allocated() / 1e6 if stepper.cuda else resident("VmHWM") - before))


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))  # type: ignore[return-value]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All variants, in turns; a mapping of what was run to its figures."""
    words = ["sum", *(word for word in args.variants if word != "sum")]
    formats = {"on": (True,), "off": (False,), "both": (False, True)}[args.channels_last]
    names = {
        w + ", channels last" * (last and len(formats) > 1) + ", distil" * distil: (w, last, distil)
        for last in formats
        for w in words
        for distil in (False, True)[: 1 + args.distil]
    }
    batch = make_batch(args)
    steppers = {
        n: Stepper(parse_method(w, scale=args.scale), last, distil, args) for n, (w, last, distil) in names.items()
    }
    for stepper in steppers.values():
        for _ in range(args.warmup):
            stepper.step(batch)
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    for turn in range(args.rounds):
        order = list(names) if turn % 2 else list(names)[::-1]
        for name in order:
            times[name].append(steppers[name].step(batch))
        print(f"\rround {turn + 1} of {args.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    first = next(iter(names))
    results: dict[str, Any] = {}
    for name, (word, *_) in names.items():
        ratios = [sum(t) / sum(base) for t, base in zip(times[name], times[first])]
        results[name] = {
            **{part: statistics.median(t[i] for t in times[name]) * 1e3 for i, part in enumerate(PARTS)},
            "step": statistics.median(sum(t) for t in times[name]) * 1e3,
            "ratio": quartiles(ratios),
            "parameters": sum(p.numel() for p in steppers[name].model.parameters()) / 1e6,
            "gflops": count_flops(parse_method(word, scale=args.scale), args.size),
            "operations": {} if args.compile else count_operations(steppers[name], batch),
        }
    del steppers
    for name, (word, last, distil) in names.items():
        results[name]["peak_mb"] = None if args.no_memory else peak_memory(word, last, distil, args)
    return results


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "variants", nargs="*", default=list(METHODS), metavar="METHOD[:key=value,...]", help="default: every method"
    )
    parser.add_argument("--scale", "--model", default="n", help="of both streams (default: %(default)s)")
    parser.add_argument("--size", type=int, default=160, help="image side in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pairs in a batch (default: %(default)s)")
    parser.add_argument("--objects", type=int, default=4, help="boxes in an image (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each that are timed (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each before that (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0, ... (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=NUM_THREADS, help="on the CPU (default: the trainer's, %(default)s)"
    )
    parser.add_argument("--amp", choices=("fp16", "bf16"), help="mixed precision (CUDA only, as in the trainer)")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--distil", action="store_true", help="each method once more with --distil of the trainer")
    parser.add_argument(
        "--channels-last",
        choices=("on", "off", "both"),
        default="on",
        help="memory format (default: the trainer's, on)",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 2:
        raise UserError(f"--rounds {args.rounds}: give 2 or more")
    if args.amp and not args.device.startswith("cuda"):
        raise UserError("--amp needs a CUDA GPU: the trainer trains in 32 bits on the CPU")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {args.device!r} is not there: no CUDA GPU is visible to torch")
    torch.set_num_threads(args.threads)
    if args.peak:
        return print_peak(args)
    results = measure(args)
    device = (
        torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else f"CPU, {args.threads} threads"
    )
    print(
        f"{device}; YOLOv8{args.scale}, {args.size} px, batch {args.batch}, {args.objects} objects, "
        f"{args.rounds} rounds, amp {args.amp or 'off'}, compile {'on' if args.compile else 'off'}, "
        f"channels last {args.channels_last}; medians in ms, ratio to sum with quartiles\n"
    )
    print("| | M parameters | GFLOPs | " + " | ".join(PARTS) + " | step | × sum | peak MB |")
    print("|---|" + "---|" * (len(PARTS) + 5))
    for name, r in results.items():
        low, middle, high = r["ratio"]
        cells = [f"{r['parameters']:.2f}", f"{r['gflops']['all']:.2f}", *(f"{r[p]:.0f}" for p in (*PARTS, "step"))]
        cells += [f"{middle:.2f} ({low:.2f}–{high:.2f})", "" if r["peak_mb"] is None else f"{r['peak_mb']:.0f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\nGFLOPs forward, by part: ")
    for name, r in results.items():
        print(f"  {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in r["gflops"].items()))
    if not args.compile:
        print("\nOperations: ")
        for name, r in results.items():
            print(f"  {name}: " + ", ".join(f"{k} {v}" for k, v in r["operations"].items()))
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        write_json(args.json, {"settings": settings, "device": device, "torch": torch.__version__, "results": results})


if __name__ == "__main__":
    run_cli(main)
