"""What the package adds to permllm. The harness is imported when it evaluates, not before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import permllm

if TYPE_CHECKING:
    from permllm.components import Evaluator


@permllm.hookimpl
def permllm_evaluators() -> Iterable[type[Evaluator]]:
    """The evaluator ``lm-eval``."""
    from permllm_lm_eval.evaluator import LmEval

    return [LmEval]
