"""What every evaluator must do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import attrs
import torch
from torch import nn

from permllm.components import Evaluator
from permllm.contexts.evaluation import EvaluationContext, LinearReport
from permllm.core.patterns import Pattern, nm_mask
from permllm.sparse.linear import SparseLinear
from permllm.testing.expect import expect, expect_equal
from permllm.testing.models import VOCABULARY, tiny_model
from permllm.testing.tokenizers import byte_tokenizer


def check_evaluator(evaluator: Evaluator) -> None:
    """Fail unless an evaluator keeps to its interface.

    On a small model it gives finite figures under names, the same names every time and
    whatever the batch size, and the same figures unless it is not ``repeatable``; the model
    stays as it is, in eval mode; and progress never goes beyond its total. The model is pruned
    to 2:4, and ``context.packed()`` has it run with packed weights.
    """
    name = f"evaluator '{evaluator.name}'"
    evaluator.check()
    model, tokenizer = tiny_model("llama-gqa"), byte_tokenizer()
    linears = _pruned_linears(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    steps: list[tuple[int, int]] = []
    generator = torch.Generator().manual_seed(0)
    context = EvaluationContext(
        batch_size=2,
        held_out=torch.randint(VOCABULARY, (3, 16), generator=generator),
        dense=nullcontext,
        progress=lambda done, total: steps.append((done, total)),
        packed=partial(_packed, model, linears),
    )
    figures = evaluator.evaluate(model, tokenizer, context)
    _check_figures(name, figures)
    for done, total in steps:
        expect(0 <= done <= total, f"{name}: reports progress of {done} of {total}")
    expect(not model.training, f"{name}: evaluate() must leave the model in eval mode")
    for key, value in model.state_dict().items():
        expect_equal(value, before[key], f"{name}: evaluate() changed {key}")
    again = evaluator.evaluate(model, tokenizer, context)
    alone = evaluator.evaluate(model, tokenizer, attrs.evolve(context, batch_size=1))
    expect(alone.keys() == figures.keys(), f"{name}: the figures depend on the batch size")
    if not evaluator.repeatable:
        expect(again.keys() == figures.keys(), f"{name}: gives other figures the second time")
        _check_figures(name, again)
        _check_figures(name, alone)
        return
    expect(
        again == figures,
        f"{name}: gives {figures}, and then {again}; one whose figures vary, such as speed, has "
        "repeatable = False",
    )
    for figure, value in figures.items():
        expect(
            math.isclose(alone[figure], value, rel_tol=1e-3, abs_tol=1e-5),
            f"{name}: '{figure}' is {value} in batches of 2 and {alone[figure]} one by one",
        )


_PATTERN = Pattern(2, 4)


@torch.no_grad()
def _pruned_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linears of a model's layers, cut to 2:4 by the weights' sizes."""
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    }
    for linear in linears.values():
        linear.weight.mul_(nm_mask(linear.weight.abs(), _PATTERN))
    return linears


@contextmanager
def _packed(model: nn.Module, linears: dict[str, nn.Linear]) -> Iterator[Sequence[LinearReport]]:
    """Packed weights for the block; where there is no kernel, they are multiplied densely."""
    exchanged = {name: SparseLinear.from_dense(one, _PATTERN) for name, one in linears.items()}
    try:
        for name, sparse in exchanged.items():
            model.set_submodule(name, sparse)
        yield [
            LinearReport(name, _PATTERN, "cpu kernel", None, one.values.nbytes + one.indices.nbytes)
            for name, one in exchanged.items()
        ]
    finally:
        for name, linear in linears.items():
            model.set_submodule(name, linear)


def _check_figures(name: str, figures: Any) -> None:
    """Fail unless these are finite numbers by name."""
    expect(isinstance(figures, dict) and figures, f"{name}: evaluate() must give figures")
    for figure, value in figures.items():
        expect(
            isinstance(figure, str) and figure.strip(),
            f"{name}: the name of a figure must be a text, not {figure!r}",
        )
        expect(
            isinstance(value, float) and math.isfinite(value),
            f"{name}: the figure '{figure}' must be a finite float, not {value!r}",
        )
