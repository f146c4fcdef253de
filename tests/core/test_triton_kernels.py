"""The fused kernels do what the CPU's do, for any shape, pattern, dtype and draw.

On a machine with a GPU they run there, else in Triton's interpreter (``tox run -e triton``).
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from permllm.core.block_product import block_masked_weight, masked_in_order
from permllm.core.patterns import Pattern, as_words
from permllm.core.placements import placement_gradient

pytest.importorskip("triton", reason="Triton is not installed: `tox run -e triton` does it")
CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU they want TRITON_INTERPRET=1", allow_module_level=True)

from permllm.core import fused, triton_kernels  # noqa: E402

DEVICE = "cuda" if CUDA else "cpu"

PATTERNS = [Pattern.parse(text) for text in ("2:4", "4:8", "1:4", "3:4", "8:16", "1:2", "2:3")]


@attrs.frozen
class Problem:
    """Blocks ``[G, B, R]`` in random order, and where their channels' weights lie."""

    pattern: Pattern
    scores: Tensor
    gradient: Tensor
    weight: Tensor
    local: Tensor
    start: Tensor

    @property
    def channels(self) -> int:
        return self.local.numel()

    def of_mask(self) -> Tensor:
        """The mask's gradient ``[G, B, R]``, in the order of the scores."""
        product = self.gradient.double() * self.weight.double()
        return product[self.start].view(self.scores.shape)


