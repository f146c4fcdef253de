"""Gathers at run time: hooks with index buffers that put a tensor's channels in order.

The buffers belong to their modules, so that they move with the model and stand in its
``state_dict``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from permllm.errors import UserError
from permllm.folding.gather_points import at_inputs
from permllm.folding.plan import StoragePlan

BUFFER = "permllm_order"
"""What the index buffer of a module is called."""


def attach_gather(module: nn.Module, permutation: Tensor, *, inputs: bool) -> RemovableHandle:
    """Gather what a module reads or gives, from now on.

    Args:
        module: it gets the buffer ``permllm_order``.
        permutation: ``LongTensor[C]``: place ``i`` takes channel ``permutation[i]``.
        inputs: True for its first argument, False for its output.

    Returns:
        what takes the hook away again; the buffer stays.
    """
    module.register_buffer(BUFFER, permutation)
    if inputs:
        return module.register_forward_pre_hook(_gather_input)
    return module.register_forward_hook(_gather_output)


def attach_gathers(model: nn.Module, places: Mapping[str, bool], sizes: Mapping[str, int]) -> None:
    """Attach gathers whose buffers are still to be filled.

    Args:
        model: the model.
        places: by the full name of a module whether it is its input.
        sizes: by the same names the number of channels.

    Raises:
        UserError: the model has no such module.
    """
    for name, inputs in places.items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise UserError(
                f"{type(model).__name__} has no module '{name}' to gather at"
            ) from error
        attach_gather(module, torch.arange(sizes[name]), inputs=inputs)


@contextmanager
def gathering(model: nn.Module, storage: StoragePlan) -> Iterator[None]:
    """Gather where the stored order of a model needs it, for the block.

    Args:
        model: its weights in stored order.
        storage: how it is stored.
    """
    inputs = {
        module: at_inputs(group.at, group.linears)
        for group in storage.groups
        for module in group.at
    }
    attached: list[tuple[nn.Module, RemovableHandle]] = []
    try:
        for name, permutation in storage.gathers.items():
            module = model.get_submodule(name)
            place = next((one.device for one in model.parameters()), permutation.device)
            attached.append(
                (module, attach_gather(module, permutation.to(place), inputs=inputs[name]))
            )
        yield
    finally:
        for module, handle in attached:
            handle.remove()
            delattr(module, BUFFER)


def _gather_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].index_select(-1, getattr(module, BUFFER)), *args[1:])


def _gather_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.index_select(-1, getattr(module, BUFFER))
