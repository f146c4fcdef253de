"""Meets the other processes that ``torchrun`` started, on this machine and on others."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from permllm.errors import UserError
from permllm.world import Place, World

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` tells each process by its environment."""

JOINING_SECONDS = 120.0
"""So long the first process is waited for."""

PATIENCE = timedelta(hours=2)
"""So long a process waits for the others: they may be at work on something that is not dealt."""


@contextmanager
def world_of_processes(
    joining: float = JOINING_SECONDS, patience: timedelta = PATIENCE
) -> Iterator[World]:
    """The processes that ``torchrun`` started together with this one; this one alone without it.

    Args:
        joining: seconds that the first process is waited for.
        patience: how long a process waits for the others later on.

    Raises:
        UserError: they cannot be reached.
    """
    if any(name not in os.environ for name in VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        yield World()
        return
    import torch
    import torch.distributed as dist

    # Its functions take the group that there is when they are defined as a default, and keep it
    # for good. Threads of that group then outlive `destroy_process_group`, and one that drops a
    # tensor while Python ends aborts the process. Much of PyTorch imports it when first used.
    import torch.distributed.nn.functional

    address = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        if os.environ["RANK"] != "0":
            knock(*address, joining)
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=joining)))
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=patience,
        )
    except (RuntimeError, ValueError, OSError) as error:
        why = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the other processes of this run cannot be met at {':'.join(address)} (MASTER_ADDR "
            f"and MASTER_PORT): {why}",
            hint="start all of them with torchrun, which sets these and RANK and WORLD_SIZE",
        ) from error
    world = World(rank, size, store=store)
    me = Place(socket.gethostname(), os.getpid())
    world.places = tuple(world.gathered([me]))
    yield world
    # Only where all went well: others may never come to it.
    dist.destroy_process_group()


def knock(host: str, port: str, seconds: float) -> None:
    """Wait until somebody listens at an address; PyTorch would say each try in forty lines.

    Raises:
        OSError: nobody does, for so many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=seconds).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)
