"""The contract of evaluators lets good ones pass, and says what is wrong with bad ones."""

from __future__ import annotations

from collections.abc import Callable
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
