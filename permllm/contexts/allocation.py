"""What an allocation is told about the linears that it shares the kept weights out to."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from permllm.core.patterns import Pattern


@attrs.frozen
class PrunedLinear:
    """A linear that is to be pruned.

    Attributes:
        layer: its decoder layer, from 0.
        group: the permutation group that it belongs to, or what several share one permutation by,
            such as the experts of a layer; linears of one need one pattern.
        shape: ``(C_out, C_in)``.
        pattern: the N:M that the pipeline gives it. M has to divide ``C_in``.
    """

    layer: int
    group: str
    shape: tuple[int, int]
    pattern: Pattern

    @property
    def weights(self) -> int:
        """How many weights it has."""
        return self.shape[0] * self.shape[1]


def flaw_of(patterns: Mapping[str, Pattern], linears: Mapping[str, PrunedLinear]) -> str | None:
    """What is wrong with the patterns that an allocation gives; None if nothing is.

    Args:
        patterns: by linear; those that are left out keep theirs.
        linears: all that it was told of.
    """
    taken: dict[str, Pattern] = {}
    for name, pattern in patterns.items():
        if name not in linears:
            return f"gave a pattern for {name!r}, which is none of the pruned linears"
        if not isinstance(pattern, Pattern):
            return f"gave {name} {pattern!r} where a Pattern is expected"
        if linears[name].shape[1] % pattern.m:
            return f"gave {name} {pattern}, but {pattern.m} does not divide its channels"
    for name, linear in linears.items():
        pattern = patterns.get(name, linear.pattern)
        if taken.setdefault(linear.group, pattern) != pattern:
            return (
                f"gave linears of {linear.group}, which share one permutation, the patterns "
                f"{taken[linear.group]} and {pattern}"
            )
    budget = sum(linear.weights * linear.pattern.density for linear in linears.values())
    kept = sum(
        linear.weights * patterns.get(name, linear.pattern).density
        for name, linear in linears.items()
    )
    # Sums of shares round.
    if kept > budget * (1 + 1e-9):
        return f"keeps {kept:,.0f} weights where the pipeline's pattern keeps {budget:,.0f}"
    return None
