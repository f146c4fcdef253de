"""Whether a device has the fused kernels of :mod:`permllm.core.triton_kernels`.

Where it has not, the same is computed with PyTorch's operations, several times as slowly.
"""

from __future__ import annotations

import functools
import warnings
from importlib.util import find_spec

import torch

_FIRST_CAPABILITY = (8, 0)
"""Of the GPUs that Triton compiles for."""


def has_fused_kernels(device: torch.device) -> bool:
    """Whether the kernels can be used on a device: always the same answer for one device.

    Warns:
        RuntimeWarning: Triton is there and the kernels do not run; said once.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return _run(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _run(index: int) -> bool:
    """Try both on a weight of two channels: Triton wants a C compiler, which may be missing."""
    if find_spec("triton") is None or torch.cuda.get_device_capability(index) < _FIRST_CAPABILITY:
        return False
    try:
        _try(torch.device("cuda", index))
    # Whatever it is, there is another way, which takes longer and comes to the same.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        message = (
            f"Triton's kernels do not run on cuda:{index}, and learning takes longer: {reason}"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=4)
        return False
    return True


def _try(device: torch.device) -> None:
    """Mask two entries 1:2, and compute their placement gradient; raises if anything is wrong."""
    # Imported late: Triton comes with PyTorch for CUDA alone.
    from permllm.core.triton_kernels import masked_on_cuda, placement_gradient_on_cuda

    words = torch.tensor([[3], [4]], dtype=torch.int32, device=device)
    scores, order = words.float(), torch.arange(2, device=device)
    masked = torch.zeros_like(words)
    masked_on_cuda(words, scores, order, order, 1, 2, masked)
    table = placement_gradient_on_cuda(scores[None], scores, None, order, order[None], 1, 2)
    # The second channel beats the first, and nobody beats himself.
    if masked.flatten().tolist() != [0, 4] or table.flatten().tolist() != [0, 0, 0, 1]:
        raise ArithmeticError(f"they give {masked.tolist()} and {table.tolist()}")
