"""Whether a model's weights are still what they were, without reading them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from permllm.given import Giver, WeightsChanged

SAMPLED = 64
"""Entries of each parameter that are compared."""

_NOTHING = torch.zeros(0)
"""The entries where none are compared: one for all, since metrics are watched linear by linear."""


@contextmanager
def unchanged(model: nn.Module, giver: Giver, sampled: int = SAMPLED) -> Iterator[None]:
    """Refuse that a component changes weights in the block, which others work with after it.

    PyTorch counts what is done to a tensor in place, but not through ``parameter.data``: of
    each parameter a few entries are compared, too.

    Args:
        model: whose parameters.
        giver: has the model meanwhile, and is named.
        sampled: entries of each parameter that are compared; 0 where parameters may be on their
            way between home and a device.

    Raises:
        WeightsChanged: it changed one, also where something else went wrong after that.
    """
    before = _marks(model, sampled)
    try:
        yield
    finally:
        _check_same(before, _marks(model, sampled), giver)


def _marks(model: nn.Module, sampled: int) -> dict[str, tuple[int, Tensor]]:
    """Of each parameter how often it was changed, and some entries, by name."""
    return {
        name: (parameter._version, _some(parameter, sampled))
        for name, parameter in model.named_parameters()
    }


def _some(parameter: nn.Parameter, sampled: int) -> Tensor:
    """Entries from all over a parameter, on the CPU; the parameter itself is not copied."""
    if not sampled or not parameter.numel():
        return _NOTHING
    tensor = parameter.data
    # A prime: no size of a model's axis is a multiple of it.
    steps = torch.arange(sampled, device=tensor.device) * 7919
    return tensor[tuple(steps % size for size in tensor.shape)].reshape(-1).cpu()


def _check_same(
    before: Mapping[str, tuple[int, Tensor]], after: Mapping[str, tuple[int, Tensor]], giver: Giver
) -> None:
    for name, (version, some) in before.items():
        if name not in after or after[name][0] != version or not _equal(after[name][1], some):
            raise giver.wrong(
                f"changed the model's {name}, which others read after it; it has to work on a copy",
                WeightsChanged,
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two samples are the same to the bit, NaN included."""
    if one is other:
        return True
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
