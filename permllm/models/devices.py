"""Where to compute, and in which precision."""

from __future__ import annotations

import torch

from permllm.errors import UserError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes CUDA, else MPS, else the CPU.

    Raises:
        UserError: it is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"device '{name}' cannot be used: {reason}", hint="device: auto takes what is there"
        ) from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype of that name; ``auto`` takes float32 on a CPU and None, as saved, elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    return DTYPES[name]
