"""SparseGPT equals its textbook form, and refuses what cannot be factored."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from permllm.components import Pruner
from permllm.core.patterns import Pattern, is_nm, nm_mask
from permllm.core.permutations import invert
from permllm.core.statistics import GRAM
from permllm.errors import RunFailed
from permllm.metrics.wanda import Wanda
from permllm.pruners.mask import Mask
from permllm.pruners.sparsegpt import SparseGpt
from permllm.testing import check_pruner

PATTERNS = [Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Pattern(3, 4), Pattern(1, 2)]
PRUNERS = [SparseGpt(), SparseGpt(block_size=1), SparseGpt(select="scores")]


@pytest.mark.parametrize("pruner", PRUNERS, ids=str)
def test_contract(pruner: Pruner) -> None:
    check_pruner(pruner)


def correlated(seed: int, rows: int = 12, channels: int = 48) -> tuple[Tensor, Tensor]:
    """A weight ``[C_out, C_in]`` and inputs ``[tokens, C_in]`` whose channels are correlated."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    mix = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    scale = torch.rand(channels, generator=generator, dtype=torch.float64) + 0.1
    inputs = torch.randn(300, channels, generator=generator, dtype=torch.float64) @ mix * scale
    return weight, inputs


def statistics(inputs: Tensor) -> dict[str, Tensor]:
    return {"gram": GRAM.partial(inputs), "square_sum": inputs.square().sum(0)}


def error(weight: Tensor, pruned: Tensor, inputs: Tensor) -> float:
    return float(((weight - pruned) @ inputs.T).square().sum())


def textbook(
    weight: Tensor,
    gram: Tensor,
    pattern: Pattern,
    dampening: float,
    scores: Tensor | None = None,
) -> Tensor:
    """SparseGPT as its authors' code has it: three factorisations, no blocks."""
    weight, hessian = weight.clone(), gram.clone()
    hessian += dampening * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=gram.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for j in range(weight.shape[1]):
        if j % pattern.m == 0:
            group = slice(j, j + pattern.m)
            saliency = weight[:, group] ** 2 / factor.diagonal()[group] ** 2
            mask[:, group] = nm_mask(saliency if scores is None else scores[:, group], pattern)
        kept = weight[:, j] * mask[:, j]
        change = (weight[:, j] - kept) / factor[j, j]
        weight[:, j:] -= change[:, None] * factor[j, j:]
        weight[:, j] = kept
    return weight


@settings(max_examples=25)
@given(
    st.integers(0, 1000),
    st.sampled_from(PATTERNS),
    st.sampled_from([1, 16, 24, 1000]),
    st.sampled_from(["obs", "scores"]),
)
def test_sparsegpt_equals_its_textbook_form(
    seed: int, pattern: Pattern, block: int, select: str
) -> None:
    weight, inputs = correlated(seed)
    sums, scores = statistics(inputs), weight.abs()
    given = weight.clone()
    pruned, mask = SparseGpt(block_size=block, select=select).prune(weight, scores, pattern, sums)
    expected = textbook(weight, sums["gram"], pattern, 0.01, scores if select == "scores" else None)
    torch.testing.assert_close(pruned, expected, rtol=1e-6, atol=1e-8)
    assert torch.equal(pruned != 0, mask)
    assert torch.equal(weight, given)
    assert pruned.is_contiguous()
    assert mask.is_contiguous()


@given(st.integers(0, 1000), st.sampled_from(PATTERNS), st.sampled_from(["obs", "scores"]))
def test_without_correlations_it_is_pruning_by_magnitude_times_norm(
    seed: int, pattern: Pattern, select: str
) -> None:
    weight, inputs = correlated(seed)
    sums = statistics(inputs)
    sums["gram"] = torch.diag(sums["square_sum"])
    scores = Wanda().scores(weight, sums)
    pruned, mask = SparseGpt(dampening=0, select=select).prune(weight, scores, pattern, sums)
    expected, same = Mask().prune(weight, scores, pattern, sums)
    assert torch.equal(mask, same)
    assert torch.equal(pruned, expected)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from(PATTERNS))
