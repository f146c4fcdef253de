"""Where to compute, in which precision, and what memory there is."""

from __future__ import annotations

import os

import torch

from permllm.available_memory import available_memory
from permllm.errors import UserError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def given_cores() -> int:
    """The cores that this process may use: by its affinity and by its container's quota."""
    # Imported late: it takes a moment.
    import joblib

    return int(joblib.cpu_count())


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes CUDA, else the CPU.

    Not MPS, which has no float64: sums would break.

    PyTorch is held to the cores that the process was given, unless ``OMP_NUM_THREADS`` says
    how many threads it may have.

    Raises:
        UserError: it is not there.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), given_cores()))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # What tensors say: cuda is not equal to cuda:0.
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"device '{name}' cannot be used: {reason}", hint="device: auto takes what is there"
        ) from error


def pick_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype of that name; ``auto`` takes float32 on a CPU and None, as saved, elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    return DTYPES[name]


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on a device; no limit is known of others than CUDA's.

    What PyTorch keeps of CUDA's memory for its next tensors is free, too.
    """
    if device.type == "cpu":
        return available_memory()
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return 2**63
