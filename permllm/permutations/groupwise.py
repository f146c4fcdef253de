"""What learners share that search the order of one group after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from permllm.contexts.cost import ComponentCost, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from permllm.components import PermutationLearner
    from permllm.contexts.window import Window
    from permllm.core.patterns import Pattern

MOST_ROWS = 1 << 17
"""How many rows of scores a search is shown: where all readers of the residual stream, or many
experts, share an order, a sample says the same and does not fill the memory."""

SMALL = 1 << 23
"""Scores of a group that one thread searches on the CPU: a search of fewer goes through thousands
of tiny steps, in which threads wait for each other longer than they work."""

Search = Callable[["Tensor", "Pattern", torch.Generator], "Tensor"]
"""From a group's stacked scores ``[R, C_in]`` to its order, ``LongTensor[C_in]``."""


def search_groups(window: Window, name: str, seed: int, search: Search) -> dict[str, Tensor]:
    """The order that a search finds for each group of a window.

    Groups with more than :data:`MOST_ROWS` rows are judged by a sample of them.

    Args:
        window: gives the groups, their scores and the seed.
        name: what the search is called in progress messages.
        seed: added to the window's.
        search: the search of one group.
    """
    permutations: dict[str, Tensor] = {}
    for done, group in enumerate(window.groups):
        window.progress(name, done, len(window.groups))
        # Each group draws from its own stream, whatever groups stand beside it.
        generator = torch.Generator().manual_seed(window.seed + seed)
        scores = window.group_scores(group, MOST_ROWS)
        small = scores.device.type == "cpu" and scores.numel() < SMALL
        with threads(1) if small else nullcontext():
            permutations[group] = search(scores, window.pattern(group), generator).cpu()
    window.progress(name, len(permutations), len(permutations))
    return permutations


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have PyTorch, and the kernels that go by it, use so many threads for the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def search_cost(
    learner: PermutationLearner, limit: float | None, workload: Workload
) -> ComponentCost:
    """The cost of a search group by group.

    Args:
        learner: the search.
        limit: seconds per group; what it usually takes where it is None.
        workload: how many groups there are.
    """
    seconds = learner.seconds_per_group if limit is None else limit
    return ComponentCost(search_seconds=seconds * workload.groups)
