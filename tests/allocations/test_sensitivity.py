"""Patterns by damage: the contract, and damage against the model as a whole."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from permllm.allocations import sensitivity
from permllm.allocations.sensitivity import Sensitivity, damages, parts_of, pruned
from permllm.contexts.allocation import PrunedLinear
from permllm.core.divergence import mean_kl
from permllm.core.patterns import Pattern
from permllm.models.decoder import Decoder
from permllm.testing import check_allocation
from permllm.testing.models import tiny_model
from permllm.testing.windows import toy_window


def test_contract() -> None:
    check_allocation(Sensitivity(sequences=2))


def test_damage_is_that_of_the_whole_model_pruned_there_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sensitivity, "has_bfloat16", lambda device: False)
    window = toy_window(pattern=Pattern(2, 4), layers=range(0, 1))
    rows = window.learning[:3]
    parts = parts_of(window.groups)
    assert sorted(name for part in parts for name in part) == sorted(window.groups)
    trials = [(part, n) for part in parts for n in (1, 3)]
    found = list(damages(window, trials, rows))
    model, tokens = window.decoder.model, window.tokens[rows]
    with torch.no_grad():
        dense = model(tokens).logits
        for (groups, n), damage in zip(trials, found, strict=True):
            weights = pruned(window, groups, n)
            assert all(
                int((weight.unflatten(1, (-1, 4)) != 0).sum(-1).max()) == n
                for weight in weights.values()
            )
            with window.decoder.substituted(weights):
                logits = model(tokens).logits
            expected = float(mean_kl(logits.flatten(0, 1), dense.flatten(0, 1)))
            assert damage == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "gpt-oss", "opt"])
def test_experts_that_do_the_same_count_as_one(name: str) -> None:
    decoder = Decoder.trace(tiny_model(name))
    first = [group for group in decoder.groups.values() if group.layer == 0]
    parts = parts_of(group.name for group in first)
    assert sorted(chain.from_iterable(parts)) == sorted(group.name for group in first)
    for part in parts:
        linears = [decoder.groups[group].linears for group in part]
        assert len(part) == 1 or all("experts" in each[0] for each in linears)
        assert len({tuple(decoder.linears[one].shape for one in each) for each in linears}) == 1
    assert len(parts) <= 8, "as few as a layer without experts has"


def test_only_patterns_near_the_pipelines_are_tried() -> None:
    near = Sensitivity(reach=2).near
    assert list(near(Pattern(2, 4))) == [1, 2, 3]
    assert list(near(Pattern(4, 8))) == [2, 3, 4, 5, 6]
    assert list(near(Pattern(7, 8))) == [5, 6, 7]


def test_what_suffers_most_keeps_most() -> None:
    linears = {
        name: PrunedLinear(0, name, (8, 16), Pattern(2, 4)) for name in ("weak", "middle", "strong")
    }
    harm = {"weak": 1.0, "middle": 4.0, "strong": 16.0}
    figures = {f"{name} {n}": harm[name] / n**2 for name in linears for n in (1, 2, 3)}
    patterns = Sensitivity().allocate(figures, linears)
    assert {name: str(one) for name, one in patterns.items()} == {
        "weak": "1:4", "middle": "2:4", "strong": "3:4"
    }  # fmt: skip
