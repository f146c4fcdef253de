"""Linears gathered by layer and by kind."""

from __future__ import annotations

import attrs
import pytest

from permllm.runs.layers import by_kind, by_layer, mean


def test_by_layer_and_by_kind(results) -> None:
    reports = results()["lcp"].layers
    assert {layer: len(found) for layer, found in by_layer(reports).items()} == dict.fromkeys(
        range(4), 3
    )
    kinds = by_kind(reports)
    assert list(kinds) == ["attn.q_proj, k_proj", "mlp.up_proj"]
    assert [len(found) for found in kinds.values()] == [8, 4]


def test_experts_are_one_kind(results) -> None:
    (report,) = results()["lcp"].layers[:1]
    experts = [
        attrs.evolve(
            report,
            linear=f"model.layers.{layer}.mlp.experts.{expert}.up_proj",
            group=f"model.layers.{layer}.mlp.experts.{expert}.in",
        )
        for layer in range(2)
        for expert in range(3)
    ]
    assert list(by_kind(experts)) == ["mlp.experts.*.up_proj"]
    assert list(by_layer(experts)) == [0, 1]


def test_mean_counts_weights(results) -> None:
    small, large = results()["lcp"].layers[:2]
    small = attrs.evolve(small, shape=(1, 4), error=0.0)
    large = attrs.evolve(large, shape=(3, 4), error=1.0)
    assert mean([small, large], lambda report: report.error) == pytest.approx(0.75)
