"""Work that processes share; a script for ``torchrun``, which prints what each of them found."""

from __future__ import annotations

import json
import os
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.core.digest import tensor_digest
from permllm.errors import UserError
from permllm.meeting import world_of_processes
from permllm.world import ProcessLost, World

SHARDS = 5


def total(world: World) -> Tensor:
    """A sum whose last digits depend on how it is cut."""
    rows = torch.randn(23, 1001, generator=torch.Generator().manual_seed(0)) * 1e3
    shards = world.cut(len(rows))

    def share(shard: int) -> dict[str, Tensor]:
        part = shards[shard]
        return {"sum": rows[part.start : part.stop].sum(0)}

    return world.summed(len(shards), share)["sum"]


def found(world: World) -> dict[str, Any]:
    """What every process should find, however many there are."""
    tensors = [torch.full((piece + 1,), piece, dtype=torch.bfloat16) for piece in range(7)]
    own = [tensors[piece] for piece in world.own(7)]
    few = world.summed(1, lambda shard: {"a": torch.ones(3), ("b", 1): torch.tensor(2.0)})
    nested = world.agreed(lambda: [tensor_digest(total(world)), world.agreed(lambda: 1)])
    seen = world.followed(lambda: "found", len, lambda length: "found"[:length])
    return {
        "sum": tensor_digest(total(world)),
        "few": [few["a"].tolist(), few["b", 1].item()],
        "joined": [one.tolist() for one in world.joined(own)],
        "gathered": world.gathered([str(piece) for piece in world.own(4)]),
        "shared out": sorted(world.gathered(world.fair([5.0, 1.0, 1.0, 9.0, 2.0]))),
        "within": nested,
        "by itself": tensor_digest(total(world.apart())),
        "followed": seen,
        "nothing to follow": world.followed(lambda: None, len, str),
        **(failures(world) if world.size > 1 else FAILED),
    }


FAILED = {"broken": True, "unlike": True, "first": 1}


def failures(world: World) -> dict[str, Any]:
    """Whether all hear of a failure in one, and of what is unlike."""

    def fail() -> None:
        raise ValueError("x")

    try:
        world.agreed(fail)
        broken = False
    except (ValueError, ProcessLost) as error:
        broken = isinstance(error, ValueError) == world.leads
    try:
        world.check_alike({"same": 1, "seed": min(world.rank, 1)})
        unlike = False
    except UserError as error:
        unlike = f"process 1 of {world.size}" in str(error) and "another seed" in str(error)
    firsts = world.gathered([world.fails_first()])
    return {"broken": broken, "unlike": unlike, "first": sum(firsts)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with world_of_processes() as world:
        # At once whole: the processes print side by side.
        line = json.dumps(found(attrs.evolve(world, shards=SHARDS))) + "\n"
        os.write(1, line.encode())
