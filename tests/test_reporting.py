"""What reports of one's own are made of."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from permllm import reporting
from permllm.testing.studies import write_study


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(Path("runs/quickstart-20260131-120000"), layers=2)
    namespace = {name: getattr(reporting, name) for name in reporting.__all__} | {"Path": Path}
    exec(textwrap.dedent((reporting.__doc__ or "").partition("::\n")[2]), namespace)
    sentence, *lines = capsys.readouterr().out.splitlines()
    assert "perplexity" in sentence.lower()
    assert [line.split()[:2] for line in lines] == [
        [label, layer] for label in ("none", "cp", "lcp") for layer in ("0", "1")
    ]
    assert all(line.endswith(" %") for line in lines)
