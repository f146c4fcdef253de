"""What a pipeline file asks for: a plan of runs, one for each cell of its matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from permllm.pipeline.lookup import Lookup
from permllm.pipeline.reading import Study, read_study
from permllm.pipeline.schema import Pipeline
from permllm.results import DENSE
from permllm.runs import folder, plugin_files
from permllm.world import World


@attrs.frozen
class Run:
    """One run: the dense model's evaluation, or one pruned model.

    Attributes:
        label: ``"dense"``, or the matrix values that tell this run apart.
        pipeline: what it does, with the matrix values in place.
        options: the dotted keys and values that the matrix set.
        directory: where its windows, plots and exports go.
        setting: the label that all repeats of one setting share.
        repeat: which repeat of its setting it is, from 0.
    """

    label: str
    pipeline: Pipeline
    options: dict[str, Any]
    directory: Path
    setting: str = attrs.field(default=attrs.Factory(lambda self: self.label, takes_self=True))
    repeat: int = 0


@attrs.frozen
class Plan:
    """All runs of a pipeline file.

    Attributes:
        pipeline: the file's pipeline, without the matrix applied.
        runs: the pruned runs in the order of the matrix; the dense run comes before.
        dense: the dense model's run.
        out: the folder of the whole pipeline's run.
        named: whether somebody chose that folder; else it is to be a new one.
    """

    pipeline: Pipeline
    runs: tuple[Run, ...]
    dense: Run
    out: Path
    named: bool = True

    def settled(self) -> Plan:
        """The plan with its folder made, where it is to be a new one.

        Raises:
            UserError: the folder cannot be made.
        """
        return self if self.named else self.moved(folder.made(self.out))

    def moved(self, out: Path) -> Plan:
        """The plan in another folder, which somebody chose."""
        moved = [
            attrs.evolve(run, directory=out / run.directory.relative_to(self.out))
            for run in (self.dense, *self.runs)
        ]
        return attrs.evolve(self, dense=moved[0], runs=tuple(moved[1:]), out=out, named=True)

    def sharded(self, processes: int, *, resume: bool = False) -> Plan:
        """The plan with as many shards as processes, unless it says how many or began with others.

        Args:
            processes: of one, which needs none, nothing is said.
            resume: whether it goes on in its folder.
        """
        if self.pipeline.shards is not None:
            return self
        before = folder.kept_shards(self.out) if resume else None
        return self.with_shards(before or (processes if processes > 1 else None))

    def with_shards(self, shards: int | None) -> Plan:
        """The plan with so many shards, which are those of all runs."""

        def cut(run: Run) -> Run:
            return attrs.evolve(run, pipeline=attrs.evolve(run.pipeline, shards=shards))

        return attrs.evolve(
            self,
            pipeline=attrs.evolve(self.pipeline, shards=shards),
            runs=tuple(map(cut, self.runs)),
            dense=cut(self.dense),
        )


def make_plan(
    path: Path,
    registry: Lookup,
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
    recorded = partial(plugin_files.recorded, out) if resume else None
    study = read_study(path, registry, settings, recorded)
    if out is None and not resume:
        return plan_of(study, folder.new_folder(study.pipeline.name), named=False)
    return plan_of(study, out or folder.latest_unfinished(study.pipeline.name))


def shared_plan(
    world: World, find: Callable[[], Plan | None], make: Callable[[Path], Plan]
) -> Plan | None:
    """The plan of several processes, in the folder and with the shards that the first decides on.

    Args:
        world: the processes.
        find: the first process's plan, settled; None where there is nothing to do.
        make: the same of a folder that is there.
    """
    return world.followed(
        find,
        lambda plan: (plan.out, plan.pipeline.shards),
        lambda place: make(place[0]).with_shards(place[1]),
    )


def plan_of(study: Study, out: Path, *, named: bool = True) -> Plan:
    """The plan of a study, whose folder is ``out``."""
    names = folder.unique_slugs([DENSE, *(cell.label for cell in study.cells)])[1:]
    runs = tuple(
        Run(cell.label, cell.pipeline, cell.options, out / "runs" / name, cell.setting, cell.repeat)
        for cell, name in zip(study.cells, names, strict=True)
    )
    dense = Run(DENSE, study.pipeline, {}, out / "runs" / DENSE)
    return Plan(study.pipeline, runs, dense, out, named)
