"""Orders that fold: what learners are shown, and what is made of their answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from permllm.components import PermutationLearner
from permllm.contexts.constrained import ConstrainedWindow
from permllm.contexts.window import Window
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert
from permllm.errors import UserError
from permllm.folding.constraints import RESIDUAL, Constraints
from permllm.folding.fold import Fold
from permllm.folding.layout import Layout
from permllm.folding.residual import find_residual
from permllm.permutations.cp import Cp
from permllm.permutations.greedy import Greedy
from permllm.permutations.lcp import Lcp
from permllm.permutations.none import NoPermutation
from permllm.testing.windows import toy_window


def random_orders(seen: Window) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randperm(group.channels, generator=generator)
        for name, group in seen.groups.items()
    }


def pruned(seen: Window, orders: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = {}
    for name, group in seen.groups.items():
        permutation, pattern = orders[name], seen.pattern(name)
        for linear in group.linears:
            mask = nm_mask(seen.scores(linear)[:, permutation], pattern)[:, invert(permutation)]
            weights[linear] = seen.weight(linear) * mask
    return weights


@pytest.fixture(scope="module")
def shown() -> tuple[Window, ConstrainedWindow, dict[str, Any]]:
    window = toy_window()
    folds = Layout(window.decoder).folds()
    view = ConstrainedWindow.of(window, constrained(window, foldable=True))
    return window, view, folds


def constrained(window: Window, foldable: bool = False, residual: str = "free") -> Constraints:
    return Layout(window.decoder).constraints(foldable=foldable, residual=residual)


LCP = Lcp(block=8, batch=2, steps=2, precision="model", start=NoPermutation())


@pytest.mark.parametrize("learner", [Cp(), Greedy(), LCP], ids=lambda learner: learner.name)
def test_learners_find_orders_that_fold(learner: PermutationLearner, shown: Any) -> None:
    window, view, folds = shown
    permutations = view.expanded(learner.learn(view.view))
    assert permutations.keys() == window.groups.keys()
    folded = [name for name in window.groups if isinstance(folds[name], Fold)]
    assert any(name in view.folds for name in folded)
    for name in folded:
        assert folds[name].atom_permutation(permutations[name]) is not None, name
        assert len(permutations[name].unique()) == window.groups[name].channels


def test_weights_come_back_as_they_were(shown: Any) -> None:
    window, view, _ = shown
    rows = window.learning[:2]
    seen = {linear: view.view.weight(linear) for linear in view.view.linears}
    assert len(seen) > len(window.linears)
    torch.testing.assert_close(view.view.outputs(seen, rows), window.outputs({}, rows))


def test_a_mask_of_parts_is_the_mask_of_the_whole_order(shown: Any) -> None:
    """What a learner optimises is what is pruned in the end."""
    window, view, _ = shown
    permutations = random_orders(view.view)

    rows = window.learning[:2]
    whole = pruned(window, view.expanded(permutations))
    torch.testing.assert_close(
        view.view.outputs(pruned(view.view, permutations), rows), window.outputs(whole, rows)
    )


def test_statistics_of_lanes_are_summed(shown: Any) -> None:
    window, view, _ = shown
    name, part = next((n, p) for n, p in view.parts.items() if len(p.layout) > 1)
    sums = window.statistics(part.group.name)["square_sum"]
    expected = sums[part.layout].sum(0)
    torch.testing.assert_close(view.view.statistics(name)["square_sum"], expected)


def test_a_pattern_that_does_not_divide_a_head_leaves_its_group_free() -> None:
    window = toy_window(pattern=Pattern(8, 16))
    view = ConstrainedWindow.of(window, constrained(window, foldable=True))
    assert view.view.groups.keys() == window.groups.keys()
    permutations = view.expanded(
        {name: torch.arange(g.channels) for name, g in view.view.groups.items()}
    )
    assert permutations.keys() == window.groups.keys()


@pytest.mark.parametrize("learner", [Cp(), Greedy(), LCP], ids=lambda learner: learner.name)
def test_what_reads_the_residual_stream_shares_an_order(learner: PermutationLearner) -> None:
    window = toy_window()
    view = ConstrainedWindow.of(window, constrained(window, residual="shared"))
    readers = find_residual(window.decoder).groups
    assert len(readers) > 2
    permutations = view.expanded(learner.learn(view.view))
    assert permutations.keys() == window.groups.keys()
    orders = {tuple(permutations[name].tolist()) for name in readers}
    assert len(orders) == 1
    if learner is not LCP:  # two steps from the original order may end where they began
        assert orders != {tuple(range(len(permutations[readers[0]])))}


def test_a_shared_mask_is_the_mask_of_every_reader() -> None:
    window = toy_window()
    view = ConstrainedWindow.of(window, constrained(window, foldable=True, residual="shared"))
    permutations = random_orders(view.view)
    rows = window.learning[:2]
    whole = pruned(window, view.expanded(permutations))
    torch.testing.assert_close(
        view.view.outputs(pruned(view.view, permutations), rows), window.outputs(whole, rows)
    )
    totals = [window.statistics(name)["square_sum"] for name in view.shared[RESIDUAL]]
    torch.testing.assert_close(view.view.statistics(RESIDUAL)["square_sum"], sum(totals))


def test_groups_that_keep_their_order_are_pruned_while_others_learn() -> None:
    window = toy_window()
    constraints = constrained(window, foldable=True, residual="original")
    view = ConstrainedWindow.of(window, constraints)
    kept = [name for name in window.groups if name in constraints.kept]
    assert kept
    assert not {linear for name in kept for linear in window.groups[name].linears} & {
        *view.view.linears
    }
    permutations = {
        name: torch.arange(group.channels).flip(0).contiguous()
        for name, group in view.view.groups.items()
    }
    whole = view.expanded(permutations)
    for name in kept:
        assert torch.equal(whole[name], torch.arange(window.groups[name].channels))
    rows = window.learning[:2]
    expected = window.outputs(pruned(window, whole), rows)
    torch.testing.assert_close(view.view.outputs(pruned(view.view, permutations), rows), expected)


def test_readers_with_several_patterns_cannot_share_an_order() -> None:
    window = toy_window()
    readers = find_residual(window.decoder).groups
    window.patterns = {**window.patterns, readers[0]: Pattern(1, 4)}
    with pytest.raises(UserError, match=r"need one pattern, but .* has 1:4 and"):
        ConstrainedWindow.of(window, constrained(window, residual="shared"))
