"""Whether the data of a task are on this machine, as far as its file says."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from permllm.errors import UserError, nearest
from permllm_lm_eval.task_files import TaskFile

FILE_FORMATS = ("arrow", "csv", "json", "pandas", "parquet", "text", "xml")
"""Data sets of the library ``datasets`` that are files which the task names."""


def check_data(name: str, task: TaskFile, *, download: bool) -> None:
    """Look whether what a task reads is there; nothing is read, and no network asked.

    Args:
        name: the task's.
        task: its file.
        download: whether the harness may fetch what is missing.

    Raises:
        UserError: a data file is missing, or something would have to be fetched.
    """
    dataset, options = task.settings.get("dataset_path"), task.settings.get("dataset_kwargs")
    if not isinstance(dataset, str) or "custom_dataset" in task.settings:
        return
    options = options if isinstance(options, dict) else {}
    if dataset in FILE_FORMATS:
        folder = Path(str(options.get("data_dir") or ""))
        for file in _texts(options.get("data_files")):
            _check_file(name, task, file, folder, download)
    elif not download and not Path(dataset).is_dir() and not _cached(dataset).is_dir():
        raise not_here(name, task.path, f"the data set '{dataset}' of the hub")


def not_here(name: str, path: Path | None, dataset: str) -> UserError:
    """The error for data that would have to be fetched.

    Args:
        name: the task's, or that of a group or tag.
        path: its file.
        dataset: says which data these are.
    """
    return UserError(
        f"the task '{name}' reads data that are not on this machine: {dataset}",
        file=str(path) if path else None,
        hint="let them be fetched once with download: true, or give the task local files "
        "(dataset_path: json, dataset_kwargs: {data_files: …})",
    )


def _check_file(name: str, task: TaskFile, file: str, folder: Path, download: bool) -> None:
    if "://" in file:
        if not download:
            raise not_here(name, task.path, file)
        return
    path = (folder / file).absolute()
    if glob.glob(str(path), recursive=True):  # noqa: PTH207
        return
    siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, siblings)
    raise UserError(
        f"the task '{name}' reads '{path}', which does not exist",
        file=str(task.path),
        hint=f"did you mean '{near}'?"
        if near
        else "data_files of a task start at the current folder, as in the harness, "
        "not at the task file; an absolute path is safest",
    )


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value that may be a list or a mapping of splits."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))


def _cached(dataset: str) -> Path:
    """Where ``datasets`` keeps what it fetched of a data set of the hub."""
    # Late: it takes a second to import, and only data sets of the hub need it.
    import datasets.config
    from datasets.naming import camelcase_to_snakecase

    *owner, name = dataset.split("/")
    folder = "___".join([*owner, camelcase_to_snakecase(name)])
    return Path(datasets.config.HF_DATASETS_CACHE) / folder
