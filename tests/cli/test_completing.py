"""The shells get names of components, files and plugins."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WORDS = {
    "permllm plugins info wan": "wanda",
    "permllm export --format per": "permuted",
    "permllm eval --evaluate perp": "perplexity",
    "permllm run --no-plugin permllm.met": "permllm.metrics",
    "permllm comp": "compare",
}


def asked(permllm, shell: str, words: str) -> list[str]:
    """What the shell's function gets from permllm for the word at the end."""
    last = words.rpartition(" ")[2]
    place = last if shell == "fish" else str(words.count(" "))
    variables = {"_PERMLLM_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": place}
    done = permllm(**variables)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_names_are_completed(permllm, shell: str) -> None:
    for words, expected in WORDS.items():
        said = asked(permllm, shell, words)
        names = said[1::3] if shell == "zsh" else [line.partition(",")[2] for line in said]
        assert expected in [name.partition("\t")[0] for name in names], words


@pytest.mark.parametrize(
    "words",
    ["permllm run ti", "permllm eval mod", "permllm compare runs/", "permllm verify x --against m"],
)
def test_files_are_left_to_the_shell(permllm, words: str) -> None:
    (said,) = asked(permllm, "bash", words)
    assert said == f"file,{words.rpartition(' ')[2]}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_for_the_shell(permllm, shell: str, tmp_path: Path) -> None:
    done = permllm(_PERMLLM_COMPLETE=f"{shell}_source")
    assert done.returncode == 0, done.stderr
    assert f"_PERMLLM_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_a_component(tmp_path: Path) -> None:
    script = """
        eval "$(_PERMLLM_COMPLETE=bash_source permllm)"
        COMP_WORDS=(permllm plugins info ri) COMP_CWORD=3
        _permllm_completion permllm
        echo "${COMPREPLY[@]}"
    """
    program = Path(sys.executable).with_name("permllm")
    if not program.exists():
        pytest.skip("permllm is not installed as a program")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ria"]
