"""Hashes of tensors."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def tensor_digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's shape, type and values."""
    here = tensor.detach().cpu().contiguous()
    content = hashlib.sha256(f"{tuple(here.shape)} {here.dtype}\n".encode())
    content.update(here.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
