"""The kernel computes what the dense weight computes; where there is none, a reason is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from permllm.core.packing import pack
from permllm.core.patterns import Pattern, nm_mask
from permllm.sparse import cpu
from permllm.sparse.choice import Choices

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-7}


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


@settings(max_examples=150)
@given(problem=problems())
def test_the_kernel_is_the_dense_product(
    kernel: cpu.Kernel, problem: tuple[Tensor, Tensor, Tensor | None, Pattern]
) -> None:
    x, weight, bias, pattern = problem
    values, indices = pack(weight, pattern)
    assert_product(kernel.linear(x, values, indices, bias, pattern), x, weight, bias)


@settings(max_examples=150)
@given(problem=problems(), tokens=st.integers(0, 70))
def test_many_tokens_are_the_dense_product(
    kernel: cpu.Kernel, problem: tuple[Tensor, Tensor, Tensor | None, Pattern], tokens: int
) -> None:
    x, weight, bias, pattern = problem
    x = torch.randn(tokens, x.shape[1], generator=torch.Generator().manual_seed(0)).to(x.dtype)
    values, indices = pack(weight, pattern)
    if pattern in cpu.KERNEL_PATTERNS:
        y = kernel.linear_of_many(x, values, indices, bias, pattern)
        assert_product(y, x, weight, bias)
    else:
        with pytest.raises(RuntimeError, match="not a pattern for many tokens"):
            kernel.linear_of_many(x, values, indices, bias, pattern)


@pytest.mark.parametrize("tokens", [256, 257, 530, 1100])
def test_more_tokens_than_are_brought_into_order_at_a_time(kernel: cpu.Kernel, tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    weight = torch.randn(9, 40, generator=generator)
    weight *= nm_mask(weight.abs(), Pattern(2, 4))
    values, indices = pack(weight, Pattern(2, 4))
    x = torch.randn(tokens, 40, generator=generator)
    y = kernel.linear_of_many(x, values, indices, None, Pattern(2, 4))
    assert_product(y, x, weight, None)


@settings(max_examples=60)
@given(problem=problems(), half=st.booleans())
def test_the_kernel_unpacks_bit_for_bit(
    kernel: cpu.Kernel, problem: tuple[Tensor, Tensor, Tensor | None, Pattern], half: bool
) -> None:
    _, weight, _, pattern = problem
    weight = weight.half() if half else weight
    values, indices = pack(weight, pattern)
    assert torch.equal(kernel.unpack(values, indices, pattern, weight.shape[1]), weight)


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


def test_a_kernel_that_was_compiled_needs_no_compiler(
    had: Callable[[cpu.Kernel | str], cpu.Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    had(cpu.load_kernel())
    monkeypatch.setattr(cpu, "_compile", lambda *_: pytest.fail("compiled again"))
    assert isinstance(cpu.build_kernel(["-march=native"]), cpu.Kernel)


def test_what_was_measured_is_kept_by_kind_of_weight(
    tmp_path: Path, had: Callable[[cpu.Kernel | str], cpu.Kernel]
) -> None:
    kernel = had(cpu.load_kernel())
    path = tmp_path / "kept.json"
    kernel = attrs.evolve(kernel, choices=Choices(path))
    small, twice, large = (
        cpu.fastest_ways(kernel, torch.float32, Pattern(2, 4), entries)
        for entries in (100, 2 << 20, (2 << 20) + 1)
    )
    assert small is twice
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept == {"float32 2:4 small": list(small), "float32 2:4 large": list(large)}
    # The order of the ways is that of the tokens that they are for.
    for names in (small, large):
        places = [list(cpu.WAYS).index(name) for name in names]
        assert places == sorted(places)
