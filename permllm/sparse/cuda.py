"""Semi-structured products on CUDA: PyTorch's 2:4 tensors, where shape and dtype allow.

PyTorch multiplies them by cuSPARSELt where its build has that, else by CUTLASS. The limits
are those of ``torch/sparse/semi_structured.py``: the weight's rows and columns are multiples
of a block that depends on the library and the dtype. float32 is left out: there the hardware
takes 1:2, which a 2:4 weight is not. The number of tokens may be any, since PyTorch pads it.
"""

from __future__ import annotations

import warnings
from typing import Literal

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

from permllm.core.patterns import Pattern

Library = Literal["cuSPARSELt", "CUTLASS"]

BLOCKS: dict[Library, dict[torch.dtype, tuple[int, int]]] = {
    "cuSPARSELt": {torch.float16: (16, 16), torch.bfloat16: (16, 16)},
    "CUTLASS": {torch.float16: (32, 64), torch.bfloat16: (32, 64)},
}
"""Rows and columns that a weight's shape must be multiples of."""


@attrs.frozen
class Device:
    """What semi-structured products ask of a device.

    Attributes:
        type: such as ``cuda`` or ``cpu``.
        capability: CUDA's compute capability, or None elsewhere.
        library: what multiplies there, or None where nothing does.
    """

    type: str
    capability: tuple[int, int] | None = None
    library: Library | None = None

    @classmethod
    def of(cls, device: torch.device) -> Device:
        """What is known of a device of this machine."""
        if device.type != "cuda" or torch.version.cuda is None:
            return cls(device.type)
        capability = torch.cuda.get_device_capability(device)
        cusparselt = getattr(torch.backends, "cusparselt", None)  # PyTorch 2.5 brought it
        if cusparselt is not None and cusparselt.is_available():
            return cls("cuda", capability, "cuSPARSELt")
        # CUTLASS's kernels in PyTorch are those of Ampere and Ada.
        return cls("cuda", capability, "CUTLASS" if capability[0] == 8 else None)


def semi_structured_reason(
    shape: tuple[int, ...], dtype: torch.dtype, pattern: Pattern, device: Device
) -> str | None:
    """Why a weight does not run semi-structured, as a clause, or None where it does.

    Args:
        shape: of the weight: C_out, C_in.
        dtype: of the weight.
        pattern: N:M.
        device: where it is to run.
    """
    if device.type != "cuda":
        return f"semi-structured products need CUDA, not {device.type}"
    if pattern != Pattern(2, 4):
        return f"the hardware multiplies 2:4, not {pattern}"
    if device.capability is not None and device.capability < (8, 0):
        major, minor = device.capability
        return f"the GPU's compute capability is {major}.{minor}, and sparse cores begin with 8.0"
    if device.library is None:
        return "this build of PyTorch has no cuSPARSELt, and CUTLASS is for capability 8.x alone"
    blocks = BLOCKS[device.library]
    if dtype not in blocks:
        known = " and ".join(str(kind).removeprefix("torch.") for kind in blocks)
        return f"2:4 is multiplied in {known}, not {str(dtype).removeprefix('torch.')}"
    if len(shape) != 2:
        return f"the weight has {len(shape)} dimensions, not 2"
    rows, columns = blocks[dtype]
    if 0 in shape or shape[0] % rows or shape[1] % columns:
        return (
            f"{device.library} takes multiples of {rows} × {columns}, "
            f"not a weight of {shape[0]} × {shape[1]}"
        )
    return None


def make_semi_structured(linear: nn.Linear, device: Device) -> None:
    """Replace a linear's weight by a semi-structured one.

    Args:
        linear: on CUDA, its weight 2:4 and of a kind that
            :func:`semi_structured_reason` has nothing against.
        device: where it is.

    Raises:
        RuntimeError: the library refuses; the linear is as it was.
    """
    linear.weight = nn.Parameter(semi_structured(linear.weight, device), requires_grad=False)


def semi_structured(weight: Tensor, device: Device) -> Tensor:
    """A semi-structured weight of a dense one, with which was multiplied once.

    Args:
        weight: ``[C_out, C_in]``, as that of :func:`make_semi_structured`.
        device: where it is.

    Raises:
        RuntimeError: the library refuses.
    """
    with warnings.catch_warnings():
        # That the interface is a prototype, as the user can do nothing about it.
        warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor.*prototype.*")
        SparseSemiStructuredTensor._FORCE_CUTLASS = device.library == "CUTLASS"
        packed: Tensor = to_sparse_semi_structured(weight.detach().contiguous())
    functional.linear(weight.new_zeros(1, weight.shape[1]), packed)
    return packed
