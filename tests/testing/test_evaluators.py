"""The contract of evaluators lets good ones pass, and says what is wrong with bad ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar

import attrs
import pytest
import torch

from permllm.components import Evaluator
from permllm.testing import check_evaluator


@attrs.frozen(eq=False)
class AnyEvaluator(Evaluator):
    """Figures by a function of the model and the context."""

    name: ClassVar[str] = "any"
    function: Any

    def evaluate(self, model: Any, tokenizer: Any, context: Any) -> dict[str, float]:
        return self.function(model, context)


def train(model: Any, context: Any) -> dict[str, float]:
    model.train()
    return {"a": 1.0}


def too_far(model: Any, context: Any) -> dict[str, float]:
    context.progress(2, 1)
    return {"a": 1.0}


@torch.no_grad()
def change(model: Any, context: Any) -> dict[str, float]:
    next(model.parameters()).zero_()
    return {"a": 1.0}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda model, context: {}, "must give figures"),
        (lambda model, context: {"a": float("nan")}, "must be a finite float"),
        (lambda model, context: {"a": torch.ones(())}, "must be a finite float"),
        (lambda model, context: {"a": float(context.batch_size)}, "in batches of 2 and"),
        (train, "must leave the model in eval mode"),
        (too_far, "reports progress of 2 of 1"),
        (change, "changed model.embed_tokens.weight"),
    ],
)
def test_bad_evaluators(function: Callable[..., Any], message: str, fails) -> None:
    check_evaluator(AnyEvaluator(lambda model, context: {"a": 1.0}))
    fails(check_evaluator, AnyEvaluator(function), f"evaluator 'any': .*{message}")


class Varying(AnyEvaluator):
    """Figures that vary, such as a speed."""

    repeatable: ClassVar[bool] = False


def test_figures_that_vary_are_let_pass_where_that_is_said(fails) -> None:
    clock = count()
    varies = lambda model, context: {"speed": float(next(clock))}  # noqa: E731
    check_evaluator(Varying(varies))
    fails(check_evaluator, AnyEvaluator(varies), "gives .*, and then .* has repeatable = False")
    fails(check_evaluator, Varying(change), "changed model.embed_tokens.weight")
    other = lambda model, context: {f"speed {next(clock)}": 1.0}  # noqa: E731
    fails(check_evaluator, Varying(other), "the figures depend on|other figures the second time")
    broken = iter([1.0, math.nan, 1.0])
    fails(
        check_evaluator,
        Varying(lambda model, context: {"speed": next(broken)}),
        "the figure 'speed' must be a finite float",
    )
