"""The group of all commands, plugins' commands included."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from permllm.cli import errors
from permllm.printing import echo
from permllm.version import __version__

if TYPE_CHECKING:
    from permllm.registry import Registry

COMMANDS = (
    "new",
    "run",
    "check",
    "show",
    "compare",
    "eval",
    "export",
    "verify",
    "inspect",
    "generate",
    "bench",
    "cache",
    "plugins",
    "schema",
)
"""The built-in commands, each in its file of this folder under its own name."""


class PermllmGroup(click.Group):
    """Commands are imported when they are asked for; plugins may add their own."""

    registry: Registry | None = None

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._load_plugins()
        return [*COMMANDS, *sorted(self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module = importlib.import_module(f"permllm.cli.{cmd_name}")
            command: click.Command = module.command
            return command
        registry = self._load_plugins()
        from permllm.extras import missing_for_pruning

        if cmd_name not in self.commands and not missing_for_pruning():
            # The command may be that of a plugin that is broken: say so. Where nothing can
            # prune, all of them are.
            for warning in registry.warnings:
                echo(f"warning: {warning}", err=True)
        return self.commands.get(cmd_name)

    def _load_plugins(self) -> Registry:
        if self.registry is None:
            from permllm.cli.registry import add_plugin_commands
            from permllm.registry import Registry

            self.registry = Registry.load()
            add_plugin_commands(self, self.registry, reserved=COMMANDS)
        return self.registry


@click.group(
    cls=PermllmGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 the run failed, 2 wrong input, 130 interrupted (143 by SIGTERM, "
    "129 by SIGHUP).",
)
@click.version_option(__version__, prog_name="permllm")
@errors.debug_option
def cli() -> None:
    """Prune language models to N:M sparsity with learned channel permutations.

    Start with `permllm run pipelines/quickstart.yaml`.
    """


def let_waiting_threads_sleep() -> None:
    """Have OpenMP's threads, which PyTorch is yet to start, soon sleep where they wait.

    By default they spin for long, since that wakes up sooner: beside other work on the same
    cores that takes several times as long. To sleep at once is as dear on virtual machines,
    where waking up is slow, so GNU's threads spin for a microsecond or so.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def main(arguments: list[str] | None = None) -> Any:
    """The entry point of ``permllm``; ends the process with an exit code."""
    let_waiting_threads_sleep()
    sys.exit(errors.call(cli, arguments))
