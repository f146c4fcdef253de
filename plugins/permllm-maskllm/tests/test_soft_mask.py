"""The chunked mask against a dense one: values, gradients, noise, straight-through."""

from __future__ import annotations

from unittest import mock

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from permllm_maskllm import soft_mask
from permllm_maskllm.candidates import candidate_masks, ranked_places
from permllm_maskllm.soft_mask import (
    GumbelPool,
    Sampling,
    chosen_mask,
    first_largest,
    masked_weight,
)
from torch import Tensor

from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert

PATTERNS = [Pattern(2, 4), Pattern(1, 4), Pattern(4, 8)]


@attrs.frozen(eq=False)
class Case:
    """A linear with its candidates, in float64."""

    pattern: Pattern
    weight: Tensor
    scores: Tensor
    permutation: Tensor
    table: Tensor
    logits: Tensor
    pool: GumbelPool

    @classmethod
    def of(cls, pattern: Pattern, seed: int, limit: int = 100, rows: int = 5) -> Case:
        generator = torch.Generator().manual_seed(seed)
        channels = 3 * pattern.m
        weight, scores = torch.randn(2, rows, channels, generator=generator, dtype=torch.float64)
        table = candidate_masks(pattern, limit).double()
        pool = GumbelPool(generator, size=61)
        pool.numbers = pool.numbers.double()
        return cls(
            pattern,
            weight,
            scores.abs(),
            torch.randperm(channels, generator=generator),
            table,
            torch.randn(len(table), rows, 3, generator=generator, dtype=torch.float64),
            pool,
        )

    @property
    def places(self) -> Tensor:
        return ranked_places(self.scores, self.permutation, self.pattern)

    def noise(self, sampling: Sampling) -> Tensor:
        """``[C, C_out, G]``: the noise of each candidate from its place in the pool on."""
        count = self.logits[0].numel()
        planes = [
            self.pool.numbers[(start + torch.arange(count)) % len(self.pool.numbers)]
            for start in sampling.starts
        ]
        return torch.stack(planes).view_as(self.logits) * sampling.noise

    def dense(self, logits: Tensor, sampling: Sampling) -> Tensor:
        """The same in the open: all soft masks of all candidates at once, then averaged."""
        noise = self.noise(sampling) if sampling.noise else 0
        z = (sampling.scale * logits + noise) / sampling.temperature
        index = z.softmax(0)
        if sampling.hard:
            one_hot = torch.zeros_like(index).scatter_(0, z.argmax(0, keepdim=True), 1)
            index = one_hot + index - index.detach()
        ranked = torch.einsum("crg,cm->rgm", index, self.table)
        grouped = self.scores[:, self.permutation].unflatten(1, (-1, self.pattern.m))
        order = grouped.argsort(dim=2, descending=True, stable=True)
        entries = ranked.gather(2, invert(order)).flatten(1)
        return self.weight * entries[:, invert(self.permutation)]


def samplings(case: Case) -> list[Sampling]:
    starts = case.pool.starts(len(case.table))
    noisy = {"noise": 0.7, "pool": case.pool, "starts": starts}
    return [
        Sampling(2.0, 0.5, hard=hard, penalty=penalty, **options)
        for hard in (False, True)
        for penalty in (0.0, 0.3)
        for options in ({}, noisy)
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(PATTERNS), st.integers(0, 1000), st.sampled_from([1, 2, 7, 100]),
    st.sampled_from([1, 40, 10_000]),
)  # fmt: skip
def test_chunks_equal_the_dense_formulation(
    pattern: Pattern, seed: int, limit: int, chunk: int
) -> None:
    case = Case.of(pattern, seed, limit)
    direction = torch.randn(case.weight.shape, dtype=torch.float64, generator=case.pool.generator)
    for sampling in samplings(case):
        one, two = (case.logits.clone().requires_grad_() for _ in range(2))
        with mock.patch.object(soft_mask, "CHUNK", chunk):
            found = masked_weight(one, case.weight, case.places, case.table, sampling)
            (found * direction).sum().backward()
        expected = case.dense(two, sampling)
        torch.testing.assert_close(found, expected)
        ((expected * direction).sum() - sampling.penalty * expected.square().sum()).backward()
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_gradients_are_those_of_finite_differences(pattern: Pattern) -> None:
    case = Case.of(pattern, 3, limit=8, rows=2)
    sampling = samplings(case)[1]
    with mock.patch.object(soft_mask, "CHUNK", 30):
        assert torch.autograd.gradcheck(
            lambda logits: masked_weight(logits, case.weight, case.places, case.table, sampling),
            case.logits.clone().requires_grad_(),
        )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_cold_softmax_and_a_choice_are_the_hard_mask(pattern: Pattern) -> None:
    case = Case.of(pattern, 1)
    choice = first_largest(case.logits)
    assert torch.equal(choice.long(), case.logits.argmax(0))
    mask = chosen_mask(choice, case.places, case.table)
    assert (mask[:, case.permutation].unflatten(1, (-1, pattern.m)).sum(2) == pattern.n).all()
    for sampling in (Sampling(1.0, 1e-6), Sampling(1.0, 1.0, hard=True)):
        found = masked_weight(case.logits, case.weight, case.places, case.table, sampling)
        torch.testing.assert_close(found, case.weight * mask)


def test_the_first_candidate_is_the_one_shot_mask() -> None:
    case = Case.of(Pattern(2, 4), 2)
    mask = chosen_mask(torch.zeros(5, 3, dtype=torch.int16), case.places, case.table)
    permuted = nm_mask(case.scores[:, case.permutation], case.pattern)
    assert torch.equal(mask[:, case.permutation].bool(), permuted)


def test_of_equal_planes_the_first_is_the_largest() -> None:
    planes = torch.tensor([[1.0, 2.0, 0.0], [1.0, 3.0, 4.0], [0.0, 3.0, 4.0]])
    assert first_largest(planes).tolist() == [0, 1, 1]


def test_the_weight_keeps_its_type() -> None:
    case = Case.of(Pattern(2, 4), 0)
    logits = case.logits.float().requires_grad_()
    found = masked_weight(
        logits, case.weight.bfloat16(), case.places, case.table.float(), Sampling(1.0, 1.0)
    )
    assert found.dtype == torch.bfloat16
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.float32
    assert logits.grad.count_nonzero() > 0


def test_the_pool_holds_gumbel_noise() -> None:
    pool = GumbelPool(torch.Generator().manual_seed(0), size=200_000)
    assert pool.numbers.isfinite().all()
    assert float(pool.numbers.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(pool.numbers.var()) == pytest.approx(torch.pi**2 / 6, abs=0.03)
    # The largest of noisy logits is drawn with the softmax's probabilities (equation 5).
    logits = torch.tensor([0.0, 1.0, -0.5])
    noise = torch.stack([pool.read(start, 0, 60_000) for start in pool.starts(3)])
    drawn = (logits[:, None] + noise).argmax(0).bincount() / 60_000
    torch.testing.assert_close(drawn, logits.softmax(0), atol=0.01, rtol=0)


def test_the_pool_goes_round() -> None:
    pool = GumbelPool(torch.Generator().manual_seed(0), size=7)
    expected = pool.numbers[(5 + 4 + torch.arange(20)) % 7]
    assert torch.equal(pool.read(5, 4, 20), expected)
