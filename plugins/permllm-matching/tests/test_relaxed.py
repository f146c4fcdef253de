"""The relaxed product, held to a dense formulation and to its limit of hard permutations."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from permllm_matching.relaxed import relaxed_masked_weight
from torch import Tensor

from permllm.core.block_product import block_masked_weight
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert
from permllm.core.sinkhorn import sinkhorn

patterns = st.sampled_from([Pattern(2, 4), Pattern(1, 4), Pattern(1, 2)])


class Case:
    """A random weight of 20 channels in blocks of 8, 8 and 4."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def rand(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        self.weight, self.scores = rand(20, 6) - 0.5, rand(20, 6)
        self.start = torch.randperm(20, generator=generator)
        self.soft = [sinkhorn(rand(2, 8, 8), 0.2, 100), sinkhorn(rand(1, 4, 4), 0.2, 100)]


def dense(case: Case, soft: list[Tensor], pattern: Pattern) -> Tensor:
    """The definition, with a whole matrix: ``(M ⊙ (W P)) Pᵀ``, ``[C_in, C_out]``."""
    whole = torch.block_diag(*(block for run in soft for block in run))
    weight = case.weight.index_select(0, case.start).T
    mask = nm_mask((case.scores.T @ whole).detach(), pattern)
    return (((weight @ whole) * mask) @ whole.T).T.index_select(0, invert(case.start))


@given(st.integers(0, 2**31), patterns)
@settings(deadline=None, max_examples=15)
def test_values_and_gradients_are_those_of_the_dense_formulation(
    seed: int, pattern: Pattern
) -> None:
    case = Case(seed)
    one, two = ([run.clone().requires_grad_() for run in case.soft] for _ in range(2))
    blockwise = relaxed_masked_weight(case.weight, case.scores, one, case.start, pattern)
    whole = dense(case, two, pattern)
    torch.testing.assert_close(blockwise, whole)
    for product in (blockwise, whole):
        (product * case.weight.cos()).sum().backward()
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@given(st.integers(0, 2**31), patterns)
@settings(deadline=None, max_examples=15)
def test_a_hard_permutation_prunes(seed: int, pattern: Pattern) -> None:
    case = Case(seed)
    generator = torch.Generator().manual_seed(seed)
    local = [
        torch.stack([torch.randperm(run.shape[1], generator=generator) for _ in run])
        for run in case.soft
    ]
    hard = [torch.nn.functional.one_hot(invert(p), p.shape[1]).double() for p in local]
    relaxed = relaxed_masked_weight(case.weight, case.scores, hard, case.start, pattern)
    pruned = block_masked_weight(case.weight, case.scores, hard, local, case.start, pattern)
    torch.testing.assert_close(relaxed, pruned)


def test_a_weight_keeps_its_type() -> None:
    case = Case(0)
    weight, scores = case.weight.bfloat16(), case.scores.bfloat16()
    soft = [run.float().requires_grad_() for run in case.soft]
    product = relaxed_masked_weight(weight, scores, soft, case.start, Pattern(2, 4))
    assert product.dtype == torch.bfloat16
    product.sum().backward()
    assert all(run.grad is not None and run.grad.dtype == torch.float32 for run in soft)
