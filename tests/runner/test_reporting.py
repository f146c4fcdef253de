"""What a run tells its observers."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock, call

from permllm.registry import Registry
from permllm.runner.reporting import Event, Noted, Reporter, hooks_of
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


def test_what_is_noted_is_told_later_in_order_and_of_the_run_that_is_there() -> None:
    noted = Noted()
    reporter = Reporter(noted, object())  # type: ignore[arg-type]
    reporter.reused("pruning", 1.5)
    reporter.progress("pruning", 1, 3)
    reporter.warn("mind the gap")
    Reporter(noted, None).reused("the text", 0.5)
    hook, run = MagicMock(), object()
    for event in noted.events:
        event.tell(hook, run)  # type: ignore[arg-type]
    assert hook.mock_calls == [
        call.permllm_stage_reused(run=run, stage="pruning", seconds=1.5),
        call.permllm_warning(message="mind the gap"),
        call.permllm_stage_reused(run=None, stage="the text", seconds=0.5),
    ]


def test_an_event_holds_no_run() -> None:
    facts = {"run": object(), "stage": "pruning"}
    assert Event.of("permllm_progress", facts).facts == {"stage": "pruning"}
    assert "run" in facts


def test_of_several_processes_the_first_tells_the_observers() -> None:
    registry = Registry.load()
    assert hooks_of(registry, ALONE) is registry.manager.hook
    told = MagicMock()
    registry.manager.register(told, "told")
    Reporter(hooks_of(registry, World(1, 2)), None).warn("nobody hears it")
    told.permllm_warning.assert_not_called()
