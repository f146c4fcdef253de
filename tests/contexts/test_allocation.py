"""What is wrong with the patterns that an allocation gives."""

from __future__ import annotations

import pytest

from permllm.contexts.allocation import PrunedLinear, flaw_of
from permllm.core.patterns import Pattern

LINEARS = {
    "0.q": PrunedLinear(0, "0.attention", (8, 16), Pattern(4, 8)),
    "0.k": PrunedLinear(0, "0.attention", (4, 16), Pattern(4, 8)),
    "1.down": PrunedLinear(1, "1.down", (16, 24), Pattern(4, 8)),
}


def test_what_fits_has_no_flaw() -> None:
    assert flaw_of({}, LINEARS) is None
    assert flaw_of({"0.q": Pattern(2, 4), "0.k": Pattern(2, 4)}, LINEARS) is None
    # 192 of 576 weights keep three eighths more: as much as 384 others can spare.
    even = {"0.q": Pattern(6, 8), "0.k": Pattern(6, 8), "1.down": Pattern(3, 8)}
    assert flaw_of(even, LINEARS) is None


@pytest.mark.parametrize(
    ("patterns", "flaw"),
    [
        ({"2.up": Pattern(1, 4)}, "a pattern for '2.up', which is none of the pruned linears"),
        ({"1.down": "2:4"}, "gave 1.down '2:4' where a Pattern is expected"),
        ({"1.down": Pattern(2, 16)}, "gave 1.down 2:16, but 16 does not divide its channels"),
        ({"0.q": Pattern(2, 8)}, "linears of 0.attention, which share one permutation, the pat"),
        ({"1.down": Pattern(5, 8)}, "keeps 336 weights where the pipeline's pattern keeps 288"),
    ],
)
def test_flaws(patterns: dict[str, Pattern], flaw: str) -> None:
    assert flaw in str(flaw_of(patterns, LINEARS))
