"""Channel permutation by assignment (RIA, "Plug-and-Play", ICLR 2024, section 4.2) and swaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from permllm.components import PermutationLearner
from permllm.core.search import search
from permllm.option import option
from permllm.permutations.groupwise import search_cost, search_groups

if TYPE_CHECKING:
    from torch import Tensor

    from permllm.contexts.cost import ComponentCost, Workload
    from permllm.contexts.window import Window


@attrs.frozen
class Cp(PermutationLearner):
    """Orders channels so that the mask retains the highest score (RIA's channel permutation).

    Channels are dealt to groups by rank, then places are freed and filled again by
    linear assignment: each place once, then random places. Where a table of all swaps
    of two channels is affordable, a tabu search among them (Taillard, 1991) goes on
    from there. The retained score is never below that of the original order, on the rows of
    scores that are looked at: of more than 131,072, as many are a sample.

    By default a permutation group gets 1e9 comparisons, about a quarter of a second on
    one core: up to 200 random-place rounds and as many tabu steps as are left.
    Large groups get fewer rounds and no steps (576 channels with 3072 outputs get 11
    rounds, 11008 channels with 4096 outputs none). The result depends on nothing but
    the scores and the seed, unless ``time_limit`` is set.
    """

    name: ClassVar[str] = "cp"
    only_scores: ClassVar[bool] = True
    seconds_per_group: ClassVar[float] = 0.25

    refine: bool = option(
        True, help="improve by assignment; false leaves the heuristic allocation alone"
    )
    rounds: int | None = option(
        None,
        help="random-place rounds; null for what 1e9 comparisons afford",
        minimum=0,
        maximum=10_000_000,
    )
    steps: int | None = option(
        None,
        help="tabu steps after the rounds; null for what 1e9 comparisons still afford",
        minimum=0,
        maximum=10_000_000,
    )
    time_limit: float | None = option(
        None,
        help="seconds per permutation group, with steps (or rounds) until then; "
        "the result then depends on the machine's speed",
        minimum=0,
        maximum=1e6,
    )
    seed: int = option(0, help="added to the pipeline's seed", minimum=0, maximum=2**31)

    def cost(self, workload: Workload) -> ComponentCost:
        """Of the search of every group."""
        return search_cost(self, self.time_limit, workload)

    def learn(self, window: Window) -> dict[str, Tensor]:
        """The best order found for each group, from its linears' stacked scores."""
        return search_groups(
            window,
            self.name,
            self.seed,
            lambda scores, pattern, generator, stop: search(
                scores,
                pattern,
                generator=generator,
                refine=self.refine,
                rounds=self.rounds,
                steps=self.steps,
                time_limit=self.time_limit,
                stop=stop,
            ),
        )
