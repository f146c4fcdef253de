"""What all components have in common."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from permllm.components import Component, Dataset, PermutationLearner, components_in, option
from permllm.contexts.cost import ComponentCost


@attrs.frozen
class Inner(PermutationLearner):
    """An inner learner.

    Not in the summary.
    """

    name = "inner"
    seconds_per_group = 2.0


@attrs.frozen
class Outer(Component):
    name = "outer"
    first: Inner = option(Inner(), help="one")
    second: Inner | None = option(None, help="another")


@attrs.frozen
class Texts(Dataset):
    name = "texts"
    given: tuple[str, ...] = option((), help="texts")

    def texts(self, split: str) -> Iterator[str]:
        yield from self.given


def test_the_summary_is_the_first_line() -> None:
    assert Inner.summary() == "An inner learner."


def test_a_component_costs_what_its_options_cost() -> None:
    workload = type("Workload", (), {"groups": 3})()
    assert Inner().cost(workload) == ComponentCost(search_seconds=6.0)
    assert Outer().cost(workload) == ComponentCost(search_seconds=6.0)
    assert Outer(second=Inner()).cost(workload) == ComponentCost(search_seconds=12.0)


def test_components_are_found_in_options_and_in_lists() -> None:
    inner = Inner()
    outer = Outer(first=inner, second=inner)
    assert list(components_in([outer, "text", (Texts(),)])) == [outer, inner, inner, Texts()]


def test_texts_are_told_apart_by_content_and_by_where_they_end() -> None:
    prints = {Texts(given).fingerprint("train") for given in (("ab",), ("a", "b"), ("ab", ""), ())}
    assert len(prints) == 4
    assert Texts(("ab",)).fingerprint("train") == Texts(("ab",)).fingerprint("test")
    assert Texts().label() == "texts"
