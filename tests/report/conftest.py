"""Made-up results of pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from permllm.results import LayerReport, Results, RunResult

PERPLEXITY = "perplexity/python-docs"


def reports(gain: float, layers: int = 4) -> tuple[LayerReport, ...]:
    """Figures of the linears of a few decoder layers."""
    linears = {"q_proj": "attn", "k_proj": "attn", "up_proj": "mlp"}
    return tuple(
        LayerReport(
            linear=f"model.layers.{layer}.{group}.{linear}",
            group=f"model.layers.{layer}.{group}",
            shape=(16, 32),
            pattern="2:4",
            retained_before=0.7 + layer / 100,
            retained=0.7 + layer / 100 + gain,
            sparsity=0.5,
            error=0.1,
        )
        for layer in range(layers)
        for linear, group in linears.items()
    )


def run(label: str, perplexity: float, **options: Any) -> RunResult:
    """A pruned run; ``permutation=…`` stands for ``layers.permutation``."""
    dotted = {f"layers.{key}": value for key, value in options.items()}
    figures = {PERPLEXITY: perplexity, "sparsity": 0.5, "retained": 0.8125}
    return RunResult(label, figures, 83.2, 2**30 * 3, layers=reports(0.05), options=dotted)


def dense(perplexity: float = 20.0) -> RunResult:
    return RunResult("dense", {PERPLEXITY: perplexity, "sparsity": 0.0}, 0.0, 2**30)


@pytest.fixture
def results() -> Callable[..., Results]:
    """Results of the given runs after the dense one; the quickstart's by default."""

    def make(*runs: RunResult, before: RunResult | None = None) -> Results:
        default = (
            run("none", 100.0, permutation={"name": "none"}),
            run("cp", 80.0, permutation={"name": "cp"}),
            run("lcp", 40.0, permutation={"name": "lcp", "block": 64}),
        )
        return Results("quickstart", "runs/x", (before or dense(), *(runs or default)))

    return make


@pytest.fixture
def pruned() -> Callable[..., RunResult]:
    return run


@pytest.fixture
def without() -> Callable[..., RunResult]:
    """A run without some figures."""

    def drop(result: RunResult, *names: str) -> RunResult:
        kept = {name: value for name, value in result.figures.items() if name not in names}
        return attrs.evolve(result, figures=kept)

    return drop
