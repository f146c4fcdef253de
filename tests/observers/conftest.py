"""A made-up pipeline's run, told to observers through the real hooks; and displays."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pluggy
import pytest
from rich.console import Console as RichConsole

from permllm import hookspecs
from permllm.components import Observer
from permllm.observers.console import Narrator
from permllm.observers.displays import LineDisplay, LiveDisplay


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


class Clock:
    """A clock that tests move."""

    time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def narrate_plain():
    """A narrator that writes lines, the lines, and its clock."""

    def call() -> tuple[Narrator, list[str], Clock]:
        lines: list[str] = []
        clock = Clock()
        return Narrator(LineDisplay(lines.append, clock), clock), lines, clock

    return call


@pytest.fixture
def live():
    """A live display on a screen of some width, what is on it, and its clock."""

    def call(width: int = 80) -> tuple[LiveDisplay, io.StringIO, Clock]:
        clock = Clock()
        screen = io.StringIO()
        console = RichConsole(file=screen, force_terminal=True, width=width, color_system=None)
        return LiveDisplay(console, clock), screen, clock

    return call


@pytest.fixture
def texts():
    """Lines of a log without their time of day."""

    def call(lines: list[str]) -> list[str]:
        assert all(re.match(r"\d\d:\d\d:\d\d .*\n$", line) for line in lines)
        return [line[9:-1] for line in lines]

    return call
