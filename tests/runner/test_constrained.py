"""Orders that fold: what learners are shown, and what is made of their answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from permllm.components import PermutationLearner
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert
from permllm.models.folding import Fold, find_folds
from permllm.permutations.cp import Cp
from permllm.permutations.greedy import Greedy
from permllm.permutations.lcp import Lcp
from permllm.permutations.none import NoPermutation
from permllm.runner.constrained import ConstrainedWindow
from permllm.runner.windows import Window
from permllm.testing.windows import toy_window


@pytest.fixture(scope="module")
def shown() -> tuple[Window, ConstrainedWindow, dict[str, Any]]:
    window = toy_window()
    folds = find_folds(window.decoder)
    return window, ConstrainedWindow.of(window, folds), folds


LCP = Lcp(block=8, batch=2, steps=2, precision="model", start=NoPermutation())


@pytest.mark.parametrize("learner", [Cp(), Greedy(), LCP], ids=lambda learner: learner.name)
def test_learners_find_orders_that_fold(learner: PermutationLearner, shown: Any) -> None:
    window, view, folds = shown
    perms = view.expanded(learner.learn(view))
    assert perms.keys() == window.groups.keys()
    folded = [name for name in window.groups if isinstance(folds[name], Fold)]
    assert any(name in view.folds for name in folded)
    for name in folded:
        assert folds[name].atom_order(perms[name]) is not None, name
        assert len(perms[name].unique()) == window.groups[name].channels


def test_weights_come_back_as_they_were(shown: Any) -> None:
    window, view, _ = shown
    rows = window.learning[:2]
    seen = {linear: view.weight(linear) for linear in view.linears}
    assert len(seen) > len(window.linears)
    torch.testing.assert_close(view.outputs(seen, rows), window.outputs({}, rows))


def test_a_mask_of_parts_is_the_mask_of_the_whole_order(shown: Any) -> None:
    """What a learner optimises is what is pruned in the end."""
    window, view, _ = shown
    generator = torch.Generator().manual_seed(0)
    perms = {
        name: torch.randperm(group.channels, generator=generator)
        for name, group in view.groups.items()
    }

    def pruned(seen: Window, orders: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights = {}
        for name, group in seen.groups.items():
            perm, pattern = orders[name], seen.pattern(name)
            for linear in group.linears:
                mask = nm_mask(seen.scores(linear)[:, perm], pattern)[:, invert(perm)]
                weights[linear] = seen.weight(linear) * mask
        return weights

    rows = window.learning[:2]
    whole = pruned(window, view.expanded(perms))
    torch.testing.assert_close(view.outputs(pruned(view, perms), rows), window.outputs(whole, rows))


def test_statistics_of_lanes_are_summed(shown: Any) -> None:
    window, view, _ = shown
    name, part = next((n, p) for n, p in view.parts.items() if len(p.layout) > 1)
    sums = window.statistics(part.group.name)["square_sum"]
    expected = sums[part.layout].sum(0)
    torch.testing.assert_close(view.statistics(name)["square_sum"], expected)


def test_a_pattern_that_does_not_divide_a_head_leaves_its_group_free() -> None:
    window = toy_window(pattern=Pattern(8, 16))
    view = ConstrainedWindow.of(window, find_folds(window.decoder))
    assert view.groups.keys() == window.groups.keys()
    perms = view.expanded({name: torch.arange(g.channels) for name, g in view.groups.items()})
    assert perms.keys() == window.groups.keys()
