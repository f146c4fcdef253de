"""Runs all of a plan: the dense model, then each pruned run, and what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch

from permllm.components import Observer
from permllm.distinct import distinct
from permllm.errors import PermllmError, RunFailed, UserError
from permllm.exhaustion import cannot_write
from permllm.files import write_sealed
from permllm.given import WeightsChanged
from permllm.pipeline.reading import dump_yaml, resolved
from permllm.registry import Registry
from permllm.results import Results, RunResult
from permllm.runner.caching.keys import digest, own_code
from permllm.runner.caching.object_store import ObjectStore
from permllm.runner.caching.store import DEFAULT_LIMIT, Cache
from permllm.runner.determinism import deterministic
from permllm.runner.identity import RunIdentity, believed
from permllm.runner.one_run import OneRun
from permllm.runner.reporting import Reporter, hooks_of
from permllm.runner.shared import Shared
from permllm.runs import folder
from permllm.runs.lock import owned
from permllm.runs.plan import Plan, Run
from permllm.runs.records import Environment, write_results
from permllm.world import ALONE, World

Execute = Callable[
    [Shared, Sequence[Run], RunResult | None, Mapping[str, str]],
    Iterator[tuple[Run, Callable[[], RunResult]]],
]
"""Does runs, wherever that is: gives each in order, with what returns its result or raises why not.

It takes what the runs share, the runs, the dense model's figures (None where that is the run), and
the versions of permllm, torch and so on. Observers hear of one run at a time.
"""


def run_study(
    plan: Plan,
    registry: Registry,
    observers: Sequence[Observer],
    finish: Callable[[Results], None],
    *,
    resume: bool = False,
    cache: Path | ObjectStore | None = None,
    cache_limit: int = DEFAULT_LIMIT,
    world: World = ALONE,
    execute: Execute | None = None,
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
        cache: folder of what stages compute, or a store of it, which other studies may share;
            in the plan's folder where it is None, and copies of what is in a store, too.
        cache_limit: bytes that the cache may take.
        world: the processes that do them together, each of which calls this. The first writes,
            and has the observers; a run that fails ends all of them.
        execute: does the runs; in this process where it is None.

    Raises:
        UserError: something of the user's is wrong; nothing was lost.
        RunFailed: a component or the model broke in the only run, or in all runs.
    """
    world = attrs.evolve(world, shards=plan.pipeline.shards or 1)
    hook = hooks_of(registry, world)
    reporter = Reporter(hook, None)
    kept = Cache.at(cache, plan.out / folder.CACHE, cache_limit, reporter.warn)
    with ExitStack() as stack:

        def begin() -> None:
            if isinstance(cache, ObjectStore):
                cache.check()
            elif cache is not None:
                kept.check()
            # Nobody hears warnings before observers are there, which write to the folder, too.
            early: list[str] = []
            folder.check_free(folder.opened(plan.out))
            stack.enter_context(owned(plan.out, early.append))
            folder.claim(plan.out, resolved(plan.pipeline, registry), resume=resume)
            stack.enter_context(observed(plan, registry, observers, reporter))
            for message in early:
                reporter.warn(message)

        world.agreed(begin)
        stack.enter_context(deterministic(plan.pipeline.deterministic))
        shared: Shared | None = None
        try:
            hook.permllm_plan_started(plan=plan)
            world.agreed(kept.sweep)
            shared = Shared(plan, registry, kept, world)
            with _on_a_disk(plan):
                results = _results(shared, execute or here)
                world.agreed(partial(finish, results))
        except BaseException as error:
            hook.permllm_plan_failed(run=shared and shared.reporter.run, error=error)
            raise
        hook.permllm_plan_finished(plan=plan, results=results)
    return results


def here(
    shared: Shared,
    runs: Sequence[Run],
    dense: RunResult | None,
    versions: Mapping[str, str],
) -> Iterator[tuple[Run, Callable[[], RunResult]]]:
    """Do runs in this process, one after the other; see :data:`Execute`."""
    for run in runs:
        yield run, partial(done, OneRun(shared, run), dense, versions)


