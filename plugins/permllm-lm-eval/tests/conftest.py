"""Task files and made-up questions, a cache of its own, and no network."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets.config
import pytest
import yaml

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where ``datasets`` keeps what it read."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses that something wanted to reach, all in vain."""
    wanted: list[Any] = []

    def refuse(*arguments: Any, **options: Any) -> Any:
        wanted.append(arguments)
        raise OSError("tests have no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return wanted


@pytest.fixture(scope="session")
def everything() -> Any:
    """The harness's manager of all its own tasks, which takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@pytest.fixture
def write_task(tmp_path: Path) -> Write:
    """Writes a task file into a folder of tasks; keywords replace its keys, None leaves one out."""

    def write(file: str = "quiz.yaml", **changes: Any) -> Path:
        path = tmp_path / "tasks" / file
        path.parent.mkdir(exist_ok=True, parents=True)
        settings = {
            "task": "quiz",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": str(tmp_path / "quiz.jsonl")},
            "test_split": "train",
            "output_type": "multiple_choice",
            "doc_to_text": "query",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        } | changes
        kept = {key: value for key, value in settings.items() if value is not None}
        path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def quiz(tmp_path: Path, write_task: Write) -> Path:
    """A folder with the task ``quiz``, whose questions are in ``quiz.jsonl`` beside it."""
    write_questions(tmp_path / "quiz.jsonl")
    return write_task().parent


def write_questions(path: Path, *, count: int = 24, seed: int = 0) -> Path:
    """Questions of nonsense: of several lengths, with two to five choices, not all ASCII."""
    generator = random.Random(seed)

    def words(most: int) -> str:
        known = ["cat", "Dog's", "réd", "27", "of", "日本", "a", "running,", "x-y"]
        return " ".join(generator.choices(known, k=generator.randint(1, most)))

    lines = []
    for index in range(count):
        choices = [*{words(4): None for _ in range(4)}, "last"]
        query = f"Question: {words(8)}?\nAnswer:" + generator.choice(["", "", " ", "\n"])
        gold = generator.randrange(len(choices))
        lines.append({"query": query, "choices": choices, "gold": gold, "index": index})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
