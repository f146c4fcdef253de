"""Which weights run semi-structured on CUDA, decided without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

from permllm.core.patterns import Pattern, nm_mask
from permllm.sparse.cuda import BLOCKS, Device, make_semi_structured, semi_structured_reason

HOPPER = Device("cuda", (9, 0), "cuSPARSELt")
AMPERE = Device("cuda", (8, 0), "CUTLASS")
TWO_FOUR = Pattern(2, 4)


def reason(
    shape: tuple[int, ...] = (4096, 4096),
    dtype: torch.dtype = torch.bfloat16,
    pattern: Pattern = TWO_FOUR,
    device: Device = HOPPER,
) -> str | None:
    return semi_structured_reason(shape, dtype, pattern, device)


@pytest.mark.parametrize("device", [HOPPER, AMPERE])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4096, 4096), (11008, 4096), (32, 64)])
def test_what_runs_sparse(shape: tuple[int, int], dtype: torch.dtype, device: Device) -> None:
    assert reason(shape, dtype, device=device) is None


def test_the_libraries_differ_in_their_blocks() -> None:
    assert reason((48, 16)) is None
    assert reason((48, 64), device=AMPERE) == (
        "CUTLASS takes multiples of 32 × 64, not a weight of 48 × 64"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"device": Device("cpu")}, "need CUDA, not cpu"),
        ({"pattern": Pattern(4, 8)}, "multiplies 2:4, not 4:8"),
        ({"dtype": torch.float32}, "float16 and bfloat16, not float32"),
        ({"shape": (24, 64)}, "multiples of 16 × 16, not a weight of 24 × 64"),
        ({"shape": (32, 40)}, "multiples of 16 × 16, not a weight of 32 × 40"),
        ({"shape": (0, 64)}, "a weight of 0 × 64"),
        ({"shape": (8, 64, 64)}, "3 dimensions"),
        ({"device": Device("cuda", (7, 5), "cuSPARSELt")}, "compute capability is 7.5"),
        ({"device": Device("cuda", (9, 0), None)}, "no cuSPARSELt"),
    ],
)
def test_what_does_not_run_sparse_is_said(arguments: dict, said: str) -> None:
    assert said in str(reason(**arguments))


@pytest.mark.parametrize(
    ("library", "tensor"),
    [
        ("cuSPARSELt", SparseSemiStructuredTensorCUSPARSELT),
        ("CUTLASS", SparseSemiStructuredTensorCUTLASS),
    ],
)
def test_the_blocks_are_those_of_torch(library: str, tensor: type) -> None:
    limits = tensor._DTYPE_SHAPE_CONSTRAINTS
    for dtype, (rows, columns) in BLOCKS[library].items():
        assert rows % limits[dtype].sparse_min_rows == 0
        assert columns % limits[dtype].sparse_min_cols == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_semi_structured_linear_computes_the_same() -> None:
    device = Device.of(torch.device("cuda"))
    if (why := reason((128, 256), device=device)) is not None:
        pytest.skip(why)
    linear = nn.Linear(256, 128, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    linear.weight.mul_(nm_mask(linear.weight.abs(), TWO_FOUR))
    x = torch.randn(3, 256, device="cuda", dtype=torch.bfloat16)
    expected = functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    make_semi_structured(linear, device)
    torch.testing.assert_close(linear(x).double(), expected, rtol=2e-2, atol=2e-2)
