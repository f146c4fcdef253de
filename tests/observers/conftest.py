"""A made-up pipeline's run, told to observers through the real hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pluggy
import pytest

from permllm import hookspecs
from permllm.components import Observer


class Told:
    """Hooks that reach some observers, and the warnings that these gave."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)

    @property
    def hook(self) -> Any:
        return self.manager.hook

    def watch(self, observer: Observer, out: Path) -> object:
        watcher = observer.watch(out, self.warn)
        self.manager.register(watcher)
        return watcher

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.hook.permllm_warning(message=message)


@pytest.fixture
def tell() -> Callable[..., Told]:
    """Registers observers of a run in a folder: ``tell(out, Events())``."""

    def register(out: Path, *observers: Observer) -> Told:
        out.mkdir(parents=True, exist_ok=True)
        told = Told()
        for observer in observers:
            told.watch(observer, out)
        return told

    return register
