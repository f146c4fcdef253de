"""Greedy channel swaps (Pool and Yu, NeurIPS 2021, section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from permllm.components import PermutationLearner
from permllm.core.swaps import swap_search
from permllm.option import option
from permllm.permutations.groupwise import search_cost, search_groups

if TYPE_CHECKING:
    from torch import Tensor

    from permllm.contexts.cost import ComponentCost, Workload
    from permllm.contexts.window import Window


@attrs.frozen
class Greedy(PermutationLearner):
    """Swaps pairs of channels, the best first, until no swap helps (Pool and Yu).

    Every swap between two groups of M is weighed, so a permutation group takes memory
    for three tables of ``C_in × C_in`` while it is searched. The retained score is
    never below that of the original order. The result depends on nothing but the
    scores and the seed, unless ``time_limit`` is set.
    """

    name: ClassVar[str] = "greedy"
    only_scores: ClassVar[bool] = True
    seconds_per_group: ClassVar[float] = 0.75

    swaps: int = option(
        10_000, help="the most swaps before an optimum is reached", minimum=0, maximum=10_000_000
    )
    escapes: int = option(
        0,
        help="how often to exchange random channels of the best order and swap on",
        minimum=0,
        maximum=10_000_000,
    )
    time_limit: float | None = option(
        None,
        help="seconds per permutation group, with escapes until then; "
        "the result then depends on the machine's speed",
        minimum=0,
        maximum=1e6,
    )
    seed: int = option(0, help="added to the pipeline's seed", minimum=0, maximum=2**31)

    def cost(self, workload: Workload) -> ComponentCost:
        """Of the search of every group."""
        return search_cost(self, self.time_limit, workload)

    def learn(self, window: Window) -> dict[str, Tensor]:
        """The order that swaps reach for each group, from its linears' stacked scores."""
        return search_groups(
            window,
            self.name,
            self.seed,
            lambda scores, pattern, generator, stop: swap_search(
                scores,
                pattern,
                generator=generator,
                swaps=self.swaps,
                escapes=self.escapes,
                time_limit=self.time_limit,
                stop=stop,
            ),
        )
