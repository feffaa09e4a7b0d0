"""Distributed training: two processes give the gradients of one, and `torchrun` trains one model with them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from test_objective import make_batch, make_model
from test_train import QUICK, two_class_world
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from rscmd_model.methods import method_config

WORLD = 2
ROOT = Path(__file__).resolve().parents[1]
# What `python -m rscmd_model.train` does, and then each rank tells what it has.
PROGRAM = """
import json, os, sys, torch
from rscmd_model.methods import method_config
from rscmd_model.training.trainer import PairedTrainer
from ultralytics.utils.torch_utils import unwrap_model

options, method, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
trainer = PairedTrainer(overrides=options)
trainer.start_from(method_config(method))
trainer.train()
found = {
    "local_rank": int(os.environ["LOCAL_RANK"]),
    "weights": dict(unwrap_model(trainer.model).named_parameters()),
    "ema": trainer.ema.ema.state_dict(),
    "batch": trainer.train_loader.batch_size,
    "train": list(trainer.train_loader.sampler),
    "val": list(trainer.test_loader.sampler),
}
torch.save(found, os.path.join(out, os.environ["RANK"] + ".pt"))
"""


def worker(rank: int, folder: str, batches: list[dict[str, Any]]) -> None:
    """One rank of what the trainer does: the wrapped model's own loss, scaled by the number of ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    model = DistributedDataParallel(make_model(method_config("rscmd")), find_unused_parameters=True)
    loss, _ = model(batches[rank])
    (loss.sum() * WORLD).backward()
    grads = {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}
    torch.save(grads, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def assert_gradients_of_one(batches: list[dict[str, Any]], folder: Path) -> None:
    """Two processes with a batch each have the gradients of one process that accumulates both."""
    mp.start_processes(worker, args=(str(folder), batches), nprocs=WORLD, start_method="forkserver")
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(WORLD))

    expected: dict[str, Tensor] = {}
    for batch in batches:
        model = make_model(method_config("rscmd"))
        model(batch)[0].sum().backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                expected[name] = expected.get(name, torch.zeros_like(p)) + p.grad
    assert set(first) == set(second) == set(expected)
    scale = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, grad in expected.items():
        assert torch.equal(first[name], second[name]), name
        assert float((first[name] - grad).norm()) < 1e-4 * float(scale), name


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    assert_gradients_of_one([make_batch(seed=rank) for rank in range(WORLD)], tmp_path)


@pytest.mark.parametrize(("nodes", "method"), [(1, "sum"), (2, "rscmd")])
def test_torchrun_trains_one_model(nodes: int, method: str, tmp_path: Path) -> None:
    """Two processes on one node, and as two nodes (a rendezvous on this machine), on the CPU with gloo.

    The ranks share the pairs and the batch, end with the same weights, and only the first one writes. On GPUs the same
    runs over NCCL, which is not tested.
    """
    data = two_class_world(tmp_path / "data")
    (tmp_path / "out").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/results.csv").write_text("of an earlier run")
    place = {"data": str(data), "project": str(tmp_path), "name": "run", "exist_ok": False}
    options = {**QUICK, "epochs": 1, "model": "rscmd", **place}
    (tmp_path / "program.py").write_text(PROGRAM)
    words = [str(tmp_path / "program.py"), json.dumps(options), method, str(tmp_path / "out")]
    port = free_port()
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={WORLD // nodes}", f"--nnodes={nodes}"]
    launch += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test", "--local-addr=127.0.0.1"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*launch, *words], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(nodes)
    ]
    for process in running:
        assert process.wait() == 0, process.stdout and process.stdout.read()

    ranks = [torch.load(tmp_path / "out" / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]
    assert [r["local_rank"] for r in ranks] == ([0, 1] if nodes == 1 else [0, 0])
    assert [r["batch"] for r in ranks] == [2, 2], "a batch of 4 is two of each"
    for split in ("train", "val"):
        assert sorted(ranks[0][split] + ranks[1][split]) == list(range(6)), split
    for kind in ("weights", "ema"):
        assert [k for k, v in ranks[0][kind].items() if not torch.equal(v, ranks[1][kind][k])] == [], kind
    # The folder "run" was taken, by a run of whose files none may be touched.
    assert (tmp_path / "run/results.csv").read_text() == "of an earlier run"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "out", "program.py", "run", "run-2"]
    assert len((tmp_path / "run-2/results.csv").read_text().splitlines()) == 2
    assert len(load_file(tmp_path / "run-2/model.safetensors")) == len(ranks[0]["ema"])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
