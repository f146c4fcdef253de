"""JSON lines: a text in each, or an error with its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from permllm.components import Document
from permllm.datasets.jsonl import JsonLines
from permllm.datasets.sequences import calibration_sequences
from permllm.pipeline.reading import load_plain_yaml
from permllm.testing.tokenizers import byte_tokenizer

LINES = [{"text": f"The quick brown fox {number}. Ünïcödé 狐", "url": "x"} for number in range(8)]


def lines(change: Any, data: list[Any]) -> bytes:
    """A file of JSON lines; changes of structure are those of all lines together."""
    whole = json.loads(json.dumps(data))
    if not change.structure:
        return change.raw("\n".join(json.dumps(one) for one in whole).encode())
    changed = change.data(whole, seal=False)
    changed = changed if isinstance(changed, list) else [changed]
    parts = [change.spelled(one) for one in changed]
    return change.raw(b"\n".join(parts))


def test_json_lines(fuzz: Any, tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "a.jsonl", byte_tokenizer()
    dataset = JsonLines(path)

    def read(change: Any) -> None:
        path.write_bytes(lines(change, LINES))
        dataset.check()
        assert all(isinstance(text, Document) for text in dataset.texts("train"))
        dataset.fingerprint("train")
        calibration_sequences(dataset, tokenizer, length=4, sequences=2, held_out=1, seed=0)

    fuzz(read, 2000)


def test_on_the_command_line(fuzz: Any, project: Path, say: Callable[..., str]) -> None:
    path, pipeline = project / "a.jsonl", project / "lines.yaml"
    data = load_plain_yaml(project / "tiny.yaml")
    data["calibration"]["dataset"] = {"name": "jsonl", "path": "a.jsonl"}
    pipeline.write_text(json.dumps(data))

    def read(change: Any) -> None:
        path.write_bytes(lines(change, LINES * 4))
        say("check", pipeline, "--out", project / "new")

    fuzz(read, 100, share=0.03)
