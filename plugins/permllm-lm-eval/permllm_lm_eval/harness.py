"""Runs tasks through the harness. Importing this module imports the harness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import lm_eval
from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager

from permllm.errors import PermllmError, UserError
from permllm_lm_eval.surroundings import OTHER_SEED
from permllm_lm_eval.task_data import not_here
from permllm_lm_eval.task_files import Found, TaskFile

BOOTSTRAP = 1000
"""Resamples for the standard error of metrics that are no means."""

_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    TypeError,
    ValueError,
)
"""What a mistake in a task ends in when the harness meets it late."""


@attrs.frozen
class Loaded:
    """Tasks that are ready to run.

    Attributes:
        tasks: the harness's objects by name.
        groups: the same for groups.
        reported: the names that results are wanted for: of a group that the harness
            averages its own, of another its members'.
    """

    tasks: dict[str, Any]
    groups: dict[str, Any]
    reported: tuple[str, ...]


def load_tasks(wanted: Found, folders: Sequence[Path], errors: list[str]) -> Loaded:
    """Tasks with their data.

    Args:
        wanted: where they are defined.
        folders: the user's.
        errors: what the harness logs as an error goes there.

    Raises:
        UserError: a name is not known, or a task is broken or lacks its data.
    """
    # An index of all files takes many seconds, and tasks with a file need none.
    indexed = None in wanted.files.values()
    manager = TaskManager(
        include_path=list(folders) if indexed else None, include_defaults=wanted.built_in
    )
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    reported: dict[str, None] = {}
    for name, file in wanted.files.items():
        found = _load(manager, name, file, errors)
        new = found["tasks"]
        if twice := sorted(tasks.keys() & new.keys()):
            raise UserError(
                f"the task '{twice[0]}' is asked for twice, the second time by '{name}'",
                hint="put one of them into an evaluator of its own",
            )
        for task in new.values():
            _check(task)
        tasks |= new
        groups |= found.get("groups", {})
        reported |= dict.fromkeys(_reported(groups[name]) if name in groups else new)
    return Loaded(tasks, groups, tuple(reported))


def _load(manager: Any, name: str, file: TaskFile | None, errors: list[str]) -> dict[str, Any]:
    """What the harness loads for one name."""
    if file is None and name not in manager.all_tasks:
        raise UserError(
            f"lm-eval knows no task, group or tag '{name}'",
            hint="'lm-eval ls tasks' lists the harness's own",
        )
    path = file.path if file else manager.task_index[name].yaml_path
    errors.clear()
    try:
        return manager.load([str(file.path) if file else name])
    except ConnectionError as error:
        raise not_here(name, path, _first_line(error)) from error
    # A task may run anybody's code.
    except Exception as error:
        raise _broken(name, path, error, errors) from error


def _broken(name: str, path: Path | None, error: Exception, errors: list[str]) -> UserError:
    said = f"; the harness says: {errors[-1].splitlines()[0]}" if errors else ""
    return UserError(
        f"the harness cannot load the task '{name}': {_first_line(error)}{said}",
        file=str(path) if path else None,
    )


def _check(task: Any) -> None:
    """Refuse what permllm does not do.

    Raises:
        UserError: the task runs code that the model writes, wants more than text, or has
            a metric that is not there.
    """
    name = task.task_name
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(
            f"the task '{name}' runs code that the model writes, which permllm does not do"
        )
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"the task '{name}' has images or sounds; permllm's models read text")
    if task.get_config("process_results") is None:
        for metric, function in getattr(task, "_metric_fn_list", {}).items():
            if function is None:
                raise UserError(
                    f"the task '{name}' has the metric '{metric}', which is none of the "
                    "harness's; those of the library evaluate have to be fetched",
                )


def set_shots(tasks: Mapping[str, Any], shots: int | None, seed: int | None) -> None:
    """Set how many examples stand before each question, and the seed that chooses them.

    Args:
        tasks: the harness's objects.
        shots: None for each task's own number, which is 0 where it says nothing.
        seed: of the choice; None for the harness's own.

    Raises:
        UserError: a task fixes the number to 0, or has too few examples.
    """
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if shots and own == 0:
            raise UserError(
                f"the task '{name}' says num_fewshot: 0, since its questions need no examples "
                "or hold them already",
                hint="leave few_shot out for it",
            )
        wanted = own or 0 if shots is None else shots
        task.set_config("num_fewshot", wanted)
        task.set_fewshot_seed(OTHER_SEED if seed is None else seed)
        examples = getattr(getattr(task, "sampler", None), "df", None)
        if examples is not None and len(examples) < wanted:
            raise UserError(
                f"few_shot: {wanted} is too much for the task '{name}', which has "
                f"{len(examples)} questions to take examples from"
            )


def run(model: Any, loaded: Loaded, *, limit: int | None) -> dict[str, dict[str, Any]]:
    """The harness's results by task and group.

    Args:
        model: a language model of the harness.
        loaded: the tasks.
        limit: how many questions of each task to ask, the first ones; None for all.

    Raises:
        UserError: a task is broken in a way that only its questions show.
    """
    tasks = {"tasks": loaded.tasks, "groups": loaded.groups}
    try:
        results = lm_eval.evaluate(
            lm=model, task_dict=tasks, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False
        )
    except PermllmError:
        raise
    except _FAULTS as error:
        names = ", ".join(f"'{name}'" for name in loaded.tasks)
        raise UserError(f"the harness cannot run {names}: {_first_line(error)}") from error
    return results["results"]


def _reported(item: Any) -> Iterator[str]:
    if not isinstance(item, Group):
        yield item.task_name
    elif item.has_aggregation:
        yield item.name
    else:
        for member in item:
            yield from _reported(member)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