def problem(
    pattern: Pattern,
    groups: int = 2,
    blocks: int = 1,
    rows: int = 5,
    dtype: torch.dtype = torch.float32,
    draws: bool = False,
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    size = pattern.m * groups
    scores = torch.rand(blocks, size, rows, generator=generator) - 0.5
    gradient, weight = torch.randn(2, blocks * size, rows, generator=generator)
    local = torch.stack([torch.randperm(size, generator=generator) for _ in range(blocks)])
    start = torch.randperm(blocks * size, generator=generator)
    if draws:
        scores = (scores * 3).round()
    return Problem(pattern, scores.to(dtype), gradient.to(dtype), weight.to(dtype), local, start)


problems = st.builds(
    problem,
    st.sampled_from(PATTERNS),
    groups=st.integers(1, 5),
    blocks=st.integers(1, 3),
    rows=st.integers(1, 70),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    draws=st.booleans(),
    seed=st.integers(0, 2**31),
)


def masked(words: Tensor, scores: Tensor, order: Tensor, channels: Tensor, of: Pattern) -> Tensor:
    words, scores, order, channels = (x.to(DEVICE) for x in (words, scores, order, channels))
    out = torch.full_like(words, -1)
    triton_kernels.masked_on_cuda(words, scores, order, channels, of.n, of.m, out)
    return out.cpu()


def gradient_of(given: Problem, *, fused_product: bool = True) -> Tensor:
    """By the kernel, from the weight's gradient or from that of the mask."""
    gradient, weight, channels = given.gradient, given.weight, given.start
    if not fused_product:
        gradient, weight = given.of_mask().flatten(0, 1), None
        channels = torch.arange(given.channels)
    operands = (given.scores, gradient, weight, channels, given.local)
    here = (None if x is None else x.to(DEVICE) for x in operands)
    found = triton_kernels.placement_gradient_on_cuda(*here, given.pattern.n, given.pattern.m)
    return found.cpu()


def by_definition(given: Problem) -> Tensor:
    """In float64, place by place: the N-th of the others, the earlier first where equal."""
    pattern, scores, gradient = given.pattern, given.scores.double(), given.of_mask()
    table = torch.empty(*given.local.shape, given.local.shape[1], dtype=torch.float64)
    for block, place in itertools.product(*map(range, given.local.shape)):
        first = place // pattern.m * pattern.m
        others = [p for p in range(first, first + pattern.m) if p != place]
        others = given.local[block, others]
        ordered = scores[block, others].sort(dim=0, descending=True, stable=True)
        nth = ordered.indices[pattern.n - 1, None]
        lost = gradient[block, others].gather(0, nth)
        enters = scores[block] > ordered.values[pattern.n - 1]
        table[block, :, place] = ((gradient[block] - lost) * enters).sum(1)
    return table


def rounding(given: Problem, wide: torch.dtype) -> Tensor:
    """How far sums of so many terms, added in any order, may be off: ``[G, 1, 1]``."""
    terms = given.of_mask().abs().amax(1).sum(-1)[:, None, None] * 2
    return terms * given.scores.shape[-1] * torch.finfo(wide).eps


# --- masks ---------------------------------------------------------------------------


@settings(max_examples=40)
@given(problems)
@example(problem(Pattern(16, 32), draws=True))
@example(problem(Pattern(2, 4), rows=1025))
def test_masks_equal_those_of_the_cpu(given: Problem) -> None:
    scores, weight = given.scores.flatten(0, 1), given.weight
    order = torch.randperm(given.channels, generator=torch.Generator().manual_seed(1))
    channels = given.start[order]
    found = masked(as_words(weight), scores, order, channels, given.pattern)
    expected = masked_in_order(weight, scores, order, given.start, given.pattern)
    assert torch.equal(found, as_words(expected))


def test_of_equal_scores_the_earlier_in_the_new_order_are_kept() -> None:
    order = torch.tensor([3, 1, 0, 2])
    found = masked(
        torch.ones(4, 3, dtype=torch.int32), torch.ones(4, 3), order, order, Pattern(2, 4)
    )
    assert found[:, 0].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_what_is_kept_keeps_its_bits(dtype: torch.dtype) -> None:
    limits = torch.iinfo(dtype)
    words = torch.tensor([[limits.min], [limits.max], [-1], [1]], dtype=dtype)
    scores, here = torch.tensor([[4.0], [3.0], [2.0], [1.0]]), torch.arange(4)
    found = masked(words, scores, here, here, Pattern(3, 4))
    assert found.flatten().tolist() == [limits.min, limits.max, -1, 0]


# --- placement gradients -------------------------------------------------------------


@settings(max_examples=40)
@given(problems, st.booleans())
@example(problem(Pattern(2, 4), groups=32, rows=3), True)
@example(problem(Pattern(16, 32), groups=3, rows=2, draws=True), True)
@example(problem(Pattern(5, 7), groups=3, blocks=2, rows=40, draws=True), False)
@example(problem(Pattern(2, 4), groups=1, rows=2100), True)
def test_gradients_equal_the_definition(given: Problem, fused_product: bool) -> None:
    found = gradient_of(given, fused_product=fused_product)
    wide = given.scores.dtype == torch.float64 or not fused_product
    assert found.dtype == (torch.float64 if wide else torch.float32)
    error = (found - by_definition(given)).abs()
    assert (error <= rounding(given, found.dtype)).all()


@settings(max_examples=20)
@given(problems)
def test_gradients_equal_those_of_the_cpu(given: Problem) -> None:
    """Where no scores are equal, of which the kernels of the CPU may lose any."""
    ranks = given.scores.double() + torch.rand_like(given.scores, dtype=torch.float64)
    given = attrs.evolve(given, scores=ranks)
    expected = placement_gradient(ranks, given.of_mask(), given.local, given.pattern)
    torch.testing.assert_close(gradient_of(given), expected)


def test_equal_operands_give_equal_bits() -> None:
    given = problem(Pattern(2, 4), groups=4, blocks=2, rows=1500)
    assert torch.equal(gradient_of(given), gradient_of(given))


def test_sums_of_narrow_operands_are_wider() -> None:
    """In bfloat16 the sum of 1 and small terms would stay 1."""
    gradient = torch.zeros(4, 257, dtype=torch.bfloat16)
    gradient[3], gradient[3, 0] = 2.0**-9, 1
    scores = torch.arange(4.0)[:, None].expand(4, 257).bfloat16().contiguous()
    here = torch.arange(4)
    given = Problem(
        Pattern(1, 2), scores[None], gradient, torch.ones_like(gradient), here[None], here
    )
    # Beside itself it does not win.
    assert gradient_of(given)[0, 3].tolist() == [1.5, 1.5, 0, 1.5]


@settings(max_examples=20)
@given(problems)
def test_learning_by_kernels_equals_learning_by_operations(given: Problem) -> None:
    """The autograd function takes them where a device has them."""
    scores, order = given.scores.flatten(0, 1), given.local
    target = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0)).to(scores.dtype)
    results = []
    for by_kernels in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            for module in ("placements", "block_product"):
                patch.setattr(
                    f"permllm.core.{module}.has_fused_kernels", lambda _, it=by_kernels: it
                )
            device = DEVICE if by_kernels else "cpu"
            soft = torch.zeros(*order.shape, order.shape[1], device=device).requires_grad_()
            weight, theirs, places, start, wanted = (
                x.to(device) for x in (given.weight, scores, order, given.start, target)
            )
            # As a transposed weight would have it: not contiguous.
            wanted = wanted.T.contiguous().T
            product = block_masked_weight(
                weight, theirs, [soft], [places], start, given.pattern, soft_mask=False
            )
            (found,) = torch.autograd.grad((product * wanted).sum(), soft)
            results.append((product.detach().cpu(), found.cpu()))
    (product, table), (by_kernel, by_kernel_table) = results
    assert torch.equal(by_kernel, product)
    if scores.unique().numel() == scores.numel():
        expected = attrs.evolve(given, gradient=target)
        assert ((by_kernel_table - table).abs() <= 2 * rounding(expected, table.dtype)).all()


