"""What every allocation must do."""

from __future__ import annotations

import torch

from permllm.components import Allocation
from permllm.contexts.allocation import PrunedLinear, flaw_of
from permllm.contexts.window import Window
from permllm.core.patterns import Pattern
from permllm.testing.expect import expect, expect_equal
from permllm.testing.windows import toy_window

PATTERNS = (Pattern(2, 4), Pattern(4, 8), Pattern(1, 8), Pattern(7, 8))
"""Patterns whose M divides the toy model's channels."""


def check_allocation(allocation: Allocation) -> None:
    """Fail unless an allocation keeps to its interface.

    It gives patterns for linears that there are, one for all of a permutation group, whose M
    divides the input channels; in sum no more is kept than the pipeline's pattern keeps; the
    same comes out every time, and the model, the scores and the global random state stay as
    they are. This is checked for both layers of a toy model and for several patterns.
    """
    name = f"allocation '{allocation.name}'"
    for pattern in PATTERNS:
        linears: dict[str, PrunedLinear] = {}
        figures: dict[str, float] = {}
        for layer in range(2):
            window, again = (
                toy_window(pattern=pattern, layers=range(layer, layer + 1), needs=allocation.needs)
                for _ in range(2)
            )
            kept = {linear: window.weight(linear).clone() for linear in window.linears}
            given = {linear: window.scores(linear).clone() for linear in window.linears}
            state = torch.random.get_rng_state()
            found = allocation.figures(window)
            expect_equal(
                torch.random.get_rng_state(),
                state,
                f"{name}: figures() must draw from a generator seeded with window.seed, "
                "not from torch's global one",
            )
            for linear in window.linears:
                expect_equal(
                    window.weight(linear), kept[linear], f"{name}: figures() changed {linear}"
                )
                expect_equal(
                    window.scores(linear), given[linear], f"{name}: figures() changed the scores"
                )
            expect(
                all(isinstance(value, float) for value in found.values()),
                f"{name}: figures() must give numbers of type float",
            )
            expect(
                allocation.figures(again) == found,
                f"{name}: figures() gave two equal windows different figures",
            )
            expect(not figures.keys() & found.keys(), f"{name}: two layers' figures share a name")
            figures |= found
            linears |= pruned_linears(window, pattern)
        patterns = allocation.allocate(figures, linears)
        flaw = flaw_of(patterns, linears)
        expect(flaw is None, f"{name}: allocate() for {pattern} {flaw}")
        expect(
            allocation.allocate(figures, linears) == patterns,
            f"{name}: allocate() gave different patterns for equal figures",
        )


def pruned_linears(window: Window, pattern: Pattern) -> dict[str, PrunedLinear]:
    """The linears of a window as an allocation is told about them."""
    return {
        linear: PrunedLinear(
            group.layer, name, (len(window.weight(linear)), group.channels), pattern
        )
        for name, group in window.groups.items()
        for linear in group.linears
    }
