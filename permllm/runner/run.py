"""Runs a whole pipeline file: plan, dense model, each cell of the matrix, results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from permllm.components import Observer
from permllm.observers.events import Events
from permllm.pipeline.matrix import Cell, expand
from permllm.pipeline.reading import read_pipeline, resolved
from permllm.pipeline.schema import Pipeline
from permllm.registry import Registry
from permllm.report.plots import write_plots
from permllm.report.summary import REPORT, write_report
from permllm.results import Results
from permllm.runner import folder
from permllm.runner.cache import DEFAULT_LIMIT, Cache
from permllm.runner.folder import unique_slugs
from permllm.runner.plan import DENSE, Plan, Run
from permllm.runner.session import Session

CACHE = "cache"
"""The folder of kept results within a run's folder."""


def make_plan(
    path: Path,
    registry: Registry,
    settings: Sequence[str] = (),
    out: Path | None = None,
    *,
    resume: bool = False,
) -> Plan:
    """Read a pipeline file and lay out its runs; writes nothing.

    Args:
        path: the pipeline file.
        registry: knows the components.
        settings: ``key=value`` that override the file.
        out: the run's folder; a new one under ``runs/``, or with ``resume`` the latest
            unfinished one, where it is None.

    Raises:
        UserError: the file or a setting is wrong.
    """
    pipeline = read_pipeline(path, registry, settings)
    cells = expand(pipeline, registry)
    if out is None:
        find = folder.latest_unfinished if resume else folder.new_folder
        out = find(pipeline.name)
    return plan_of(pipeline, cells, out)


def plan_of(pipeline: Pipeline, cells: Sequence[Cell], out: Path) -> Plan:
    """The plan of a pipeline and the cells of its matrix."""
    names = unique_slugs([DENSE, *(cell.label for cell in cells)])[1:]
    runs = tuple(
        Run(cell.label, cell.pipeline, cell.options, out / "runs" / name, cell.setting, cell.repeat)
        for cell, name in zip(cells, names, strict=True)
    )
    dense = Run(DENSE, pipeline, {}, out / "runs" / DENSE)
    return Plan(pipeline, runs, dense, out)


def run_plan(
    plan: Plan,
    registry: Registry,
    observers: Sequence[Observer] = (),
    *,
    resume: bool = False,
    cache: Path | None = None,
    cache_limit: int = DEFAULT_LIMIT,
) -> Results:
    """Do all runs of a plan, and write results, report and plots to its folder.

    One of several runs that fails is marked in the results, and the others are done.

    Args:
        plan: from :func:`make_plan`.
        registry: whose plugins and observers are told how it goes.
        observers: besides those of the pipeline's ``track``.
        resume: go on after the last finished window of an earlier attempt; the folder's
            pipeline may have another matrix.
        cache: folder of what stages compute, which other studies may share; in the plan's
            folder where it is None.
        cache_limit: bytes that the cache may take.

    Raises:
        UserError: something of the user's is wrong; nothing was lost.
        RunFailed: a component or the model broke in the only run, or in all runs.
    """
    folder.claim(plan.out, resolved(plan.pipeline, registry), resume=resume)
    hook = registry.manager.hook
    kept = Cache(cache or plan.out / CACHE, cache_limit, partial(_warn, hook))
    with _observed(plan, registry, observers):
        hook.permllm_plan_started(plan=plan)
        session: Session | None = None
        try:
            kept.sweep()
            session = Session(plan, registry, kept)
            results = session.results()
            _write(results, plan, hook)
        except BaseException as error:
            hook.permllm_plan_failed(run=session and session.current, error=error)
            raise
        hook.permllm_plan_finished(plan=plan, results=results)
    return results


def _write(results: Results, plan: Plan, hook: Any) -> None:
    """Results, plots and report; the last says that all are there.

    A study that was finished before, and is started again, draws nothing anew.
    """
    path, report = plan.out / folder.RESULTS, plan.out / REPORT
    if report.exists() and folder.holds(path, results.to_dict()):
        return
    report.unlink(missing_ok=True)
    folder.write_json(path, results.to_dict())
    hook.permllm_progress(run=None, stage="drawing the plots", done=0, total=1)
    write_plots(results, plan)
    write_report(results, plan)
    hook.permllm_progress(run=None, stage="drawing the plots", done=1, total=1)


def _warn(hook: Any, message: str) -> None:
    hook.permllm_warning(message=message)


@contextmanager
def _observed(plan: Plan, registry: Registry, observers: Sequence[Observer]) -> Iterator[None]:
    """Register the observers for the block, each once; the event log is always among them."""
    hook = registry.manager.hook
    with ExitStack() as stack:
        for observer in dict.fromkeys((Events(), *observers, *plan.pipeline.track)):
            # To open a tracking store may take seconds; those before it can say so.
            stage = f"opening {observer.name}"
            hook.permllm_progress(run=None, stage=stage, done=0, total=1)
            watcher = observer.watch(plan.out, partial(_warn, hook))
            hook.permllm_progress(run=None, stage=stage, done=1, total=1)
            stack.enter_context(registry.observing(observer, watcher))
        yield
