"""Evaluators: what is measured on a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from permllm.hooks import hookimpl

if TYPE_CHECKING:
    from permllm.components import Evaluator


@hookimpl
def permllm_evaluators() -> Iterable[type[Evaluator]]:
    """The built-in evaluators."""
    from permllm.evaluators.choices import Choices
    from permllm.evaluators.fidelity import Fidelity
    from permllm.evaluators.perplexity import Perplexity
    from permllm.evaluators.sparsity import Sparsity

    return [Perplexity, Choices, Fidelity, Sparsity]
