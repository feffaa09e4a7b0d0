"""A device that is not there: its tensors hold numbers of the host, and torch takes them for another device's.

What a GPU refuses is refused: an operation on a tensor of the host and one of the device. What the host of a GPU waits
for is noted. So code that only a GPU would try is tried without one, at the host's speed and with the host's results.
A process has the device for good, so this is a program:

    python test/pretended_device.py steps OUT.json METHOD...    # a step of each, the first taught by an old model, too
    python test/pretended_device.py train WORD...               # rscmd_model.train, cut in its second epoch, resumed
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "pretended:0"
ROOT = Path(__file__).parents[1]
_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
_UNKNOWN = ("_local_scalar_dense", "nonzero", "unique", "masked_select")
_noted: list[str] | None = None  # what the host waits for, while that is asked for


class Distant(Tensor):
    """A tensor of the device; `near` has its numbers."""

    near: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: Tensor) -> Distant:
        of: Any = torch.Tensor._make_wrapper_subclass(
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=DEVICE
        )
        of.near = near
        return of

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})

    def tolist(self) -> Any:
        """See torch, which has it for its own classes alone."""
        _note("tolist")
        return self.near.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy: Tensor = Distant(self.near.clone())
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy


class Pretended(TorchDispatchMode):
    """Within it tensors can be made on the device."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


def _note(operation: Any) -> None:
    """Put down that the host waits for an operation, and who asked for it."""
    if _noted is not None:
        frames = [f for f in traceback.extract_stack() if "rscmd_model" in f.filename or "ultralytics" in f.filename]
        at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        _noted.append(f"{operation} ({at})")


def asks_the_device(operation: Any, args: Any) -> bool:
    """Whether the host of a GPU waits for what an operation gives: a number it needs, or a size that numbers decide."""
    by_mask = "index" in str(operation) and any(
        isinstance(of, Tensor) and of.dtype == torch.bool for part in args if isinstance(part, list) for of in part
    )
    return by_mask or any(word in str(operation) for word in _UNKNOWN)


def _run(operation: Any, args: Any, kwargs: Any) -> Any:
    """What the operation gives, on the device if it is asked for there or one of its tensors is there."""
    leaves = [*_leaves(args), *_leaves(kwargs.values())]
    tensors = [of for of in leaves if isinstance(of, Tensor)]
    distant = {id(of.near): of for of in tensors if isinstance(of, Distant)}
    wanted = {of.type for of in leaves if isinstance(of, torch.device)}
    there = "pretended" in wanted or (bool(distant) and "cpu" not in wanted)
    if operation in _COPIES:
        if len({isinstance(of, Distant) for of in tensors} | {there}) > 1:
            _note(operation)
    elif distant:
        if any(of.dim() and not isinstance(of, Distant) for of in tensors):
            raise RuntimeError(f"{operation}: a tensor of the host is given with one of the device")
        if any(isinstance(of, torch.Generator) and of.device.type == "cpu" for of in leaves):
            raise RuntimeError(f"{operation}: a generator of the host is given for the device")
        if asks_the_device(operation, args):
            _note(operation)
    given = operation(*_each(_brought, args), **{name: _each(_brought, of) for name, of in kwargs.items()})
    if operation is _aten.copy_.default:
        return args[0]
    # What is changed in place is the very tensor that was given.
    return _each(lambda of: distant[id(of)] if id(of) in distant else _sent(of), given) if there else given


def _leaves(of: Any) -> Iterator[Any]:
    for one in of:
        if isinstance(one, (list, tuple)):
            yield from _leaves(one)
        else:
            yield one


def _each(change: Callable[[Any], Any], of: Any) -> Any:
    return type(of)(_each(change, one) for one in of) if isinstance(of, (list, tuple)) else change(of)


def _brought(of: Any) -> Any:
    if isinstance(of, torch.device):
        return torch.device("cpu")
    return of.near if isinstance(of, Distant) else of


def _sent(of: Any) -> Any:
    return Distant(of) if isinstance(of, Tensor) else of


def begin() -> None:
    """Give this process the device, and torch what it asks one for."""
    backend_registration._setup_privateuseone_for_python_backend("pretended")
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) makes a tensor here and copies it
    device: Any = torch.pretended  # type: ignore[attr-defined]
    for name in ("memory_reserved", "current_device", "empty_cache", "synchronize", "manual_seed", "manual_seed_all"):
        setattr(device, name, lambda *_: 0)
    device.device_count = device.is_available = lambda: 1
    device._is_in_bad_fork = lambda: False
    device.get_rng_state, device.set_rng_state = (lambda *_: torch.get_rng_state()), (lambda *_: None)
    device.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    device.get_device_properties = lambda *_: SimpleNamespace(total_memory=1 << 34)
    # Tensors of a class of one's own do not go with it, and it has no pinned memory.
    torch.inference_mode = _inference_mode  # type: ignore[assignment, misc]
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[assignment, method-assign]


def _inference_mode(mode: Any = True) -> Any:
    """torch's, which is told whether, or is given a function; it leaves gradients out and no more."""
    if callable(mode):
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else contextlib.nullcontext()


@contextlib.contextmanager
def waits() -> Iterator[list[str]]:
    """What the host waits for, from here on."""
    global _noted
    _noted = []
    yield _noted
    _noted = None


def steps(out: Path, methods: list[str]) -> None:
    """Write what the host waits for in each part of a training step, by method and part."""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    import train_step

    from rscmd_model.methods import parse_method

    about = argparse.Namespace(scale="n", size=64, batch=2, objects=3, device=DEVICE, amp=None, compile=False)
    found: dict[str, dict[str, list[str]]] = {}
    with Pretended():
        batch = train_step.make_batch(about)
        for method in methods:
            stepper = train_step.Stepper(parse_method(method, scale="n"), True, method == methods[0], about)
            # The first makes what depends on the size of the images alone. The update is torch's own.
            for wanted in (train_step.PARTS[:2], train_step.PARTS[:3]):
                parts, found[method] = stepper.parts(batch), {}
                for part in wanted:
                    with waits() as noted:
                        next(parts)
                    found[method][part] = noted
    out.write_text(json.dumps(found))


def train(words: list[str]) -> None:
    """Train, interrupted in the second epoch, and go on."""
    sys.path.insert(0, str(ROOT))
    import ultralytics.engine.trainer
    import ultralytics.engine.validator

    from rscmd_model.train import main
    from rscmd_model.training.trainer import PairedTrainer

    def chosen(*_: Any, **__: Any) -> torch.device:
        return torch.device(DEVICE)

    ultralytics.engine.trainer.select_device = ultralytics.engine.validator.select_device = chosen
    step: Callable[[PairedTrainer], None] = PairedTrainer.optimizer_step

    def interrupted(trainer: PairedTrainer) -> None:
        if trainer.epoch == 1:
            raise KeyboardInterrupt
        step(trainer)

    with Pretended():
        PairedTrainer.optimizer_step = interrupted  # type: ignore[method-assign]
        with contextlib.suppress(KeyboardInterrupt):
            main(words)
        PairedTrainer.optimizer_step = step  # type: ignore[method-assign]
        options = dict(word.split("=", 1) for word in words if "=" in word)
        main([f"resume={Path(options['project'], options['name'], 'weights/last.pt')}"])


if __name__ == "__main__":
    begin()
    if sys.argv[1] == "steps":
        steps(Path(sys.argv[2]), sys.argv[3:])
    else:
        train(sys.argv[2:])
