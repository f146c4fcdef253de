"""What the tests of searching learners share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from permllm.core.patterns import Pattern, retained_score
from permllm.world import ALONE


class StandInWindow:
    """What the searches read of a window: two groups with random scores."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.world = seed, ALONE
        self.patterns = {"attention": Pattern(2, 4), "mlp": Pattern(4, 8)}
        rng = torch.Generator().manual_seed(1)
        self.all_scores = {
            "attention": torch.rand(24, 32, generator=rng),
            "mlp": torch.rand(16, 48, generator=rng) ** 4,
        }
        self.groups = {
            name: SimpleNamespace(name=name, linears=(name,), channels=scores.shape[1])
            for name, scores in self.all_scores.items()
        }
        self.reported: list[tuple[str, int, int]] = []
        self.rows_asked_for: list[int | None] = []

    def group_scores(self, name: str, most: int | None = None) -> torch.Tensor:
        self.rows_asked_for.append(most)
        return self.all_scores[name]

    def pattern(self, name: str) -> Pattern:
        return self.patterns[name]

    def progress(self, stage: str, done: int, total: int) -> None:
        self.reported.append((stage, done, total))

    def retained(self, permutations: dict[str, torch.Tensor]) -> dict[str, float]:
        """By group, the retained score of an order."""
        return {
            name: retained_score(scores, self.patterns[name], permutations[name]).item()
            for name, scores in self.all_scores.items()
        }


@pytest.fixture
def stand_in() -> type[StandInWindow]:
    return StandInWindow
