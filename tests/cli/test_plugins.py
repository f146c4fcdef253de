"""Plugins of other packages on the command line: commands, lists, breakage."""

from __future__ import annotations

import json
from pathlib import Path


def test_commands_of_a_plugin(permllm, plugins: str) -> None:
    done = permllm("hello", PYTHONPATH=plugins)
    assert (done.returncode, done.stdout) == (0, "hello\n")


def test_help_lists_them_and_built_in_commands_stay(permllm, plugins: str) -> None:
    done = permllm("--help", PYTHONPATH=plugins)
    assert done.returncode == 0
    assert "  hello    Say hello." in done.stdout
    assert done.stdout.count("\n  run ") == 1
    assert "'works' wants to add the command 'run', which is built in" in done.stderr


def test_plugins_can_be_switched_off(permllm, plugins: str) -> None:
    done = permllm("hello", PYTHONPATH=plugins, PERMLLM_DISABLE_PLUGINS="works,broken")
    assert done.returncode == 2
    assert "No such command 'hello'" in done.stderr


def test_broken_plugin_is_listed_with_package_and_reason(permllm, plugins: str) -> None:
    done = permllm("plugins", "--json", PYTHONPATH=plugins)
    assert done.returncode == 0
    found = {plugin["name"]: plugin for plugin in json.loads(done.stdout)}
    assert found["broken"]["status"] == "broken"
    assert found["broken"]["distribution"] == "permllm-broken"
    assert "no such luck" in found["broken"]["error"]
    assert found["works"]["components"][0]["name"] == "breaks"


def test_broken_plugin_that_nobody_uses_is_a_warning(permllm, project: Path, plugins: str) -> None:
    done = permllm("show", "tiny.yaml", cwd=project, PYTHONPATH=plugins)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the plugin 'broken' (permllm-broken 1.5) is broken") == 1
    quiet = permllm("show", "tiny.yaml", "--no-plugin", "broken", cwd=project, PYTHONPATH=plugins)
    assert (quiet.returncode, quiet.stderr) == (0, "")
