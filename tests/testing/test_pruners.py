"""The contract of pruners lets good ones pass, and says what is wrong with bad ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor

from permllm.components import Pruner
from permllm.core.patterns import Pattern, nm_mask
from permllm.pruners.mask import Mask
from permllm.testing import check_pruner


@attrs.frozen(eq=False)
class AnyPruner(Pruner):
    """Prunes by a function."""

    name: ClassVar[str] = "any"
    function: Any

    def prune(
        self, weight: Tensor, scores: Tensor, pattern: Pattern, statistics: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        mask = nm_mask(scores, pattern)
        return self.function(weight * mask, mask)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w, m: (w.double(), m), "must keep its shape and type"),
        (lambda w, m: (w, m.float()), "must be a BoolTensor"),
        (lambda w, m: (w, torch.ones_like(m)), "at most N of every M"),
        (lambda w, m: (w + 1, m), "must be zero where the mask is False"),
        (lambda w, m: (w + m * torch.nan, m), "must be finite"),
        (lambda w, m: (m * torch.rand(m.shape).to(w.dtype), m), "the same every time"),
    ],
)
def test_bad_pruners(function: Callable[..., tuple[Tensor, Tensor]], message: str, fails) -> None:
    check_pruner(AnyPruner(lambda w, m: (w, m)))
    fails(check_pruner, AnyPruner(function), f"pruner 'any': .*{message}")


@attrs.frozen(eq=False)
class AnyRefiner(AnyPruner):
    """Refines the scores of every linear by a function of the window and its name."""

    function: Any

    def refine(self, window: Any, permutations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {linear: self.function(window, linear) for linear in window.linears}

    def prune(
        self, weight: Tensor, scores: Tensor, pattern: Pattern, statistics: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        mask = nm_mask(scores, pattern)
        return weight * mask, mask


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w, name: w.scores(name)[:, 1:], "of its shape"),
        (lambda w, name: -w.scores(name), "must not be negative"),
        (lambda w, name: w.scores(name) / 0, "must be finite"),
        (lambda w, name: torch.rand(w.weight(name).shape), "generator seeded with window.seed"),
        (lambda w, name: w.scores(name) + next(COUNTER), "two equal windows different scores"),
        (lambda w, name: w.scores(name).add_(1), "changed the metric's scores"),
        (lambda w, name: w.weight(name).detach().abs_(), "changed model.layers.0"),
    ],
)
def test_bad_refinements(function: Callable[[Any, str], Tensor], message: str, fails) -> None:
    check_pruner(AnyRefiner(lambda w, name: w.scores(name).sqrt()))
    fails(check_pruner, AnyRefiner(function), f"pruner 'any': .*{message}")


@attrs.frozen(eq=False)
class AnyUpdater(Mask):
    """Updates every weight by a function of it."""

    name: ClassVar[str] = "any"
    function: Any

    def update(self, window: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {linear: self.function(weight) for linear, weight in weights.items()}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w: w[:, 1:], "keep the shape and type"),
        (lambda w: w.double(), "keep the shape and type"),
        (lambda w: w + 1, "leave what is cut from .* at zero"),
        (lambda w: w * math.inf, "NaN or infinity"),
        (lambda w: w * torch.rand(w.shape), "generator seeded with window.seed"),
        (lambda w: w * (1 + next(COUNTER)), "two equal windows different weights"),
        (lambda w: w.mul_(2), "changed its argument"),
    ],
)
def test_bad_updates(function: Callable[[Tensor], Tensor], message: str, fails) -> None:
    check_pruner(AnyUpdater(lambda w: 2 * w))
    fails(check_pruner, AnyUpdater(function), f"pruner 'any': .*{message}")


COUNTER = itertools.count()
