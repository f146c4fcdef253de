"""``permllm run``: do what a pipeline file says."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from permllm.cli.cache import CachePlace
from permllm.cli.errors import StoppedError, debug_option, needs_prune
from permllm.cli.interrupts import interruptible
from permllm.cli.processes import processes
from permllm.cli.registry import load_registry, no_plugin_option
from permllm.commands import own
from permllm.errors import RunFailed, UserError
from permllm.hooks import hookimpl
from permllm.printing import console, echo, plain
from permllm.redaction import redacted

if TYPE_CHECKING:
    from permllm.registry import Registry
    from permllm.results import Results
    from permllm.runner.caching.object_store import ObjectStore
    from permllm.runner.on_ray.driver import RayCluster
    from permllm.runner.preflight.check import Checked
    from permllm.runs.plan import Plan
    from permllm.world import World

CACHE_LIMIT = 20.0
"""Gigabytes that a cache may take unless somebody says otherwise."""

MANY_RUNS = 50
"""More pruned runs than these only start with ``--yes``."""


@click.command("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of the file, such as calibration.length=128; may be repeated.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run.  [default: runs/NAME-DATE-TIME]",
)
@click.option("--resume", is_flag=True, help="Go on after the last finished window.")
@click.option(
    "--cache",
    type=CachePlace(path_type=Path, file_okay=False),
    metavar="FOLDER|URL",
    help="Folder of what stages compute, or a store such as s3://BUCKET/PREFIX, for studies to "
    "share.  "
    "[default: cache/ in the run's folder]",
)
@click.option(
    "--cache-limit",
    type=click.FloatRange(min=0),
    default=CACHE_LIMIT,
    show_default=True,
    metavar="GB",
    help="What was not used for the longest time is removed beyond this.",
)
@click.option(
    "--on",
    metavar="ray[:ADDRESS]",
    help="Do the runs on a Ray cluster; one is started on this machine where no address is given.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.option("--yes", is_flag=True, help=f"Start more than {MANY_RUNS} runs, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@no_plugin_option
@needs_prune
@debug_option
def command(
    file: Path,
    settings: tuple[str, ...],
    out: Path | None,
    resume: bool,
    cache: Path | str | None,
    cache_limit: float,
    on: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    no_plugin: tuple[str, ...],
) -> None:
    """Prune a model as FILE says.

    The dense model and every run of the file's matrix end in one table of figures.
    """
    # With --json, what libraries print must not get between the reader and the object.
    with ExitStack() as stack:
        from permllm.runner.caching.object_store import ObjectStore, place_of_cache
        from permllm.runner.on_ray.driver import RayCluster
        from permllm.runs.plan import make_plan, shared_plan

        world = stack.enter_context(processes())
        if as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        place = place_of_cache(cache)
        registry = load_registry(no_plugin)
        cluster = None if on is None else RayCluster.named(on, world)

        def ready(plan: Plan) -> None:
            if isinstance(place, ObjectStore):
                place.check()
            if cluster is not None:
                stack.enter_context(cluster.connected(plan))

        ask = partial(make_plan, file, registry, settings, resume=resume)
        check = partial(
            _checked,
            file=file,
            world=world,
            dry_run=dry_run,
            many=yes,
            resume=resume,
            elsewhere=cluster is not None,
            ready=ready,
        )
        plan = shared_plan(world, lambda: check(ask(out)), ask)
        if plan is None:
            return
        flags = {"--yes": yes, "--json": as_json}
        words = _words(file, settings, no_plugin, cache_limit, on, flags)
        kept = [] if place is None else ["--cache", str(place)]
        again = own(*words, *kept, "--out", str(plan.out), "--resume")
        anew = own(*words, "--cache", str(place or plan.out / "cache"))
        changed = anew if plan.pipeline.plugins else None
        failures = _Failures()
        registry.manager.register(failures)
        with _resumable(StoppedError(again, changed)), interruptible(registry):
            results = _run(plan, registry, resume, place, int(cache_limit * 1e9), world, cluster)
    if not world.leads:
        return
    if as_json:
        click.echo(json.dumps(results.to_dict(layers=False)))
    else:
        _print_results(plan, results)
    if results.failed:
        failed, all_runs = len(results.failed), len(plan.runs)
        with _resumable(StoppedError(None if failures.of_files else again, changed)):
            raise RunFailed(f"{failed} of {all_runs} runs failed; the others are done")


def _checked(
    plan: Plan,
    file: Path,
    world: World,
    *,
    dry_run: bool,
    many: bool,
    resume: bool,
    ready: Callable[[Plan], object],
    elsewhere: bool,
) -> Plan | None:
    """A plan that can be followed, its folder made; None where it was only to be said.

    Args:
        plan: what the file asks for.
        file: where from.
        world: the processes that follow the plan.
        dry_run: say what would be done, and no more.
        many: whether many runs may start.
        resume: whether it goes on in its folder.
        ready: gets what does the runs ready, before anything is written.
        elsewhere: whether other machines do them.
    """
    from permllm.runner.preflight.check import check_plan

    echo(f"checking {file}", err=True)
    checked = check_plan(
        plan,
        file,
        elsewhere=dry_run or elsewhere,
        processes=world.size,
        neighbours=world.neighbours,
    )
    if dry_run:
        _print_plan(plan, checked)
        return None
    for warning in (*checked.warnings, *_idle(plan, world)):
        echo(f"warning: {warning}", err=True)
    if len(plan.runs) > MANY_RUNS and not many:
        raise _too_many(plan, checked, file)
    ready(plan)
    plan = plan.settled().sharded(world.size, resume=resume)
    count = _counted(len(plan.runs))
    echo(f"estimate: {checked.estimate.summary()} for {count}", err=True)
    return plan


class _Failures:
    """Notes whether plugin files are to blame for runs that failed while others went on.

    Not the errors themselves, which hold what was in memory.
    """

    of_files = False

    @hookimpl
    def permllm_run_failed(self, error: BaseException) -> None:
        from permllm.plugins.diagnosis import blames_a_file

        self.of_files |= blames_a_file(error)


def _run(
    plan: Plan,
    registry: Registry,
    resume: bool,
    cache: Path | ObjectStore | None,
    cache_limit: int,
    world: World,
    cluster: RayCluster | None,
) -> Results:
    from permllm.api import run_plan
    from permllm.freed_memory import keep_freed_memory
    from permllm.observers.console import Console

    keep_freed_memory()
    return run_plan(
        plan,
        registry,
        [Console()],
        resume=resume,
        cache=cache,
        cache_limit=cache_limit,
        world=world,
        execute=cluster,
    )


@contextlib.contextmanager
def _resumable(stopped: StoppedError) -> Iterator[None]:
    """Whatever ends the block early comes with the command that goes on."""
    try:
        yield
    except UserError:
        # Going on would meet the same mistake.
        raise
    except (Exception, KeyboardInterrupt) as error:
        raise stopped from error


def _idle(plan: Plan, world: World) -> Iterator[str]:
    """Say of processes that will have little to do."""
    shards = plan.pipeline.shards
    # Who has a window by itself has all of its text.
    shared = any(run.pipeline.layers.inputs != "dense" for run in plan.runs)
    if shared and shards is not None and shards < world.size:
        yield (
            f"of {world.size} processes, {world.size - shards} have no part of the calibration "
            f"text to themselves: shards: {shards}"
        )


def _too_many(plan: Plan, checked: Checked, file: Path) -> UserError:
    """The error that asks for ``--yes``."""
    took = checked.estimate.time
    return UserError(
        f"{file} asks for {_counted(len(plan.runs))}, which take about {took}",
        hint="start them with --yes, list them with --dry-run, or thin the matrix with exclude",
    )


def _counted(pruned: int) -> str:
    return f"{pruned} pruned run{'' if pruned == 1 else 's'} and the dense model"


def _words(
    file: Path,
    settings: tuple[str, ...],
    no_plugin: tuple[str, ...],
    cache_limit: float,
    on: str | None,
    flags: Mapping[str, bool],
) -> list[str]:
    """The words of the command line that does the same, but for its folders."""
    words = ["run", str(file)]
    for setting in settings:
        words += ["--set", redacted(setting)]
    for name in no_plugin:
        words += ["--no-plugin", name]
    if cache_limit != CACHE_LIMIT:
        words += ["--cache-limit", f"{cache_limit:g}"]
    if on is not None:
        words += ["--on", on]
    for flag, chosen in flags.items():
        words += [flag] if chosen else []
    return words


def _print_plan(plan: Plan, checked: Checked) -> None:
    echo(f"{plan.pipeline.name} would do these runs in {plan.out}:")
    for run in (plan.dense, *plan.runs):
        echo(f"  {run.label}")
    for line in checked.lines():
        echo(line)


def _print_results(plan: Plan, results: Results) -> None:
    from permllm.comparing.table import rows_of, sentence, tables_of

    screen = console()
    for table in tables_of(rows_of(results), screen):
        screen.print()
        screen.print(table)
    screen.print(plain(sentence(results)), markup=False)
    screen.print()
    # Paths are for copying: never wrapped, never marked up.
    for what, where in _places(plan):
        screen.print(plain(f"{what:<12} {where}"), markup=False, soft_wrap=True, highlight=False)


def _places(plan: Plan) -> list[tuple[str, str]]:
    """What the run left behind and where."""
    places = [("run folder", str(plan.out)), ("report", str(plan.out / "report.md"))]
    for observer in plan.pipeline.track:
        where = getattr(observer, "where", None)
        if where is not None:
            places.append((observer.name, where(plan.out)))
    return places
