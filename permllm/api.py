"""The Python interface: a whole pipeline file, or its stages on a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.components import Observer
from permllm.folding.layout import Layout
from permllm.meeting import world_of_processes
from permllm.models.devices import pick_device
from permllm.observers.console import Console
from permllm.observers.events import Events
from permllm.pipeline.reading import read_mapping, read_pipeline
from permllm.pipeline.schema import Pipeline
from permllm.registry import Registry
from permllm.report.outcome import write_outcome
from permllm.results import LayerReport, Results, RunResult
from permllm.runner.all_windows import all_pruned
from permllm.runner.allocating import allocated
from permllm.runner.caching.memo import Stages
from permllm.runner.caching.object_store import ObjectStore, place_of_cache
from permllm.runner.caching.store import DEFAULT_LIMIT
from permllm.runner.calibration import read_sequences, wished_sequences
from permllm.runner.determinism import deterministic
from permllm.runner.on_ray.driver import RayCluster
from permllm.runner.one_run import overall
from permllm.runner.opening import open_decoder
from permllm.runner.reporting import Reporter
from permllm.runner.study import Execute, observed, run_study
from permllm.runner.window_loop import WindowLoop
from permllm.runs.folder import opened
from permllm.runs.plan import Plan, Run, make_plan, shared_plan
from permllm.runs.windows import PrunedWindow
from permllm.world import ALONE, World


@attrs.frozen(eq=False)
class Pruned:
    """What :func:`prune` did to a model.

    Attributes:
        model: the model that was given, now with pruned weights, each linear's input
            channels in their original order.
        permutations: by permutation group, ``LongTensor[C_in]``; for every linear of
            the group ``weight[:, permutation]`` is N:M.
        layers: the figures of each pruned linear.
        seconds: wall time.
    """

    model: Any
    permutations: dict[str, Tensor]
    layers: tuple[LayerReport, ...]
    seconds: float


def run(
    path: str | Path,
    settings: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    cache: str | Path | None = None,
    on: str | None = None,
) -> Results:
    """Run a pipeline file, as ``permllm run`` does.

    In a script that ``torchrun`` starts as several processes, these share the run.

    Args:
        path: the pipeline file.
        settings: ``"key=value"`` with dotted keys, overriding the file.
        out: the run's folder; a new one under ``runs/`` where it is None.
        resume: go on after the last finished window in ``out``.
        observers: further observers, such as
            :class:`permllm.observers.console.Console`.
        cache: folder of what stages compute, or URL of a store such as ``"s3://bucket/prefix"``,
            for studies to share; in the run's folder where it is None.
        on: ``"ray"`` or ``"ray:ADDRESS"`` does the runs on a Ray cluster; where Ray is connected
            already, on that.

    Returns:
        every run's figures; ``results["lcp"].figures``. One of several runs that broke has
        ``error`` set.

    Raises:
        UserError: the file, the model or the data is wrong.
        RunFailed: a component or the model broke.
    """
    registry = Registry.load()
    folder = None if out is None else Path(out)
    kept = place_of_cache(cache)
    make = partial(make_plan, Path(path), registry, settings, resume=resume)
    with ExitStack() as stack:
        world = stack.enter_context(world_of_processes())
        cluster = None if on is None else RayCluster.named(on, world)

        def ready() -> Plan:
            plan = make(folder)
            if cluster is not None:
                stack.enter_context(cluster.connected(plan))
            return plan.settled().sharded(world.size, resume=resume)

        plan = shared_plan(world, ready, make)
        assert plan is not None  # there is always one to follow
        return run_plan(
            plan, registry, observers, resume=resume, cache=kept, world=world, execute=cluster
        )


def prune(
    model: Any,
    tokenizer: Any,
    pipeline: Pipeline | Mapping[str, Any] | str | Path,
    *,
    observers: Sequence[Observer] = (Console(),),
    out: str | Path | None = None,
) -> Pruned:
    """Prune a model that is in memory, in place.

    Of the pipeline, ``pattern``, ``layers``, ``calibration``, ``device`` and ``seed``
    count. Nothing but what observers write goes to the disk.

    Args:
        model: a causal language model of transformers, on the CPU.
        tokenizer: its tokenizer.
        pipeline: a :class:`Pipeline`, a mapping such as ``{"pattern": "2:4"}``, or
            the path of a pipeline file. A ``matrix`` is not allowed.
        observers: who is told how it goes; by default progress is shown on standard error,
            and ``()`` shows none.
        out: a folder for observers that write, such as
            :class:`permllm.observers.events.Events`; one that is removed afterwards if None.

    Raises:
        UserError: the pipeline does not fit, or the calibration text is too short.
        RunFailed: a component or the model broke.
    """
    registry = Registry.load()
    if isinstance(pipeline, str | Path):
        pipeline = read_pipeline(Path(pipeline), registry)
    elif not isinstance(pipeline, Pipeline):
        # A pipeline needs a model; this one is in memory already.
        in_memory = {"model": {"source": "directory", "path": "."}, "track": {}}
        pipeline = read_mapping(in_memory | dict(pipeline), registry)
    sequences = read_sequences(pipeline.calibration, tokenizer, wished_sequences(pipeline))
    decoder = open_decoder(model, tokenizer, sequences.tokens)
    layers = pipeline.layers
    constraints = Layout(decoder).constraints(foldable=layers.foldable, residual=layers.residual)

    def pruning(run: Run) -> PrunedWindow:
        device, hook = pick_device(pipeline.device), registry.manager.hook
        chain = decoder, run, sequences, device, hook
        stages = Stages(world=World(shards=pipeline.shards or 1))
        settings = allocated(*chain, constraints=constraints, stages=stages)
        loop = WindowLoop.of(*chain, stages=stages, constraints=constraints, settings=settings)
        return all_pruned(loop)

    with ExitStack() as stack:
        stack.enter_context(deterministic(pipeline.deterministic))
        folder = stack.enter_context(TemporaryDirectory()) if out is None else out
        run = Run(layers.permutation.name, pipeline, {}, opened(Path(folder)))
        # The dense model is nobody's business here: the only run takes the first one's place.
        quiet = attrs.evolve(pipeline, track=())
        plan = Plan(quiet, (), run, run.directory, named=out is not None)
        pruned = _observed_run(pruning, decoder.entries, plan, registry, observers)
    # Copies on a device are not the user's model.
    decoder.place("cpu")
    with torch.no_grad():
        for name, weight in pruned.weights.items():
            decoder.weight(name).copy_(weight)
    return Pruned(model, pruned.permutations, pruned.reports, pruned.cost.seconds)


def _observed_run(
    work: Callable[[Run], PrunedWindow],
    entries: int,
    plan: Plan,
    registry: Registry,
    observers: Sequence[Observer],
) -> PrunedWindow:
    """Prune a model of so many ``entries`` while observers are told of a plan with one run."""
    hook, run = registry.manager.hook, plan.dense
    with observed(plan, registry, observers, Reporter(hook, None)):
        try:
            hook.permllm_plan_started(plan=plan)
            hook.permllm_run_started(run=run, reused=False)
            pruned = work(run)
        except BaseException as error:
            hook.permllm_plan_failed(run=run, error=error)
            raise
        result = RunResult(
            run.label,
            overall(pruned, entries),
            pruned.cost.seconds,
            pruned.cost.peak_memory_bytes,
            layers=pruned.reports,
        )
        hook.permllm_run_finished(run=run, result=result)
        results = Results(plan.pipeline.name, str(plan.out), (result,))
        hook.permllm_plan_finished(plan=plan, results=results)
    return pruned


def run_plan(
    plan: Plan,
    registry: Registry,
    observers: Sequence[Observer] = (),
    *,
    resume: bool = False,
    cache: Path | ObjectStore | None = None,
    cache_limit: int = DEFAULT_LIMIT,
    world: World = ALONE,
    execute: Execute | None = None,
) -> Results:
    """Do all runs of a plan, and write results, report and plots to its folder.

    Args:
        plan: from :func:`permllm.runs.plan.make_plan`.
        registry, observers, resume, cache, cache_limit, world, execute: as for
            :func:`permllm.runner.study.run_study`; the event log is always among the observers.

    Raises:
        UserError: something of the user's is wrong; nothing was lost.
        RunFailed: a component or the model broke in the only run, or in all runs.
    """
    return run_study(
        plan,
        registry,
        (Events(), *observers),
        partial(write_outcome, plan=plan, progress=Reporter(registry.manager.hook, None).progress),
        resume=resume,
        cache=cache,
        cache_limit=cache_limit,
        world=world,
        execute=execute,
    )
