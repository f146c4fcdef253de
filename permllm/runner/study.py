"""Runs all of a plan: the dense model, then each pruned run, and what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from permllm.components import Observer
from permllm.distinct import distinct
from permllm.errors import PermllmError, RunFailed, UserError
from permllm.exhaustion import cannot_write
from permllm.files import write_sealed
from permllm.given import WeightsChanged
from permllm.pipeline.reading import resolved
from permllm.registry import Registry
from permllm.results import Results, RunResult
from permllm.runner.caching.store import DEFAULT_LIMIT, Cache
from permllm.runner.determinism import deterministic
from permllm.runner.identity import RunIdentity, believed
from permllm.runner.one_run import OneRun
from permllm.runner.reporting import Reporter
from permllm.runner.shared import Shared
from permllm.runs import folder
from permllm.runs.lock import owned
from permllm.runs.plan import Plan, Run
from permllm.runs.records import Environment, write_results


def run_study(
    plan: Plan,
    registry: Registry,
    observers: Sequence[Observer],
    finish: Callable[[Results], None],
    *,
    resume: bool = False,
    cache: Path | None = None,
    cache_limit: int = DEFAULT_LIMIT,
) -> Results:
    """Do all runs of a plan.

    One of several runs that fails is marked in the results, and the others are done.

    Args:
        plan: the runs.
        registry: whose plugins and observers are told how it goes.
        observers: besides those of the pipeline's ``track``.
        finish: writes what is left behind, before observers hear of the end.
        resume: go on after the last finished window of an earlier attempt; the folder's
            pipeline may have another matrix.
        cache: folder of what stages compute, which other studies may share; in the plan's
            folder where it is None.
        cache_limit: bytes that the cache may take.

    Raises:
        UserError: something of the user's is wrong; nothing was lost.
        RunFailed: a component or the model broke in the only run, or in all runs.
    """
    hook = registry.manager.hook
    reporter = Reporter(hook, None)
    kept = Cache(cache or plan.out / folder.CACHE, cache_limit, reporter.warn)
    if cache is not None:
        kept.check()
    # Nobody hears warnings before observers are there, which write to the folder themselves.
    early: list[str] = []
    folder.check_free(folder.opened(plan.out))
    with owned(plan.out, early.append), ExitStack() as stack:
        folder.claim(plan.out, resolved(plan.pipeline, registry), resume=resume)
        stack.enter_context(deterministic(plan.pipeline.deterministic))
        stack.enter_context(observed(plan, registry, observers, reporter))
        for message in early:
            reporter.warn(message)
        shared: Shared | None = None
        try:
            hook.permllm_plan_started(plan=plan)
            kept.sweep()
            shared = Shared(plan, registry, kept)
            with _on_a_disk(plan):
                results = _results(shared)
                finish(results)
        except BaseException as error:
            hook.permllm_plan_failed(run=shared and shared.reporter.run, error=error)
            raise
        hook.permllm_plan_finished(plan=plan, results=results)
    return results


def _results(shared: Shared) -> Results:
    """Do all runs; each is kept once it is finished, and marked if it failed."""
    plan, hook = shared.plan, shared.reporter.hook
    if plan.runs:
        # Before anything long: the text may be too short.
        shared.sequences(plan.dense)
    environment = folder.environment(
        model_fingerprint=shared.fingerprint,
        model=plan.pipeline.model.describe(),
        calibration_fingerprint=plan.pipeline.calibration.dataset.fingerprint("train"),
        plugins=shared.registry.versions(),
        plugin_files=shared.registry.digests(plan.pipeline.plugins),
    )
    folder.check_same_inputs(plan.out, _began_with(shared), environment)
    write_sealed(plan.out / folder.ENVIRONMENT, environment)
    only = OneRun(shared, plan.dense)
    dense = _once(only, only.dense)
    runs, failed = [], 0
    for run in plan.runs:
        one = OneRun(shared, run)
        try:
            runs.append(_once(one, partial(one.pruned, dense, environment["versions"])))
        except Exception as error:
            if cannot_write(error) or isinstance(error, WeightsChanged):
                # It would be the same for every other run, or these would be of another model.
                raise
            # Components are anybody's code, and the other runs are worth having.
            failed += 1
            if failed == len(plan.runs):
                raise
            hook.permllm_run_failed(run=run, error=error)
            runs.append(_failed(run, error))
    shared.turn_to(None)
    return Results(plan.pipeline.name, str(plan.out), (dense, *runs))


def _began_with(shared: Shared) -> Environment:
    """The environment that the run began in; a damaged one is written anew."""
    try:
        return folder.began_with(shared.plan.out)
    except UserError as error:
        shared.reporter.warn(f"{error}: it is written anew")
        return Environment()


def _once(one: OneRun, work: Callable[[], RunResult]) -> RunResult:
    """The run's result from an earlier attempt if it has one, else of doing it now."""
    shared, run = one.shared, one.run
    shared.turn_to(run)
    started = partial(shared.reporter.hook.permllm_run_started, run=run)
    try:
        identity = RunIdentity.of(one)
        result = believed(run.directory, identity, shared.reporter.warn)
    except Exception:
        # Who hears that it failed has to know that it began.
        started(reused=False)
        raise
    started(reused=result is not None)
    if result is None:
        identity.write(folder.opened(run.directory))
        result = work()
        whole = Results(shared.plan.pipeline.name, str(shared.plan.out), (result,))
        write_results(run.directory / folder.RESULT, whole)
    shared.reporter.hook.permllm_run_finished(run=run, result=result)
    return result


def _failed(run: Run, error: Exception) -> RunResult:
    """The entry of a run that broke."""
    first = str(error).strip().partition("\n")[0]
    message = first if isinstance(error, PermllmError) else f"{type(error).__name__}: {first}"
    return RunResult(
        label=run.label,
        figures={},
        seconds=0.0,
        peak_memory_bytes=0,
        options=run.options,
        setting=run.setting,
        repeat=run.repeat,
        error=message,
    )


@contextmanager
def _on_a_disk(plan: Plan) -> Iterator[None]:
    """Say of a disk that takes nothing more what is to be done about it.

    Raises:
        RunFailed: there is one. The runs that are left are not begun.
    """
    try:
        yield
    except Exception as error:
        why = cannot_write(error)
        if why is None:
            raise
        first = str(error.message if isinstance(error, UserError) else error).partition("\n")[0]
        raise RunFailed(
            f"{why} ({first}); the runs that are left need room in {plan.out}"
        ) from error


@contextmanager
def observed(
    plan: Plan, registry: Registry, observers: Sequence[Observer], reporter: Reporter
) -> Iterator[None]:
    """Register the observers for the block, each once."""
    with ExitStack() as stack:
        for observer in distinct((*observers, *plan.pipeline.track)):
            # To open a tracking store may take seconds; those before it can say so.
            stage = f"opening {observer.name}"
            reporter.progress(stage, 0, 1)
            watcher = observer.watch(plan.out, reporter.warn)
            reporter.progress(stage, 1, 1)
            stack.enter_context(registry.observing(observer, watcher))
        yield
