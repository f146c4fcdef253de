"""What permutations the groups of a model may get."""

from __future__ import annotations

import torch

from permllm.folding.constraints import Constraints
from permllm.folding.fold import Fold, Producer

FOLD = Fold(torch.arange(4)[None], (4,), (Producer("v", torch.arange(4)[None]),))


def test_without_any_every_group_is_free() -> None:
    assert not Constraints()
    assert Constraints().leaves_free("a")


def test_each_kind_binds_the_groups_that_it_names() -> None:
    for constraints in (
        Constraints(folds={"a": FOLD}),
        Constraints(shared={"x": frozenset({"a"})}),
        Constraints(kept=frozenset({"a"})),
    ):
        assert constraints
        assert not constraints.leaves_free("a")
        assert constraints.leaves_free("b")


def test_groups_that_share_a_permutation_are_told_by_what_they_share() -> None:
    constraints = Constraints(shared={"x": frozenset({"a", "b"}), "y": frozenset({"c"})})
    assert [constraints.order_of(group) for group in "abcd"] == ["x", "x", "y", "d"]
