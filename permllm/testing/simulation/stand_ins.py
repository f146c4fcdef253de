"""What answers for the simulated device in PyTorch's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.checkpoint import _allowed_determinism_checks_to_fns

from permllm.core.precision import has_bfloat16
from permllm.testing.simulation.ledger import Ledger
from permllm.testing.simulation.streams import cuda_streams, record_stream

_AUTOCAST = ("is_autocast_enabled", "get_autocast_dtype")

UNLIMITED = 2**50
"""Bytes that a device without a limit says to have."""


@contextmanager
def stand_ins(device: Ledger, functions: AbstractContextManager[Any]) -> Iterator[None]:
    """Have ``torch.cuda``, autocast, generators and autograd know the device in the block.

    Args:
        device: the device.
        functions: the mode that Python sees it by. Autograd runs backward passes without, and
            what is written in Python has to see the device there, too.
    """
    inside: dict[str, Any] = {name: _of_cpu(getattr(torch, name)) for name in _AUTOCAST}
    inside["Generator"] = _Generator
    backward = _within(functions, torch.autograd.graph._engine_run_backward)
    with (
        patch.multiple(torch.cuda, **_cuda(device), **cuda_streams(device)),
        patch.object(Tensor, "record_stream", record_stream),
        patch.multiple(torch, **inside),
        patch.object(torch.autocast, "__init__", _of_cpu(torch.autocast.__init__)),
        patch.object(torch.autograd, "_engine_run_backward", backward),
        # One side of the comparison is taken within an operator, where the mode is off.
        patch.dict(_allowed_determinism_checks_to_fns, default=_shape_and_type),
    ):
        yield


class _Generator(torch.Generator):
    """One that says which device it is for; numbers are those of the CPU."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls)

    def __init__(self, device: Any = "cpu") -> None:
        self._named = torch.device(device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._named


def _cuda(device: Ledger) -> dict[str, Any]:
    """Functions of ``torch.cuda``, by name."""

    def mem_get_info(_: Any = None) -> tuple[int, int]:
        total = UNLIMITED if device.limit is None else device.limit
        return total - device.reserved_bytes, total

    def empty_cache() -> None:
        device.reserved_bytes = device.live_bytes

    def reset_peak(_: Any = None) -> None:
        device.recent_peak_bytes = device.live_bytes

    def synchronize(_: Any = None) -> None:
        device.synchronisations += 1

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda _=None: "simulated",
        "is_bf16_supported": lambda including_emulation=True: has_bfloat16(torch.device("cpu")),
        "mem_get_info": mem_get_info,
        "memory_allocated": lambda _=None: device.live_bytes,
        "memory_reserved": lambda _=None: device.reserved_bytes,
        "max_memory_allocated": lambda _=None: device.recent_peak_bytes,
        "reset_peak_memory_stats": reset_peak,
        "empty_cache": empty_cache,
        "synchronize": synchronize,
        # Random numbers are the CPU's.
        "get_rng_state": lambda _=None: torch.get_rng_state(),
        "set_rng_state": lambda state, _=None: torch.set_rng_state(state),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }


def _of_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes the CPU for the device wherever it is named."""

    @wraps(function)
    def answered(*args: Any, **kwargs: Any) -> Any:
        named = {name: _named(value) for name, value in kwargs.items()}
        return function(*map(_named, args), **named)

    return answered


def _named(value: Any) -> Any:
    return "cpu" if isinstance(value, str) and value == "cuda" else value


def _shape_and_type(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    """What checkpointing compares of tensors that are computed again, all but their place."""
    return tensor.shape, tensor.dtype


def _within(mode: AbstractContextManager[Any], function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return function(*args, **kwargs)

    return run
