"""What learners share that search the order of one group after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from permllm.components import PermutationLearner
    from permllm.contexts.window import Window
    from permllm.core.patterns import Pattern

START_SHARE = 0.25
"""The share of a budget that a search to start from may take: steps are worth more."""

MOST_ROWS = 1 << 17
"""How many rows of scores a search is shown: where all readers of the residual stream, or many
experts, share an order, a sample says the same and does not fill the memory."""

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
        permutations[group] = search(scores, window.pattern(group), generator).cpu()
    window.progress(name, len(permutations), len(permutations))
    return permutations


def first_orders(
    learner: PermutationLearner, window: Window, budget: float | None
) -> dict[str, Tensor]:
    """What another learner finds, for one that starts from it.

    A search that would take more than its share of a budget is held to that.

    Args:
        learner: the other; one that has a ``time_limit`` already keeps it.
        window: the window.
        budget: seconds for search and training together, or None.
    """
    usual = getattr(learner, "seconds_per_group", 0.0)
    if budget is not None and getattr(learner, "time_limit", 0.0) is None:
        limit = budget * START_SHARE / len(window.groups)
        if usual > limit:
            learner = attrs.evolve(learner, time_limit=limit)  # type: ignore[misc]
    return window.permutations(learner)
