"""Finds the files of tasks without the harness, which takes seconds to import and to index.

The harness leaves out what it cannot read and later knows no such task; here a file
that matters and is broken is an error with its place.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import yaml

from permllm.errors import UserError, nearest

IGNORED_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}
"""Where the harness does not look for tasks."""

_KEY = r"""["']?(?:task|group|tag)["']?[ \t]*:"""
_NAMES = re.compile(rf"^{_KEY}(.*(?:\n[ \t]*-[ \t]+[^:\n]*$)*)", re.MULTILINE)
_COMMENT = re.compile(r"(?:^|[ \t])#.*", re.MULTILINE)
_TASK = re.compile(r"""^["']?task["']?[ \t]*:[ \t]*["']?([^\n"'#\[]*[^\s"'#\[])""", re.MULTILINE)
_BETWEEN = re.compile(r"[,\[\]\n]")


@attrs.frozen
class TaskFile:
    """The file that defines a task.

    Attributes:
        path: the file.
        settings: its keys and values, those of the files that it includes among them;
            functions are given by their names.
    """

    path: Path
    settings: dict[str, Any]

    def metrics(self) -> set[str] | None:
        """The names of the metrics; None where the file does not tell."""
        listed = self.settings.get("metric_list")
        if not isinstance(listed, list) or "process_results" in self.settings:
            return None
        if not all(isinstance(each, dict) for each in listed):
            return None
        # A function, such as utils.my_metric, is known by its own name.
        return {str(each.get("metric")).rpartition(".")[2] for each in listed}


@attrs.frozen
class Names:
    """The names that some folders define.

    Attributes:
        tasks: the file of each task.
        tags: names that several tasks carry.
        groups: the names of each group's members.
        broken: what is wrong with files that cannot be read.
    """

    tasks: dict[str, Path] = attrs.field(factory=dict)
    tags: frozenset[str] = frozenset()
    groups: dict[str, tuple[str, ...]] = attrs.field(factory=dict)
    broken: tuple[UserError, ...] = ()

    def __contains__(self, name: str) -> bool:
        return name in self.tasks or name in self.tags or name in self.groups

    def complete(self, name: str) -> bool:
        """Whether a name stands for tasks of these folders only."""
        if name not in self.groups:
            return name in self
        rest = attrs.evolve(self, groups={k: v for k, v in self.groups.items() if k != name})
        return all(rest.complete(member) for member in self.groups[name])


@attrs.frozen
class Found:
    """Where tasks are defined.

    Attributes:
        files: the file of each task; None for groups and tags, which have several.
        built_in: whether some of these have tasks of the harness's own.
    """

    files: dict[str, TaskFile | None]
    built_in: bool


def find_tasks(names: Iterable[str], folders: Sequence[Path]) -> Found:
    """The files of some tasks.

    Args:
        names: of tasks, groups or tags.
        folders: the user's, the later before the earlier ones and all before the harness's.

    Raises:
        UserError: a folder has no tasks, a file is broken, or a name is not known.
    """
    own = names_in(folders)
    harness = Names()
    files: dict[str, TaskFile | None] = {}
    for name in names:
        if name not in own and not harness.tasks:
            harness = harness_names()
        if name not in own and name not in harness:
            raise own.broken[0] if own.broken else _unknown(name, own, harness)
        path = (own if name in own else harness).tasks.get(name)
        files[name] = TaskFile(path, read_settings(path)) if path else None
    return Found(files, any(not (file or own.complete(name)) for name, file in files.items()))


def names_in(folders: Sequence[Path]) -> Names:
    """What the task files of some folders define; of one folder's files, the first counts.

    Raises:
        UserError: a folder is missing or has no task files.
    """
    tasks: dict[str, Path] = {}
    tags: set[str] = set()
    groups: dict[str, tuple[str, ...]] = {}
    broken: list[UserError] = []
    for folder in folders:
        own: dict[str, Path] = {}
        for path in _files(folder):
            try:
                settings = read_settings(path)
            except UserError as error:
                broken.append(error)
                continue
            task, group = settings.get("task"), settings.get("group")
            if isinstance(group, str):
                groups[group] = tuple(_member(each) for each in _listed(task))
            elif isinstance(task, str):
                own.setdefault(task, path)
                tags.update(_listed(settings.get("tag")))
        tasks |= own
    return Names(tasks, frozenset(tags), groups, tuple(broken))


@cache
def harness_names() -> Names:
    """The harness's own tasks by a look at the text of its 14,000 files, once.

    Groups, and tasks that only groups name, are among the tags.
    """
    tasks: dict[str, Path] = {}
    others: set[str] = set()
    for path in sorted(harness_folder().rglob("*")):
        if path.suffix not in (".yaml", "") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for listed in _NAMES.findall(text):
            for item in _BETWEEN.split(_COMMENT.sub("", listed)):
                others.add(item.strip().removeprefix("- ").strip(" \t\"'"))
        if path.suffix and (task := _TASK.search(text)):
            tasks.setdefault(task[1], path)
    return Names(tasks, frozenset(others))


def harness_folder() -> Path:
    """The folder of the harness's own tasks; the harness is not imported."""
    spec = importlib.util.find_spec("lm_eval")
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise UserError("lm-eval is not installed", hint="pip install --upgrade permllm-lm-eval")
    return Path(places[0]) / "tasks"


def read_settings(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a task file and the files that it includes say; its own values win.

    Args:
        path: the file.
        including: the files that led here.

    Raises:
        UserError: a file is missing, no YAML, no mapping, or includes itself.
    """
    path = path.resolve()
    if path in including:
        raise UserError("the task file includes itself", file=str(path))
    try:
        settings = yaml.load(path.read_bytes(), Loader=_Loader)
    except OSError as error:
        source = f", included by '{including[-1]}'" if including else ""
        raise UserError(f"cannot read '{path}'{source}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise _no_yaml(error, path) from error
    if not isinstance(settings, dict):
        raise UserError("a task file must be a mapping, such as 'task: my-task'", file=str(path))
    merged: dict[str, Any] = {}
    for name in _listed(settings.pop("include", None)):
        merged |= read_settings(path.parent / name, (*including, path))
    return merged | settings


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """Reads YAML as the harness does, but functions by their names only."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def _no_yaml(error: yaml.YAMLError, path: Path) -> UserError:
    mark = getattr(error, "problem_mark", None)
    place = {"line": mark.line + 1, "column": mark.column + 1} if mark else {}
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return UserError(f"the task file is no YAML: {problem}", file=str(path), **place)


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(
            f"the task folder '{folder}' {kind}",
            hint="task_folders are relative to the pipeline file",
        )
    paths = [path for path in folder.rglob("*.yaml") if not IGNORED_FOLDERS & set(path.parts)]
    if not paths:
        raise UserError(f"the task folder '{folder}' has no task files (*.yaml)")
    yield from sorted(paths)


def _unknown(name: str, own: Names, harness: Names) -> UserError:
    mine = {*own.tasks, *own.tags, *own.groups}
    near = nearest(name, mine) or nearest(name, harness.tasks)
    guess = f"did you mean '{near}'? " if near else ""
    listing = f"known in your folders: {', '.join(sorted(mine))}; " if mine else ""
    return UserError(
        f"lm-eval knows no task '{name}'",
        hint=f"{guess}{listing}'lm-eval ls tasks' lists the harness's own",
    )


def _member(entry: Any) -> str:
    """The name of a group's member, which may have settings of its own."""
    return str(entry.get("task") or entry.get("group")) if isinstance(entry, dict) else str(entry)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
