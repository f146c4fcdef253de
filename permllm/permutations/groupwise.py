"""What learners share that search the order of each group by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from permllm.contexts.cost import ComponentCost, Workload
from permllm.core.threads import threads

if TYPE_CHECKING:
    from torch import Tensor

    from permllm.components import PermutationLearner
    from permllm.contexts.window import Window
    from permllm.core.patterns import Pattern

MOST_ROWS = 1 << 17
"""How many rows of scores a search is shown: where all readers of the residual stream, or many
experts, share an order, a sample says the same and does not fill the memory."""

TINY = 1 << 16
"""Scores of a group up to which a search is mostly calls, which Python makes one at a time: such
groups are not searched side by side."""

SMALL = 1 << 23
"""Scores of a group that one thread searches on the CPU: a search of fewer goes through thousands
of tiny steps, in which threads wait for each other longer than they work."""

Search = Callable[["Tensor", "Pattern", torch.Generator, Callable[[], bool]], "Tensor"]
"""From a group's stacked scores ``[R, C_in]`` to its order, ``LongTensor[C_in]``. Its last
argument says whether to end at once, with whatever order."""


def search_groups(window: Window, name: str, seed: int, search: Search) -> dict[str, Tensor]:
    """The order that a search finds for each group of a window.

    Groups with more than :data:`MOST_ROWS` rows are judged by a sample of them. Small groups are
    searched side by side on the CPU, one thread each; where there are several processes, each
    searches its own.

    Args:
        window: gives the groups, their scores and the seed.
        name: what the search is called in progress messages.
        seed: added to the window's.
        search: the search of one group.
    """
    stopped = threading.Event()
    names = list(window.groups)
    own = [names[place] for place in window.world.fair([_cost(window, name) for name in names])]
    permutations: dict[str, Tensor] = {}
    running: dict[str, Future[Tensor]] = {}

    def searched(group: str, scores: Tensor) -> Tensor:
        # Each group draws from its own stream, whatever groups stand beside it.
        generator = torch.Generator().manual_seed(window.seed + seed)
        return search(scores, window.pattern(group), generator, stopped.is_set).cpu()

    def found(group: str, permutation: Tensor) -> None:
        permutations[group] = permutation
        window.progress(name, len(permutations), len(own))

    def wait(most: int) -> None:
        while len(running) > most:
            group = next(iter(running))
            found(group, running[group].result())
            del running[group]

    window.progress(name, 0, len(own))
    cores = torch.get_num_threads()
    with _threads_of_one(cores) as pool:
        try:
            for group in own:
                scores = window.group_scores(group, MOST_ROWS)
                small = scores.device.type == "cpu" and scores.numel() < SMALL
                if small and scores.numel() > TINY:
                    wait(cores - 1)
                    running[group] = pool.submit(searched, group, scores)
                else:
                    wait(0)
                    with threads(1) if small else nullcontext():
                        found(group, searched(group, scores))
            wait(0)
        finally:
            stopped.set()
    found_by_all = dict(window.world.gathered(list(permutations.items())))
    return {group: found_by_all[group] for group in names}


def _cost(window: Window, name: str) -> float:
    """What a search of a group takes, in some unit."""
    group = window.groups[name]
    # How many rows they have would take their scores to tell.
    return float(len(group.linears) * group.channels**2)


@contextmanager
def _threads_of_one(count: int) -> Iterator[ThreadPoolExecutor]:
    """So many threads for which PyTorch does not start others."""
    try:
        with ThreadPoolExecutor(count, "search", torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        # The number also is that of all threads that are yet to start.
        torch.set_num_threads(count)


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
