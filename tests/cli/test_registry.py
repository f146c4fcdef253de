"""What plugins add to the command line, and the warnings that it starts with."""

from __future__ import annotations

import re
from pathlib import Path


def test_commands_of_a_plugin(permllm, plugins: str) -> None:
    done = permllm("hello", PYTHONPATH=plugins)
    assert (done.returncode, done.stdout) == (0, "hello\n")


def test_help_lists_them_and_built_in_commands_stay(permllm, plugins: str) -> None:
    done = permllm("--help", PYTHONPATH=plugins)
    assert done.returncode == 0
    assert re.search(r"^  hello +Say hello\.$", done.stdout, re.MULTILINE)
    assert done.stdout.count("\n  run ") == 1
    assert "'works' wants to add the command 'run', which is built in" in done.stderr


def test_plugins_can_be_switched_off(permllm, plugins: str) -> None:
    done = permllm("hello", PYTHONPATH=plugins, PERMLLM_DISABLE_PLUGINS="works,broken")
    assert done.returncode == 2
    assert "No such command 'hello'" in done.stderr


def test_broken_plugin_that_nobody_uses_is_a_warning(permllm, project: Path, plugins: str) -> None:
    done = permllm("show", "tiny.yaml", cwd=project, PYTHONPATH=plugins)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the plugin 'broken' (permllm-broken 1.5) is broken") == 1
    quiet = permllm("show", "tiny.yaml", "--no-plugin", "broken", cwd=project, PYTHONPATH=plugins)
    assert (quiet.returncode, quiet.stderr) == (0, "")
