"""What a run tells its observers."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

from permllm.runner.reporting import Reporter
from permllm.runs.windows import TrainingStep


def test_every_call_names_the_run() -> None:
    hook, run = MagicMock(), object()
    reporter = Reporter(hook, run)  # type: ignore[arg-type]
    reporter.progress("pruning", 1, 3)
    made = TrainingStep("pruner", 4, 9, {"loss": 0.5})
    reporter.step(2, made, replayed=True)
    assert reporter.course == [made]
    reporter.reused("pruning", 1.5)
    reporter.warn("mind the gap")
    expected: dict[str, dict[str, Any]] = {
        "permllm_progress": {"run": run, "stage": "pruning", "done": 1, "total": 3},
        "permllm_training_step": {
            "run": run,
            "window": 2,
            "stage": "pruner",
            "step": 4,
            "total": 9,
            "figures": {"loss": 0.5},
            "replayed": True,
        },
        "permllm_stage_reused": {"run": run, "stage": "pruning", "seconds": 1.5},
        "permllm_warning": {"message": "mind the gap"},
    }
    for name, arguments in expected.items():
        getattr(hook, name).assert_called_once_with(**arguments)