def test_the_output_error_is_lower_than_that_of_a_mask(seed: int, pattern: Pattern) -> None:
    """Over a few matrices: where SparseGPT chooses by itself, one may come out a little worse."""
    errors = {"mask": 0.0, "obs": 0.0, "scores": 0.0}
    for drawn in range(seed, seed + 5):
        weight, inputs = correlated(drawn)
        sums = statistics(inputs)
        scores = Wanda().scores(weight, sums)
        masked, mask = Mask().prune(weight, scores, pattern, sums)
        errors["mask"] += error(weight, masked, inputs)
        for select in ("obs", "scores"):
            pruned, kept = SparseGpt(select=select).prune(weight, scores, pattern, sums)
            assert is_nm(pruned, pattern)
            errors[select] += error(weight, pruned, inputs)
            assert select == "obs" or torch.equal(kept, mask)
    assert max(errors["obs"], errors["scores"]) <= errors["mask"]


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([SparseGpt(), SparseGpt(select="scores")]))
def test_pruning_composes_with_a_permutation(seed: int, pruner: Pruner) -> None:
    weight, inputs = correlated(seed)
    permutation = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed))
    scores = Wanda().scores(weight, statistics(inputs))
    moved = {"gram": GRAM.permuted(statistics(inputs)["gram"], permutation)}
    one, _ = pruner.prune(weight[:, permutation], scores[:, permutation], Pattern(2, 4), moved)
    inputs_moved = statistics(inputs[:, permutation])
    two, _ = pruner.prune(
        weight[:, permutation], scores[:, permutation], Pattern(2, 4), inputs_moved
    )
    torch.testing.assert_close(one, two)
    assert is_nm(one, Pattern(2, 4))
    back = one[:, invert(permutation)]
    torch.testing.assert_close(back @ inputs.T, one @ inputs[:, permutation].T)


def test_channels_that_never_fire_lose_their_weights() -> None:
    weight, inputs = correlated(0)
    inputs[:, [3, 7, 8]] = 0
    for select in ("obs", "scores"):
        pruner = SparseGpt(select=select)
        pruned, _ = pruner.prune(weight, weight.abs(), Pattern(2, 4), statistics(inputs))
        assert pruned.isfinite().all()
        assert pruned[:, [3, 7, 8]].count_nonzero() == 0
    nothing = {"gram": torch.zeros(48, 48, dtype=torch.float64)}
    pruned, _ = SparseGpt().prune(weight, weight.abs(), Pattern(2, 4), nothing)
    assert pruned.count_nonzero() == 0


def test_a_singular_hessian_gets_more_dampening() -> None:
    weight, _ = correlated(0)
    one = torch.ones(48, dtype=torch.float32)
    sums = {"gram": torch.outer(one, one)}
    pruned, _ = SparseGpt(dampening=0).prune(weight.float(), weight.abs(), Pattern(2, 4), sums)
    assert pruned.isfinite().all()


@pytest.mark.parametrize(("dampening", "last"), [(0.0, "0.01"), (0.003, "30")])
def test_a_hessian_that_cannot_be_factored_is_refused(dampening: float, last: str) -> None:
    weight, _ = correlated(0)
    negative = torch.eye(48) - 5 * (1 - torch.eye(48))
    message = (
        "^sparsegpt: the Hessian has no Cholesky factor, even with a dampening of "
        f"{last}; more calibration tokens, or a larger dampening, may help$"
    )
    with pytest.raises(RunFailed, match=message):
        SparseGpt(dampening=dampening).prune(
            weight, weight.abs(), Pattern(2, 4), {"gram": negative}
        )


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_hessian_that_is_not_finite_is_refused(bad: float) -> None:
    weight, _ = correlated(0)
    gram = torch.eye(48)
    gram[5, 5] = bad
    message = (
        "^sparsegpt: the Hessian is not finite; the model's activations overflow, "
        "which dtype: float32 may cure$"
    )
    with pytest.raises(RunFailed, match=message):
        SparseGpt().prune(weight, weight.abs(), Pattern(2, 4), {"gram": gram})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_large_and_small_activations(dtype: torch.dtype) -> None:
    weight, inputs = correlated(2)
    for scale in (1e-6, 1e6):
        sums = {"gram": GRAM.partial((inputs * scale).float())}
        pruned, mask = SparseGpt().prune(weight.to(dtype), weight.abs(), Pattern(2, 4), sums)
        assert pruned.dtype == dtype
        assert pruned.isfinite().all()
        assert mask.float().mean() == 0.5
