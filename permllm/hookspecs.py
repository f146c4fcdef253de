"""Every hook of permllm: when it is called, what to return, and an example.

A plugin is a module or an object with functions marked by
:data:`permllm.hookimpl`, announced by an entry point of the group ``permllm``::

    [project.entry-points.permllm]
    my-plugin = "my_package.plugin"

A hook implementation may leave out arguments that it does not need.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from permllm.hooks import PROJECT, hookimpl, hookspec

if TYPE_CHECKING:
    import click

    from permllm.components import (
        Allocation,
        Dataset,
        Evaluator,
        Exporter,
        Metric,
        Observer,
        PermutationLearner,
        Pruner,
    )
    from permllm.results import LayerReport, Results, RunResult
    from permllm.runs.plan import Plan, Run

__all__ = ["PROJECT", "hookimpl", "hookspec"]


# --- components -------------------------------------------------------------


@hookspec
def permllm_metrics() -> Iterable[type[Metric]]:
    """Importance metrics that the plugin adds.

    Called once, when plugins are loaded. Return component classes; import them
    inside the function, so that listing plugins stays fast::

        @permllm.hookimpl
        def permllm_metrics():
            from my_package.power import Power
            return [Power]
    """


@hookspec
def permllm_allocations() -> Iterable[type[Allocation]]:
    """Allocations that the plugin adds: how much of each linear is kept.

    Called once, when plugins are loaded. Return component classes::

        @permllm.hookimpl
        def permllm_allocations():
            from my_package.by_depth import ByDepth
            return [ByDepth]
    """


@hookspec
def permllm_permutations() -> Iterable[type[PermutationLearner]]:
    """Permutation learners that the plugin adds.

    Called once, when plugins are loaded. Return component classes::

        @permllm.hookimpl
        def permllm_permutations():
            from my_package.annealing import Annealing
            return [Annealing]
    """


@hookspec
def permllm_pruners() -> Iterable[type[Pruner]]:
    """Pruners that the plugin adds.

    Called once, when plugins are loaded. Return component classes::

        @permllm.hookimpl
        def permllm_pruners():
            from my_package.admm import Admm
            return [Admm]
    """


@hookspec
def permllm_evaluators() -> Iterable[type[Evaluator]]:
    """Evaluators that the plugin adds.

    Called once, when plugins are loaded. Return component classes::

        @permllm.hookimpl
        def permllm_evaluators():
            from my_package.latency import Latency
            return [Latency]
    """


@hookspec
def permllm_datasets() -> Iterable[type[Dataset]]:
    """Sources of text that the plugin adds.

    Called once, when plugins are loaded. Return component classes::

        @permllm.hookimpl
        def permllm_datasets():
            from my_package.wiki import Wiki
            return [Wiki]
    """


@hookspec
def permllm_exporters() -> Iterable[type[Exporter]]:
    """Exporters that the plugin adds.

    Called once, when plugins are loaded. Return component classes::

        @permllm.hookimpl
        def permllm_exporters():
            from my_package.onnx import Onnx
            return [Onnx]
    """


@hookspec
def permllm_observers() -> Iterable[type[Observer]]:
    """Observers that the plugin adds, for the ``track:`` section of a pipeline file.

    There each stands with its options: ``track: {slack: {channel: runs}}``. Called once,
    when plugins are loaded. Return component classes; what their ``watch`` returns gets the
    life-cycle hooks below::

        @permllm.hookimpl
        def permllm_observers():
            from my_package.slack import Slack
            return [Slack]
    """


@hookspec
def permllm_commands(group: click.Group) -> None:
    """Add commands to the command line.

    Called whenever ``permllm`` starts, so keep heavy imports inside the commands::

        @permllm.hookimpl
        def permllm_commands(group):
            @group.command()
            def hello():
                click.echo("hello")
    """


# --- life cycle -------------------------------------------------------------
# A pipeline file makes a plan of one or more runs (one a matrix cell). The dense
# model is evaluated once for the plan, then each run goes window by window. A plugin
# that raises in one of these is told nothing more, and the run goes on.


@hookspec
def permllm_plan_started(plan: Plan) -> None:
    """A pipeline starts; nothing is loaded yet.

    ``plan`` has the pipeline, its runs and the folder of the run::

        @permllm.hookimpl
        def permllm_plan_started(plan):
            print("going to do", [run.label for run in plan.runs], "in", plan.out)
    """


@hookspec
def permllm_run_started(run: Run, reused: bool) -> None:
    """One run starts (the dense model's evaluation is the run with the label ``dense``).

    Where an earlier attempt finished it, it is ``reused``: its result comes next::

        @permllm.hookimpl
        def permllm_run_started(run):
            print("now", run.label)
    """


@hookspec
def permllm_progress(run: Run | None, stage: str, done: int, total: int) -> None:
    """A stage got further: ``done`` of ``total`` units (``run`` is None before the first run).

    Called many times for each stage, with ``done`` from 0 to ``total``, so do little
    here. Stages are short phrases, such as ``"statistics of layers 0 to 29"``::

        @permllm.hookimpl
        def permllm_progress(stage, done, total):
            print(f"{stage}: {done / total:.0%}")
    """


@hookspec
def permllm_window_started(run: Run, window: int, windows: int, layers: tuple[str, ...]) -> None:
    """Window ``window`` (from 0) of ``windows`` starts; ``layers`` are its module names.

    Example::

        @permllm.hookimpl
        def permllm_window_started(window, windows, layers):
            print(f"window {window + 1} of {windows}: {layers[0]} to {layers[-1]}")
    """


@hookspec
def permllm_training_step(
    run: Run,
    window: int,
    stage: str,
    step: int,
    total: int,
    figures: dict[str, float],
    replayed: bool,
) -> None:
    """A component finished a training step, ``step`` from 1 to ``total``.

    ``stage`` is ``"permutation"`` or ``"pruner"``: the kind of what trains. ``figures``
    holds ``loss`` and what else it reports, such as ``temperature``, ``learning_rate``
    and, where it was measured, ``held_out_loss``. A loss may be NaN: such a step was skipped.
    It is ``replayed`` where another run made it, whose result this one shares::

        @permllm.hookimpl
        def permllm_training_step(step, figures):
            print(step, figures["loss"])
    """


@hookspec
def permllm_window_finished(
    run: Run, window: int, reports: tuple[LayerReport, ...], seconds: float
) -> None:
    """A window is pruned and saved; ``reports`` has the figures of each linear.

    ``seconds`` is the time that it took; after a resume, the time that it had taken::

        @permllm.hookimpl
        def permllm_window_finished(reports):
            print({report.linear: report.retained for report in reports})
    """


@hookspec
def permllm_evaluated(run: Run, figures: dict[str, float]) -> None:
    """The evaluators of a run finished; ``figures`` holds all that they measured.

    Example::

        @permllm.hookimpl
        def permllm_evaluated(run, figures):
            print(run.label, figures)
    """


@hookspec
def permllm_exported(run: Run, exporter: str, directory: Path) -> None:
    """A model was written to ``directory``.

    Example::

        @permllm.hookimpl
        def permllm_exported(exporter, directory):
            print(f"{exporter}: {directory}")
    """


@hookspec
def permllm_run_finished(run: Run, result: RunResult) -> None:
    """One run finished, evaluated and exported.

    Example::

        @permllm.hookimpl
        def permllm_run_finished(run, result):
            print(run.label, "took", result.seconds)
    """


@hookspec
def permllm_stage_reused(run: Run | None, stage: str, seconds: float) -> None:
    """A stage's result was found in the cache, which saved about ``seconds``.

    Example::

        @permllm.hookimpl
        def permllm_stage_reused(stage, seconds):
            print(f"{stage}: found, {seconds:.0f} s saved")
    """


@hookspec
def permllm_run_failed(run: Run, error: Exception) -> None:
    """One of several runs broke; the others go on.

    Example::

        @permllm.hookimpl
        def permllm_run_failed(run, error):
            print(run.label, "broke:", error)
    """


@hookspec
def permllm_plan_failed(run: Run | None, error: BaseException) -> None:
    """The plan ends early, in ``run`` or outside of all runs.

    ``error`` is a ``KeyboardInterrupt`` if the user stopped it::

        @permllm.hookimpl
        def permllm_plan_failed(error):
            print("lost:", error)
    """


@hookspec
def permllm_warning(message: str) -> None:
    """Something that the user should know, while the run goes on.

    Example::

        @permllm.hookimpl
        def permllm_warning(message):
            print("warning:", message)
    """


@hookspec
def permllm_plan_finished(plan: Plan, results: Results) -> None:
    """All runs finished, ``results.json``, the report and the plots are written.

    Example::

        @permllm.hookimpl
        def permllm_plan_finished(results):
            print(results.table())
    """
