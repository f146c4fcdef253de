"""What every permutation learner must do."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from permllm.components import PermutationLearner
from permllm.contexts.window import Window
from permllm.core.patterns import retained_score
from permllm.core.permutations import is_permutation
from permllm.testing.expect import expect, expect_equal
from permllm.testing.windows import MemoryCheckpoints, toy_windows


def check_permutation_learner(
    learner: PermutationLearner, *, never_worse: bool = False, deterministic: bool = True
) -> None:
    """Fail unless a permutation learner keeps to its interface.

    It gives one permutation of all channels for every group of a window, the same
    whenever the window is the same, and leaves the model, the scores and the global
    random state alone. This is checked for several patterns and for windows that begin
    at the first layer and after it. From what it keeps (``window.keep``) it goes on to the
    same permutations.

    Args:
        learner: keep its budget small.
        never_worse: also fail if a group's retained score is below that of the
            original order.
        deterministic: False for a learner that works against the clock.
    """
    name = f"permutation learner '{learner.name}'"
    asked = learner.sequences(4)
    expect(
        isinstance(asked, int) and asked >= 1,
        f"{name}: sequences(4) must be a whole number from 1, not {asked!r}",
    )
    for window, again in toy_windows(sequences=max(8, asked), needs=learner.needs):
        before = {linear: window.weight(linear).clone() for linear in window.linears}
        scores = {group: window.group_scores(group).clone() for group in window.groups}
        state = torch.random.get_rng_state()
        window.checkpoints = checkpoints = MemoryCheckpoints()
        permutations = learner.learn(window)
        expect_equal(
            torch.random.get_rng_state(),
            state,
            f"{name}: learn() must draw from a generator seeded with window.seed, "
            "not from torch's global one",
        )
        for group in window.groups:
            _check_group(name, window, group, permutations, never_worse=never_worse)
            expect_equal(
                window.group_scores(group), scores[group], f"{name}: learn() changed the scores"
            )
        for linear, weight in before.items():
            expect_equal(window.weight(linear), weight, f"{name}: learn() changed {linear}")
        if deterministic:
            for group, permutation in learner.learn(again).items():
                expect(
                    torch.equal(permutation, permutations[group]),
                    f"{name}: two equal windows gave two permutations of {group}",
                )
            for kept in checkpoints.interrupted():
                resumed = learner.learn(attrs.evolve(again, checkpoints=kept))
                for group, permutation in resumed.items():
                    expect(
                        torch.equal(permutation, permutations[group]),
                        f"{name}: goes on from what it kept to another permutation of {group}",
                    )


def _check_group(
    name: str, window: Window, group: str, permutations: dict[str, Tensor], *, never_worse: bool
) -> None:
    channels, pattern = window.groups[group].channels, window.pattern(group)
    expect(group in permutations, f"{name}: there is no permutation for group {group}")
    permutation = permutations[group]
    expect(
        isinstance(permutation, Tensor)
        and permutation.dtype == torch.long
        and is_permutation(permutation, channels),
        f"{name}: for group {group} expected a LongTensor with each of 0 to {channels - 1} once, "
        f"not {permutation}",
    )
    if never_worse:
        scores = window.group_scores(group).double()
        before = float(retained_score(scores, pattern))
        after = float(retained_score(scores, pattern, permutation))
        expect(
            after >= before * (1 - 1e-6),
            f"{name}: retains {after:g} of group {group} under {pattern}, which is less than "
            f"the {before:g} of the original order",
        )
