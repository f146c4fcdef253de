"""The contract of allocations lets good ones pass, and says what is wrong with bad ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
import pytest
import torch

from permllm.components import Allocation
from permllm.contexts.allocation import PrunedLinear
from permllm.contexts.window import Window
from permllm.core.patterns import Pattern
from permllm.testing import check_allocation


@attrs.frozen(eq=False)
class AnyAllocation(Allocation):
    """Figures and patterns by functions."""

    name: ClassVar[str] = "any"
    look: Any = lambda window: {}
    share: Any = lambda figures, linears: {}

    def figures(self, window: Window) -> dict[str, float]:
        return self.look(window)

    def allocate(
        self, figures: Mapping[str, float], linears: Mapping[str, PrunedLinear]
    ) -> dict[str, Pattern]:
        return self.share(figures, linears)


def key(linears: Mapping[str, PrunedLinear]) -> str:
    return next(name for name in linears if name.endswith("k_proj"))


def first(window: Window) -> str:
    return window.linears[0]


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (lambda window: {first(window): 1}, "must give numbers of type float"),
        (lambda window: {first(window): float(torch.rand(()))}, "from a generator seeded"),
        (lambda window: {first(window): float(id(window))}, "gave two equal windows different"),
        (lambda window: {"a": 1.0}, "two layers' figures share a name"),
        (lambda window: (window.scores(first(window)).zero_(), {})[1], "changed the scores"),
        (lambda window: (window.weight(first(window)).data.zero_(), {})[1], "figures.. changed"),
    ],
)
def test_bad_figures(look: Callable[..., Any], message: str, fails: Any) -> None:
    check_allocation(AnyAllocation())
    fails(check_allocation, AnyAllocation(look), f"allocation 'any': .*{message}")


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (
            lambda figures, linears: dict.fromkeys(linears, Pattern(7, 8)),
            "allocate.. for 2:4 keeps",
        ),
        (lambda figures, linears: {"x": Pattern(1, 4)}, "none of the pruned linears"),
        (lambda _, linears: {key(linears): Pattern(1, 8)}, "share one permutation"),
    ],
)
def test_bad_patterns(share: Callable[..., Any], message: str, fails: Any) -> None:
    fails(check_allocation, AnyAllocation(share=share), f"allocation 'any': .*{message}")
