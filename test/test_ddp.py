"""Distributed training: two processes give the gradients of one."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_objective import make_batch, make_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from rscmd_model.config import method_config

WORLD = 2


def worker(rank: int, folder: str) -> None:
    """One rank of what the trainer does: the wrapped model's own loss, scaled by the number of ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    model = DistributedDataParallel(make_model(method_config("rscmd")), find_unused_parameters=True)
    loss, _ = model(make_batch(seed=rank))
    (loss.sum() * WORLD).backward()
    grads = {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}
    torch.save(grads, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=WORLD)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD))

    expected: dict[str, Tensor] = {}
    for rank in range(WORLD):  # one process that accumulates the same two batches
        model = make_model(method_config("rscmd"))
        model(make_batch(seed=rank))[0].sum().backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                expected[name] = expected.get(name, torch.zeros_like(p)) + p.grad
    assert set(first) == set(second) == set(expected)
    scale = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, grad in expected.items():
        assert torch.equal(first[name], second[name]), name
        assert float((first[name] - grad).norm()) < 1e-4 * float(scale), name
