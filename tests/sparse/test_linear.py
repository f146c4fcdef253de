"""A packed linear layer computes what its dense weight computes, however it multiplies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from permllm.core.packing import pack
from permllm.core.patterns import Pattern, nm_mask
from permllm.sparse import cpu
from permllm.sparse.linear import SparseLinear

MACHINES = {"native": "-march=native", "AVX2": "-march=haswell", "plain": "-march=x86-64"}
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-7}


@pytest.fixture(scope="module", params=list(MACHINES))
def kernel(request: pytest.FixtureRequest) -> cpu.Kernel:
    """The kernel, compiled for this machine and, where that runs here, for lesser ones."""
    if request.param == "native":
        built = cpu.load_kernel()
    elif torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"}:
        pytest.skip("this processor does not run code for AVX2")
    else:
        built = cpu.build_kernel([MACHINES[request.param]])
    if isinstance(built, str):
        pytest.skip(built)
    if request.param != "native":
        assert built.instructions == request.param
    return built


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    if draw(st.booleans()):
        return draw(st.sampled_from(cpu.KERNEL_PATTERNS))
    m = draw(st.sampled_from([2, 3, 5, 8, 13, 32, 256]))
    return Pattern(draw(st.integers(1, m - 1)), m)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None, Pattern]:
    """Input, weight, bias and pattern; sizes around and across the width of registers."""
    pattern = draw(patterns())
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    tokens, outputs = draw(st.integers(0, 11)), draw(st.integers(1, 11))
    channels = pattern.m * draw(st.integers(1, max(1, 300 // pattern.m)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x, weight = (
        torch.randn(rows, channels, generator=generator).to(dtype) for rows in (tokens, outputs)
    )
    bias = torch.randn(outputs, generator=generator).to(dtype) if draw(st.booleans()) else None
    return x, weight * nm_mask(weight.abs(), pattern), bias, pattern


def assert_product(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Within the rounding of the dtype, relative to the sizes of what is summed."""
    exact = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    scale = functional.linear(x.double().abs(), weight.double().abs()) + 1e-3
    scale += 0 if bias is None else bias.double().abs()
    assert y.shape == exact.shape
    assert y.dtype == x.dtype
    assert bool(((y.double() - exact).abs() <= TOLERANCES[x.dtype] * scale).all())


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_the_kernel_is_the_dense_product(
    kernel: cpu.Kernel, problem: tuple[Tensor, Tensor, Tensor | None, Pattern]
) -> None:
    x, weight, bias, pattern = problem
    values, indices = pack(weight, pattern)
    assert_product(kernel.linear(x, values, indices, bias, pattern), x, weight, bias)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), half=st.booleans())
def test_the_kernel_unpacks_bit_for_bit(
    kernel: cpu.Kernel, problem: tuple[Tensor, Tensor, Tensor | None, Pattern], half: bool
) -> None:
    _, weight, _, pattern = problem
    weight = weight.half() if half else weight
    values, indices = pack(weight, pattern)
    assert torch.equal(kernel.unpack(values, indices, pattern, weight.shape[1]), weight)


@pytest.mark.parametrize("tokens", [(), (1,), (2, 3), (40,), (0, 4)])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("bias", [True, False])
def test_any_number_of_tokens(
    tokens: tuple[int, ...], dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_CHUNK_BYTES", 2000)
    monkeypatch.setattr(cpu, "_CHUNK_ROWS", 2)
    assert cpu.kernel_tokens(dtype, 72 * 30) < 40
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


@pytest.mark.parametrize(
    ("dtype", "pattern", "said"),
    [
        (torch.float32, Pattern(1, 4), "1:2, 2:4, 4:8, 8:16, not 1:4"),
        (torch.float16, Pattern(2, 4), "float32 and bfloat16, not float16"),
    ],
)
def test_what_the_kernel_is_not_for_is_said(
    dtype: torch.dtype, pattern: Pattern, said: str
) -> None:
    assert said in str(cpu.kernel_reason(dtype, pattern))


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


@pytest.fixture
def empty_extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled kernels go, for one test."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return tmp_path


def test_a_failed_compilation_is_a_reason_and_leaves_nothing(empty_extensions: Path) -> None:
    reason = cpu.build_kernel(["-march=no-such-machine"])
    assert isinstance(reason, str)
    if "could not be compiled or loaded" not in reason:
        pytest.skip(reason)
    assert "no-such-machine" in reason
    assert not [path for path in empty_extensions.rglob("*") if path.is_file()]


def test_a_damaged_library_is_a_reason(empty_extensions: Path) -> None:
    (empty_extensions / "permllm").mkdir()
    name = f"permllm_nm_{cpu._fingerprint(['-O3', '-march=native', '-fopenmp'])}.so"
    (empty_extensions / "permllm" / name).write_bytes(b"no library")
    reason = str(cpu.build_kernel(["-march=native"]))
    assert reason.startswith("the kernel could not be compiled or loaded")
    assert name in reason


def test_a_kernel_that_was_compiled_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(reason := cpu.load_kernel(), str):
        pytest.skip(reason)
    monkeypatch.setattr(cpu, "_compile", lambda *_: pytest.fail("compiled again"))
    assert isinstance(cpu.build_kernel(["-march=native"]), cpu.Kernel)