def _results(shared: Shared, execute: Execute) -> Results:
    """Do all runs; each is kept once it is finished, and marked if it failed."""
    plan, hook = shared.plan, shared.reporter.hook
    if plan.runs:
        # Before anything long: the text may be too short.
        shared.sequences(plan.dense)
    shared.world.look_for(plan.out)
    seen = seen_by(shared)
    shared.world.check_alike(seen)
    environment = folder.environment(
        model_fingerprint=shared.fingerprint,
        model=plan.pipeline.model.describe(),
        calibration_fingerprint=seen["calibration text"],
        plugins=seen["plugin"],
        plugin_files=seen["plugin file"],
    )

    def note() -> None:
        folder.check_same_inputs(plan.out, _began_with(shared), environment)
        write_sealed(plan.out / folder.ENVIRONMENT, environment)

    shared.world.agreed(note)
    versions = environment["versions"]
    [(_, measured)] = execute(shared, [plan.dense], None, versions)
    dense = measured()
    runs, failed = [], 0
    for run, result in execute(shared, plan.runs, dense, versions):
        try:
            runs.append(result())
        except Exception as error:
            if cannot_write(error) or isinstance(error, WeightsChanged) or shared.world.many:
                # It would be the same for every other run, or these would be of another model;
                # and processes that fail each by itself are at different places.
                raise
            # Components are anybody's code, and the other runs are worth having.
            failed += 1
            if failed == len(plan.runs):
                raise
            hook.permllm_run_failed(run=run, error=error)
            runs.append(_failed(run, error))
    shared.turn_to(None)
    return Results(plan.pipeline.name, str(plan.out), (dense, *runs))


def seen_by(shared: Shared) -> dict[str, Any]:
    """What has to be the same in all processes, as plain data."""
    pipeline = shared.plan.pipeline
    return {
        "permllm": own_code()[:12],
        "pipeline": digest(dump_yaml(resolved(pipeline, shared.registry)))[:12],
        "model": shared.fingerprint[:12],
        "calibration text": pipeline.calibration.dataset.fingerprint("train"),
        "plugin": shared.registry.versions(),
        "plugin file": shared.registry.digests(pipeline.plugins),
        **{what: plain for what, plain in shared.machine.items() if what != "libraries"},
        **shared.machine["libraries"],
        "number of threads": torch.get_num_threads(),
    }


def _began_with(shared: Shared) -> Environment:
    """The environment that the run began in; a damaged one is written anew."""
    try:
        return folder.began_with(shared.plan.out)
    except UserError as error:
        shared.reporter.warn(f"{error}: it is written anew")
        return Environment()


def done(one: OneRun, dense: RunResult | None, versions: Mapping[str, str]) -> RunResult:
    """The run's result from an earlier attempt if it has one, else of doing it now.

    Args:
        one: the run.
        dense: the dense model's figures; None where that is the run.
        versions: of permllm, torch and so on.
    """
    shared, run = one.shared, one.run
    shared.turn_to(run)
    started = partial(shared.reporter.hook.permllm_run_started, run=run)
    if shared.plan.runs:
        # Together, before the first process looks by itself.
        shared.sequences(run)

    def look() -> RunResult | None:
        identity = RunIdentity.of(one)
        found = believed(run.directory, identity, shared.reporter.warn)
        if found is None:
            identity.write(folder.opened(run.directory))
        return found

    try:
        result = shared.world.agreed(look)
    except Exception:
        # Who hears that it failed has to know that it began.
        started(reused=False)
        raise
    started(reused=result is not None)
    if result is None:
        result = one.dense() if dense is None else one.pruned(dense, dict(versions))
        whole = Results(shared.plan.pipeline.name, str(shared.plan.out), (result,))
        shared.world.agreed(partial(write_results, run.directory / folder.RESULT, whole))
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
