"""Observers: who is told how the runs go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from permllm.hooks import hookimpl

if TYPE_CHECKING:
    from permllm.components import Observer


@hookimpl
def permllm_observers() -> Iterable[type[Observer]]:
    """The built-in observers."""
    from permllm.observers.console import Console
    from permllm.observers.events import Events
    from permllm.observers.mlflow import Mlflow

    return [Console, Events, Mlflow]
