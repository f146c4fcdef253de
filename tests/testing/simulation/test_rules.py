"""CUDA's rules, each with what it takes and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from permllm.testing.simulation.ledger import tensors_in
from permllm.testing.simulation.rules import may_mix, waits

THERE, HERE = torch.zeros(4, 4), torch.ones(4, 4)
NUMBER = torch.tensor(2.0)
INDEX = torch.tensor([1, 2])


def mixes(name: str, *args: Any, there: tuple[Tensor, ...] = (THERE,)) -> bool:
    operands = list(tensors_in(list(args)))
    return may_mix(name, args, operands, lambda tensor: any(tensor is one for one in there))


@pytest.mark.parametrize(
    ("name", "args", "taken"),
    [
        ("aten::mul", (THERE, HERE), False),
        ("aten::mul", (THERE, NUMBER), True),
        ("aten::mul", (NUMBER, THERE), True),
        ("aten::mul_", (THERE, NUMBER), True),
        ("aten::mul_", (NUMBER, THERE), False),
        ("aten::mm", (THERE, NUMBER), False),
        ("aten::cat", ([THERE, NUMBER],), False),
        ("aten::copy_", (HERE, THERE), True),
        ("aten::copy_", (THERE, HERE), True),
        ("aten::index", (THERE, [INDEX]), True),
        ("aten::index", (HERE, [THERE]), False),
        ("aten::index_put_", (THERE, [INDEX], HERE), False),
        ("aten::index_put_", (THERE, [INDEX], NUMBER), True),
        ("aten::index_select", (THERE, 0, INDEX), False),
    ],
)
def test_operands_of_two_devices(name: str, args: tuple[Any, ...], taken: bool) -> None:
    assert mixes(name, *args) is taken


def test_what_has_the_host_wait() -> None:
    assert waits("aten::_local_scalar_dense", (NUMBER,))
    assert waits("aten::index", (THERE, [THERE > 0]))
    assert not waits("aten::index", (THERE, [None, INDEX]))
    assert not waits("aten::mul", (THERE, THERE))