def test_the_trial_of_the_kernels_passes_and_notices_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fused._try(torch.device(DEVICE))
    monkeypatch.setattr(triton_kernels, "masked_on_cuda", lambda *operands: None)
    with pytest.raises(ArithmeticError, match="they give"):
        fused._try(torch.device(DEVICE))


# --- compiling -----------------------------------------------------------------------


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from permllm.core import triton_kernels

def compiled(kernel, capability, **arguments):
    kinds = {name: kind for name, kind in arguments.items() if isinstance(kind, str)}
    values = {(kernel.arg_names.index(name),): value
              for name, value in arguments.items() if name not in kinds}
    kinds |= {name: "constexpr" for name in arguments if name not in kinds}
    source = ASTSource(kernel, kinds, values)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]

def placements(capability, scores, weight, size, n, m, one):
    groups, members, movers = triton_kernels._tile_of(size, m)
    sums = "*fp64" if scores == "*fp64" else "*fp32"
    return compiled(
        triton_kernels._placements, capability, scores=scores, gradient=scores, weight=weight,
        channels="*i64", local="*i64", parts=sums, blocks=one, size="i32", rows="i32",
        place_tiles=one, mover_tiles=one, n=n, m=m, groups=groups, members=members,
        movers=movers, lanes=triton_kernels._LANES, part_rows=triton_kernels._PART_ROWS,
    )

for capability in (80, 90):
    for scores, words in (("*bf16", "*i16"), ("*fp32", "*i32"), ("*fp16", "*i8")):
        assert compiled(
            triton_kernels._masked, capability, words=words, scores=scores, permutation="*i64",
            channels="*i64", out=words, rows="i32", n=2, m=4, tile=triton_kernels._MASK_ROWS,
        )
    assert placements(capability, "*bf16", "*bf16", 64, 2, 4, "i32")
    assert placements(capability, "*fp32", None, 128, 8, 16, "i32")
    assert placements(capability, "*fp64", "*fp32", 4, 2, 3, 1)
"""


def test_kernels_compile_for_gpus_that_need_not_be_there(tmp_path: Path) -> None:
    """The interpreter takes Python that the compiler refuses."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    found = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


# --- tiles ---------------------------------------------------------------------------


@pytest.mark.parametrize("m", range(2, 33))
def test_tiles_are_powers_of_two_and_hold_whole_groups(m: int) -> None:
    for size in range(m, 6 * m, m):
        groups, members, movers = tile = triton_kernels._tile_of(size, m)
        assert all(number & (number - 1) == 0 < number for number in tile)
        assert members >= m > members // 2
        assert groups * members * movers <= triton_kernels._TILE
