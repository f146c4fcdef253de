"""Products with codes are those of the dense weight that they stand for."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from permllm.core.codes import Grid, codes_of, store_codes, values_of
from permllm.core.packing import pack, unpack
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.rounding import round_to_nearest
from permllm.sparse import coded, cpu
from permllm.sparse.choice import Choices
from permllm.sparse.coded import coded_linear, decoded
from permllm.sparse.cpu import Kernel, load_kernel
from permllm.sparse.linear import SparseLinear

PATTERNS = [Pattern(2, 4), Pattern(1, 2), Pattern(4, 8), Pattern(8, 16), Pattern(1, 4)]
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-7}


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, SparseLinear, Tensor]:
    """Inputs, a linear that holds codes, and its dense weight in float64."""
    pattern = draw(st.sampled_from(PATTERNS))
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    tokens, outputs = draw(st.integers(0, 40)), draw(st.integers(1, 11))
    channels = 16 * draw(st.integers(1, 30))
    span = draw(st.sampled_from([None, 16, 32, 128, 4096]))
    grid = Grid(draw(st.sampled_from([8, 4])), span)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(outputs, channels, generator=generator)
    weight *= nm_mask(weight.abs(), pattern)
    rounded, scales = round_to_nearest(weight, torch.ones(channels), grid)
    values, indices = pack(rounded, pattern)
    codes = codes_of(values, scales, grid.kept(channels, pattern))
    bias = torch.randn(outputs, generator=generator).to(dtype) if draw(st.booleans()) else None
    linear = SparseLinear(
        store_codes(codes, grid.bits),
        indices,
        bias,
        pattern,
        channels,
        scales=scales.to(dtype),
        grid=grid,
    )
    x = torch.randn(tokens, channels, generator=generator).to(dtype)
    return x, linear, rounded.double()


def assert_product(y: Tensor, x: Tensor, linear: SparseLinear, weight: Tensor) -> None:
    """Within the rounding of the dtype, relative to the sizes of what is summed."""
    bias = None if linear.bias is None else linear.bias.double()
    exact = functional.linear(x.double(), weight, bias)
    scale = functional.linear(x.double().abs(), weight.abs()) + 1e-3
    scale += 0 if bias is None else bias.abs()
    assert (y.shape, y.dtype) == (exact.shape, x.dtype)
    assert bool(((y.double() - exact).abs() <= TOLERANCES[x.dtype] * scale).all())


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_the_kernel_is_the_product_of_the_rounded_weight(
    kernel: Kernel, problem: tuple[Tensor, SparseLinear, Tensor]
) -> None:
    x, linear, weight = problem
    assert linear.scales is not None
    assert linear.grid is not None
    parts = linear.values, linear.indices, linear.scales, linear.bias
    y = kernel.coded_linear(x, *parts, linear.pattern, linear.grid)
    assert_product(y, x, linear, weight)


@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize("grid", [None, Grid(8), Grid(4, 32)], ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_rows_have_the_same_bits_alone_and_beside_others(
    dtype: torch.dtype, grid: Grid | None, tokens: int, kernel: Kernel
) -> None:
    pattern, generator = Pattern(2, 4), torch.Generator().manual_seed(tokens)
    weight = torch.randn(7, 72, generator=generator)
    weight *= nm_mask(weight.abs(), pattern)
    x = torch.randn(tokens, 72, generator=generator).to(dtype)
    values, indices = pack(weight.to(dtype), pattern)

    def product(rows: slice) -> Tensor:
        if grid is None:
            return kernel.linear(x, values[rows], indices[rows], None, pattern)
        rounded, scales = round_to_nearest(weight, torch.ones(72), grid)
        kept, places = pack(rounded, pattern)
        codes = store_codes(codes_of(kept, scales, grid.kept(72, pattern)), grid.bits)
        parts = codes[rows], places[rows], scales[rows].to(dtype)
        return kernel.coded_linear(x, *parts, None, pattern, grid)

    alone = [product(slice(row, row + 1)) for row in range(7)]
    assert torch.equal(product(slice(None)), torch.cat(alone, 1))


def test_the_kernel_refuses_what_does_not_fit(had: Callable[[Kernel | str], Kernel]) -> None:
    built = had(load_kernel())
    x, indices = torch.zeros(1, 16), torch.zeros(2, 2, dtype=torch.uint8)
    codes, scales = torch.zeros(2, 8, dtype=torch.int8), torch.ones(2, 1)
    pattern = Pattern(2, 4)
    built.coded_linear(x, codes, indices, scales, None, pattern, Grid(8))
    with pytest.raises(RuntimeError, match="scales are not those of the codes"):
        built.coded_linear(x, codes, indices, scales, None, pattern, Grid(8, 8))
    with pytest.raises(RuntimeError, match="not packed for these channels"):
        built.coded_linear(x, codes, indices, scales, None, pattern, Grid(4))


@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_the_kernel_decodes_to_the_bits_of_the_rounded_weight(
    kernel: Kernel, problem: tuple[Tensor, SparseLinear, Tensor]
) -> None:
    _, linear, weight = problem
    assert linear.scales is not None
    assert linear.grid is not None
    channels = weight.shape[1]
    values = kernel.decode(linear.values, linear.scales, linear.pattern, linear.grid, channels)
    whole = unpack(values, linear.indices, linear.pattern, channels)
    assert torch.equal(whole, weight.to(linear.scales.dtype))


@pytest.mark.parametrize("way", list(coded.WAYS))
@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_each_way_is_the_product_of_the_rounded_weight(
    way: str, problem: tuple[Tensor, SparseLinear, Tensor], had: Callable[[Kernel | str], Kernel]
) -> None:
    x, linear, weight = problem
    parts = linear.values, linear.indices, linear.scales, linear.bias
    y = coded.WAYS[way](had(load_kernel()), x, *parts, linear.pattern, linear.grid)
    assert_product(y, x, linear, weight)


def test_the_way_is_measured_once_for_each_width_of_codes(
    tmp_path: Path, had: Callable[[Kernel | str], Kernel]
) -> None:
    kernel = attrs.evolve(had(load_kernel()), choices=Choices(tmp_path / "kept.json"))
    for grid in (Grid(8), Grid(4, 128), Grid(4, 32)):
        names = coded.fastest_ways(kernel, torch.bfloat16, Pattern(2, 4), grid, 100)
        assert set(names) <= set(coded.WAYS)
    kept = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))
    assert set(kept) == {"bfloat16 2:4 int8 small", "bfloat16 2:4 int4 small"}


@pytest.mark.parametrize("machine", ["skylake-avx512", "sapphirerapids"])
def test_the_kernel_compiles_for_machines_that_are_not_here(machine: str) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    from torch.utils.cpp_extension import include_paths

    folders = [f"-I{folder}" for folder in include_paths()]
    text = f'#include "{Path(cpu.__file__).parent / "kernel.cpp"}"\n'
    flags = [f"-march={machine}", "-std=c++20", "-O0", "-DTORCH_EXTENSION_NAME=tried"]
    flags += ["-x", "c++", "-", "-S", "-o", "-"]
    done = subprocess.run(
        [compiler, *folders, *flags], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "zmm" in done.stdout


@settings(max_examples=150, deadline=None)
@given(problems())
def test_a_product_is_that_of_the_rounded_weight(
    problem: tuple[Tensor, SparseLinear, Tensor],
) -> None:
    x, linear, weight = problem
    linear.check()
    assert_product(linear(x), x, linear, weight)
    assert torch.equal(linear.weight, weight.to(x.dtype))


def test_without_a_kernel_it_is_the_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 32, generator=generator)
    weight *= nm_mask(weight.abs(), Pattern(2, 4))
    grid = Grid(4, 16)
    rounded, scales = round_to_nearest(weight, torch.ones(32), grid)
    values, indices = pack(rounded, Pattern(2, 4))
    stored = store_codes(codes_of(values, scales, 8), 4)
    x = torch.randn(3, 2, 32, generator=generator)
    monkeypatch.setattr(coded, "kernel_reason", lambda dtype, pattern: "there is none")
    y = coded_linear(x, stored, indices, scales.float(), None, Pattern(2, 4), grid)
    assert torch.equal(y, functional.linear(x, rounded))


def test_gradients_flow_to_the_input() -> None:
    grid, pattern = Grid(8), Pattern(2, 4)
    codes = torch.tensor([[3, -5], [127, 1]], dtype=torch.int8)
    indices = torch.tensor([[0b0100], [0b1101]], dtype=torch.uint8)
    scales = torch.tensor([[0.5], [0.25]])
    x = torch.randn(3, 4, requires_grad=True)
    coded_linear(x, codes, indices, scales, None, pattern, grid).sum().backward()
    values = values_of(codes, scales, 2)
    assert torch.equal(decoded(codes, scales, grid, pattern, 4), values)
    weight = unpack(values, indices, pattern, 4)
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 4))


def test_the_compiler_sees_one_operator() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 32, generator=generator)
    weight *= nm_mask(weight.abs(), Pattern(2, 4))
    grid = Grid(4, 16)
    rounded, scales = round_to_nearest(weight, torch.ones(32), grid)
    values, indices = pack(rounded, Pattern(2, 4))
    stored = store_codes(codes_of(values, scales, 8), 4)
    linear = SparseLinear(
        stored, indices, None, Pattern(2, 4), 32, scales=scales.float(), grid=grid
    )
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    compiled = torch.compile(linear, backend=backend, fullgraph=True, dynamic=True)
    for tokens in (1, 5, 40):
        x = torch.randn(tokens, 32, generator=generator)
        torch.testing.assert_close(compiled(x), functional.linear(x, rounded))
    assert {one for one in targets if "getattr" not in one} == {"permllm.coded_linear"}
