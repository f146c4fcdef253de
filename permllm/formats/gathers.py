"""Gathers at run time: hooks with index buffers that put a tensor's channels in order.

The buffers belong to their modules, so that they move with the model and stand in its
``state_dict``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from permllm.errors import UserError

BUFFER = "permllm_order"
"""What the index buffer of a module is called."""


def attach_gather(module: nn.Module, permutation: Tensor, *, inputs: bool) -> None:
    """Gather what a module reads or gives, from now on.

    Args:
        module: it gets the buffer ``permllm_order``.
        permutation: ``LongTensor[C]``: place ``i`` takes channel ``permutation[i]``.
        inputs: True for its first argument, False for its output.
    """
    module.register_buffer(BUFFER, permutation)
    if inputs:
        module.register_forward_pre_hook(_gather_input)
    else:
        module.register_forward_hook(_gather_output)


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


def _gather_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].index_select(-1, getattr(module, BUFFER)), *args[1:])


def _gather_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.index_select(-1, getattr(module, BUFFER))
