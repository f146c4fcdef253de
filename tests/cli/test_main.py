"""The command line starts quickly, says what there is, and refuses wrong usage."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from permllm.cli.main import COMMANDS

HEAVY = ("torch", "transformers", "mlflow", "matplotlib", "cattrs", "numpy", "datasets")


@pytest.fixture(scope="module")
def listed(permllm) -> None:
    """What the plugins add was listed before, and is remembered."""
    assert permllm("plugins").returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["nonsense"],
        ["plugins"],
        ["plugins", "--json"],
        ["plugins", "info", "lcp"],
        ["plugins", "new", "--help"],
    ],
)
@pytest.mark.usefixtures("listed")
def test_starts_without_heavy_imports(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from permllm.cli.main import main\n"
        "try:\n"
        f"    main({words})\n"
        "except SystemExit:\n"
        f"    print('heavy:', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if words == ["nonsense"]:
        assert "No such command 'nonsense'" in said.stderr
    else:
        assert said.stdout.endswith("heavy: []\n")


def test_help_names_every_command(permllm) -> None:
    done = permllm("--help")
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(permllm, name: str) -> None:
    done = permllm(name, "--help")
    assert done.returncode == 0
    assert "--debug" in done.stdout


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["run"], ["run", "--nonsense", "x.yaml"], ["eval", "x", "--length", "-3"]],
)
def test_wrong_usage_exits_with_2(permllm, words: list[str]) -> None:
    done = permllm(*words)
    assert done.returncode == 2
    assert "Usage:" in done.stderr
    assert "Traceback" not in done.stderr


def test_threads_that_wait_sleep() -> None:
    """Said before PyTorch starts them, and kept where the user says otherwise."""
    program = (
        "import os, sys; from permllm.cli import errors, main; "
        "errors.call = lambda *_: print(os.environ['OMP_WAIT_POLICY'], "
        "os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules); "
        "main.main([])"
    )
    for given, expected in (
        ({}, "PASSIVE 1000 False"),
        ({"GOMP_SPINCOUNT": "5"}, "PASSIVE 5 False"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None False"),
    ):
        environment = {
            k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        } | given
        words = [sys.executable, "-c", program]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr
