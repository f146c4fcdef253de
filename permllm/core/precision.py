"""In which precision things are computed, and what a device's arithmetic can do."""

from __future__ import annotations

import torch
from torch import Tensor


def upcast(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices natively, and so faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))
