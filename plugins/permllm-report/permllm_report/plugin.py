"""What permllm is told about: an observer and a command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import permllm

if TYPE_CHECKING:
    import click

    from permllm.components import Observer


@permllm.hookimpl
def permllm_observers() -> Iterable[type[Observer]]:
    """The observer ``report``."""
    from permllm_report.observer import Report

    return [Report]


@permllm.hookimpl
def permllm_commands(group: click.Group) -> None:
    """The command ``permllm report``."""
    from permllm_report.command import command

    group.add_command(command)
