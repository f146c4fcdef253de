"""The assignment is the best of all permutations."""

from __future__ import annotations

import itertools
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permllm.core.assignment import _prices, assign, assign_blocks


def total(weights: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return weights.gather(-1, columns.unsqueeze(-1)).sum((-1, -2))


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 4), st.sampled_from([3, 1000]))
def test_equals_brute_force(seed: int, size: int, blocks: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(levels, (blocks, size, size), generator=generator).double()
    columns = assign_blocks(weights)
    assert columns.dtype == torch.int64
    assert torch.equal(columns.sort(-1).values, torch.arange(size).expand(blocks, size))
    permutations = torch.tensor(list(itertools.permutations(range(size))))
    best = torch.stack([total(weights, p.expand(blocks, size)) for p in permutations]).amax(0)
    assert torch.equal(total(weights, columns), best)
    alone = torch.stack([assign(block) for block in weights])
    assert torch.equal(total(weights, alone), best)


@pytest.mark.parametrize("size", [63, 64, 100])
@pytest.mark.parametrize("lean", [0.0, 0.5, 2.0])
def test_one_large_matrix_equals_the_blocks(size: int, lean: float) -> None:
    generator = torch.Generator().manual_seed(size)
    weights = torch.randn(size, size, generator=generator, dtype=torch.float64)
    weights += lean * torch.eye(size) + torch.randn(size, generator=generator) * 5
    one, blocks = assign(weights), assign_blocks(weights.unsqueeze(0))
    assert torch.equal(one.sort().values, torch.arange(size))
    torch.testing.assert_close(total(weights, one), total(weights, blocks[0]))


def test_mixes_contested_and_easy_blocks() -> None:
    easy = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    contested = torch.tensor([[5.0, 4.0], [5.0, 1.0]])
    columns = assign_blocks(torch.stack([easy, contested, easy]))
    assert columns.tolist() == [[1, 0], [1, 0], [1, 0]]


def test_is_deterministic_and_takes_float32_with_gradient() -> None:
    weights = torch.rand(3, 16, 16).requires_grad_()
    assert torch.equal(assign_blocks(weights), assign_blocks(weights))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_refuses_what_is_not_finite(bad: float) -> None:
    weights = torch.zeros(1, 2, 2)
    weights[0, 1, 1] = bad
    with pytest.raises(ValueError, match=r"^assignment needs finite weights$"):
        assign_blocks(weights)


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_prices_make_every_row_want_its_own_column(seed: int, size: int) -> None:
    """Where the diagonal is the best assignment; so many rounds settle up to six rows."""
    weights = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double()
    weights = weights[:, assign_blocks(weights[None])[0]]
    priced = weights - _prices(weights)
    assert (priced.amax(1) <= priced.diagonal() + 1e-9).all()


class OnCuda(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("size", [3, 70])
def test_on_cuda_all_blocks_are_solved_at_once(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    asked = []

    def batch_linear_assignment(costs: torch.Tensor) -> torch.Tensor:
        asked.append(costs)
        return assign_blocks(-costs.as_subclass(torch.Tensor)).int()

    solver = ModuleType("torch_linear_assignment")
    solver.batch_linear_assignment = batch_linear_assignment  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, solver.__name__, solver)
    # Every row likes the last column best.
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, size, size, generator=generator, dtype=torch.float64)
    weights[:, :, -1] += 2
    columns = assign_blocks(weights.as_subclass(OnCuda))
    alone = assign(weights[0].as_subclass(OnCuda))
    # One alone is for the CPU: the solver would give it one thread.
    assert [(costs.shape, costs.dtype) for costs in asked] == [((2, size, size), torch.float32)]
    assert columns.dtype == alone.dtype == torch.int64
    assert columns.tolist() == assign_blocks(weights).tolist()
    assert alone.tolist() == columns[0].tolist()


def test_a_solver_that_cannot_be_imported_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    # Python's sign for a module that must not be imported.
    monkeypatch.setitem(sys.modules, "torch_linear_assignment", None)
    weights = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights[:, :, -1] += 2
    assert assign_blocks(weights.as_subclass(OnCuda)).tolist() == assign_blocks(weights).tolist()
