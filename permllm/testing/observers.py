"""What every observer must do."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import attrs
import pluggy

from permllm import hookspecs
from permllm.components import Observer
from permllm.pipeline.reading import read_mapping
from permllm.registry import Registry
from permllm.results import DENSE, LayerReport, Results, RunResult
from permllm.runs.plan import Plan, Run
from permllm.testing.expect import expect


def check_observer(observer: Observer) -> None:
    """Fail unless an observer can follow a pipeline from its start to its end.

    What it watches with has hook implementations, and only for hooks that exist. It is
    led through a pipeline that succeeds, one of which a run fails, one that breaks before its
    first run and one that is interrupted in a window, each in a folder of its own, and must
    raise nothing.
    """
    for lead in (
        lead_through,
        lead_around_a_failed_run,
        lead_to_an_early_failure,
        lead_to_an_interruption,
    ):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            lead(toy_plan(Path(folder)), watched(observer, Path(folder)))


def watched(observer: Observer, out: Path) -> Any:
    """The hooks of a plugin manager that knows only what ``observer`` watches with."""
    name = f"observer '{observer.name}'"
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    watcher = observer.watch(out, lambda message: None)
    manager.register(watcher)
    hooks = [caller.name for caller in manager.get_hookcallers(watcher) or ()]
    expect(hooks, f"{name}: what watch() returns has no method with @permllm.hookimpl")
    for hook in hooks:
        expect(hasattr(hookspecs, hook), f"{name}: there is no hook '{hook}'")
    return manager.hook


def lead_through(plan: Plan, hook: Any) -> None:
    """Call the hooks as for a pipeline that succeeds."""
    hook.permllm_plan_started(plan=plan)
    hook.permllm_progress(run=None, stage="loading the model", done=0, total=1)
    hook.permllm_progress(run=None, stage="loading the model", done=1, total=1)
    hook.permllm_warning(message="model.layers.0.mlp.gate stays dense: it is a router")
    dense = RunResult(DENSE, {"perplexity/toy": 16.8, "sparsity": 0.0}, 0.0, 2**30)
    hook.permllm_run_started(run=plan.dense, reused=False)
    hook.permllm_evaluated(run=plan.dense, figures=dense.figures)
    hook.permllm_run_finished(run=plan.dense, result=dense)
    results = [dense]
    for run in plan.runs:
        hook.permllm_run_started(run=run, reused=False)
        _lead_through_window(run, hook)
        figures = {"perplexity/toy": 59.2, "sparsity": 0.5, "retained": 0.8}
        hook.permllm_evaluated(run=run, figures=figures)
        directory = run.directory / "exports" / "masked"
        directory.mkdir(parents=True)
        hook.permllm_exported(run=run, exporter="masked", directory=directory)
        result = RunResult(run.label, figures, 2.0, 2**30, layers=REPORTS, options=run.options)
        hook.permllm_run_finished(run=run, result=result)
        results.append(result)
    whole = Results(plan.pipeline.name, str(plan.out), tuple(results))
    hook.permllm_plan_finished(plan=plan, results=whole)


def lead_around_a_failed_run(plan: Plan, hook: Any) -> None:
    """Call the hooks as for a pipeline of which one run breaks, and the other needs no work."""
    broken, reused = plan.runs
    dense = RunResult(DENSE, {"perplexity/toy": 16.8, "sparsity": 0.0}, 0.0, 2**30)
    hook.permllm_plan_started(plan=plan)
    hook.permllm_run_started(run=plan.dense, reused=False)
    hook.permllm_run_finished(run=plan.dense, result=dense)
    hook.permllm_run_started(run=broken, reused=False)
    hook.permllm_run_failed(run=broken, error=RuntimeError("it does not converge"))
    hook.permllm_run_started(run=reused, reused=False)
    hook.permllm_stage_reused(run=reused, stage="perplexity, seed=2", seconds=7.5)
    figures = {"perplexity/toy": 59.2, "sparsity": 0.5, "retained": 0.8}
    result = RunResult(reused.label, figures, 2.0, 2**30, layers=REPORTS, options=reused.options)
    hook.permllm_evaluated(run=reused, figures=figures)
    hook.permllm_run_finished(run=reused, result=result)
    failed = RunResult(broken.label, {}, 0.0, 0, error="RuntimeError: it does not converge")
    whole = Results(plan.pipeline.name, str(plan.out), (dense, failed, result))
    hook.permllm_plan_finished(plan=plan, results=whole)


def lead_to_an_early_failure(plan: Plan, hook: Any) -> None:
    """Call the hooks as for a pipeline that breaks before its first run."""
    hook.permllm_plan_started(plan=plan)
    hook.permllm_plan_failed(run=None, error=RuntimeError("the model cannot be loaded"))


def lead_to_an_interruption(plan: Plan, hook: Any) -> None:
    """Call the hooks as for a pipeline that the user stops in a window."""
    hook.permllm_plan_started(plan=plan)
    run = plan.runs[0]
    hook.permllm_run_started(run=run, reused=False)
    hook.permllm_window_started(run=run, window=0, windows=1, layers=("model.layers.0",))
    hook.permllm_training_step(
        run=run,
        window=0,
        stage="permutation",
        step=1,
        total=3,
        figures={"loss": 0.3},
        replayed=False,
    )
    hook.permllm_plan_failed(run=run, error=KeyboardInterrupt())


def toy_plan(out: Path) -> Plan:
    """A plan of two runs, in a folder that exists."""
    data = {
        "name": "toy",
        "model": {"source": "directory", "path": "toy"},
        "pattern": "2:4",
        "layers": {"permutation": "none"},
        "track": [],
    }
    pipeline = read_mapping(data, Registry.load(), base_dir=out)
    runs = [
        Run(
            f"seed={seed}",
            attrs.evolve(pipeline, seed=seed),
            {"seed": seed},
            out / "runs" / f"seed-{seed}",
        )
        for seed in (1, 2)
    ]
    dense = Run(DENSE, pipeline, {}, out / "runs" / DENSE)
    return Plan(pipeline, tuple(runs), dense, out)


REPORTS = tuple(
    LayerReport(f"model.layers.0.mlp.{name}", "model.layers.0.mlp", (48, 32), "2:4", *figures)
    for name, figures in {
        "gate_proj": (0.70, 0.78, 0.5, 0.21),
        "up_proj": (0.71, 0.77, 0.5, 0.22),
    }.items()
)
"""Made-up figures of a window."""


def _lead_through_window(run: Run, hook: Any) -> None:
    hook.permllm_window_started(
        run=run, window=0, windows=1, layers=("model.layers.0", "model.layers.1")
    )
    for step in (1, 2, 3):
        figures = {"loss": 1 / step, "temperature": 1 - step / 4, "learning_rate": 0.01}
        if step == 3:
            figures["held_out_loss"] = 0.4
        hook.permllm_training_step(
            run=run,
            window=0,
            stage="permutation",
            step=step,
            total=3,
            figures=figures,
            replayed=False,
        )
        stage = "learning, layers 0 to 1"
        hook.permllm_progress(run=run, stage=stage, done=step, total=3)
    hook.permllm_window_finished(run=run, window=0, reports=REPORTS, seconds=2.0)
