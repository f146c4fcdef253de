"""Toy windows are as the runner makes them."""

from __future__ import annotations

import torch

from permllm.core.patterns import Pattern
from permllm.testing.windows import toy_window


def test_toy_windows_are_as_the_runner_makes_them() -> None:
    window = toy_window(pattern=Pattern(1, 4), layers=range(1, 2), sequences=6, held_out=3)
    assert len(window.tokens) == 9
    assert (window.calibration, len(window.learning), len(window.held_out)) == (3, 6, 3)
    assert {group.layer for group in window.groups.values()} == {1}
    for name, group in window.groups.items():
        assert window.pattern(name) == Pattern(1, 4)
        assert window.group_scores(name).shape[1] == group.channels
    rows = torch.tensor([0, 8])
    # Dense weights give the dense model's outputs.
    assert torch.equal(window.outputs({}, rows), window.targets(rows))
