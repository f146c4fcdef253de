"""Run folders read back: their results, finished or not, and what they depend on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from permllm.errors import UserError, did_you_mean, nearest
from permllm.fields.errors import shown
from permllm.files import converted, read_sealed
from permllm.pipeline.reading import load_plain_yaml
from permllm.results import DENSE, Results, RunResult
from permllm.runs.events import read_events
from permllm.runs.folder import ENVIRONMENT, PIPELINE, RESULT, RESULTS, finished_runs
from permllm.runs.records import Environment, read_results


@attrs.frozen(eq=False)
class RunFolder:
    """A run's folder.

    Attributes:
        name: as the user wrote it.
        results: of all runs that finished or failed.
        pipeline: the resolved pipeline as plain data; empty if the folder has lost it.
        environment: versions, threads and fingerprints; empty if the folder has lost it.
    """

    name: str
    results: Results
    pipeline: dict[str, Any]
    environment: dict[str, Any]


@attrs.frozen
class _Matrix:
    """Of the matrix of a resolved pipeline what comparisons rely on."""

    repeat: int = 1


@attrs.frozen
class _Kept:
    """The same of the pipeline."""

    evaluate: list[dict[str, Any]] | None = None
    matrix: _Matrix | None = None


@attrs.frozen(eq=False)
class Selection:
    """What somebody wants to see of a folder.

    Attributes:
        folder: the folder.
        runs: the chosen runs, in the folder's order.
    """

    folder: RunFolder
    runs: tuple[RunResult, ...]

    @property
    def pruned(self) -> tuple[RunResult, ...]:
        """The chosen runs without the dense model's."""
        return tuple(run for run in self.runs if run.label != DENSE)


def select(arguments: Sequence[str]) -> list[Selection]:
    """The runs that some arguments name, each folder once, in the order of arguments.

    Args:
        arguments: folders, or ``FOLDER:LABEL`` for one of its runs.

    Raises:
        UserError: a folder holds no run, or none with this label.
    """
    folders: dict[Path, RunFolder] = {}
    chosen: dict[Path, set[str]] = {}
    for argument in arguments:
        name, label = split(argument)
        place = Path(name).resolve()
        if place not in folders:
            folders[place] = read_folder(name)
        chosen.setdefault(place, set()).update(_labels(folders[place], label))
    return [
        Selection(folder, tuple(run for run in folder.results.runs if run.label in chosen[place]))
        for place, folder in folders.items()
    ]


def split(argument: str) -> tuple[str, str | None]:
    """A folder and the label of one run, or None for all of its runs.

    Folders and labels may have colons themselves: the folder is the longest one that exists.
    """
    if Path(argument).is_dir():
        return argument, None
    for position in range(len(argument) - 1, 0, -1):
        if argument[position] == ":" and Path(argument[:position]).is_dir():
            return argument[:position], argument[position + 1 :]
    if Path(argument).is_file():
        raise UserError(f"'{argument}' is a file", hint="give the folder of the run")
    folder = Path(argument.partition(":")[0])
    siblings = folder.parent.iterdir() if folder.parent.is_dir() else ()
    near = nearest(folder.name, [path.name for path in siblings if path.is_dir()])
    raise UserError(
        f"there is no folder '{folder}'",
        hint=f"did you mean '{folder.parent / near}'?" if near else "give a run's folder",
    )


def read_folder(name: str) -> RunFolder:
    """Read what a run's folder holds.

    Raises:
        UserError: there is no run in it, or its files are broken.
    """
    folder = Path(name)
    if (folder / RESULTS).is_file():
        results = read_results(folder / RESULTS, older=True)
    else:
        results = _unfinished(folder)
    if not results.runs:
        begun = (folder / PIPELINE).is_file()
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{RESULTS}"))
        raise UserError(
            f"{name} holds no run that is done" if begun else f"{name} is no run's folder",
            hint=f"there is one in {', '.join(inside)}"
            if inside
            else f"a run's folder has {RESULTS} or runs/*/{RESULT}",
        )
    return RunFolder(
        name, results, _pipeline(folder / PIPELINE), _environment(folder / ENVIRONMENT)
    )


def _labels(folder: RunFolder, label: str | None) -> list[str]:
    """The labels that an argument chooses."""
    known = [run.label for run in folder.results.runs]
    if label is None:
        return known
    if label not in known:
        raise UserError(f"{folder.name} has no run '{label}'", hint=did_you_mean(label, known))
    return [label]


def _unfinished(folder: Path) -> Results:
    """The runs of a folder without results, in the order in which they were planned."""
    runs = [
        run
        for path in finished_runs(folder)
        for run in read_results(path / RESULT, older=True).runs
    ]
    plans = [event for event in read_events(folder) if event.get("event") == "plan_started"]
    planned = plans[-1].get("runs") if plans else None
    labels = [one for one in planned if isinstance(one, str)] if isinstance(planned, list) else []
    places = {label: place for place, label in enumerate([DENSE, *labels])}
    runs.sort(key=lambda run: (places.get(run.label, len(places)), run.label))
    return Results(folder.name, str(folder), tuple(runs))


def _pipeline(path: Path) -> dict[str, Any]:
    """The resolved pipeline of a folder; empty if it has none."""
    if not path.is_file():
        return {}
    data = load_plain_yaml(path)
    if not isinstance(data, dict):
        raise UserError(f"expected a mapping, not {shown(data)}", file=str(path))
    converted(data, _Kept, str(path))
    return data


def _environment(path: Path) -> dict[str, Any]:
    """What a folder says that its runs depend on; empty if it does not say it."""
    if not path.is_file():
        return {}
    data = read_sealed(path, older=True)
    converted(data, Environment, str(path))
    return data
