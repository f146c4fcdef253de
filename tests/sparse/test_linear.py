"""A packed linear layer computes what its dense weight computes, however it multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from permllm.core.patterns import Pattern, nm_mask
from permllm.sparse import cpu
from permllm.sparse.choice import COUNTS
from permllm.sparse.linear import SparseLinear

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-7}


def assert_product(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Within the rounding of the dtype, relative to the sizes of what is summed."""
    exact = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    scale = functional.linear(x.double().abs(), weight.double().abs()) + 1e-3
    scale += 0 if bias is None else bias.double().abs()
    assert y.shape == exact.shape
    assert y.dtype == x.dtype
    assert bool(((y.double() - exact).abs() <= TOLERANCES[x.dtype] * scale).all())


@pytest.mark.parametrize("tokens", [(), (1,), (2, 3), (40,), (0, 4)])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", cpu.WAYS)
def test_any_number_of_tokens_by_any_way(
    tokens: tuple[int, ...],
    dtype: torch.dtype,
    bias: bool,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "fastest_ways", lambda *_: (way,) * len(COUNTS))
    monkeypatch.setattr(cpu, "_CHUNK_BYTES", 2000)
    monkeypatch.setattr(cpu, "_CHUNK_ROWS", 2)
    dense, sparse = layers(Pattern(2, 4), 72, 30, dtype, bias)
    x = torch.randn(*tokens, 72).to(dtype)
    assert_product(sparse(x), x, dense.weight.detach(), dense.bias)


def layers(
    pattern: Pattern, channels: int, outputs: int, dtype: torch.dtype, bias: bool = True
) -> tuple[nn.Linear, SparseLinear]:
    """A dense N:M layer without gradients, and its packed twin."""
    torch.manual_seed(0)
    dense = nn.Linear(channels, outputs, bias=bias, dtype=dtype).requires_grad_(False)
    dense.weight.mul_(nm_mask(dense.weight.abs(), pattern))
    return dense, SparseLinear.from_dense(dense, pattern)


def test_a_dense_layer_is_kept_bit_for_bit() -> None:
    dense, sparse = layers(Pattern(3, 5), 20, 7, torch.bfloat16)
    assert torch.equal(sparse.weight, dense.weight)
    assert torch.equal(sparse.bias, dense.bias)
    assert (sparse.in_features, sparse.out_features) == (20, 7)


def test_a_state_dict_and_a_change_of_dtype() -> None:
    dense, sparse = layers(Pattern(2, 4), 16, 3, torch.float32)
    assert sorted(sparse.state_dict()) == ["bias", "indices", "values"]
    half = sparse.to(torch.bfloat16)
    assert half.indices.dtype == torch.uint8
    x = torch.randn(5, 16).bfloat16()
    assert_product(half(x), x, dense.weight.detach().bfloat16(), dense.bias.detach().bfloat16())


def test_gradients_reach_the_input() -> None:
    dense, sparse = layers(Pattern(2, 4), 16, 3, torch.float32)
    x = torch.randn(5, 16, requires_grad=True)
    gradient = torch.autograd.grad(sparse(x).sum(), x)[0]
    assert torch.allclose(gradient, dense.weight.detach().sum(0).expand(5, 16), atol=1e-6)


def test_damaged_packed_weights_are_refused() -> None:
    _, sparse = layers(Pattern(2, 4), 16, 3, torch.float32)
    with pytest.raises(ValueError, match="damaged"):
        SparseLinear.from_packed(sparse.values, sparse.indices * 0, Pattern(2, 4), 16)
    with pytest.raises(ValueError, match=r"bias of \(4,\) does not fit 3"):
        SparseLinear.from_packed(sparse.values, sparse.indices, Pattern(2, 4), 16, torch.zeros(4))


def test_without_a_compiler_the_product_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O3")  # for which nothing was compiled yet
    reason = cpu.build_kernel(["-march=native"])
    assert reason == (
        "there is no C++ compiler 'no-such-compiler' (the variable CXX may name another)"
    )
    monkeypatch.setattr(cpu, "load_kernel", lambda: reason)
    assert cpu.kernel_reason(torch.float32, Pattern(2, 4)) == reason
    dense, sparse = layers(Pattern(2, 4), 16, 3, torch.float32)
    x = torch.randn(5, 16)
    assert torch.equal(sparse(x), dense(x))


def test_the_compiler_sees_one_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "fastest_ways", lambda *_: ("dense",) * len(COUNTS))
    dense, sparse = layers(Pattern(2, 4), 64, 30, torch.float32)
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    compiled = torch.compile(sparse, backend=backend, fullgraph=True, dynamic=True)
    for tokens in (1, 5, 40):
        x = torch.randn(tokens, 64)
        assert_product(compiled(x), x, dense.weight.detach(), dense.bias)
    # Beside it only whether the input wants a gradient is asked.
    assert {one for one in targets if "getattr" not in one} == {"permllm.packed_linear"}
