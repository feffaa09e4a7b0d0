"""Work side by side through Ray, on this machine or many.

Ray (PyPI: ray) is needed for --ray alone. It is started without its dashboard, and sends no usage statistics.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rscmd_model.errors import UserError, first_line

Job = TypeVar("Job")


@contextmanager
def ray_started(address: str, cpus: int) -> Iterator[Any]:
    """Start Ray or join a cluster; whatever ends the block, Ctrl-C while Ray starts among it, ends Ray's processes.

    Args:
        address: "local", or HOST:PORT of a running cluster.
        cpus: with "local", how many processors Ray may use at least. It starts no more processes than that, or than
            there are processors.

    Yields:
        the module `ray`.

    Raises:
        UserError: Ray is missing, or no cluster answers.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray starts
    if address != "local" and (Path.home() / ".ray/auth_token").is_file():
        # `ray start` asks for the token where there is one, and Ray sends it only where it is told to.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray, which is not installed: python -m pip install ray") from None
    start: dict[str, Any] = {"address": address}
    if address == "local":
        start |= {"num_cpus": max(os.cpu_count() or 1, cpus), "include_dashboard": False}
    else:
        _knock(address)
    try:
        try:
            ray.init(**start, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises bare ones, as where its processes take too long to start
            if address == "local":
                raise UserError(f"Ray did not start on this machine: {first_line(error)}") from None
            raise UserError(
                f"no Ray cluster answers at {address} ({first_line(error)}); start one with `ray start --head`"
            ) from None
        yield ray
    finally:
        ray.shutdown()


def as_they_end(
    ray: Any,
    jobs: Sequence[Job],
    begin: Callable[[Job], Any],
    most: int,
    meanwhile: Callable[[], None] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Jobs in the order in which they end.

    Args:
        ray: of `ray_started`.
        jobs: one or more.
        begin: hands one to Ray, and gives Ray's reference to its result.
        most: how many are under way at once.
        meanwhile: called after every minute in which none ends.

    Yields:
        which job, and the reference, whose result is there.
    """
    todo = list(enumerate(jobs))[::-1]
    under_way: dict[Any, int] = {}
    while todo or under_way:
        while todo and len(under_way) < most:
            place, job = todo.pop()
            under_way[begin(job)] = place
        ended, _ = ray.wait(list(under_way), timeout=60 if meanwhile else None)
        if not ended and meanwhile:
            meanwhile()
        for reference in ended:
            yield under_way.pop(reference), reference


def _knock(address: str) -> None:
    """Raise UserError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--ray takes 'local' or HOST:PORT of a running cluster, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`") from None
