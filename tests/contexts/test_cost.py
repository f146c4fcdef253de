"""Costs of components add up."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from permllm.components import EVALUATED_TOKENS, Evaluator, Metric, PermutationLearner, Pruner
from permllm.contexts.cost import ComponentCost, Workload
from permllm.option import option

WORKLOAD = Workload(sequences=8, length=32, groups=10)

costs = st.builds(
    ComponentCost,
    trained=st.integers(0, 100),
    batch=st.integers(0, 100),
    tokens=st.integers(0, 100),
    longest=st.integers(0, 100),
    search_seconds=st.integers(0, 100),
    seconds=st.integers(0, 100),
    operations=st.integers(0, 100),
    bytes=st.integers(0, 100),
)


@given(costs, costs)
def test_what_is_done_adds_up_and_what_is_held_at_once_does_not(
    one: ComponentCost, other: ComponentCost
) -> None:
    both = one + other
    for name in ("trained", "tokens", "search_seconds", "seconds", "operations"):
        assert getattr(both, name) == getattr(one, name) + getattr(other, name)
    for name in ("batch", "longest", "bytes"):
        assert getattr(both, name) == max(getattr(one, name), getattr(other, name))
    assert one + ComponentCost() == one


def test_a_component_costs_what_its_options_cost() -> None:
    @attrs.frozen
    class Search(PermutationLearner):
        """Takes two seconds for a group."""

        name = "search"
        seconds_per_group = 2.0

    @attrs.frozen
    class Outer(Pruner):
        """Searches first."""

        name = "outer"
        learner: PermutationLearner = option(factory=Search, help="what it starts from")
        size: int = option(3, help="no component")

    assert Outer().cost(WORKLOAD) == ComponentCost(search_seconds=20.0)
    assert Search().cost(WORKLOAD) == ComponentCost(search_seconds=20.0)


def test_a_pruner_takes_its_seconds_for_each_of_its_linears() -> None:
    @attrs.frozen
    class Inner(Pruner):
        """Takes three seconds for a linear."""

        name = "inner"
        seconds_per_linear = 3.0

    @attrs.frozen
    class Around(Pruner):
        """Takes one more."""

        name = "around"
        seconds_per_linear = 1.0
        mask: Pruner = option(factory=Inner, help="what is kept")

    workload = attrs.evolve(WORKLOAD, linears=((8, 16), (8, 32)))
    assert Inner().cost(WORKLOAD) == ComponentCost()
    assert Inner().cost(workload) == ComponentCost(seconds=6.0)
    assert Around().cost(workload) == ComponentCost(seconds=8.0)


def test_what_says_nothing_costs_nothing_but_an_evaluator_reads() -> None:
    @attrs.frozen
    class Plain(Metric):
        """A metric."""

        name = "plain"

    @attrs.frozen
    class Reader(Evaluator):
        """An evaluator."""

        name = "reader"

    assert Plain().cost(WORKLOAD) == ComponentCost()
    assert Reader().cost(WORKLOAD) == ComponentCost(tokens=EVALUATED_TOKENS)
