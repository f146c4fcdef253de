"""What a run tells its observers."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

from permllm.registry import Registry
from permllm.runner.reporting import Reporter, hooks_of
from permllm.runs.windows import TrainingStep
from permllm.world import ALONE, World


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


def test_of_several_processes_the_first_tells_the_observers() -> None:
    registry = Registry.load()
    assert hooks_of(registry, ALONE) is registry.manager.hook
    told = MagicMock()
    registry.manager.register(told, "told")
    Reporter(hooks_of(registry, World(1, 2)), None).warn("nobody hears it")
    told.permllm_warning.assert_not_called()
