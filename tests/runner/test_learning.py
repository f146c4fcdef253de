"""Learners are asked once for what their permutations depend on, and are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from permllm.components import PermutationLearner
from permllm.errors import RunFailed
from permllm.folding.constraints import Constraints
from permllm.permutations.cp import Cp
from permllm.runner.caching.memo import Stages
from permllm.runner.caching.store import Cache


@attrs.frozen
class Wrong(PermutationLearner):
    """Gives what is no permutation."""

    name = "wrong"
    kind: str = "none"

    def learn(self, window: Any) -> dict[str, torch.Tensor]:
        sizes = {name: group.channels for name, group in window.groups.items()}
        if self.kind == "short":
            return {name: torch.arange(size - 1) for name, size in sizes.items()}
        if self.kind == "twice":
            return {name: torch.zeros(size, dtype=torch.long) for name, size in sizes.items()}
        return {}


@pytest.mark.parametrize("kind", ["none", "short", "twice"])
def test_what_is_no_permutation_is_refused(loop_of, kind: str) -> None:
    loop = loop_of()
    with pytest.raises(RunFailed, match="'wrong' gave no permutation of the 32 input channels of"):
        loop.learning.permutations(Wrong(kind), loop.window(0, range(1)))


def test_an_order_is_learned_once(loop_of, tmp_path: Path) -> None:
    stages = Stages(Cache(tmp_path))
    first, again = (loop_of(stages=stages) for _ in range(2))
    made = first.learning.permutations(Cp(rounds=1, steps=0), first.window(0, range(1)))
    kept = again.learning.permutations(Cp(rounds=1, steps=0), again.window(0, range(1)))
    assert (made.reused, kept.reused) == (False, True)
    assert list(made.tensors) == list(kept.tensors)
    assert all(torch.equal(order, kept.tensors[name]) for name, order in made.tensors.items())
    other = again.learning.permutations(Cp(rounds=2, steps=0), again.window(0, range(1)))
    assert not other.reused


def test_groups_that_keep_their_order_are_not_shown_to_a_learner(loop_of) -> None:
    loop = loop_of()
    kept = Constraints(kept=frozenset(loop.decoder.groups))
    learning = attrs.evolve(loop.learning, constraints=kept)
    orders = learning.within_constraints(Wrong(), loop.window(0, range(1))).tensors
    assert set(orders) == {group.name for group in loop.decoder.groups.values() if group.layer == 0}
    assert all(torch.equal(order, torch.arange(len(order))) for order in orders.values())
