"""The contract of metrics lets good ones pass, and says what is wrong with bad ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor

from permllm.components import Metric
from permllm.contexts.window import Window
from permllm.testing import check_metric


@attrs.frozen(eq=False)
class AnyMetric(Metric):
    """Scores by a function."""

    name: ClassVar[str] = "any"
    function: Any

    def scores(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        return self.function(weight)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w: w.float(), "must not be negative"),
        (lambda w: w.abs().float().sum(1), "must have its shape"),
        (lambda w: 1 / w.abs().float(), "must be finite"),
        (lambda w: w.abs(), r"float32 or better, not torch\.bfloat16"),
        (lambda w: w.abs().float() + torch.rand(w.shape), "must not vary"),
        (lambda w: w.abs_().float(), "must leave the weight as it is"),
    ],
)
def test_bad_metrics(function: Callable[[Tensor], Tensor], message: str, fails) -> None:
    check_metric(AnyMetric(lambda w: w.abs().float()))
    fails(check_metric, AnyMetric(function), f"metric 'any': .*{message}")


@attrs.frozen(eq=False)
class LookingMetric(Metric):
    """Scores of a window by a function."""

    name: ClassVar[str] = "looking"
    function: Any

    def window_scores(self, window: Window, linears: Sequence[str]) -> dict[str, Tensor]:
        return {linear: self.function(window, linear) for linear in linears}


def sizes(window: Window, linear: str) -> Tensor:
    return window.weight(linear).detach().abs()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda window, linear: window.weight(linear).detach(), "must not be negative"),
        (lambda window, linear: sizes(window, linear).sum(1), "must have its shape"),
        (lambda window, linear: sizes(window, linear).half(), "float32 or better"),
        (lambda window, linear: torch.rand(window.weight(linear).shape), "seeded with window.seed"),
        (lambda window, linear: sizes(window, linear) + id(window) % 997, "different scores"),
        (lambda window, linear: window.weight(linear).data.abs_(), "changed"),
    ],
)
def test_bad_metrics_that_look(function: Callable[..., Tensor], message: str, fails) -> None:
    check_metric(LookingMetric(sizes))
    fails(check_metric, LookingMetric(function), f"metric 'looking': .*{message}")


def test_a_metric_gives_what_it_is_asked_for(fails) -> None:
    class Everything(LookingMetric):
        def window_scores(self, window: Window, linears: Sequence[str]) -> dict[str, Tensor]:
            return super().window_scores(window, window.linears)

    fails(check_metric, Everything(sizes), "must give those it is asked for")
